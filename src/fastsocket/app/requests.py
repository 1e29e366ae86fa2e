# SPDX-License-Identifier: GPL-2.0-or-later
"""The keeper's socket: who may ask, how many at once, and for how long the keeper listens."""

import contextlib
import errno
import select
import selectors
import socket
import struct
import time
from collections.abc import Callable
from typing import NamedTuple

from fastsocket.app.protocol import LARGEST_REQUEST, pack_reply

__all__ = ["Asker", "Requests", "still_waits"]

PATIENCE_S = 1.0  # from a peer's connection to its request
MOST_PEERS = 64  # that are connected and have not asked yet
MOST_FDS = 2  # that a request is read with; it should have one at most
PAUSE_S = 0.05  # where no further descriptor is to be had
SO_PEERCRED_FORMAT = struct.Struct("=iII")  # struct ucred


class Asker(NamedTuple):
    """Process and user of a peer, as they were when it connected (SO_PEERCRED of unix(7))."""

    pid: int
    uid: int


class Requests:
    """One request each of peers that are let in; nobody can keep the others waiting.

    Args:
        server: Listening SOCK_SEQPACKET unix socket.
        events: Where it is registered, and each peer; the data of an event is what to call.
        admit: Whether that peer is let in; the others are turned away before a byte is read.
        answer: Takes the peer's socket, who it is, the request and its descriptors, of which it
            becomes the owner, and replies.
    """

    def __init__(
        self,
        server: socket.socket,
        events: selectors.BaseSelector,
        admit: Callable[[Asker], bool],
        answer: Callable[[socket.socket, Asker, bytes, list[int]], None],
    ) -> None:
        self._server, self._events, self._admit, self._answer = server, events, admit, answer
        self._deadlines: dict[socket.socket, float] = {}  # in the order of their connections
        server.setblocking(False)
        events.register(server, selectors.EVENT_READ, self.accept)

    @property
    def deadline(self) -> float | None:
        """When the next peer is to be dropped, on the clock of time.monotonic()."""
        return next(iter(self._deadlines.values()), None)

    def accept(self) -> None:
        """Let one peer in, or turn it away."""
        try:
            peer, _ = self._server.accept()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
                self._drop_oldest()
                time.sleep(PAUSE_S)  # the socket stays readable: this must not spin
            return
        peer.setblocking(False)
        credentials = peer.getsockopt(
            socket.SOL_SOCKET, socket.SO_PEERCRED, SO_PEERCRED_FORMAT.size
        )
        pid, uid, _ = SO_PEERCRED_FORMAT.unpack(credentials)
        asker = Asker(pid, uid)
        if not self._admit(asker):
            with peer, contextlib.suppress(OSError):
                peer.send(pack_reply(errno.EPERM))
            return
        if len(self._deadlines) >= MOST_PEERS:
            self._drop_oldest()
        self._deadlines[peer] = time.monotonic() + PATIENCE_S
        self._events.register(peer, selectors.EVENT_READ, lambda: self._read(peer, asker))

    def expire(self) -> None:
        """Drop the peers that connected and then kept silent for too long."""
        while self._deadlines and next(iter(self._deadlines.values())) <= time.monotonic():
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        for peer in list(self._deadlines)[:1]:
            self._release(peer)
            peer.close()

    def _release(self, peer: socket.socket) -> None:
        del self._deadlines[peer]
        self._events.unregister(peer)

    def _read(self, peer: socket.socket, asker: Asker) -> None:
        if peer not in self._deadlines:  # dropped after this event had been reported
            return
        self._release(peer)
        with peer:
            try:
                data, fds, _, _ = socket.recv_fds(peer, LARGEST_REQUEST, MOST_FDS)
            except OSError:
                return
            self._answer(peer, asker, data, fds)


def still_waits(peer: socket.socket) -> bool:
    """Whether a peer has not given up waiting for its answer."""
    poll = select.poll()
    poll.register(peer, 0)  # POLLHUP is told of without being asked for
    return not poll.poll(0)
