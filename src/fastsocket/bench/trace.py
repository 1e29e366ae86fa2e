# SPDX-License-Identifier: GPL-2.0-or-later
"""What remains of contentions and reschedule interrupts, by name, from a run of its own.

Stack traces and looks at every wake-up slow the machine, so nothing of this run enters the figures.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

from fastsocket.bench.counters import read
from fastsocket.bench.kallsyms import Symbols, call_site
from fastsocket.bench.probe import RESUMED, SITES, WOKEN, Probe
from fastsocket.bench.scenario import Stage
from fastsocket.errors import MissingFeatureError

__all__ = ["NOBODY", "Trace", "by_task", "contended", "take_trace", "wake_ups_traced"]

TRACE_SECONDS = 1.0
TRACE_WARMUP = 0.2
NOBODY = "no task woken"
"""Whom a reschedule interrupt of the scheduler itself wakes, such as one that moves tasks."""


@dataclass
class Trace:
    """Per 1,000 connections: contentions by kernel function, interrupts by task, most first."""

    sites: dict[str, float] = field(default_factory=dict)
    woken: dict[str, float] = field(default_factory=dict)


def take_trace(running: Stage, probe: Probe) -> Trace:
    """Load a running server once more, with everything traced.

    Raises:
        FastsocketError: The client failed.
        MissingFeatureError: The kernel lacks the tracepoints.
    """
    probe.watch(running.netspace.inode, running.site.port)
    before = read(running.netspace, None)
    with probe.attached(*SITES), wake_ups_traced(probe):
        running.load(TRACE_SECONDS, TRACE_WARMUP)
    opens = read(running.netspace, None).opens - before.opens
    if not opens:
        return Trace()
    woken = by_task(probe.woken())
    return Trace(_per_thousand(contended(probe), opens), _per_thousand(woken, opens))


@contextmanager
def wake_ups_traced(probe: Probe) -> Iterator[None]:
    """Charge reschedule interrupts to the tasks that they are sent for, for a block.

    Where the kernel has no tracepoint ipi_send_cpu (Debian's 6.1), to the tasks that run next.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(probe.attached(*WOKEN))
        except MissingFeatureError:
            stack.enter_context(probe.attached(*RESUMED))
        yield


def contended(probe: Probe) -> dict[str, int]:
    """Return the contentions that were traced, by kernel function."""
    symbols = Symbols.running()
    found: dict[str, int] = {}
    for addresses, count in probe.sites():
        site = call_site([symbols.name(address) for address in addresses])
        found[site] = found.get(site, 0) + count
    return found


def by_task(counts: Mapping[str, int]) -> dict[str, int]:
    """Add up the threads that the kernel keeps for each CPU: ksoftirqd/0 and ksoftirqd/1."""
    found: dict[str, int] = {}
    for name, count in counts.items():
        task = name.partition("/")[0] or NOBODY
        found[task] = found.get(task, 0) + count
    return found


def _per_thousand(counts: Mapping[str, int], connections: int) -> dict[str, float]:
    most = sorted(counts.items(), key=lambda item: -item[1])
    return {name: 1000 * count / connections for name, count in most}
