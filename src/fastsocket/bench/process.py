# SPDX-License-Identifier: GPL-2.0-or-later
"""Servers under test: started inside a namespace, waited for, and ended without leftovers."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from fastsocket.bench.netspace import Netspace
from fastsocket.errors import ConflictError, FastsocketError

__all__ = [
    "HTTP",
    "Greeting",
    "Program",
    "confined",
    "ensure_free",
    "free_port",
    "running_server",
    "running_servers",
    "spawn",
]

READY_SECONDS = 15.0
STOP_SECONDS = 5.0
_PAUSE = 0.02


class Greeting(NamedTuple):
    """What to send to a server that may be up, and what its answer then has in it."""

    request: bytes
    answer: bytes


HTTP = Greeting(b"GET / HTTP/1.0\r\nHost: localhost\r\n\r\n", b" 200 ")


class Program(NamedTuple):
    """A server to start: its command, where it listens, and the CPUs it is kept to (empty: all)."""

    command: Sequence[str]
    endpoint: tuple[str, int]
    cpus: Sequence[int] = ()
    greeting: Greeting = HTTP


@contextmanager
def confined(cpus: Sequence[int]) -> Iterator[None]:
    """Keep the calling thread, and what it starts, to `cpus` for a block; empty changes nothing."""
    before = os.sched_getaffinity(0)
    if cpus:
        os.sched_setaffinity(0, cpus)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def spawn(
    command: Sequence[str], netspace: Netspace, errors: int, output: int = subprocess.DEVNULL
) -> subprocess.Popen[str]:
    """Start `command` inside `netspace`, in a session of its own (Ctrl-C is ours alone).

    It gets SIGTERM when this process dies (prctl(2) PR_SET_PDEATHSIG, by setpriv(1)), so that a
    killed bench leaves no server behind.

    Raises:
        FastsocketError: The program cannot be started.
    """
    setpriv = shutil.which("setpriv")
    bound = [setpriv, "--pdeathsig", "TERM", "--"] if setpriv else []
    try:
        with netspace.entered():
            return subprocess.Popen(
                [*bound, *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=errors,
                text=True,
                start_new_session=True,
            )
    except OSError as error:
        raise FastsocketError(f"{command[0]} cannot be started", error.strerror or "") from error


def free_port(address: str) -> int:
    """Return a TCP port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((address, 0))
        port: int = probe.getsockname()[1]
        return port


def ensure_free(netspace: Netspace, address: str, port: int) -> None:
    """Check that `port` can be had, and keep it from clients.

    Raises:
        ConflictError: It is taken, or not allowed.
    """
    netspace.reserve(port)
    with netspace.entered(), socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
            probe.listen()
        except OSError as error:
            raise ConflictError(
                f"port {port} cannot be had", error.strerror or "", "choose another with --port"
            ) from error


@contextmanager
def running_server(
    command: Sequence[str],
    netspace: Netspace,
    endpoint: tuple[str, int],
    report: Callable[[str], None],
    patience: float = READY_SECONDS,
) -> Iterator[subprocess.Popen[str]]:
    """Run one HTTP server for a block; see :func:`running_servers`."""
    programs = [Program(command, endpoint)]
    with running_servers(programs, netspace, report, patience) as (process,):
        yield process


@contextmanager
def running_servers(
    programs: Sequence[Program],
    netspace: Netspace,
    report: Callable[[str], None],
    patience: float = READY_SECONDS,
) -> Iterator[list[subprocess.Popen[str]]]:
    """Run servers for a block: each answers its greeting before the block starts.

    Args:
        programs: In the foreground; SIGTERM ends each.
        netspace: Where they listen.
        report: Is told of processes that had to be killed afterwards.
        patience: Seconds until the first answer.

    Raises:
        ConflictError: A port is taken.
        FastsocketError: One does not start or does not answer; its last words are quoted.
    """
    for program in programs:
        ensure_free(netspace, *program.endpoint)
    processes: list[subprocess.Popen[str]] = []
    with ExitStack() as stack:
        files = [stack.enter_context(tempfile.TemporaryFile()) for _ in programs]
        try:
            for program, errors in zip(programs, files, strict=True):
                with confined(program.cpus):
                    output = errors.fileno()
                    processes.append(spawn(program.command, netspace, output, output))
            for process, program, errors in zip(processes, programs, files, strict=True):
                _await_answer(process, program, netspace, errors.fileno(), patience)
            yield processes
        finally:
            _stop(processes, netspace, report)


def _await_answer(
    process: subprocess.Popen[str],
    program: Program,
    netspace: Netspace,
    errors: int,
    patience: float,
) -> None:
    """Return once the server answers its greeting."""
    name, end = _name(program.command), time.monotonic() + patience
    seen = "nobody listened"
    while time.monotonic() < end:
        status = process.poll()
        if status is not None:
            how = f"signal {-status}" if status < 0 else f"status {status}"
            raise FastsocketError(f"{name} ended at once with {how}", _last_words(errors, process))
        try:
            with netspace.entered():
                connection = socket.create_connection(program.endpoint, timeout=1)
            with connection:
                connection.sendall(program.greeting.request)
                answer = connection.recv(64)
        except OSError as error:
            seen = error.strerror or str(error)
        else:
            if program.greeting.answer in answer:
                return
            seen = f"it answered {answer[:32]!r}"
        time.sleep(_PAUSE)
    raise FastsocketError(
        f"{name} did not answer within {patience:.0f} s",
        f"{seen}; {_last_words(errors, process)}".rstrip("; "),
    )


def _name(command: Sequence[str]) -> str:
    """Return what a user calls the command: also the one behind ``fastsocket run``."""
    if "--" in command:
        behind = Path(command[list(command).index("--") + 1]).name
        return f"{behind} under 'fastsocket run'"
    return Path(command[0]).name


def _last_words(descriptor: int, process: subprocess.Popen[str]) -> str:
    """Return the last line that a server printed; nginx's `[emerg] 1#1:` goes."""
    text = os.pread(descriptor, os.fstat(descriptor).st_size, 0).decode(errors="replace")
    lines = [line for line in text.splitlines() if line.strip()]
    mark = f"{process.pid}#{process.pid}: "
    return lines[-1].replace(mark, "") if lines else "it said nothing"


def _stop(
    processes: Sequence[subprocess.Popen[str]], netspace: Netspace, report: Callable[[str], None]
) -> None:
    """End the servers, then what outlives them; everything in a private namespace is theirs."""
    for process in processes:
        process.terminate()
    end = time.monotonic() + STOP_SECONDS
    for process in processes:
        with suppress(subprocess.TimeoutExpired):
            process.wait(max(end - time.monotonic(), 0))
    end = time.monotonic() + STOP_SECONDS
    while (left := netspace.processes()) and time.monotonic() < end:
        time.sleep(_PAUSE)
    stuck = [process for process in processes if process.poll() is None]
    if stuck or left:
        names = ", ".join(dict.fromkeys(_name(process.args) for process in processes))  # type: ignore[arg-type]
        report(f"{max(len(left), len(stuck))} processes outlived SIGTERM to {names}")
        for process in processes:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for process in stuck:
            process.wait()
