# SPDX-License-Identifier: GPL-2.0-or-later
"""Steering the reuseport groups of a server that runs already, and putting them back.

The server's sockets are borrowed through pidfds; a program on each group chooses by the CPU of the
SYN. The kernel keeps program and map as long as the group has sockets, and they are found again
there: there is no state elsewhere. Detaching leaves what the server had, the kernel's hash.
"""

import errno
import os
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastsocket.bpf.libbpf import BpfError, BpfObject, Map
from fastsocket.bpf.objects import map_info, program_maps, programs
from fastsocket.errors import ConflictError, FastsocketError, MissingFeatureError
from fastsocket.host.syscalls import syscall
from fastsocket.listen.layout import MAX_SLOTS
from fastsocket.native import native_file

__all__ = ["Group", "Member", "attach", "detach", "groups_of"]

# include/uapi/asm-generic/socket.h
SO_ATTACH_REUSEPORT_EBPF = 52
SO_COOKIE = 57
SO_DETACH_REUSEPORT_BPF = 68
BPF_MAP_TYPE_REUSEPORT_SOCKARRAY = 20
PROGRAM = "fs_attached"
RELEASE_S = 0.02
_PRIVILEGE = "run as root"


@dataclass
class Member:
    """One listening socket: who polls it, and the CPU that it is to serve."""

    cookie: int
    socket: socket.socket
    pid: int
    cpus: frozenset[int]
    polled: bool
    cpu: int = -1

    @property
    def pinned(self) -> bool:
        """Whether the process that polls it runs on one CPU only."""
        return len(self.cpus) == 1


@dataclass
class Group:
    """The listening sockets of one address and port."""

    address: str
    port: int
    members: list[Member] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Address and port as they are written."""
        where = f"[{self.address}]" if ":" in self.address else self.address
        return f"{where}:{self.port}"

    def deal_cpus(self) -> None:
        """Give each socket a CPU: that of its pinned process, else what is left, in order."""
        free = sorted(frozenset().union(*(member.cpus for member in self.members)))
        for member in self.members:
            if member.pinned:
                (member.cpu,) = member.cpus
        taken = {member.cpu for member in self.members}
        left = [cpu for cpu in free if cpu not in taken] or free
        rest = [member for member in self.members if member.cpu < 0]
        for number, member in enumerate(rest):
            member.cpu = left[number % len(left)]

    def to_json(self) -> dict[str, Any]:
        """Return the group ready for JSON."""
        sockets = [
            {"cookie": each.cookie, "pid": each.pid, "cpu": each.cpu, "pinned": each.pinned}
            for each in self.members
        ]
        return {"address": self.address, "port": self.port, "sockets": sockets}


def groups_of(pid: int, stack: ExitStack) -> list[Group]:
    """Return the TCP listeners of a process and its descendants; `stack` closes their sockets.

    Raises:
        ConflictError: There is no such process.
        MissingFeatureError: Its sockets may not be borrowed.
    """
    groups: dict[tuple[str, int], Group] = {}
    known: dict[int, Member] = {}
    for each in _family(pid):
        for held, polled in _listeners(each, stack):
            cookie = int.from_bytes(held.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8), "little")
            member = known.get(cookie)
            if member is None:
                member = known[cookie] = Member(cookie, held, each, frozenset(), False)
                address, port = held.getsockname()[:2]
                groups.setdefault((address, port), Group(address, port)).members.append(member)
            if not member.polled:  # rather a process that polls it than one that only holds it
                member.pid, member.polled = each, polled
                with suppress(OSError):
                    member.cpus = frozenset(os.sched_getaffinity(each))
    for group in groups.values():
        group.deal_cpus()
    return [groups[key] for key in sorted(groups)]


def _family(pid: int) -> list[int]:
    """Return a process and its descendants."""
    if not Path(f"/proc/{pid}").exists():
        raise ConflictError(f"there is no process {pid}")
    found = [pid]
    for parent in found:
        for task in Path(f"/proc/{parent}/task").glob("*/children"):
            with suppress(OSError):
                found += [int(child) for child in task.read_text().split()]
    return found


def _listeners(pid: int, stack: ExitStack) -> Iterator[tuple[socket.socket, bool]]:
    """Yield copies of a process's listening TCP sockets, and whether it polls them by epoll."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    stack.callback(os.close, pidfd)
    numbers, polled = [], set()
    try:
        entries = list(Path(f"/proc/{pid}/fd").iterdir())
    except OSError as error:
        raise MissingFeatureError(
            f"the sockets of process {pid} cannot be looked at", str(error.strerror), _PRIVILEGE
        ) from error
    for entry in entries:
        with suppress(OSError):
            kind = str(entry.readlink())
            if kind.startswith("socket:"):
                numbers.append(int(entry.name))
            elif kind == "anon_inode:[eventpoll]":
                lines = Path(f"/proc/{pid}/fdinfo/{entry.name}").read_text().splitlines()
                polled |= {int(line.split()[1]) for line in lines if line.startswith("tfd:")}
    for number in sorted(numbers):
        try:
            fd = syscall("pidfd_getfd", pidfd, number, 0)
        except PermissionError as error:
            raise MissingFeatureError(
                f"the sockets of process {pid} cannot be borrowed",
                str(error.strerror),
                _PRIVILEGE,
            ) from error
        except OSError:
            continue
        held = socket.socket(fileno=fd)
        if held.family in (socket.AF_INET, socket.AF_INET6) and _listens(held):
            stack.enter_context(held)
            yield held, number in polled
        else:
            held.close()


