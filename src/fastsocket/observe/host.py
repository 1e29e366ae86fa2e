# SPDX-License-Identifier: GPL-2.0-or-later
"""Samples of the live host: /proc for its CPUs, the keepers for its accelerated applications."""

import time
from collections.abc import Callable
from pathlib import Path

from fastsocket.observe.sample import Core, Listener, Sample

__all__ = ["HostSource", "parse_cores"]

# Columns of a cpu line in /proc/stat, see proc_stat(5). guest and guest_nice are left out, for they
# are part of user and nice already.
_COLUMNS = 8
_IDLE, _IOWAIT, _SOFTIRQ = 3, 4, 6


def parse_cores(stat: str, softirqs: str) -> list[Core]:
    """Return the counters of every online CPU.

    Args:
        stat: Text of /proc/stat.
        softirqs: Text of /proc/softirqs.
    """
    lines = softirqs.splitlines()
    cpus = [int(name.removeprefix("CPU")) for name in lines[0].split()]
    counts = next((line.split()[1:] for line in lines if line.lstrip().startswith("NET_RX:")), [])
    net_rx = dict(zip(cpus, map(int, counts), strict=False))
    cores = []
    for line in stat.splitlines():
        if not line.startswith("cpu"):
            break  # the cpu lines come first, and the line of all interrupts is long
        name, *columns = line.split()
        if name == "cpu":
            continue
        ticks = [int(column) for column in columns[:_COLUMNS]]
        total = sum(ticks)
        busy = total - ticks[_IDLE] - ticks[_IOWAIT]
        cpu = int(name.removeprefix("cpu"))
        cores.append(Core(cpu, total, busy, ticks[_SOFTIRQ], net_rx.get(cpu, 0)))
    return cores


class HostSource:
    """The live host.

    Args:
        listeners: Reads the listeners of all accelerated applications.
        steering: Reads the counters of steering rules.
        proc: Where procfs is.
    """

    def __init__(
        self,
        listeners: Callable[[], list[Listener]],
        steering: Callable[[], dict[str, int]] = dict,
        proc: Path = Path("/proc"),
    ) -> None:
        self._listeners, self._steering, self._proc = listeners, steering, proc

    def read(self) -> Sample:
        """Take a sample now."""
        stat = (self._proc / "stat").read_text(encoding="ascii")
        softirqs = (self._proc / "softirqs").read_text(encoding="ascii")
        cores = parse_cores(stat, softirqs)
        return Sample(time.time(), cores, self._listeners(), self._steering())
