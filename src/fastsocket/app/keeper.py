# SPDX-License-Identifier: GPL-2.0-or-later
"""The keeper: one small process per accelerated application.

It owns the status page and the select programs, tells libfsocket.so where a listener stands in
the page, notices when a worker dies, and goes when the application's last process goes. It
holds none of the application's sockets, except those that the application itself was handed,
as by systemd: killing it takes nothing from connections or workers.
"""

import contextlib
import errno
import json
import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

from fastsocket.app.listeners import Listeners
from fastsocket.app.orphans import Orphans
from fastsocket.app.processes import Processes
from fastsocket.app.protocol import Join, Op, Request, pack_reply
from fastsocket.app.requests import Asker, Requests, still_waits
from fastsocket.bpf.libbpf import BpfError
from fastsocket.host.journal import append
from fastsocket.listen import layout
from fastsocket.listen.layout import Tier
from fastsocket.listen.page import StatusPage, snapshot
from fastsocket.listen.queues import listen_overflows, queues
from fastsocket.listen.select import Selector, migration_works
from fastsocket.local.fastpath import FastPath

if TYPE_CHECKING:
    from fastsocket.app.deliver import Deliver

__all__ = ["Keeper", "become_keeper"]

GRACE_S = 0.3  # for a new worker to take over what a dead one left
LINGER_S = 0.05  # after the last known process: time for a child of its to register
BIRTH_S = 2.0  # the same where one was forked that has not come so far; the fork may have failed
LOG_PAUSE_S = 1.0  # between two lines about peers that are refused


