# SPDX-License-Identifier: GPL-2.0-or-later
"""Trying on the running kernel whether a connection on the fast path behaves as over TCP.

Kernels differ in what they break for sockets in a sockmap: FIONREAD since Linux commit
929e30f93125 until 04af4efde58a, back pressure before 144748eb0c44 (in v6.14), and more. So no
version is asked; each check uses a connection of its own over loopback and the real programs.
"""

import fcntl
import os
import select
import socket
import struct
import termios
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from fastsocket.errors import FastsocketError
from fastsocket.local.fastpath import FastPath

__all__ = ["CHECKS", "LIMITS", "Trial", "self_test", "start"]

Check = Callable[[socket.socket, socket.socket], None]

PATIENCE_S = 1.0
BUFFER = 64 << 10  # bytes that the sockets of a trial may hold
MOST_HELD = 4 << 20  # what a full connection may hold in all, of 64 MiB that are offered
PIECE = bytes(range(256)) * 256


@contextmanager
def _pair(fast: FastPath, listener: socket.socket) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Yield a client and a server socket whose connection is on the fast path."""
    before = fast.counters.connections
    with socket.create_connection(listener.getsockname(), PATIENCE_S) as client:
        server, _ = listener.accept()
        with server:
            server.settimeout(PATIENCE_S)
            if fast.counters.connections == before:
                raise OSError("a connection whose two ends are here was not recognised")
            yield client, server


def _waiting(reader: socket.socket) -> int:
    count: int = struct.unpack("=i", fcntl.ioctl(reader, termios.FIONREAD, bytes(4)))[0]
    return count


def _expect(what: str, got: object, wanted: object) -> None:
    if got != wanted:
        raise OSError(f"{what}: {got!r} in place of {wanted!r}")


def _end(reader: socket.socket) -> str:
    """Read to the end and name it."""
    try:
        while reader.recv(4096):
            pass
    except ConnectionResetError:
        return "reset"
    return "end"


def _fionread(client: socket.socket, server: socket.socket) -> None:
    client.send(b"hello")
    _expect("FIONREAD of five waiting bytes", _waiting(server), 5)
    server.recv(2)
    _expect("FIONREAD of three of them", _waiting(server), 3)


def _eof(client: socket.socket, server: socket.socket) -> None:
    client.send(b"last")
    client.close()
    _expect("the last bytes before the end", server.recv(64), b"last")
    _expect("the end", server.recv(64), b"")


def _half_close(client: socket.socket, server: socket.socket) -> None:
    client.send(b"question")
    client.shutdown(socket.SHUT_WR)
    _expect("what came before a half-close", server.recv(64) + server.recv(64), b"question")
    server.send(b"answer")
    _expect("what comes after it", client.recv(64), b"answer")


def _reset(client: socket.socket, server: socket.socket) -> None:
    client.send(b"last")
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("=ii", 1, 0))
    client.close()
    _expect("a connection that was reset", _end(server), "reset")


def _urgent(client: socket.socket, server: socket.socket) -> None:
    client.send(b"before")
    _expect("what came before urgent data", server.recv(64), b"before")
    client.send(b"!", socket.MSG_OOB)
    client.send(b"after")
    _expect("EPOLLPRI", bool(select.select([], [], [server], PATIENCE_S)[2]), True)
    _expect("the urgent byte", server.recv(1, socket.MSG_OOB), b"!")
    _expect("what came after it", server.recv(64), b"after")


def _urgent_at_once(client: socket.socket, server: socket.socket) -> None:
    client.send(b"before")
    client.send(b"!", socket.MSG_OOB)
    select.select([], [], [server], PATIENCE_S)
    _expect("an urgent byte that is read first", server.recv(1, socket.MSG_OOB), b"!")


def _splice(client: socket.socket, server: socket.socket) -> None:
    source, target = os.pipe()
    try:
        with suppress(BlockingIOError):
            os.splice(server.fileno(), target, 64)
        client.send(b"spliced")
        select.select([server], [], [], PATIENCE_S)
        _expect("what splice() moved", os.splice(server.fileno(), target, 64), 7)
        _expect("its bytes", os.read(source, 64), b"spliced")
    finally:
        os.close(source)
        os.close(target)


def _splice_late(client: socket.socket, server: socket.socket) -> None:
    client.send(b"spliced")
    source, target = os.pipe()
    try:
        os.splice(server.fileno(), target, 64)
    finally:
        os.close(source)
        os.close(target)


def _sendfile(client: socket.socket, server: socket.socket) -> None:
    with os.fdopen(os.memfd_create("fs_trial"), "wb", buffering=0) as file:
        file.write(PIECE)
        sent, got = 0, b""
        while sent < len(PIECE):
            sent += os.sendfile(client.fileno(), file.fileno(), sent, len(PIECE) - sent)
            got += server.recv(len(PIECE))
        while len(got) < sent:
            got += server.recv(len(PIECE))
    _expect("whether a file arrived as it is", got == PIECE, True)


def _peek(client: socket.socket, server: socket.socket) -> None:
    client.send(b"one")
    client.send(b"two")
    _expect("a short look ahead", server.recv(2, socket.MSG_PEEK), b"on")
    _expect("a long one", server.recv(64, socket.MSG_PEEK), b"onetwo")
    _expect("what was looked at", server.recv(64), b"onetwo")


def _edges(client: socket.socket, server: socket.socket) -> None:
    with select.epoll() as events:
        events.register(server.fileno(), select.EPOLLIN | select.EPOLLET | select.EPOLLRDHUP)
        for _ in range(3):
            client.send(b"x")
            _expect("wake-ups by a piece", len(events.poll(PATIENCE_S)), 1)
            _expect("further wake-ups", len(events.poll(0)), 0)
        client.shutdown(socket.SHUT_WR)
        (_, mask), *_ = events.poll(PATIENCE_S) or [(0, 0)]
        _expect("EPOLLRDHUP at a half-close", bool(mask & select.EPOLLRDHUP), True)
    _expect("poll() with bytes waiting", bool(select.select([server], [], [], 0)[0]), True)


def _pressure(client: socket.socket, server: socket.socket) -> None:
    """Offer more than a reader that does nothing may be sent, in large and in tiny pieces."""
    server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)
    client.setblocking(False)
    for piece in (PIECE, b"x"):
        held = 0
        try:
            while held <= min(MOST_HELD, 2048 * len(piece)):
                held += client.send(piece)
        except BlockingIOError:
            pass
        if held > MOST_HELD:
            raise OSError(f"{held} bytes were taken for a reader that does nothing")
        got = 0
        while got < held:
            part = server.recv(1 << 20)
            if not part:
                raise OSError(f"{got} of {held} bytes arrived")
            got += len(part)
    client.settimeout(PATIENCE_S)
    client.send(b"again")
    _expect("the piece after full buffers", server.recv(64), b"again")


def _close_unread(client: socket.socket, server: socket.socket) -> None:
    client.send(b"unread")
    server.close()
    _expect("a connection closed with bytes unread", _end(client), "reset")


# What fails here keeps the fast path off.
CHECKS: dict[str, Check] = {
    "FIONREAD": _fionread,
    "end of file": _eof,
    "half-close": _half_close,
    "reset": _reset,
    "urgent data": _urgent,
    "splice": _splice,
    "sendfile": _sendfile,
    "MSG_PEEK": _peek,
    "poll and epoll": _edges,
    "full buffers": _pressure,
}
# What no program can mend where the kernel has it so; docs/local.md says whom it concerns.
LIMITS: dict[str, Check] = {
    "urgent data read ahead of earlier bytes": _urgent_at_once,
    "splice() of bytes that came before the first splice()": _splice_late,
    "a reset where a socket is closed with bytes unread": _close_unread,
}


@dataclass(frozen=True, slots=True)
class Trial:
    """What the self-test found: check -> what was seen, for those that did not behave as TCP."""

    failed: dict[str, str]
    limits: dict[str, str]


def _try(checks: dict[str, Check], fast: FastPath, listener: socket.socket) -> dict[str, str]:
    wrong = {}
    for name, check in checks.items():
        before = fast.counters.redirected
        try:
            with _pair(fast, listener) as (client, server):
                check(client, server)
            if fast.counters.redirected == before and check is not _splice:
                raise OSError("nothing was redirected")
        except OSError as error:
            wrong[name] = str(error) or type(error).__name__
    return wrong


def self_test() -> Trial:
    """Run all checks on a port of their own; it takes some hundred milliseconds.

    Raises:
        BpfError: The kernel refused the programs.
        MissingFeatureError: There is no cgroup v2 hierarchy.
        OSError: There is no loopback.
    """
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        FastPath(listener.getsockname()[1]) as fast,
    ):
        listener.settimeout(PATIENCE_S)
        return Trial(_try(CHECKS, fast, listener), _try(LIMITS, fast, listener))


def start(port: int) -> tuple[FastPath | None, str, list[str]]:
    """Start the fast path of a port, if the self-test lets it.

    Returns:
        The fast path, or None and the reason; and the limits that this kernel sets.
    """
    try:
        trial = self_test()
        if trial.failed:
            return None, "; ".join(f"{name}: {why}" for name, why in trial.failed.items()), []
        return FastPath(port), "", list(trial.limits)
    except (FastsocketError, OSError) as error:
        return None, str(error), []
