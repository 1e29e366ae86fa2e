# SPDX-License-Identifier: GPL-2.0-or-later
"""Starting servers under Fastsocket, talking to them from chosen CPUs, and seeing them off."""

import ctypes
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import fastsocket
from fastsocket.app.client import applications, ask, owner_of
from fastsocket.native import native_file

__all__ = [
    "PROGRAMS",
    "Application",
    "Listening",
    "fastsocket_command",
    "http_get",
    "library_environment",
    "listening",
    "namespace",
    "on_cpu",
    "python_server",
    "say",
    "wait_until",
    "who_serves",
]

PROGRAMS = Path(__file__).parent / "programs"
PATIENCE_S = 15.0
CLONE_NEWNET = 0x40000000
KEEPER_COMM = "fastsocket-keep"
_HOST_NAMESPACE = Path("/proc/self/ns/net").readlink()
_libc = ctypes.CDLL(None, use_errno=True)
_SS_USER = re.compile(r"pid=(\d+),fd=(\d+)")


def wait_until(condition: Callable[[], Any], what: str, patience: float = PATIENCE_S) -> Any:
    """Return the first true result of `condition`; fail the test after `patience` seconds."""
    end = time.monotonic() + patience
    while not (result := condition()):
        assert time.monotonic() < end, f"waited {patience:g} s in vain: {what}"
        time.sleep(0.01)
    return result


