# SPDX-License-Identifier: GPL-2.0-or-later
"""The application's listeners: where each stands in the page, and the program that serves it."""

import contextlib
import ctypes
import errno
import os
import socket
import sys
from typing import Any

from fastsocket.app.processes import SO_COOKIE, Processes
from fastsocket.app.protocol import Join, Request
from fastsocket.bpf.libbpf import BpfError
from fastsocket.listen import layout
from fastsocket.listen.layout import Tier
from fastsocket.listen.page import StatusPage
from fastsocket.listen.select import Selector
from fastsocket.native import LIBRARIES, native_file

__all__ = ["Listeners"]

SO_DETACH_REUSEPORT_BPF = 68
USABLE = layout.MAX_LISTENERS - 1  # the last one is for probes


class Listeners:
    """What the keeper was told of listening sockets, which it believes rather than the page.

    Args:
        page: The application's status page.
    """

    def __init__(self, page: StatusPage) -> None:
        self.page, self.tier = page, Tier.CLASSIC
        os.environ["FASTSOCKET_LISTEN_SPAWN"] = "0"  # the library is to do nothing by itself here
        self.native = ctypes.CDLL(str(native_file(LIBRARIES["off"])))
        self.view = ctypes.byref(page.view)
        self._selectors: dict[int, Selector] = {}
        self._members: dict[int, set[bytes]] = {}  # listener: cookies of sockets that joined
        self._names: dict[int, tuple[Any, ...]] = {}  # listener: family, address, port
        self._lent: list[socket.socket] = []  # what the application got from its own starter
        self._generation = 0

    def join(self, member: socket.socket, how: Join, lent: bool) -> int:
        """Return the place of a listening socket's address in the page, making one if need be.

        Args:
            member: The socket; it is closed.
            how: What it was before.
            lent: Whether it outlives the application, so that it has to be put back at its end.

        Raises:
            OSError: It has no address, or the page has no room.
        """
        # Closed before the answer: the application may close its own at once, and the port must
        # be free then.
        with member:
            family, name = member.family, member.getsockname()
            address = socket.inet_pton(family, name[0].partition("%")[0]).ljust(16, b"\0")
            cookie = member.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8)
            index = self.place(family, address, name[1], cookie, Join.LATE in how)
            self._members.setdefault(index, set()).add(cookie)
            self._names[index] = (family, *name[:2])
            if lent:
                self._lent.append(member.dup())
                self.page.view.listener[index].lent_cookie = int.from_bytes(cookie, sys.byteorder)
        return index

    def place(self, family: int, address: bytes, port: int, cookie: bytes, late: bool) -> int:
        """Return the entry of that address; a new one where there is none that is in use.

        An entry that nobody claimed may be in use all the same, by workers that are about to:
        only a socket that was bound without SO_REUSEPORT (`late`), hence when the earlier ones
        were closed, starts it afresh.

        Raises:
            OSError: All entries are in use.
        """
        same, free, idle = None, None, None
        for index in range(USABLE):
            entry = self.page.view.listener[index]
            if entry.claimed:
                self.native.fsocket_sweep(self.view, index)
            if not entry.generation:
                free = index if free is None else free
            elif (entry.family, entry.port, bytes(entry.address)) == (family, port, address):
                same = index
            elif not entry.claimed:
                idle = index
        if same is not None and (
            not late or self.knows(same, cookie) or self.page.view.listener[same].claimed
        ):
            return same
        for place in (same, free, idle):
            if place is not None:
                self._reset(place, family, address, port)
                return place
        raise OSError(errno.ENOSPC, "all listeners of the status page are in use")

    def _reset(self, index: int, family: int, address: bytes, port: int) -> None:
        entry = self.page.view.listener[index]
        entry.generation = 0
        stale = self._selectors.pop(index, None)
        if stale:
            stale.close()
        ctypes.memset(ctypes.addressof(entry), 0, ctypes.sizeof(entry))
        self._members[index] = set()
        self._generation += 1
        entry.tier, entry.family, entry.port = self.tier, family, port
        entry.address[:] = address
        entry.generation = self._generation

    def placed(self) -> list[int]:
        """Return the entries of the page that are listeners."""
        return sorted(self._members)

    def prepare(self, index: int) -> None:
        """Load the listener's program before it is needed.

        A second socket that listens gets connections by hash until the program is attached: then
        it must not have to be loaded first.
        """
        if self.tier >= Tier.SELECT:
            with contextlib.suppress(BpfError):
                self._selector(index)

    def _selector(self, index: int) -> Selector:
        """Return the listener's program, loaded when first needed."""
        assert self.page.map
        if index not in self._selectors:
            generation = self.page.view.listener[index].generation
            self._selectors[index] = Selector(self.page.map, index, generation, self.tier)
        return self._selectors[index]

    def add(self, request: Request, member: socket.socket) -> None:
        """Let the listener's program choose `member`, which is closed.

        Raises:
            OSError: No such listener or slot, or the socket is in no reuseport group.
            BpfError: The map refused it.
        """
        with member:
            if not 0 <= request.listener < USABLE or not self.page.map:
                raise OSError(errno.EINVAL, "no such listener")
            if not 0 <= request.slot < layout.MAX_SLOTS:
                raise OSError(errno.EINVAL, "no such slot")
            self._selector(request.listener).add(request.slot, member)
            cookie = member.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8)
            self._members.setdefault(request.listener, set()).add(cookie)

    def knows(self, index: int, cookie: bytes) -> bool:
        """Whether the socket with that cookie was handed in for that listener."""
        return cookie in self._members.get(index, ())

    def has_address(self, index: int, held: socket.socket) -> bool:
        """Whether a socket is bound to the address of that listener."""
        return (held.family, *held.getsockname()[:2]) == self._names.get(index)

    def visit(self, index: int) -> None:
        """Make a connection to the listener and close it."""
        family, host, port = self._names.get(index, (None, "", 0))
        if family is None:
            return
        anywhere = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # nothing is bound to it
        with socket.socket(family) as visitor:
            visitor.setblocking(False)
            visitor.connect_ex((anywhere.get(host, host), port))

    def sweep(self) -> bool:
        """Give up the slots of dead workers; false if somebody living holds a listener's lock."""
        done = True
        for index in range(layout.MAX_LISTENERS):
            if self.page.view.listener[index].claimed:
                done &= bool(self.native.fsocket_sweep(self.view, index))
        return done

    def resume(self) -> None:
        """Take over from a keeper that was killed what the kernel kept of it.

        Raises:
            BpfError: No privilege.
        """
        for tier in (Tier.SELECT, Tier.MIGRATE):
            found = Selector.reopen(self.page.map, tier) if self.page.map else {}
            for index, (generation, selector) in found.items():
                if index < USABLE and index not in self._selectors:
                    self._selectors[index] = selector
                    self.page.view.listener[index].generation = generation
                    self._members[index] = selector.cookies()
        for index in range(USABLE):
            generation = self.page.view.listener[index].generation
            self._generation = max(self._generation, generation)
            if generation:
                self._members.setdefault(index, set())

    def find_lent(self, processes: Processes) -> None:
        """Look for the sockets that a killed keeper was to put back.

        The page names them. Whatever it names, it is one of the application's own sockets.

        Args:
            processes: Those of the application.
        """
        for entry in self.page.view.listener[:USABLE]:
            if entry.lent_cookie and (found := processes.find(entry.lent_cookie)):
                self._lent.append(found)

    def put_back(self) -> None:
        """Undo what was done to sockets that outlive the application."""
        for member in self._lent:
            with member, contextlib.suppress(OSError):
                member.setsockopt(socket.SOL_SOCKET, SO_DETACH_REUSEPORT_BPF, 0)
                member.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 0)
