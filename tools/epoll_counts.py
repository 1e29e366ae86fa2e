# SPDX-License-Identifier: GPL-2.0-or-later
"""Count the epoll_ctl calls of a connection, with and without fast epoll, into docs/epoll.md.

Each server runs with one worker and its usual event loop, in a network namespace of its own, under
`strace`; connections come one after the other. Needs root, strace, and the servers of the table.
"""

import os
import platform
import re
import signal
import socket
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from fastsocket.native import native_file
from tests.apps.harness import Application, namespace, wait_until
from tests.apps.lean_tools import PORT, SERVERS

__all__ = ["BEGIN", "END", "main"]

PAGE = Path(__file__).resolve().parent.parent / "docs/epoll.md"
BEGIN, END = "<!-- counts: begin -->", "<!-- counts: end -->"
CONNECTIONS = 50
REQUESTS = 3  # of a connection that is kept alive, which the client closes
ASYNCIO = f"""
import asyncio
async def serve(reader, writer):
    while request := await reader.readuntil(b"\\r\\n\\r\\n"):
        writer.write(b"HTTP/1.1 200 OK\\r\\nContent-Length: 6\\r\\n\\r\\nhello\\n")
        if b"close" in request:
            break
    writer.close()
async def quietly(reader, writer):
    try:
        await serve(reader, writer)
    except asyncio.IncompleteReadError:
        writer.close()
async def main():
    await (await asyncio.start_server(quietly, "127.0.0.1", {PORT})).serve_forever()
asyncio.run(main())
"""


def _command(name: str, folder: Path) -> list[str]:
    if name == "asyncio":
        return [sys.executable, "-c", ASYNCIO]
    # More workers would make the same calls, by turns.
    words = SERVERS[name](folder)
    if name == "uvicorn":
        at = words.index("--workers")
        del words[at : at + 2]
    for config in [*folder.glob("*.conf"), *folder.glob("*.cfg")]:
        text = config.read_text()
        for many, one in (
            ("worker_processes 2", "worker_processes 1"),
            ("nbthread 2", "nbthread 1"),
        ):
            text = text.replace(many, one)
        config.write_text(re.sub("server.max-worker = 2\n", "", text))
    return words


def _connections(close: bool) -> None:
    for _ in range(CONNECTIONS):
        with socket.create_connection(("127.0.0.1", PORT)) as client:
            for left in reversed(range(1 if close else REQUESTS)):
                last = "close" if close and not left else "keep-alive"
                client.sendall(f"GET / HTTP/1.1\r\nHost: x\r\nConnection: {last}\r\n\r\n".encode())
                answer = b""
                while not answer.endswith(b"hello\n"):
                    answer += client.recv(65536)
            while close and client.recv(65536):
                pass


def _count(name: str, close: bool, fast: bool) -> float:
    """Return the calls that a connection takes: those of twice as many, less those of the first."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stack.enter_context(namespace())
        trace = folder / "trace"
        words: list[str | Path] = [
            "strace",
            "-f",
            "-qq",
            "-e",
            "trace=epoll_ctl",
            "-e",
            "signal=none",
            "-o",
            trace,
        ]
        if fast:
            words += ["-E", f"LD_PRELOAD={native_file('libfsocket-plain-epoll.so')}"]
        app = stack.enter_context(
            Application([*words, *_command(name, folder)], PORT, accelerated=False)
        )
        wait_until(_ready, "the server to answer")
        counts = []
        for _ in range(2):
            _connections(close)
            counts.append(_settled(trace))
        for child in Path(f"/proc/{app.pid}/task/{app.pid}/children").read_text().split():
            os.kill(int(child), signal.SIGTERM)
        app.process.wait(15)
    return (counts[1] - counts[0]) / CONNECTIONS


def _ready() -> bool:
    try:
        _connections(close=True)
    except OSError:
        return False
    return True


def _settled(trace: Path) -> int:
    """Return the calls so far, once the last connection has been closed."""
    before = -1
    while (now := trace.read_text().count("epoll_ctl(")) != before:
        before = now
        time.sleep(0.3)
    return now


def main() -> int:
    """Measure, and rewrite the table."""
    head = "| Server | closed: without | closed: with | kept alive: without | kept alive: with |"
    rows = [head, "|---|---|---|---|---|"]
    for name in ("asyncio", "uvicorn", "haproxy", "lighttpd", "nginx"):
        counts = [_count(name, close, fast) for close in (True, False) for fast in (False, True)]
        rows.append(" | ".join([f"| {name}", *(f"{count:.2f}" for count in counts)]) + " |")
        print(rows[-1], flush=True)
    host = (
        f"Linux {platform.release()}, {CONNECTIONS} connections, one worker, one after the other."
    )
    text = "\n".join([BEGIN, *rows, "", host, END])
    page = PAGE.read_text()
    PAGE.write_text(re.sub(f"{BEGIN}.*{END}", lambda _: text, page, flags=re.DOTALL))
    return 0


if __name__ == "__main__":
    sys.exit(main())
