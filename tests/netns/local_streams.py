# SPDX-License-Identifier: GPL-2.0-or-later
"""Many connections that send bytes whose every position can be checked, both ways at once."""

import random
import select
import socket
import struct
from collections.abc import Callable

__all__ = ["Streams"]

PATIENCE_S = 10
PERIOD = 1_048_573  # a prime: a shift by a buffer or a page does not go unseen
LARGEST = 200_000  # bytes offered in one call
RESET = struct.pack("=ii", 1, 0)


class Flow:
    """One direction of one connection: what `sender` sends, `reader` checks byte by byte."""

    def __init__(
        self,
        sender: socket.socket,
        reader: socket.socket,
        total: int,
        pattern: bytes,
        chaos: random.Random,
    ) -> None:
        self.sender, self.reader, self.total, self.chaos = sender, reader, total, chaos
        self.sent = self.got = 0
        self.ended = False  # the reader saw the end
        self.cut = False  # its connection was reset
        self.pattern = pattern
        self.begin = chaos.randrange(PERIOD)  # no other direction's byte is taken for its own

    @property
    def arrived(self) -> bool:
        """Whether every byte that was to be sent was read, and the end after it."""
        return self.got == self.total and self.ended

    def _expected(self, position: int, size: int) -> bytes:
        begin = (self.begin + position) % PERIOD
        return self.pattern[begin : begin + size]

    def push(self) -> None:
        """Send one piece of random size; after the last one close this direction."""
        size = self.chaos.choice((1, 7, 100, 1460, 4096, 16_384, 65_536, LARGEST))
        size = min(size, self.total - self.sent)
        self.sent += self.sender.send(self._expected(self.sent, size))
        if self.sent == self.total:
            self.sender.shutdown(socket.SHUT_WR)

    def pull(self) -> int:
        """Read a piece of random size, now and then look at it first; compare; return its size."""
        size = self.chaos.randint(1, LARGEST)
        if self.chaos.random() < 0.05:
            ahead = self.reader.recv(size, socket.MSG_PEEK)
            assert ahead == self._expected(self.got, len(ahead)), f"differs at {self.got}"
        part = self.reader.recv(size)
        assert part == self._expected(self.got, len(part)), f"differs at {self.got}"
        self.got += len(part)
        self.ended = not part
        return len(part)


class Streams:
    """Connections to a listener, driven in one loop.

    Args:
        listener: Where they connect.
        count: How many connections.
        bytes_each: What each sends in each direction.
        seed: Of all sizes and contents.
    """

    def __init__(self, listener: socket.socket, count: int, bytes_each: int, seed: int) -> None:
        self.chaos = random.Random(seed)
        self.flows: dict[int, tuple[Flow, Flow]] = {}  # by the socket: what it sends, what it reads
        self.sockets: dict[int, socket.socket] = {}
        self.resets = 0
        self.moved = 0
        block = self.chaos.randbytes(PERIOD)
        pattern = block + block[:LARGEST]
        for _ in range(count):
            client = socket.create_connection(listener.getsockname()[:2], PATIENCE_S)
            server, _ = listener.accept()
            client.setblocking(False)
            server.setblocking(False)
            up = Flow(client, server, bytes_each, pattern, self.chaos)
            half = self.chaos.choice((bytes_each, 1))  # one that ends its direction at once
            down = Flow(server, client, half, pattern, self.chaos)
            self.flows[client.fileno()] = up, down
            self.flows[server.fileno()] = down, up
            self.sockets |= {client.fileno(): client, server.fileno(): server}

    def run(self, reset_share: float = 0, halfway: Callable[[], object] | None = None) -> None:
        """Drive all connections to their ends; `moved` is how many bytes have been read.

        Args:
            reset_share: Of the connections, how many are reset somewhere on the way.
            halfway: Called once, when half of the bytes have been read.

        Raises:
            AssertionError: A byte was wrong, a socket hung, or one was reset by nobody.
        """
        total = sum(mine.total for mine, _ in self.flows.values())
        victims = {
            fd: self.chaos.randrange(mine.total)
            for fd, (mine, _) in self.flows.items()
            if mine.total > 1 and self.chaos.random() < reset_share / 2
        }
        with select.epoll() as events:
            for fd in self.sockets:
                events.register(fd, select.EPOLLIN | select.EPOLLOUT)
            while self.sockets:
                ready = events.poll(PATIENCE_S)
                assert ready, f"{len(self.sockets)} sockets hang"
                for fd, mask in ready:
                    if fd in self.sockets:
                        self._serve(events, fd, mask, victims)
                if halfway and self.moved >= total // 2:
                    halfway()
                    halfway = None
        assert halfway is None, "the half was never reached"
        lost = [mine for mine, _ in self.flows.values() if not mine.cut and not mine.arrived]
        assert not lost, f"{len(lost)} directions are incomplete"

    def _serve(self, events: select.epoll, fd: int, mask: int, victims: dict[int, int]) -> None:
        mine, theirs = self.flows[fd]
        try:
            if mask & (select.EPOLLIN | select.EPOLLERR | select.EPOLLHUP) and not theirs.ended:
                self.moved += theirs.pull()
            if mask & select.EPOLLOUT and mine.sent < mine.total:
                mine.push()
                if mine.sent == mine.total:
                    events.modify(fd, select.EPOLLIN)
        except BlockingIOError:
            pass
        except (ConnectionResetError, BrokenPipeError):
            assert mine.cut, "reset by nobody"
            self.resets += 1
            self._drop(events, fd)
            return
        if fd in victims and mine.sent > victims[fd]:
            self.sockets[fd].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            mine.cut = theirs.cut = True
            self._drop(events, fd)
        elif theirs.ended and mine.sent == mine.total:
            self._drop(events, fd)

    def _drop(self, events: select.epoll, fd: int) -> None:
        events.unregister(fd)
        self.sockets.pop(fd).close()
