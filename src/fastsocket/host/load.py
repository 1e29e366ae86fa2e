# SPDX-License-Identifier: GPL-2.0-or-later
"""The load of the host: counters of CPU time and TCP, and what they say about some seconds.

Counters are read below a root folder, so that recorded hosts serve as tests.
"""

import time
from pathlib import Path

import msgspec

__all__ = ["Counters", "Load", "load_between", "mean_load", "read_counters", "take_load"]

_STAT = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")


class Counters(msgspec.Struct, frozen=True):
    """Counters that only grow: CPU time in ticks by kind, and TCP's by name."""

    cpu: dict[str, int]
    tcp: dict[str, int]


class Load(msgspec.Struct, frozen=True):
    """What the host did over some seconds.

    Attributes:
        seconds: How long it was watched.
        busy: Part of all CPU time that was not idle, 0 to 1.
        softirq: Part of the busy time in softirq, where packets are received, 0 to 1.
        system: Part of the busy time in system calls, 0 to 1.
        connections: Connections opened, from here and from elsewhere, a second.
        segments: TCP segments sent and received for each of them, None without any.
        overflows: Connections that found a full accept queue, a second.
    """

    seconds: float = 0.0
    busy: float = 0.0
    softirq: float = 0.0
    system: float = 0.0
    connections: float = 0.0
    segments: float | None = None
    overflows: float = 0.0


def read_counters(root: Path = Path("/"), pid: int | None = None) -> Counters:
    """Return the counters now; TCP's are those of the network namespace of a process."""
    first = (root / "proc/stat").read_text().splitlines()[0].split()
    net = root / "proc" / (str(pid) if pid else "self") / "net"
    tcp: dict[str, int] = {}
    for name in ("snmp", "netstat"):
        lines = (net / name).read_text().splitlines()
        for heads, values in zip(lines[::2], lines[1::2], strict=True):
            group, *keys = heads.split()
            if group in ("Tcp:", "TcpExt:"):
                tcp.update(zip(keys, map(int, values.split()[1:]), strict=True))
    return Counters(dict(zip(_STAT, map(int, first[1:9]), strict=True)), tcp)


def load_between(before: Counters, after: Counters, seconds: float) -> Load:
    """Return the load between two readings that lie some seconds apart."""
    cpu = {key: after.cpu[key] - before.cpu[key] for key in _STAT}
    tcp = {key: after.tcp.get(key, 0) - value for key, value in before.tcp.items()}
    total = sum(cpu.values())
    busy = total - cpu["idle"] - cpu["iowait"]
    opened = tcp["PassiveOpens"] + tcp["ActiveOpens"]
    segments = tcp["InSegs"] + tcp["OutSegs"]
    return Load(
        seconds=seconds,
        busy=busy / total if total > 0 else 0.0,
        softirq=cpu["softirq"] / busy if busy > 0 else 0.0,
        system=cpu["system"] / busy if busy > 0 else 0.0,
        connections=opened / seconds,
        segments=segments / opened if opened > 0 else None,
        overflows=tcp.get("ListenOverflows", 0) / seconds,
    )


def mean_load(root: Path = Path("/")) -> Load:
    """Return the mean from the start of the host to now."""
    now = read_counters(root)
    start = Counters(dict.fromkeys(now.cpu, 0), dict.fromkeys(now.tcp, 0))
    return load_between(start, now, float((root / "proc/uptime").read_text().split()[0]))


def take_load(seconds: float, pid: int | None = None) -> Load:
    """Watch this host for some seconds."""
    before, start = read_counters(pid=pid), time.monotonic()
    time.sleep(seconds)
    return load_between(before, read_counters(pid=pid), time.monotonic() - start)
