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
from pathlib import Path
from typing import NamedTuple

from fastsocket.bench.netspace import Netspace
from fastsocket.bench.probe import Probe

__all__ = ["Reading", "Window", "busy_share", "parse_snmp", "parse_stat", "read", "window"]

# Columns of the cpu line of /proc/stat that are not work: idle, iowait, steal.
_NOT_BUSY = (3, 4, 7)


class Reading(NamedTuple):
    """Counters at one moment; `contentions` and `reschedules` are None without BPF."""

    seconds: float
    cpus: int
    rest_seconds: float
    segments: int
    opens: int
    contentions: int | None
    reschedules: int | None


class Window(NamedTuple):
    """Differences of two readings: seconds, busy CPU seconds, and counts."""

    seconds: float
    busy_seconds: float
    segments: int
    opens: int
    contentions: int | None
    reschedules: int | None

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


def busy_share(seconds: float) -> float:
    """Wait `seconds` and return the share of all CPU time that was work meanwhile, 0 to 1."""
    begun, (cpus, rest) = time.monotonic(), _stat()
    time.sleep(seconds)
    capacity = (time.monotonic() - begun) * cpus
    return min(max(1 - (_stat()[1] - rest) / capacity, 0.0), 1.0)


def read(netspace: Netspace, probe: Probe | None) -> Reading:
    """Read every counter now, for connections inside `netspace`."""
    with netspace.entered():
        snmp = parse_snmp(Path("/proc/thread-self/net/snmp").read_text(encoding="ascii"))
    cpus, rest = _stat()
    events = probe.events() if probe else None
    return Reading(
        seconds=time.monotonic(),
        cpus=cpus,
        rest_seconds=rest,
        segments=snmp["OutSegs"],
        opens=snmp["PassiveOpens"],
        contentions=events.contentions if events else None,
        reschedules=events.reschedules if events else None,
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
    )


def _stat() -> tuple[int, float]:
    return parse_stat(Path("/proc/stat").read_text(encoding="ascii"), os.sysconf("SC_CLK_TCK"))


def _difference(before: int | None, after: int | None) -> int | None:
    return None if before is None or after is None else after - before
