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
from contextlib import contextmanager, suppress
from pathlib import Path

from fastsocket.bench.netspace import Netspace
from fastsocket.errors import ConflictError, FastsocketError

__all__ = ["ensure_free", "free_port", "running_server", "spawn"]

READY_SECONDS = 15.0
STOP_SECONDS = 5.0
_PAUSE = 0.02
_REQUEST = b"GET / HTTP/1.0\r\nHost: localhost\r\n\r\n"


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
    """Check that `port` can be had.

    Raises:
        ConflictError: It is taken, or not allowed.
    """
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
) -> Iterator[subprocess.Popen[str]]:
    """Run a server for a block: it answers a request before the block starts.

    Args:
        command: In the foreground; SIGTERM ends it.
        netspace: Where it listens.
        endpoint: Address and port of its listener.
        report: Is told of processes that had to be killed afterwards.

    Raises:
        ConflictError: The port is taken.
        FastsocketError: It does not start or does not answer; its last words are quoted.
    """
    ensure_free(netspace, *endpoint)
    with tempfile.TemporaryFile() as errors:
        process = spawn(command, netspace, errors.fileno(), errors.fileno())
        try:
            _await_answer(process, command, netspace, endpoint, errors.fileno())
            yield process
        finally:
            _stop(process, netspace, report)


def _await_answer(
    process: subprocess.Popen[str],
    command: Sequence[str],
    netspace: Netspace,
    endpoint: tuple[str, int],
    errors: int,
) -> None:
    """Return once the server answers a request with status 200."""
    end = time.monotonic() + READY_SECONDS
    seen = "nobody listened"
    while time.monotonic() < end:
        status = process.poll()
        if status is not None:
            how = f"signal {-status}" if status < 0 else f"status {status}"
            raise FastsocketError(
                f"{_name(command)} ended at once with {how}", _last_words(errors, process.pid)
            )
        try:
            with netspace.entered():
                connection = socket.create_connection(endpoint, timeout=1)
            with connection:
                connection.sendall(_REQUEST)
                answer = connection.recv(64)
        except OSError as error:
            seen = error.strerror or str(error)
        else:
            if answer.startswith(b"HTTP/1.") and b" 200 " in answer:
                return
            seen = f"it answered {answer[:32]!r}"
        time.sleep(_PAUSE)
    raise FastsocketError(
        f"{_name(command)} did not answer within {READY_SECONDS:.0f} s",
        f"{seen}; {_last_words(errors, process.pid)}".rstrip("; "),
    )


def _name(command: Sequence[str]) -> str:
    """Return what a user calls the command: also the one behind ``fastsocket run``."""
    if "--" in command:
        behind = Path(command[list(command).index("--") + 1]).name
        return f"{behind} under 'fastsocket run'"
    return Path(command[0]).name


def _last_words(descriptor: int, pid: int) -> str:
    """Return the last line that a server printed; nginx's `[emerg] 1#1:` goes."""
    text = os.pread(descriptor, os.fstat(descriptor).st_size, 0).decode(errors="replace")
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].replace(f"{pid}#{pid}: ", "") if lines else "it said nothing"


def _stop(
    process: subprocess.Popen[str], netspace: Netspace, report: Callable[[str], None]
) -> None:
    """End the server, then whatever of it outlives it; everything in a private namespace is its."""
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(STOP_SECONDS)
    end = time.monotonic() + STOP_SECONDS
    while (left := netspace.processes()) and time.monotonic() < end:
        time.sleep(_PAUSE)
    if process.poll() is None or left:
        report(f"{max(len(left), 1)} processes outlived SIGTERM to {_name(process.args)}")  # type: ignore[arg-type]
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()
