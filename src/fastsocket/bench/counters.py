# SPDX-License-Identifier: GPL-2.0-or-later
"""What a run is charged with: CPU time, segments, connections, contentions, interrupts.

CPU time is the whole machine's: elapsed time of all CPUs less idle, I/O wait and stolen time, from
/proc/stat (proc_stat(5)). Nothing that a mode causes can hide from it, neither softirq, ksoftirqd
nor a keeper process; in exchange the machine must be otherwise idle, and the interval over
interleaved rounds tells whether it was. Connections are the passive opens of the namespace, counted
over exactly the same window as everything that is divided by them.
"""

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from fastsocket.bench.netspace import Netspace
from fastsocket.bench.probe import Probe

__all__ = [
    "CoreTime",
    "Reading",
    "Window",
    "busy_share",
    "core_use",
    "parse_cores",
    "parse_snmp",
    "parse_stat",
    "read",
    "window",
]

# Columns of the cpu lines of /proc/stat: those that are not work (idle, iowait, steal), softirq,
# and the first of guest time, which user time already has in it.
_NOT_BUSY = (3, 4, 7)
_SOFTIRQ = 6
_GUEST = 8


class CoreTime(NamedTuple):
    """Ticks of one CPU: all, those of work, and those of softirq, which are work too."""

    total: int
    busy: int
    softirq: int


class Reading(NamedTuple):
    """Counters at one moment; `contentions` and `reschedules` are None without BPF."""

    seconds: float
    cpus: int
    rest_seconds: float
    segments: int
    opens: int
    contentions: int | None
    reschedules: int | None
    cores: Mapping[int, CoreTime]


class Window(NamedTuple):
    """Differences of two readings: seconds, busy CPU seconds, and counts.

    `cores` is the share of each CPU's time that was work, and that was softirq, in percent.
    """

    seconds: float
    busy_seconds: float
    segments: int
    opens: int
    contentions: int | None
    reschedules: int | None
    cores: Mapping[int, tuple[float, float]]

    def per_connection(self, amount: float | None) -> float | None:
        """Divide by the connections of the window; None where either is missing."""
        return amount / self.opens if amount is not None and self.opens else None


def parse_snmp(text: str) -> dict[str, int]:
    """Return the Tcp counters of /proc/net/snmp.

    Raises:
        ValueError: No Tcp lines.
    """
    lines = [line.split()[1:] for line in text.splitlines() if line.startswith("Tcp:")]
    if len(lines) != 2:
        raise ValueError("no Tcp counters")
    return {name: int(value) for name, value in zip(*lines, strict=True)}


def parse_stat(text: str, hertz: int) -> tuple[int, float]:
    """Return the CPUs online and the seconds that they spent not working, from /proc/stat."""
    lines = [line.split() for line in text.splitlines() if line.startswith("cpu")]
    total = [int(field) for field in lines[0][1:]]
    return len(lines) - 1, sum(total[column] for column in _NOT_BUSY) / hertz


def parse_cores(text: str) -> dict[int, CoreTime]:
    """Return the ticks of each CPU online, from /proc/stat."""
    found = {}
    for line in text.splitlines():
        name, _, rest = line.partition(" ")
        if name.startswith("cpu") and name[3:].isdigit():
            ticks = [int(field) for field in rest.split()][:_GUEST]
            busy = sum(ticks) - sum(ticks[column] for column in _NOT_BUSY)
            found[int(name[3:])] = CoreTime(sum(ticks), busy, ticks[_SOFTIRQ])
    return found


def core_use(
    before: Mapping[int, CoreTime], after: Mapping[int, CoreTime]
) -> dict[int, tuple[float, float]]:
    """Return the percent of each CPU's time that was work, and softirq, between two readings."""
    use = {}
    for cpu in sorted(before.keys() & after.keys()):
        total, busy, softirq = (new - old for old, new in zip(before[cpu], after[cpu], strict=True))
        if total > 0:
            # The kernel corrects idle time afterwards, so a difference may be below zero.
            share = min(max(100 * busy / total, 0.0), 100.0)
            use[cpu] = (share, min(max(100 * softirq / total, 0.0), share))
    return use


def busy_share(seconds: float) -> float:
    """Wait `seconds` and return the share of all CPU time that was work meanwhile, 0 to 1."""
    begun, (cpus, rest) = time.monotonic(), _stat()
    time.sleep(seconds)
    capacity = (time.monotonic() - begun) * cpus
    return min(max(1 - (_stat()[1] - rest) / capacity, 0.0), 1.0)


def read(netspace: Netspace, probe: Probe | None, others: Sequence[Netspace] = ()) -> Reading:
    """Read every counter now: connections of `netspace`, segments of that and the `others`."""
    snmp, *rests = (_snmp(each) for each in (netspace, *others))
    text = Path("/proc/stat").read_text(encoding="ascii")
    cpus, rest = parse_stat(text, os.sysconf("SC_CLK_TCK"))
    events = probe.events() if probe else None
    return Reading(
        seconds=time.monotonic(),
        cpus=cpus,
        rest_seconds=rest,
        segments=sum(each["OutSegs"] for each in (snmp, *rests)),
        opens=snmp["PassiveOpens"],
        contentions=events.contentions if events else None,
        reschedules=events.reschedules if events else None,
        cores=parse_cores(text),
    )


def window(before: Reading, after: Reading) -> Window:
    """Return what happened between two readings."""
    seconds = after.seconds - before.seconds
    return Window(
        seconds=seconds,
        busy_seconds=max(seconds * after.cpus - (after.rest_seconds - before.rest_seconds), 0.0),
        segments=after.segments - before.segments,
        opens=after.opens - before.opens,
        contentions=_difference(before.contentions, after.contentions),
        reschedules=_difference(before.reschedules, after.reschedules),
        cores=core_use(before.cores, after.cores),
    )


def _snmp(netspace: Netspace) -> dict[str, int]:
    with netspace.entered():
        return parse_snmp(Path("/proc/thread-self/net/snmp").read_text(encoding="ascii"))


def _stat() -> tuple[int, float]:
    return parse_stat(Path("/proc/stat").read_text(encoding="ascii"), os.sysconf("SC_CLK_TCK"))


def _difference(before: int | None, after: int | None) -> int | None:
    return None if before is None or after is None else after - before