def _listens(held: socket.socket) -> bool:
    try:
        return (
            held.type == socket.SOCK_STREAM
            and held.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1
        )
    except OSError:
        return False


def attach(groups: list[Group], server: str, dry_run: bool = False) -> list[Group]:
    """Steer the groups of more than one socket by CPU; return them.

    Raises:
        ConflictError: No group has more than one socket.
        BpfError: The kernel refused the program.
    """
    if not groups:
        raise ConflictError(f"{server} does not listen on TCP")
    wanted = [group for group in groups if len(group.members) > 1]
    if not wanted:
        names = ", ".join(group.name for group in groups)
        raise ConflictError(
            f"{server} cannot be steered while it runs",
            f"one socket for all its workers on {names}",
            "restart it: fastsocket run -- ...",
        )
    for group in wanted:
        if len(group.members) > MAX_SLOTS:
            raise ConflictError(f"{group.name} has more than {MAX_SLOTS} sockets")
        if not dry_run:
            _steer(group)
    return wanted


def _steer(group: Group) -> None:
    if _is_steered(group):  # a socket cannot be in two maps
        group.members[0].socket.setsockopt(socket.SOL_SOCKET, SO_DETACH_REUSEPORT_BPF, 0)
    program = BpfObject(native_file("attach.bpf.o"))
    try:
        program.load()
        sockets, by_cpu = program.map("fs_sockets"), program.map("fs_cpu_socket")
        for number, member in enumerate(group.members):
            try:
                _put(sockets, number, member)
            except BpfError as error:
                raise ConflictError(
                    f"a socket of {group.name} cannot be chosen", os.strerror(error.errno)
                ) from error
            by_cpu.update(struct.pack("=I", member.cpu), struct.pack("=I", number + 1))
        group.members[0].socket.setsockopt(
            socket.SOL_SOCKET, SO_ATTACH_REUSEPORT_EBPF, program.program(PROGRAM).fd
        )
    except OSError as error:
        raise FastsocketError(f"{group.name} cannot be steered", str(error.strerror)) from error
    finally:
        program.close()


def _put(sockets: Map, number: int, member: Member) -> None:
    """Put a socket into the map; a map that was just given up is emptied a moment later."""
    key, value = struct.pack("=I", number), struct.pack("=Q", member.socket.fileno())
    for _ in range(100):
        try:
            sockets.update(key, value)
            return
        except BpfError as error:
            if error.errno != errno.EBUSY:
                raise
        time.sleep(RELEASE_S)
    sockets.update(key, value)


def _is_steered(group: Group) -> bool:
    """Whether a program of ours has a map that holds one of the group's sockets."""
    cookies = {member.cookie for member in group.members}
    found = False
    for fd, program in programs(PROGRAM):
        os.close(fd)
        maps = program_maps(program)
        for each in maps.values():
            if map_info(each.fd).kind == BPF_MAP_TYPE_REUSEPORT_SOCKARRAY:
                found = found or bool(_cookies(each) & cookies)
            each.close()
    return found


def _cookies(sockets: Map) -> set[int]:
    values = (sockets.lookup(struct.pack("=I", number)) for number in range(MAX_SLOTS))
    return {int.from_bytes(value, "little") for value in values if value}


def detach(groups: list[Group], server: str, dry_run: bool = False) -> list[Group]:
    """Put the groups that we steer back to the kernel's hash; return them.

    Raises:
        ConflictError: None is steered by us.
    """
    steered = []
    for group in groups:
        if not _is_steered(group):
            continue
        steered.append(group)
        if not dry_run:
            held = group.members[0].socket
            held.setsockopt(socket.SOL_SOCKET, SO_DETACH_REUSEPORT_BPF, 0)
    if not steered:
        raise ConflictError(f"{server} is not attached")
    return steered
