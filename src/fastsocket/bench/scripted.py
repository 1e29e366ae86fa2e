# SPDX-License-Identifier: GPL-2.0-or-later
"""A server whose clients tell it how to behave: scripted.py PORT GREETING-FLAG.

One worker at a time, renewed when it ends, serves one connection after the other: it greets
first where the file GREETING-FLAG exists, reads a script, which is a JSON list of steps in SCRIPT
bytes, does them, and closes. Each step is a list of a name of `STEPS` and its arguments. It needs
nothing of this package, for it is run as a file.
"""

import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import IO

__all__ = ["SCRIPT", "main", "serve"]

SCRIPT = 512
GREETING = b"220 ready\r\n"
MOST = 8 << 20
_kept: list[socket.socket] = []


@cache
def _log() -> IO[bytes]:
    return tempfile.TemporaryFile(buffering=0)


def _busy(_: socket.socket, seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


def _read_pipe(_: socket.socket, seconds: float) -> None:
    """Block in a read of another descriptor until another process writes there."""
    into = subprocess.Popen(["sleep", str(seconds)], stdout=subprocess.PIPE)
    assert into.stdout
    into.stdout.read()
    into.wait()


def _fork(_: socket.socket, seconds: float) -> None:
    """Leave a child that has the connection, too."""
    if os.fork() == 0:
        time.sleep(seconds)
        os._exit(0)


def _from_a_thread(connection: socket.socket, text: str) -> None:
    """Answer from another thread and wait for that."""
    thread = threading.Thread(target=connection.sendall, args=(text.encode(),))
    thread.start()
    thread.join()


def _pass_on(connection: socket.socket, text: str) -> None:
    """Answer, and give the connection to a process that says a word more before it ends."""
    ours, theirs = socket.socketpair()
    child = os.fork()
    if child == 0:
        _, fds, _, _ = socket.recv_fds(theirs, 1, 1)
        os.write(fds[0], b"more")
        os._exit(0)
    connection.sendall(text.encode())
    socket.send_fds(ours, [b"!"], [connection.fileno()])
    os.waitpid(child, 0)
    ours.close()
    theirs.close()


def _send_file(connection: socket.socket, size: int) -> None:
    with tempfile.TemporaryFile() as file:
        file.write(b"x" * size)
        file.flush()
        sent = 0
        while sent < size:
            sent += os.sendfile(connection.fileno(), file.fileno(), sent, size - sent)


def _write(connection: socket.socket, text: str, times: int = 1) -> None:
    data = text.encode()
    for done in range(0, times, MOST):
        connection.sendall(data * min(times - done, MOST))


def _read(connection: socket.socket, count: int) -> None:
    while count:
        count -= len(connection.recv(min(count, 1 << 20)) or sys.exit("the client left"))


def _until_eof(connection: socket.socket) -> None:
    while connection.recv(65536):
        pass


STEPS: dict[str, Callable[..., object]] = {
    "write": _write,
    "sleep": lambda _, seconds: time.sleep(seconds),
    "wait": lambda connection, seconds: select.select([connection], [], [], seconds),
    "look": lambda connection: select.select([connection], [], [], 0),
    "event": lambda _, seconds: threading.Event().wait(seconds),
    "busy": _busy,
    "pipe": _read_pipe,
    "fork": _fork,
    "spawn": lambda _, seconds: subprocess.run(["sleep", str(seconds)], check=True),
    "dup": lambda connection: _kept.append(connection.dup()),
    "log": lambda _: _log().write(b"a line\n"),
    "crash": lambda _: os.kill(os.getpid(), signal.SIGKILL),
    "exit": lambda _: sys.exit(),
    "file": _send_file,
    "thread": _from_a_thread,
    "pass": _pass_on,
    "read": _read,
    "until_eof": _until_eof,
    "half": lambda connection: connection.shutdown(socket.SHUT_WR),
    "echo": lambda connection, count: connection.sendall(connection.recv(count)),
}


def serve(listener: socket.socket, flag: Path) -> None:
    """Serve until a script ends this process."""
    _log()
    while True:
        select.select([listener], [], [])
        try:
            connection, _ = listener.accept()
        except BlockingIOError:
            continue
        with connection:
            connection.setblocking(True)
            if flag.exists():
                connection.sendall(GREETING)
            try:
                script = connection.recv(SCRIPT)
            except ConnectionResetError:  # as a health check may leave
                continue
            for name, *arguments in json.loads(script or b"[]"):
                STEPS[name](connection, *arguments)
        for copy in _kept:
            copy.close()
        _kept.clear()


def main(port: int, flag: Path) -> None:
    """Keep one worker going, which ends with this process."""
    worker = 0

    def end(*_: object) -> None:
        if worker:
            os.kill(worker, signal.SIGKILL)
        sys.exit()

    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    with socket.create_server(("127.0.0.1", port), backlog=128) as server:
        server.setblocking(False)  # one that blocks in accept() gets no slot
        signal.signal(signal.SIGTERM, end)
        while True:
            worker = os.fork()
            if worker == 0:
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
                serve(server, flag)
            os.waitpid(worker, 0)


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
