# SPDX-License-Identifier: GPL-2.0-or-later
"""Start the demo programs, and a server that misbehaves on request, for the tests of both."""

import asyncio
import json
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastsocket.native import native_file

__all__ = [
    "GET",
    "Demo",
    "Handler",
    "Odd",
    "connected",
    "demo",
    "get",
    "load",
    "odd_server",
    "reset",
    "run",
    "wait_for",
    "workers",
]

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"

LIMIT_S = 30.0


def wait_for(condition: Callable[[], Any], what: str, limit_s: float = 10.0) -> Any:
    """Return the first true value of ``condition``; fail after ``limit_s`` seconds."""
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.01)
    raise AssertionError(f"{what}: not within {limit_s} s")


def run(program: str, *args: str) -> subprocess.CompletedProcess[str]:
    """Run a demo program to its end."""
    command = [str(native_file(program)), *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)


def load(*args: str) -> dict[str, Any]:
    """Run the load generator and return its JSON document."""
    done = run("fastsocket-load", "--json", *args)
    assert done.stdout, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


@dataclass
class Demo:
    """A running demo server."""

    process: subprocess.Popen[bytes]
    log: Path
    addresses: list[str]

    @property
    def port(self) -> int:
        return int(self.addresses[0].rpartition(":")[2])

    def text(self) -> str:
        return self.log.read_text()

    def stats(self) -> dict[str, Any]:
        """Ask for the counters, which come as one more line of the log."""
        before = self.text().count('{"accepted"')
        self.process.send_signal(signal.SIGUSR1)
        wait_for(lambda: self.text().count('{"accepted"') > before, "counters in the log")
        lines = [line for line in self.text().splitlines() if line.startswith('{"accepted"')]
        result: dict[str, Any] = json.loads(lines[-1])
        return result

    def stop(self) -> int:
        """End the server as an administrator would and return its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(LIMIT_S)


@contextmanager
def demo(log: Path, *args: str, prefix: tuple[str, ...] = ()) -> Iterator[Demo]:
    """Run the demo server, by default on a free port of 127.0.0.1, until the block ends."""
    where = () if "-a" in args else ("-a", "127.0.0.1:0")
    command = [*prefix, str(native_file("fastsocket-demo")), "-o", str(log), *where, *args]
    process = subprocess.Popen(command)
    try:
        wait_for(
            lambda: process.poll() is not None or (log.exists() and "ready:" in log.read_text()),
            "the demo server",
        )
        assert process.poll() is None, f"the demo server ended with {process.returncode}"
        addresses = [
            line.rpartition(" ")[2]
            for line in log.read_text().splitlines()
            if line.startswith("listening on ")
        ]
        yield Demo(process, log, addresses)
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait(LIMIT_S)


def get(port: int, request: bytes = b"GET / HTTP/1.1\r\n\r\n", host: str = "127.0.0.1") -> bytes:
    """Send ``request`` and return everything until the server closes."""
    with socket.create_connection((host, port), timeout=LIMIT_S) as client:
        client.sendall(request)
        parts = []
        while part := client.recv(65536):
            parts.append(part)
    return b"".join(parts)


@dataclass
class Odd:
    """What the misbehaving server has seen."""

    port: int = 0
    connections: int = 0
    requests: int = 0
    peers: set[str] = field(default_factory=set)
    heads: list[bytes] = field(default_factory=list)

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.port}"


Handler = Callable[[Odd, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def reset(writer: asyncio.StreamWriter) -> None:
    """Close with a RST instead of a FIN."""
    connection: socket.socket = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


@contextmanager
def odd_server(handler: Handler, backlog: int = 1024) -> Iterator[Odd]:
    """Serve every connection with ``handler`` on a free port, in a thread of this process."""
    seen = Odd()
    ready = threading.Event()
    loop = asyncio.new_event_loop()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.connections += 1
        seen.peers.add(writer.get_extra_info("peername")[0])
        try:
            await handler(seen, reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def main() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0, backlog=backlog)
        seen.port = server.sockets[0].getsockname()[1]
        ready.set()

    def body() -> None:
        asyncio.set_event_loop(loop)
        loop.run_until_complete(main())
        loop.run_forever()
        tasks = asyncio.all_tasks(loop)
        for task in tasks:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()

    thread = threading.Thread(target=body)
    thread.start()
    assert ready.wait(LIMIT_S)
    try:
        yield seen
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(LIMIT_S)


def workers(server: Demo) -> list[int]:
    """Return the processes that its master started."""
    children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children")
    return [int(pid) for pid in children.read_text().split()]


def connected(server: Demo) -> socket.socket:
    """Return a connection to it."""
    return socket.create_connection(("127.0.0.1", server.port), timeout=20)
