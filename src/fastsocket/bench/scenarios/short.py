# SPDX-License-Identifier: GPL-2.0-or-later
"""`short`: connections of one small request each, closed after the answer.

A run has two loads. The first is measured for speed, with counters that run only at contentions and
reschedule interrupts. The second, shorter one is watched at every accept: that makes each system
call on the machine some 0.2 us slower, so nothing of it enters the first. What remains is named in
a run apart (:meth:`Short.trace`).
"""

from collections.abc import Iterable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace

from fastsocket.bench.modes import Mode
from fastsocket.bench.probe import ACCEPTS, EVENTS, Accepts, Probe
from fastsocket.bench.scenario import Measurement, Setup, Stage, stage
from fastsocket.bench.servers import HTTP_SERVERS
from fastsocket.bench.stats import spread
from fastsocket.bench.trace import Trace, take_trace
from fastsocket.errors import UsageError

__all__ = ["Short", "measure_speed", "watch_accepts"]

WATCH_SECONDS = 0.5
WATCH_WARMUP = 0.1


class Short:
    """Short connections: speed, cost, contention and locality."""

    name = "short"
    metrics = {  # noqa: RUF012  # a constant by the protocol's read-only property
        "cps": "1/s",
        "cpu_us_per_conn": "us",
        "lock_contentions_per_1k": "1/1000 connections",
        "resched_ipis_per_1k": "1/1000 connections",
        "local_percent": "%",
        "segments_per_conn": "segments",
        "worker_cv": "ratio",
        "p50_us": "us",
        "p99_us": "us",
        "errors": "connections",
    }
    servers = tuple(HTTP_SERVERS)

    def prepare(self, setup: Setup) -> Setup:
        """See :class:`fastsocket.bench.scenario.Scenario`."""
        if setup.lean_client and not setup.client.versatile:
            raise UsageError(f"{setup.client.name} cannot be lean", todo="use fastsocket-load")
        return setup

    def measure(self, setup: Setup, mode: Mode) -> Measurement:
        """See :class:`fastsocket.bench.scenario.Scenario`."""
        taken = Measurement()
        with self.staged(setup, mode) as running:
            measure_speed(taken, running)
            watch_accepts(taken, running)
        return taken

    def staged(self, setup: Setup, mode: Mode) -> AbstractContextManager[Stage]:
        """Start the server in `mode` for a block; stock has a stock client."""
        lean = setup.lean_client and mode is Mode.FASTSOCKET
        return stage(replace(setup, lean_client=lean), mode)

    def trace(self, setup: Setup, mode: Mode, probe: Probe) -> Trace:
        """Run once more to name what remains of contentions and interrupts; no figure of it counts.

        Raises:
            FastsocketError: Server or client failed, or the kernel has no such tracepoints.
        """
        with self.staged(setup, mode) as running:
            return take_trace(running, probe)


def measure_speed(taken: Measurement, running: Stage) -> None:
    """Fill in all that is counted or timed without watching single connections."""
    setup = running.setup
    with ExitStack() as stack:
        if setup.probe:
            stack.enter_context(setup.probe.attached(*EVENTS))
        outcome, seen = running.load(setup.seconds, setup.warmup)
    reason = setup.probe_reason
    taken.cores = seen.cores
    taken.put("cps", outcome.per_second)
    taken.put("cpu_us_per_conn", seen.per_connection(seen.busy_seconds * 1e6))
    taken.put("lock_contentions_per_1k", seen.per_connection(_k(seen.contentions)), reason)
    taken.put("resched_ipis_per_1k", seen.per_connection(_k(seen.reschedules)), reason)
    taken.put("segments_per_conn", seen.per_connection(seen.segments))
    for name in ("p50", "p99"):
        taken.put(f"{name}_us", outcome.latency_us.get(name), f"{setup.client.name} lacks it")
    taken.put("errors", float(outcome.errors))


def watch_accepts(taken: Measurement, running: Stage) -> None:
    """Fill in who accepted what where, from a second load."""
    setup, probe = running.setup, running.setup.probe
    if probe is None:
        taken.put("local_percent", None, setup.probe_reason)
        taken.put("worker_cv", None, setup.probe_reason)
        return
    probe.watch(running.netspace.inode, setup.port)
    with probe.attached(*ACCEPTS):
        running.load(WATCH_SECONDS, WATCH_WARMUP)
        accepts = probe.accepts().values()
    taken.put("local_percent", _local_percent(accepts))
    taken.put("worker_cv", spread([each.accepted for each in accepts], setup.workers))


def _local_percent(accepts: Iterable[Accepts]) -> float | None:
    """Return the share of connections accepted on the CPU that had handled their packets."""
    total = sum(each.accepted for each in accepts)
    return 100 * sum(each.local for each in accepts) / total if total else None


def _k(count: int | None) -> float | None:
    """Scale a count to thousands, so that a division by connections gives it per 1,000."""
    return None if count is None else 1000.0 * count
