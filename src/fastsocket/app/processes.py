# SPDX-License-Identifier: GPL-2.0-or-later
"""Which processes are the application's, and when each of them ends.

The page lists processes too, but the application can write there whatever it likes. So a process
counts only if the kernel bears it out: it descends from one that counts, or its environment or
its memory shows that this keeper is its own.
"""

import contextlib
import os
import re
import signal
import socket
import struct
import sys
from collections.abc import Iterator

from fastsocket.app.scheduling import scheduling_of
from fastsocket.host.syscalls import syscall
from fastsocket.listen.layout import Page
from fastsocket.listen.page import MAPPED, StatusPage

__all__ = ["SO_COOKIE", "Processes", "cgroup_of"]

SO_COOKIE = 57  # include/uapi/asm-generic/socket.h
LARGEST_PID = 1 << 22  # PID_MAX_LIMIT of linux/threads.h
LONGEST_READ = 1 << 20  # of a file in /proc, whose length its process decides on
KEEPER_VARIABLE = b"FASTSOCKET_KEEPER="
BPF_MAP = b"anon_inode:bpf-map"  # as /proc shows one
# proc_pid_maps(5): first and last address, device, inode, name
_MAPPING = re.compile(rb"^([0-9a-f]+)-([0-9a-f]+) \S+ \S+ (\S+) (\d+) *(.*)$", re.MULTILINE)
_KEEPER = struct.Struct("=I")


class Processes:
    """The living processes of one application, each held by a pidfd.

    Args:
        page: The application's status page.
        name: The keeper's socket, as the environment of the application's programs has it.
    """

    def __init__(self, page: StatusPage, name: str) -> None:
        self.page = page
        self._variable = KEEPER_VARIABLE + name.encode()
        self._pidfds: dict[int, int] = {}

    def __bool__(self) -> bool:
        return bool(self._pidfds)

    def __iter__(self) -> Iterator[int]:
        return iter(sorted(self._pidfds))

    def __contains__(self, pid: object) -> bool:
        return pid in self._pidfds

    def add(self, pid: int, vouched: bool = False) -> int | None:
        """Hold a process, if it is one of the application's.

        Args:
            pid: The process, or any number.
            vouched: Whether it needs no proof: the first one, or a peer that was let in.

        Returns:
            The pidfd where it was not held before, else None.
        """
        if pid in self._pidfds or not 0 < pid <= LARGEST_PID:
            return None
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:
            return None
        # What is found out under the number holds for this process only while it lives.
        if (vouched or self.includes(pid)) and _lives(pidfd):
            self._pidfds[pid] = pidfd
            return pidfd
        os.close(pidfd)
        return None

    def in_batch(self) -> list[int]:
        """Return the time slices, in ns, of those with the scheduling policy SCHED_BATCH."""
        found = []
        for pid in self._pidfds:
            with contextlib.suppress(OSError):  # it ended meanwhile
                scheduling = scheduling_of(pid)
                if scheduling.policy == os.SCHED_BATCH:
                    found.append(scheduling.slice_ns)
        return found

    def remove(self, pid: int) -> int:
        """Forget a process that ended, here and in the page; return its pidfd, to be closed."""
        self.page.forget({pid})
        return self._pidfds.pop(pid)

    def registered(self) -> set[int]:
        """Return the processes that the page lists, without those that are none of ours."""
        listed = self.page.processes()
        ours = {pid for pid in listed if pid in self._pidfds or self.includes(pid)}
        self.page.forget(listed - ours)
        return ours

    def includes(self, pid: int) -> bool:
        """Whether a process is the application's."""
        if not 0 < pid <= LARGEST_PID or pid == os.getpid():
            return False
        return self.descends(pid) or self._knows_us(pid)

    def shares_cgroup(self, pid: int) -> bool:
        """Whether a process is in the control groups of the keeper or of the application."""
        there = cgroup_of(pid) if 0 < pid <= LARGEST_PID else b""
        return bool(there) and there in map(cgroup_of, (os.getpid(), *self._pidfds))

    def descends(self, pid: int) -> bool:
        """Whether a process is one of them, or a descendant of one.

        Nothing is read from its memory, on which a stranger could keep the reader waiting.
        """
        while pid:
            pidfd = self._pidfds.get(pid)
            if pidfd is not None and _lives(pidfd):
                return True
            stat = _read(pid, "stat").rpartition(b")")[2].split()
            pid = int(stat[1]) if stat else 0
        return False

    def borrow(self, number: int, cookie: int) -> socket.socket | None:
        """Return a copy of the socket with that cookie from a process that has it as `number`."""
        copies = (_copy_of(pidfd, number, cookie) for pidfd in self._pidfds.values())
        return next(filter(None, copies), None)

    def find(self, cookie: int) -> socket.socket | None:
        """Return a copy of the socket with that cookie from a process that has it open."""
        for pid, pidfd in self._pidfds.items():
            with contextlib.suppress(OSError):
                for name in os.listdir(f"/proc/{pid}/fd"):  # noqa: PTH208  # pathlib is slow
                    if held := _copy_of(pidfd, int(name), cookie):
                        return held
        return None

    def _knows_us(self, pid: int) -> bool:
        """Whether it was started with this keeper's name, or has mapped this keeper's page.

        A daemon descends from nobody, and many overwrite their environment with a title.
        """
        if self._variable in _read(pid, "environ").split(b"\0"):
            return True
        mappings = _MAPPING.findall(_read(pid, "maps"))
        if self.page.map is None:
            file = os.fstat(self.page.fd)
            device = b"%02x:%02x" % (os.major(file.st_dev), os.minor(file.st_dev))
            return any((dev, int(ino)) == (device, file.st_ino) for _, _, dev, ino, _ in mappings)
        # All BPF maps have one inode; a page is this keeper's if its number stands there.
        with contextlib.suppress(OSError), open(f"/proc/{pid}/mem", "rb") as memory:  # noqa: PTH123  # pathlib is slow to import
            for begin, end, _, _, name in mappings:
                at = int(begin, 16)
                if name == BPF_MAP and int(end, 16) - at >= MAPPED:
                    found = os.pread(memory.fileno(), _KEEPER.size, at + Page.keeper.offset)
                    if found == _KEEPER.pack(os.getpid()):
                        return True
        return False


def cgroup_of(pid: int) -> bytes:
    """Return a process's control groups as /proc names them; empty if it is gone."""
    return _read(pid, "cgroup")


def _read(pid: int, name: str) -> bytes:
    """Return what /proc tells of a process; empty where it does not."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/{name}", "rb") as file:  # noqa: PTH123
        return file.read(LONGEST_READ)
    return b""


def _copy_of(pidfd: int, number: int, cookie: int) -> socket.socket | None:
    """Return a copy of a process's descriptor, if that is the socket with the cookie."""
    try:
        fd = syscall("pidfd_getfd", pidfd, number, 0)
    except OSError:  # no such descriptor, or not allowed
        return None
    try:
        held = socket.socket(fileno=fd)
    except OSError:  # no socket
        os.close(fd)
        return None
    with contextlib.suppress(OSError):
        found = held.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8)
        if found == cookie.to_bytes(8, sys.byteorder):
            return held
    held.close()
    return None


def _lives(pidfd: int) -> bool:
    """Whether the process has not been waited for yet, so that its number is still its own."""
    try:
        signal.pidfd_send_signal(pidfd, 0)
    except ProcessLookupError:
        return False
    except OSError:  # not allowed to signal it: it lives
        return True
    return True
