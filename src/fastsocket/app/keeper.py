# SPDX-License-Identifier: GPL-2.0-or-later
"""The keeper: one small process per accelerated application.

It owns the status page and the select programs, tells libfsocket.so where a listener stands in
the page, notices when a worker dies, and goes when the application's last process goes. It
holds none of the application's sockets, except those that the application itself was handed,
as by systemd: killing it takes nothing from connections or workers.
"""

import contextlib
import ctypes
import errno
import json
import os
import selectors
import signal
import socket
import struct
import sys
import time
from ctypes import c_uint64
from typing import TYPE_CHECKING, Any, NoReturn

from fastsocket.app.protocol import Join, Op, Request, pack_reply
from fastsocket.bpf.libbpf import BpfError
from fastsocket.host.journal import append
from fastsocket.listen import layout
from fastsocket.listen.layout import SlotState, Tier
from fastsocket.listen.page import StatusPage, snapshot
from fastsocket.listen.queues import listen_overflows, queues
from fastsocket.listen.select import Selector, migration_works
from fastsocket.local.fastpath import FastPath
from fastsocket.native import native_file

if TYPE_CHECKING:
    from fastsocket.app.deliver import Deliver

__all__ = ["Keeper", "become_keeper"]

SO_PEERCRED_FORMAT = struct.Struct("=iII")
SO_COOKIE = 57
SO_DETACH_REUSEPORT_BPF = 68
SYS_PIDFD_GETFD = 438  # the same on every architecture
GRACE_S = 0.3  # for a new worker to take over what a dead one left
LINGER_S = 0.05  # after the last known process: time for a child of its to register