class Keeper:
    """Serves one application.

    Args:
        page: The application's status page.
        server: Listening SOCK_SEQPACKET unix socket.
        pid: The application's first process.
        name: The abstract name of `server`, without its leading zero.
        command: The application's command line, for status.
        resumed: Whether it takes the place of a keeper that was killed.
        local_port: The application's port whose connections within this host take the local fast
            path.
        deliver: How its own connections get their ports; None: as the kernel chooses.
    """

    def __init__(
        self,
        page: StatusPage,
        server: socket.socket,
        pid: int,
        name: str,
        command: list[str],
        resumed: bool = False,
        local_port: int | None = None,
        deliver: "Deliver | None" = None,
    ) -> None:
        self.page, self.pid, self.command = page, pid, command
        self.reasons: dict[str, str] = {}
        self.refused = 0  # peers that may not ask, or not for that
        self.listeners = Listeners(page)
        self.processes = Processes(page, name)
        self._orphans = Orphans(self.listeners, self.processes)
        self._events = selectors.DefaultSelector()
        self._requests = Requests(server, self._events, self._admit, self._serve)
        self._due: float | None = None  # when orphans are handed over
        self._log_due = 0.0  # when a refusal may be logged again
        self._resumed = resumed
        self._local_port = local_port
        self._deliver = deliver
        self._local: FastPath | None = None
        self._local_limits: list[str] = []

    def run(self) -> None:
        """Serve until the application's last process is gone."""
        self._probe()
        self._start_local()
        append(f"{self.command[0]} ({self.pid}): tier {self.listeners.tier.name.lower()}")
        for feature, reason in self.reasons.items():
            append(f"{self.command[0]} ({self.pid}): {feature} is missing: {reason}")
        self.page.view.keeper = os.getpid()
        self._watch(self.pid, vouched=not self._resumed)  # it may be gone, its number reused
        if self._resumed:
            with self._noting("resume"):
                self._resume()
        while self.processes or self._adopt():
            for key, _ in self._events.select(self._patience()):
                with self._noting("last event"):
                    key.data()
            self._requests.expire()
            if self._due is not None and time.monotonic() >= self._due:
                self._due = None
                with self._noting("rescue"):
                    self._rescue()
        self.listeners.put_back()
        if self._deliver:
            self._deliver.close()

    def _patience(self) -> float | None:
        """Return how long to wait for events in seconds, None for as long as it takes."""
        dues = [due for due in (self._due, self._requests.deadline) if due is not None]
        return max(0.0, min(dues) - time.monotonic()) if dues else None

    @contextlib.contextmanager
    def _noting(self, what: str) -> Iterator[None]:
        """Go on after whatever went wrong: a keeper that ends leaves the application alone."""
        try:
            yield
        except Exception as error:
            self.reasons[what] = f"{type(error).__name__}: {error}"

    def status(self) -> dict[str, Any]:
        """Return what `fastsocket status` shows of this application, ready for JSON."""
        in_batch = self.processes.in_batch()
        return {
            "pid": self.pid,
            "keeper": os.getpid(),
            "command": self.command,
            "tier": self.listeners.tier.name.lower(),
            "reasons": self.reasons,
            "refused": self.refused,
            "listen_spawn": self.page.view.listen_spawn,
            "busy_poll_us": self.page.view.busy_poll_us,
            "polled": self.page.view.polled,
            "processes": list(self.processes),
            "batch": len(in_batch),
            "batch_slice_ms": min(in_batch, default=0) / 1e6,
            "listeners": snapshot(self.page.view, queues(), self.listeners.placed()),
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
                self.listeners.tier = Tier.MIGRATE
        except BpfError as error:
            self.reasons["migrate"] = str(error)
        if not self.reasons["migrate"]:
            del self.reasons["migrate"]
            return
        try:
            Selector(self.page.map, layout.MAX_LISTENERS - 1, 0, Tier.SELECT).close()
            self.listeners.tier = Tier.SELECT
        except BpfError as error:
            self.listeners.tier = Tier.CLASSIC
            self.reasons["select"] = str(error)

    def _resume(self) -> None:
        """Go on where a keeper was killed: its programs, its processes, those that died since."""
        append(f"{self.command[0]} ({self.pid}): a keeper in place of one that was killed")
        self.listeners.resume()
        self._adopt()
        self.listeners.find_lent(self.processes)
        self.listeners.sweep()
        self._due = time.monotonic() + GRACE_S

    def _start_local(self) -> None:
        if self._local_port is None:
            return
        from fastsocket.local.selftest import start  # only few applications need it

        self._local, reason, self._local_limits = start(self._local_port)
        if self._local is None:
            self.reasons["local-fast-path"] = reason

    # -- requests ---------------------------------------------------------------------------

    def _admit(self, asker: Asker) -> bool:
        """Whether to read what a peer asks: root's, our user's and the application's processes."""
        if asker.uid in (0, os.getuid()) or self.processes.descends(asker.pid):
            return True
        self._refuse(asker)
        return False

    def _may_change(self, asker: Asker) -> bool:
        """Whether a peer that was admitted may ask for more than the status.

        Where /proc does not tell of the peer, its control group stands for the application.
        """
        return self.processes.includes(asker.pid) or self.processes.shares_cgroup(asker.pid)

    def _refuse(self, asker: Asker) -> None:
        self.refused += 1
        if time.monotonic() >= self._log_due:
            self._log_due = time.monotonic() + LOG_PAUSE_S
            append(
                f"keeper of {self.pid}: refused process {asker.pid} of user {asker.uid};"
                f" {self.refused} so far"
            )

    def _serve(self, peer: socket.socket, asker: Asker, data: bytes, fds: list[int]) -> None:
        """Answer one request; whatever goes wrong with it, the keeper goes on."""
        member: socket.socket | None = None
        request = Request.unpack(data)
        try:
            member = _tcp(fds) if fds else None
            if not request or request.op == Op.STATUS or self._may_change(asker):
                self._answer(peer, asker.pid, request, member)
            elif still_waits(peer):
                self._refuse(asker)
                _reply(peer, pack_reply(errno.EPERM))
            else:  # it died, perhaps as a worker with a slot: /proc does not tell any more
                self._due = time.monotonic()
        except Exception as error:
            self.reasons["last request"] = f"{type(error).__name__}: {error}"
            _reply(peer, pack_reply(getattr(error, "errno", None) or errno.EIO))
        finally:
            if member:
                member.close()

    def _answer(
        self,
        peer: socket.socket,
        pid: int,
        request: Request | None,
        member: socket.socket | None,
    ) -> None:
        match request and request.op:
            case Op.STATUS:
                self._tell(peer)
            # What nobody waits for any more is not to take effect: its asker took another way.
            case Op.JOIN | Op.ADD if not still_waits(peer):
                pass
            case Op.JOIN if request and member:
                self._watch(pid, vouched=True)
                self._join(peer, pid, member, Join(request.flags & 3))
            case Op.ADD if request and member:
                self._watch(pid, vouched=True)
                self.listeners.add(request, member)
                _reply(peer, pack_reply())
            case Op.WORKER:
                self._watch(pid, vouched=True)
                _reply(peer, pack_reply())
            case _:
                _reply(peer, pack_reply(errno.EINVAL))

    def _tell(self, peer: socket.socket) -> None:
        """Send the status as a file: it may be longer than one message can be."""
        text = json.dumps(self.status()).encode()
        with os.fdopen(os.memfd_create("status"), "w+b") as file:
            file.write(text)
            file.flush()
            with contextlib.suppress(OSError):
                socket.send_fds(peer, [pack_reply()], [file.fileno()])

    def _join(self, peer: socket.socket, pid: int, member: socket.socket, how: Join) -> None:
        lent = how == Join.LATE | Join.INHERITED and pid == self.pid
        index = self.listeners.join(member, how, lent)
        data = pack_reply(0, index, self.page.view.listener[index].tier)
        socket.send_fds(peer, [data], [self.page.fd])
        self.listeners.prepare(index)

    # -- processes --------------------------------------------------------------------------

    def _watch(self, pid: int, vouched: bool = False) -> None:
        pidfd = self.processes.add(pid, vouched)
        if pidfd is not None:
            self._events.register(pidfd, selectors.EVENT_READ, partial(self._departed, pid))
        elif pid not in self.processes:  # it died before it could be watched
            self._due = time.monotonic()

    def _departed(self, pid: int) -> None:
        pidfd = self.processes.remove(pid)
        self._events.unregister(pidfd)
        os.close(pidfd)
        self.listeners.sweep()
        if self.listeners.tier == Tier.CLASSIC:
            # Such a program does not look at a slot's state: it is changed before anything else.
            self._rescue()
        else:
            self._due = time.monotonic() + GRACE_S

    def _rescue(self) -> None:
        """Hand over the queues that dead workers left and that nobody came for."""
        if self._orphans.rescue():
            self._due = time.monotonic() + GRACE_S

    def _adopt(self) -> bool:
        """Watch processes that registered themselves and that we were never told of."""
        until, page = time.monotonic() + BIRTH_S, self.page.view
        while True:
            time.sleep(LINGER_S)
            for pid in self.processes.registered():
                self._watch(pid)
            for pid in self._deliver.processes() if self._deliver else ():  # of its control group
                self._watch(pid, vouched=True)
            if self.processes or page.forks == page.born or time.monotonic() >= until:
                return bool(self.processes)


def _reply(peer: socket.socket, data: bytes) -> None:
    with contextlib.suppress(OSError):
        peer.send(data)


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
    # It ends after the application, also where both are told to end, as by systemd.
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
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
