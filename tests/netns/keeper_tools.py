# SPDX-License-Identifier: GPL-2.0-or-later
"""A keeper that takes its steps one by one, and who asks it."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import fastsocket
from fastsocket.app.keeper import Keeper
from fastsocket.app.protocol import unpack_error
from fastsocket.config import Parameters
from fastsocket.listen.page import StatusPage

__all__ = [
    "NAME",
    "NOBODY",
    "SO_COOKIE",
    "Tame",
    "is_dropped",
    "keeper_of_a_test",
    "silent",
    "sleeper",
]

NAME = f"fastsocket/test-{os.getpid()}"
SO_COOKIE = 57
NOBODY = 65534

# Connects, asks if it is told what to, and prints the errno in the answer.
STRANGER = """
import socket, sys
from fastsocket.app.protocol import Op, Request, unpack_error
client = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
client.settimeout(10)
client.connect("\\0" + sys.argv[1])
if sys.argv[2:]:
    client.send(Request(Op[sys.argv[2]]).pack())
print(unpack_error(client.recv(4096)))
"""


class Tame(Keeper):
    """A keeper that lets a test take its steps one by one."""

    def sweep_and_rescue(self) -> None:
        self._due = None
        self._rescue()

    def is_due(self) -> bool:
        return self._due is not None

    def step(self, patience: float = 0) -> None:
        for key, _ in self._events.select(patience):
            key.data()

    def place(self, port: int) -> int:
        return self.listeners.place(socket.AF_INET, bytes(16), port, bytes(8), True)

    def watch(self, pid: int) -> None:
        self._watch(pid, vouched=True)

    def adopt(self) -> list[int]:
        self._adopt()
        return list(self.processes)

    def expire(self) -> None:
        self._requests.expire()

    def ask(self, data: bytes, *fds: int) -> int | None:
        """Return the errno in its reply to a request of this process."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
            client.settimeout(10)
            client.connect("\0" + NAME)
            socket.send_fds(client, [data], fds)
            self.step(10)
            self.step(10)
            return unpack_error(client.recv(4096))

    def stranger(self, *words: str, user: int = 0) -> str:
        """Return what the STRANGER prints."""
        source = str(Path(fastsocket.__file__).parents[1])
        command = [sys.executable, "-c", STRANGER, NAME, *words]
        with subprocess.Popen(
            ["setpriv", "--reuid", str(user), "--clear-groups", *command],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": source},
        ) as asking:
            while asking.poll() is None:
                self.step(0.05)
            assert asking.stdout
            return asking.stdout.read().strip()


@contextmanager
def keeper_of_a_test() -> Iterator[Tame]:
    environment = os.environ.get("FASTSOCKET_LISTEN_SPAWN")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
        server.bind("\0" + NAME)
        server.listen()
        page = StatusPage(sorted(os.sched_getaffinity(0)), Parameters())
        assert page.map, page.missing
        page.view.keeper = os.getpid()
        yield Tame(page, server, os.getpid(), NAME, ["a test"])
        page.view.keeper = 0  # it may stay mapped, and children of this process inherit that
    if environment is None:
        del os.environ["FASTSOCKET_LISTEN_SPAWN"]


@contextmanager
def sleeper(**environment: str) -> Iterator[int]:
    """A process that lives until the block ends."""
    with subprocess.Popen(["sleep", "600"], env={**os.environ, **environment}) as process:
        try:
            yield process.pid
        finally:
            process.kill()


@contextmanager
def silent(count: int, keeper: Tame) -> Iterator[list[socket.socket]]:
    """Peers that connect and say nothing."""
    peers = []
    for _ in range(count):
        peers.append(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        peers[-1].connect("\0" + NAME)
        keeper.step(10)
    yield peers
    for peer in peers:
        peer.close()


def is_dropped(peer: socket.socket) -> bool:
    try:
        return peer.recv(1, socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False