@contextmanager
def namespace() -> Iterator[None]:
    """Put the calling thread, and what it starts, into a network namespace of its own."""
    with Path("/proc/thread-self/ns/net").open() as before:
        assert _libc.unshare(CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
        try:
            subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
            yield
            wait_until(lambda: not _inhabitants(), "the last process here to go", 5)
        finally:
            for pid in _inhabitants():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            assert _libc.setns(before.fileno(), CLONE_NEWNET) == 0


def _own_namespace() -> Path:
    """Return this thread's network namespace, which must not be the host's."""
    here = Path("/proc/thread-self/ns/net").readlink()
    assert here != _HOST_NAMESPACE, "use the fixture own_network"
    return here


def _inhabitants() -> list[int]:
    """Return the other living processes of this network namespace, if it is one of ours.

    They are killed when a test fails: those of the host's namespace are none of our business.
    """
    here = _own_namespace()
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and int(process.name) != os.getpid():
            with suppress(OSError):
                if (process / "ns/net").readlink() == here and _alive(int(process.name)):
                    found.append(int(process.name))
    return found


@contextmanager
def on_cpu(cpu: int) -> Iterator[None]:
    """Run the calling thread on one CPU; on loopback its packets are received there too."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cpu})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def say(port: int, request: bytes = b"", host: str = "127.0.0.1") -> bytes:
    """Connect, send `request`, and return all that comes until the other end closes."""
    with socket.create_connection((host, port), timeout=PATIENCE_S) as connection:
        if request:
            connection.sendall(request)
        answer = b""
        while chunk := connection.recv(65536):
            answer += chunk
    return answer


def http_get(port: int, host: str = "127.0.0.1") -> str:
    """Return the body of one HTTP/1.1 answer on a connection of its own."""
    request = b"GET / HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n"
    head, _, body = say(port, request, host).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 "), head
    return body.decode()


class Listening:
    """One listening TCP socket of this network namespace, as ``ss`` shows it."""

    def __init__(self, line: str) -> None:
        words = line.split()
        self.backlog, self.address = int(words[2]), words[3]
        self.port = int(self.address.rpartition(":")[2])
        self.holders = {(int(pid), int(fd)) for pid, fd in _SS_USER.findall(line)}
        self.cookie = int(next(word[3:] for word in words if word.startswith("sk:")), 16)


def listening(port: int) -> list[Listening]:
    """Return the sockets that listen on `port`."""
    text = subprocess.run(
        ["ss", "-Hltnpe", f"sport = :{port}"], capture_output=True, text=True, check=True
    ).stdout
    return [Listening(line) for line in text.splitlines()]


def fastsocket_command(*words: str) -> list[str]:
    """Return the command line that runs this checkout's ``fastsocket``."""
    return [sys.executable, "-c", "from fastsocket.cli.main import main; main()", *words]


def _environment(extra: Mapping[str, str]) -> dict[str, str]:
    source = str(Path(fastsocket.__file__).parents[1])
    return {**os.environ, "PYTHONPATH": source, "PYTHONUNBUFFERED": "1", **extra}


def library_environment() -> dict[str, str]:
    """Return what preloads the library alone: no launcher, hence no keeper."""
    return {"LD_PRELOAD": str(native_file("libfsocket.so"))}


def _alive(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


class Application:
    """A server, under ``fastsocket run`` unless `accelerated` is false.

    Args:
        command: Its command line.
        port: Where it listens once it is ready; 0 for one that does not.
        options: Of ``fastsocket run``.
        environment: Variables in addition to this process's.
        prefix: Words before the whole command line, such as ``setpriv --reuid nobody``.
        directory: Its working directory.
        pass_fds: Descriptors that it inherits.
    """

    def __init__(
        self,
        command: Sequence[str | Path],
        port: int = 0,
        *,
        accelerated: bool = True,
        options: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        prefix: Sequence[str] = (),
        directory: Path | None = None,
        pass_fds: Sequence[int] = (),
    ) -> None:
        _own_namespace()
        words = [str(word) for word in command]
        if accelerated:
            words = fastsocket_command("run", *options, "--", *words)
        self.process = subprocess.Popen(
            [*prefix, *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=_environment(environment or {}),
            cwd=directory,
            pass_fds=pass_fds,
            start_new_session=True,  # lighttpd ends by a signal to its whole process group
        )
        self.pid, self.port = self.process.pid, port
        self._kernel: set[tuple[str, int]] = set()
        self._keeper = 0
        self.output = ""
        if port:
            try:
                wait_until(self._ready, f"{words} to listen on port {port}")
            except BaseException:
                self._kill()
                raise

    def _ready(self) -> bool:
        assert self.process.poll() in (None, 0), self.process.communicate()[0]
        return bool(listening(self.port))

    def status(self) -> dict[str, Any]:
        """Return the application's entry of ``fastsocket status --json``, found as it finds it."""
        status = owner_of(self.pid, applications())
        assert status, f"{self.pid} does not run under Fastsocket"
        return status

    def ask(self) -> dict[str, Any] | None:
        """Return the same from its keeper, which takes less time; None if that is not there."""
        status = ask(self.pid)
        if status:
            self._keeper = status["keeper"]
            self._kernel |= _kernel_objects(self._keeper)
        return status

    def slots(self, port: int = 0, state: str = "claimed") -> list[dict[str, Any]]:
        """Return the slots of the listener on `port` (its first where 0) that are `state`."""
        for listener in (self.ask() or {"listeners": []})["listeners"]:
            if listener["port"] == (port or self.port):
                return [slot for slot in listener["slots"] if slot["state"] == state]
        return []

    def wait_for_slots(self, count: int, port: int = 0) -> list[dict[str, Any]]:
        """Return the listener's claimed slots once there are `count`."""
        return wait_until(
            lambda: len(found := self.slots(port)) == count and found,
            f"{count} workers to poll sockets of their own",
        )

    def stop(self, number: int = signal.SIGTERM, pid: int = 0) -> int:
        """End it by a signal; return its exit code. Nothing of it or of ours may be left."""
        if self.process.poll() is None:
            os.kill(pid or self.pid, number)
        try:
            self.output = self.process.communicate(timeout=PATIENCE_S)[0]
        except subprocess.TimeoutExpired:
            self._kill()
            raise
        self.expect_nothing_left()
        return self.process.returncode

    @staticmethod
    def stop_worker(pid: int) -> None:
        """Kill one of its processes."""
        assert pid in _inhabitants()
        os.kill(pid, signal.SIGKILL)

    def expect_nothing_left(self) -> None:
        """Wait for the keeper, its sockets and its BPF objects to go."""
        if self._keeper:
            wait_until(lambda: not _alive(self._keeper), "the keeper to go")
        name = f"@fastsocket/{self.pid}/"
        wait_until(
            lambda: not any(each.startswith(name) for each in _abstract()), "the keeper's socket"
        )
        wait_until(
            lambda: not {thing for thing in self._kernel if _exists(*thing)},
            "the kernel to free programs and maps",
        )

    def __enter__(self) -> "Application":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind or self.process.poll() is None:
            self._kill()

    def _kill(self) -> None:
        """End it for good and show all about it, for the report of a test that failed."""
        print(json.dumps(ask(self.pid)))
        if self.port:
            print(subprocess.getoutput(f"ss -Hltnpe sport = :{self.port}"))
        for pid in _inhabitants():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if self.process.stdout and not self.process.stdout.closed:
            print(self.process.communicate()[0])


def _abstract() -> set[str]:
    lines = Path("/proc/thread-self/net/unix").read_text().splitlines()
    return {line.split()[-1] for line in lines}


def _kernel_objects(pid: int) -> set[tuple[str, int]]:
    """Return the BPF objects that a process holds, as (kind, id)."""
    found = set()
    for path in Path(f"/proc/{pid}/fdinfo").iterdir():
        with suppress(OSError):
            fields = dict(re.findall(r"^(\w+):\s+(\d+)", path.read_text(), re.MULTILINE))
            for kind in ("prog", "map", "link"):
                if f"{kind}_id" in fields:
                    found.add((kind, int(fields[f"{kind}_id"])))
    return found


def _exists(kind: str, number: int) -> bool:
    done = subprocess.run(
        ["bpftool", kind, "show", "id", str(number)], capture_output=True, check=False
    )
    return done.returncode == 0


def python_server(plan: Mapping[str, Any], port: int = 0, **options: Any) -> Application:
    """Start ``programs/server.py``; its docstring says what a plan may hold."""
    command = [sys.executable, PROGRAMS / "server.py", json.dumps(plan)]
    if not port and "listen" in plan:
        port = plan["listen"][0][1]
    return Application(command, port, **options)


def who_serves(
    port: int, cpus: Sequence[int], connections: int = 10, host: str = "127.0.0.1"
) -> dict[int, list[dict[str, Any]]]:
    """Return what that server says to clients on each CPU: pid, cpu and options of each answer."""
    said: dict[int, list[dict[str, Any]]] = {}
    for cpu in cpus:
        with on_cpu(cpu):
            said[cpu] = [json.loads(say(port, b"?", host)) for _ in range(connections)]
    return said