class Keeper:
    """Serves one application.

    Args:
        page: The application's status page.
        server: Listening SOCK_SEQPACKET unix socket.
        pid: The application's first process.
        command: Its command line, for status.
        resumed: Whether it takes the place of a keeper that was killed.
        local_port: Its port whose connections within this host take the local fast path.
        deliver: How its own connections get their ports; None: as the kernel chooses.
    """

    def __init__(
        self,
        page: StatusPage,
        server: socket.socket,
        pid: int,
        command: list[str],
        resumed: bool = False,
        local_port: int | None = None,
        deliver: "Deliver | None" = None,
    ) -> None:
        self.page, self.server, self.pid, self.command = page, server, pid, command
        self.tier = Tier.CLASSIC
        self.reasons: dict[str, str] = {}
        self._selectors: dict[int, Selector] = {}
        self._members: dict[int, set[bytes]] = {}  # listener: cookies of sockets that joined
        self._names: dict[int, tuple[Any, ...]] = {}  # listener: family, address, port
        self._lent: list[socket.socket] = []  # what the application got from its own starter
        self._generation = 0
        self._watched: dict[int, int] = {}  # process: its pidfd
        self._events = selectors.DefaultSelector()
        os.environ["FASTSOCKET_LISTEN_SPAWN"] = "0"  # the library is to do nothing by itself here
        self._native = ctypes.CDLL(str(native_file("libfsocket.so")))
        self._view = ctypes.byref(page.view)
        self._due: float | None = None  # when orphans are handed over
        self._resumed = resumed
        self._local_port = local_port
        self._deliver = deliver
        self._local: FastPath | None = None
        self._local_limits: list[str] = []

    def run(self) -> None:
        """Serve until the application's last process is gone."""
        self._probe()
        self._start_local()
        append(f"{self.command[0]} ({self.pid}): tier {self.tier.name.lower()}")
        for feature, reason in self.reasons.items():
            append(f"{self.command[0]} ({self.pid}): {feature} is missing: {reason}")
        self.page.view.keeper = os.getpid()
        self._watch(self.pid)
        if self._resumed:
            self._resume()
        self._events.register(self.server, selectors.EVENT_READ)
        while self._watched or self._adopt():
            patience = None if self._due is None else max(0, self._due - time.monotonic())
            for key, _ in self._events.select(patience):
                if key.fileobj is self.server:
                    self._serve()
                else:
                    self._departed(key.data)
            if self._due is not None and time.monotonic() >= self._due:
                self._due = None
                self._rescue()

        for member in self._lent:
            self._give_back(member)
        if self._deliver:
            self._deliver.close()

    @staticmethod
    def _give_back(member: socket.socket) -> None:
        """Undo what was done to a socket that outlives the application."""
        with member, contextlib.suppress(OSError):
            member.setsockopt(socket.SOL_SOCKET, SO_DETACH_REUSEPORT_BPF, 0)
            member.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 0)

    def status(self) -> dict[str, Any]:
        """Return what `fastsocket status` shows of this application, ready for JSON."""
        return {
            "pid": self.pid,
            "keeper": os.getpid(),
            "command": self.command,
            "tier": self.tier.name.lower(),
            "reasons": self.reasons,
            "listen_spawn": self.page.view.listen_spawn,
            "processes": sorted(self._watched),
            "listeners": snapshot(self.page.view, queues()),
            "listen_overflows": listen_overflows(),
            "deliver": self._deliver and self._deliver.status(),
            "local": self._local and self._local.status() | {"limits": self._local_limits},
        }

    # -- the tier ---------------------------------------------------------------------------

    def _probe(self) -> None:
        """Find the highest tier that works here, by trying each."""
        if not self.page.map:
            self.reasons["select"] = self.page.missing
            return
        try:
            with Selector(self.page.map, layout.MAX_LISTENERS - 1, 0, Tier.MIGRATE) as selector:
                self.reasons["migrate"] = migration_works(selector)
                self.tier = Tier.MIGRATE
        except BpfError as error:
            self.reasons["migrate"] = str(error)
        if not self.reasons["migrate"]:
            del self.reasons["migrate"]
            return
        try:
            Selector(self.page.map, layout.MAX_LISTENERS - 1, 0, Tier.SELECT).close()
            self.tier = Tier.SELECT
        except BpfError as error:
            self.tier = Tier.CLASSIC
            self.reasons["select"] = str(error)

    def _resume(self) -> None:
        """Go on where a keeper was killed: its programs, its processes, those that died since."""
        append(f"{self.command[0]} ({self.pid}): a keeper in place of one that was killed")
        for tier in (Tier.SELECT, Tier.MIGRATE):
            found = Selector.reopen(self.page.map, tier) if self.page.map else {}
            for index, (generation, selector) in found.items():
                if index < layout.MAX_LISTENERS - 1 and index not in self._selectors:
                    self._selectors[index] = selector
                    self.page.view.listener[index].generation = generation
                    self._members[index] = selector.cookies()
        for index in range(layout.MAX_LISTENERS):
            entry = self.page.view.listener[index]
            self._generation = max(self._generation, entry.generation)
            self._members.setdefault(index, set())
        self._adopt()
        self._sweep()
        self._due = time.monotonic() + GRACE_S

    def _start_local(self) -> None:
        if self._local_port is None:
            return
        from fastsocket.local.selftest import start  # only few applications need it

        self._local, reason, self._local_limits = start(self._local_port)
        if self._local is None:
            self.reasons["local-fast-path"] = reason

    # -- requests ---------------------------------------------------------------------------

    def _serve(self) -> None:
        """Answer one request; a peer that is slow or talks nonsense is dropped."""
        try:
            peer, _ = self.server.accept()
        except OSError:
            return
        with peer:
            peer.settimeout(1)
            try:
                data, fds, _, _ = socket.recv_fds(peer, 64, 2)
            except OSError:
                return
            member: socket.socket | None = None
            try:
                member = _tcp(fds) if fds else None
                self._answer(peer, data, member)
            except (OSError, BpfError) as error:
                self.reasons["last request"] = str(error)
                self._reply(peer, pack_reply(error.errno or errno.EIO))
            finally:
                if member:
                    member.close()

    def _answer(self, peer: socket.socket, data: bytes, member: socket.socket | None) -> None:
        pid, uid, _ = SO_PEERCRED_FORMAT.unpack(
            peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, SO_PEERCRED_FORMAT.size)
        )
        request = Request.unpack(data)
        if request is None or not self._belongs(pid, uid):
            append(f"keeper of {self.pid}: refused process {pid} of user {uid}")
            self._reply(peer, pack_reply(errno.EPERM))
            return
        match request.op:
            case Op.STATUS:
                self._reply(peer, json.dumps(self.status()).encode())
            case Op.JOIN if member:
                self._watch(pid)
                self._join(peer, pid, member, Join(request.flags & 3))
            case Op.ADD if member:
                self._add(request, member)
                self._reply(peer, pack_reply())
            case Op.WORKER:
                self._watch(pid)
                self._reply(peer, pack_reply())
            case _:
                self._reply(peer, pack_reply(errno.EINVAL))

    @staticmethod
    def _reply(peer: socket.socket, data: bytes) -> None:
        with contextlib.suppress(OSError):
            peer.send(data)

    def _belongs(self, pid: int, uid: int) -> bool:
        """Whether a peer is root, our user, or a descendant of the application."""
        if uid in (0, os.getuid()):
            return True
        while pid > 1:
            if pid in self._watched or pid == self.pid:
                return True
            try:
                with open(f"/proc/{pid}/stat", "rb") as stat:  # noqa: PTH123  # pathlib is slow to import
                    pid = int(stat.read().rpartition(b")")[2].split()[1])
            except OSError:
                return False
        return False

    def _join(self, peer: socket.socket, pid: int, member: socket.socket, how: Join) -> None:
        """Tell the place of a listening socket's address in the page, making one if need be."""
        with member:
            family, name = member.family, member.getsockname()
            address = socket.inet_pton(family, name[0].partition("%")[0]).ljust(16, b"\0")
            cookie = member.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8)
            index = self._place(family, address, name[1], cookie, Join.LATE in how)
            self._members[index].add(cookie)
            self._names[index] = (family, *name[:2])
            if how == Join.LATE | Join.INHERITED and pid == self.pid:
                self._lent.append(member.dup())
        # Closed before the answer: the application may close its own at once, and the port must
        # be free then.
        data = pack_reply(0, index, self.page.view.listener[index].tier)
        socket.send_fds(peer, [data], [self.page.fd])
        if self.tier >= Tier.SELECT:
            # A second socket that listens gets connections by hash until the program is attached:
            # then it must not have to be loaded first.
            with contextlib.suppress(BpfError):
                self._selector(index)

    def _place(self, family: int, address: bytes, port: int, cookie: bytes, late: bool) -> int:
        """Return the entry of that address; a new one where there is none that is in use.

        An entry that nobody claimed may be in use all the same, by workers that are about to:
        only a socket that was bound without SO_REUSEPORT (`late`), hence when the earlier ones
        were closed, starts it afresh.
        """
        same, free, idle = None, None, None
        for index in range(layout.MAX_LISTENERS - 1):  # the last one is for probes
            entry = self.page.view.listener[index]
            if entry.claimed:
                self._native.fsocket_sweep(self._view, index)
            if not entry.generation:
                free = index if free is None else free
            elif (entry.family, entry.port, bytes(entry.address)) == (family, port, address):
                same = index
            elif not entry.claimed:
                idle = index
        if same is not None and (
            not late or cookie in self._members[same] or self.page.view.listener[same].claimed
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

    def _selector(self, index: int) -> Selector:
        """Return the listener's program, loaded when first needed."""
        assert self.page.map
        if index not in self._selectors:
            generation = self.page.view.listener[index].generation
            self._selectors[index] = Selector(self.page.map, index, generation, self.tier)
        return self._selectors[index]

    def _add(self, request: Request, member: socket.socket) -> None:
        """Let the listener's program choose `member`."""
        with member:
            if not (0 <= request.listener < layout.MAX_LISTENERS - 1) or not self.page.map:
                raise OSError(errno.EINVAL, "no such listener")
            if not 0 <= request.slot < layout.MAX_SLOTS:
                raise OSError(errno.EINVAL, "no such slot")
            selector = self._selector(request.listener)
            selector.add(request.slot, member)
            cookie = member.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8)
            self._members.setdefault(request.listener, set()).add(cookie)

    # -- processes --------------------------------------------------------------------------

    def _watch(self, pid: int) -> None:
        if pid in self._watched:
            return
        try:
            fd = os.pidfd_open(pid)
        except (OSError, OverflowError):  # gone, or never a process: the page may say anything
            return
        self._watched[pid] = fd
        self._events.register(fd, selectors.EVENT_READ, pid)

    def _departed(self, pid: int) -> None:
        fd = self._watched.pop(pid)
        self._events.unregister(fd)
        os.close(fd)
        self.page.forget({pid})
        self._sweep()
        # A classic program does not look at a slot's state, so it must be changed at once.
        self._due = time.monotonic() + (0 if self.tier == Tier.CLASSIC else GRACE_S)

    def _sweep(self) -> None:
        """Give up the slots of dead workers; a listener whose lock is held comes later."""
        for index in range(layout.MAX_LISTENERS):
            if self.page.view.listener[index].claimed:
                self._native.fsocket_sweep(self._view, index)

    def _rescue(self) -> None:
        """Hand over the queues that dead workers left and that nobody came for.

        A slot whose socket went with its worker is free again.
        """
        self._sweep()
        listening = queues()
        for index in range(layout.MAX_LISTENERS):
            entry = self.page.view.listener[index]
            for number in range(min(entry.slots, layout.MAX_SLOTS)):
                slot = entry.slot[number]
                if slot.state != SlotState.ORPHAN:
                    continue
                if listening and slot.cookie not in listening:
                    self._native.fsocket_forget(self._view, index, number, c_uint64(slot.cookie))
                elif slot.published:
                    self._rescue_slot(index, number)

    def _rescue_slot(self, index: int, number: int) -> None:
        """Hand over one queue; the page may name any socket, so it must be one handed in to us."""
        slot = self.page.view.listener[index].slot[number]
        cookie = int(slot.cookie).to_bytes(8, sys.byteorder)
        known = cookie in self._members.get(index, ())
        # In the classic tier siblings are not handed in: they have the listener's address at least.
        fd = self._borrow(slot.fd, slot.cookie) if known or self.tier == Tier.CLASSIC else -1
        if fd < 0:
            return
        if (known or self._name(fd) == self._names.get(index)) and not (
            self._native.fsocket_hand_over(self._view, index, number, fd)
        ):
            self._due = time.monotonic() + GRACE_S
        os.close(fd)

    @staticmethod
    def _name(fd: int) -> tuple[Any, ...]:
        with socket.socket(fileno=os.dup(fd)) as held:
            return (held.family, *held.getsockname()[:2])

    def _borrow(self, number: int, cookie: int) -> int:
        """Return a copy of the socket with that cookie from a process that holds it, or -1."""
        for pidfd in self._watched.values():
            fd: int = ctypes.CDLL(None).syscall(SYS_PIDFD_GETFD, pidfd, number, 0)
            if fd < 0:
                continue
            with contextlib.suppress(OSError), socket.socket(fileno=os.dup(fd)) as held:
                if held.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8) == cookie.to_bytes(
                    8, sys.byteorder
                ):
                    return fd
            os.close(fd)
        return -1

    def _adopt(self) -> bool:
        """Watch processes that registered themselves and that we were never told of."""
        time.sleep(LINGER_S)
        registered = self.page.processes() | (self._deliver.processes() if self._deliver else set())
        for pid in registered:
            self._watch(pid)
        self.page.forget(registered - set(self._watched))
        return bool(self._watched)


def _tcp(fds: list[int]) -> socket.socket:
    """Return the socket that came with a request, and close what else did.

    Raises:
        OSError: It is no TCP socket.
    """
    first, *others = fds
    for fd in others:
        os.close(fd)
    try:
        member = socket.socket(fileno=first)
    except OSError:
        os.close(first)
        raise
    if member.family in (socket.AF_INET, socket.AF_INET6) and member.type == socket.SOCK_STREAM:
        return member
    member.close()
    raise OSError(errno.EINVAL, "not a TCP socket")


def become_keeper(keeper: Keeper) -> NoReturn:
    """Turn this forked process into the keeper: own session, no terminal, a name; never returns."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with contextlib.suppress(OSError), open("/proc/self/comm", "w") as comm:  # noqa: PTH123
        comm.write("fastsocket-keep")
    null = os.open(os.devnull, os.O_RDWR)
    for fd in range(3):
        os.dup2(null, fd)
    os.chdir("/")
    code = 1
    try:
        keeper.run()
        code = 0
    finally:
        sys.stderr.flush()
        os._exit(code)
