# SPDX-License-Identifier: GPL-2.0-or-later
"""What `doctor` looks at: the settings of the host, and the state of one server.

`host_facts` reads below a root folder, so that recorded hosts serve as tests.
"""

import contextlib
import os
import resource
from pathlib import Path

import msgspec
import psutil

from fastsocket.errors import MissingFeatureError, UsageError
from fastsocket.host.limits import CpuLimits, live_limits
from fastsocket.host.topology import read_topology

__all__ = ["HostFacts", "ServerFacts", "host_facts", "server_facts"]

_TCP_LISTEN = "0A"  # in /proc/net/tcp, include/net/tcp_states.h


class HostFacts(msgspec.Struct, frozen=True):
    """What the host is set to.

    Attributes:
        cores: Physical cores that run.
        cpus: Logical CPUs that run.
        usable: Workers that can run at the same time here: affinity, cpuset and quota counted in.
        quota: CPU quota as a number of CPUs, None without one.
        limits: Why `usable` is less than `cpus`, a line for each limit.
        nofile: Soft limit of open files, of the server where one is looked at.
        somaxconn: Longest accept queue that any listener may have.
        conntrack: Connections that netfilter tracks, None where it tracks none.
        tables: Tables of legacy iptables in use, where they can be read.
    """

    cores: int
    cpus: int
    usable: int
    quota: float | None
    limits: tuple[str, ...]
    nofile: int
    somaxconn: int
    conntrack: int | None
    tables: tuple[str, ...] | None


class ServerFacts(msgspec.Struct, frozen=True):
    """One server and the processes below it.

    Attributes:
        pid: The process that was named.
        program: Its name.
        processes: It and its descendants.
        threads: Threads of all of them.
        ports: TCP ports that they listen on.
        sharers: The most processes that hold one and the same listening socket.
        epoll: Processes that have an epoll instance.
        nonblocking: Whether all listening sockets are non-blocking, None without any.
    """

    pid: int
    program: str
    processes: int
    threads: int
    ports: tuple[int, ...]
    sharers: int
    epoll: int
    nonblocking: bool | None


def host_facts(
    root: Path = Path("/"), pid: int | None = None, limits: CpuLimits | None = None
) -> HostFacts:
    """Return the settings of a host, for one of its processes.

    Args:
        root: The folder that holds ``proc`` and ``sys``.
        pid: The process, by default the calling one.
        limits: Its CPU limits, by default read from the live host.
    """
    limits = limits or live_limits(pid)
    own = root / "proc" / (str(pid) if pid else "self")
    topology = read_topology(root)
    cores = {(cpu.package, cpu.core) for cpu in topology.cpus if cpu.online}
    tables = _text(own / "net/ip_tables_names")
    conntrack = _text(root / "proc/sys/net/netfilter/nf_conntrack_count")
    return HostFacts(
        cores=len(cores),
        cpus=len(limits.online),
        usable=limits.count,
        quota=limits.quota,
        limits=limits.reasons,
        nofile=_nofile(_text(own / "limits") or ""),
        somaxconn=int(_text(root / "proc/sys/net/core/somaxconn") or 0),
        conntrack=int(conntrack) if conntrack else None,
        tables=None if tables is None else tuple(tables.split()),
    )


def server_facts(pid: int) -> ServerFacts:
    """Return what a server of this host and its descendants do.

    Raises:
        UsageError: There is no such process.
        MissingFeatureError: It is another user's, which only root may look at.
    """
    try:
        process = psutil.Process(pid)
        family = [process, *process.children(recursive=True)]
        program = process.name()
        listening = _listening(Path(f"/proc/{pid}/net"))
        holders: dict[int, int] = {}
        threads = epoll = 0
        flags: set[bool] = set()
        for member in family:
            with contextlib.suppress(psutil.NoSuchProcess, FileNotFoundError):
                threads += member.num_threads()
                inodes, polls, modes = _descriptors(member.pid, listening)
                epoll += polls
                flags |= modes
                for inode in inodes:
                    holders[inode] = holders.get(inode, 0) + 1
    except psutil.NoSuchProcess:
        raise UsageError(
            f"no process {pid}", "", "check the number, for example with pgrep"
        ) from None
    except (psutil.AccessDenied, PermissionError):
        raise MissingFeatureError(
            f"process {pid} cannot be looked at", "it is another user's", "run doctor as root"
        ) from None
    return ServerFacts(
        pid=pid,
        program=program,
        processes=len(family),
        threads=threads,
        ports=tuple(sorted({listening[inode] for inode in holders})),
        sharers=max(holders.values(), default=0),
        epoll=epoll,
        nonblocking=flags == {True} if flags else None,
    )


def _listening(net: Path) -> dict[int, int]:
    """Return inode -> port of the listening TCP sockets of a network namespace."""
    found = {}
    for name in ("tcp", "tcp6"):
        for line in (_text(net / name) or "").splitlines()[1:]:
            words = line.split()
            if words[3] == _TCP_LISTEN:
                found[int(words[9])] = int(words[1].rpartition(":")[2], 16)
    return found


def _descriptors(pid: int, listening: dict[int, int]) -> tuple[set[int], bool, set[bool]]:
    """Return a process's listening inodes, whether it polls, and which modes those sockets have."""
    inodes, modes, polls = set(), set(), False
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed since the folder was listed
            target = str(entry.readlink())
            polls |= target == "anon_inode:[eventpoll]"
            inode = int(target[8:-1]) if target.startswith("socket:[") else 0
            if inode in listening:
                inodes.add(inode)
                info = Path(f"/proc/{pid}/fdinfo/{entry.name}").read_text()
                modes.add(bool(int(info.split("flags:")[1].split()[0], 8) & os.O_NONBLOCK))
    return inodes, polls, modes


def _nofile(limits: str) -> int:
    """Return the soft limit of open files in /proc/PID/limits; -1 is unlimited."""
    for line in limits.splitlines():
        if line.startswith("Max open files"):
            soft = line.split()[3]
            return resource.RLIM_INFINITY if soft == "unlimited" else int(soft)
    return resource.RLIM_INFINITY


def _text(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None
