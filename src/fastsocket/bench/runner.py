# SPDX-License-Identifier: GPL-2.0-or-later
"""Rounds: every mode once in each, in random order, and the result of them all.

Each run starts its server fresh in a fresh network namespace. Servers kept on ports side by side
would be fresher in caches but would share TIME_WAIT sockets, port cursors and a memory history,
and idle siblings would still be scheduled; a fresh start gives every mode the same beginning.
"""

import random
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from statistics import median
from typing import Any, Generic, TypeVar

from fastsocket.bench.counters import busy_share
from fastsocket.bench.modes import Mode
from fastsocket.bench.result import FORMAT, Core, Interval, Metric, Ratio, Result, describe_host
from fastsocket.bench.scenario import DIFFERENCE, Measurement, Scenario, Setup
from fastsocket.bench.stats import interval, ratios
from fastsocket.bench.trace import Trace
from fastsocket.errors import FastsocketError

__all__ = ["Progress", "Rounds", "assemble", "core_medians", "play", "run_rounds", "tabulate"]

# What is run once in each round: a mode, or a mode on a number of cores.
Key = TypeVar("Key", bound=Hashable)


# Called before each run: runs done, runs planned, what comes.
Progress = Callable[[int, int, str], None]

# The pause before a run: the kernel takes the last namespace down, and other work shows itself.
SETTLE_SECONDS = 0.25
QUIET_SHARE = 0.1

_PAIRS = (
    (Mode.FASTSOCKET, Mode.STOCK),
    (Mode.FASTSOCKET, Mode.REUSEPORT),
    (Mode.REUSEPORT, Mode.STOCK),
    (Mode.RPS, Mode.STOCK),
    (Mode.RFS, Mode.STOCK),
    (Mode.LOCAL, Mode.STOCK),
    (Mode.FASTSOCKET, Mode.RPS),
    (Mode.FASTSOCKET, Mode.RFS),
    # What something is worth: on, over off.
    (Mode.STOCK, Mode.NO_EARLY_DEMUX),
    (Mode.STOCK, Mode.NO_SKB_DEFER),
)


@dataclass
class Rounds(Generic[Key]):
    """The completed rounds, and what ended them early: the user, or a failure.

    `others` is the share of the CPUs that was busy while nothing of the bench ran, before each run.
    """

    keys: Sequence[Key]
    complete: list[dict[Key, Measurement]] = field(default_factory=list)
    interrupted: bool = False
    failure: FastsocketError | None = None
    others: list[float] = field(default_factory=list)

    def sums(self, key: Key) -> dict[str, float]:
        """Return the sums of `key`'s metrics over the rounds."""
        found: dict[str, float] = {}
        for each in self.complete:
            for name, value in each[key].values.items() if key in each else ():
                found[name] = found.get(name, 0.0) + (value or 0.0)
        return found

    def disturbance(self) -> str:
        """Say so where other work had more than `QUIET_SHARE` of the CPUs between the runs."""
        share = median(self.others) if self.others else 0.0
        if share <= QUIET_SHARE:
            return ""
        return (
            f"other work took {share:.0%} of the CPUs between the runs: speeds are too low, "
            "CPU per connection is too high, intervals are wide"
        )


def run_rounds(
    scenario: Scenario,
    setup: Setup,
    modes: Sequence[Mode],
    rounds: int,
    seed: int,
    progress: Progress,
    budget_seconds: float | None = None,
    enough: Callable[[Rounds[Mode]], bool] = lambda done: False,
) -> Rounds[Mode]:
    """Run rounds of one scenario in each of its modes; see :func:`play`."""
    plan = {mode: partial(scenario.measure, setup, mode) for mode in modes}
    return play(plan, rounds, seed, progress, budget_seconds, enough)


def play(
    plan: Mapping[Key, Callable[[], Measurement]],
    rounds: int,
    seed: int,
    progress: Progress,
    budget_seconds: float | None = None,
    enough: Callable[[Rounds[Key]], bool] = lambda done: False,
) -> Rounds[Key]:
    """Run all of `plan` in each of `rounds` rounds, fewer where `budget_seconds` would not do.

    Or where what is complete is `enough`.

    Ctrl-C, and a failure after the first complete round, end the rounds early; what is complete
    is kept.

    Raises:
        FastsocketError: The first round failed.
        KeyboardInterrupt: Nothing was complete yet.
    """
    order, begun = random.Random(seed), time.monotonic()
    done = Rounds(list(plan))
    for number in range(rounds):
        spent = time.monotonic() - begun
        if budget_seconds is not None and number and spent * (number + 1) / number > budget_seconds:
            break
        try:
            current: dict[Key, Measurement] = {}
            for key in order.sample(list(plan), len(plan)):
                place = number * len(plan) + len(current)
                progress(place, rounds * len(plan), f"round {number + 1}, {key}")
                done.others.append(busy_share(SETTLE_SECONDS))
                current[key] = plan[key]()
        except KeyboardInterrupt:
            if not done.complete:
                raise
            done.interrupted = True
            break
        except FastsocketError as failure:
            if not done.complete:
                raise
            done.failure, done.interrupted = failure, True
            break
        done.complete.append(current)
        if enough(done):
            break
    return done


def assemble(
    scenario: Scenario,
    setup: Setup,
    done: Rounds[Any],
    seed: int,
    notes: Sequence[str],
    tables: Mapping[Mode, Sequence[Measurement]] | None = None,
    traces: Mapping[Mode, Trace] | None = None,
) -> Result:
    """Make the result document of completed rounds.

    Args:
        scenario: What was run.
        setup: How it was run.
        done: The rounds; their keys are modes unless `tables` is given.
        seed: Seed of their order.
        notes: What the reader must know.
        tables: By mode, one measurement a round.
        traces: By mode, what a run beside the rounds traced.
    """
    if tables is None:
        tables = {mode: [one[mode] for one in done.complete] for mode in done.keys}
    modes, ratios_ = tabulate(scenario.metrics, tables)
    traced = traces or {}
    return Result(
        format=FORMAT,
        scenario=scenario.name,
        server=setup.server.name,
        client=setup.asker or setup.client.name,
        host=describe_host(),
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        rounds=len(done.complete),
        seconds=setup.seconds,
        connections=setup.connections,
        seed=seed,
        interrupted=done.interrupted,
        run_options=list(setup.run_options),
        client_options=list(setup.client_options),
        notes=[note for note in dict.fromkeys([*notes, done.disturbance()]) if note],
        modes=modes,
        ratios=ratios_,
        call_sites={str(mode): trace.sites for mode, trace in traced.items()},
        woken={str(mode): trace.woken for mode, trace in traced.items() if trace.woken},
        per_core=core_medians(tables),
    )


def tabulate(
    metrics: Mapping[str, str], tables: Mapping[Mode, Sequence[Measurement]]
) -> tuple[dict[str, dict[str, Metric]], dict[str, dict[str, Ratio]]]:
    """Return the figures by mode and the ratios by pair of modes.

    Args:
        metrics: Unit by metric. Those that end with `DIFFERENCE` have no ratios.
        tables: By mode, one measurement a round.
    """
    figures = {
        str(mode): {metric: _metric(runs, metric, unit) for metric, unit in metrics.items()}
        for mode, runs in tables.items()
    }
    compared = [metric for metric, unit in metrics.items() if not unit.endswith(DIFFERENCE)]
    pairs = {
        f"{top}/{bottom}": {
            metric: _ratio(tables[top], tables[bottom], metric) for metric in compared
        }
        for top, bottom in _PAIRS
        if compared and top in tables and bottom in tables
    }
    return figures, pairs


def core_medians(tables: Mapping[Mode, Sequence[Measurement]]) -> dict[str, list[Core]]:
    """Return by mode how each CPU spent the runs, the median over the rounds."""
    found = {}
    for mode, runs in tables.items():
        cpus = sorted({cpu for run in runs for cpu in run.cores})
        uses = {cpu: [run.cores[cpu] for run in runs if cpu in run.cores] for cpu in cpus}
        if cpus:
            found[str(mode)] = [
                Core(
                    cpu,
                    round(median(busy for busy, _ in use), 2),
                    round(median(softirq for _, softirq in use), 2),
                )
                for cpu, use in uses.items()
            ]
    return found


def _metric(runs: Sequence[Measurement], name: str, unit: str) -> Metric:
    samples = [run.values.get(name) for run in runs]
    span = _interval_of([value for value in samples if value is not None])
    reasons = [run.reasons[name] for run in runs if name in run.reasons]
    return Metric(span.median, span.low, span.high, unit, samples, reasons[0] if reasons else "")


def _ratio(tops: Sequence[Measurement], bottoms: Sequence[Measurement], name: str) -> Ratio:
    each = ratios([run.values.get(name) for run in tops], [run.values.get(name) for run in bottoms])
    found = _interval_of(each)
    return Ratio(found.median, found.low, found.high, len(each))


def _interval_of(values: Sequence[float]) -> Interval:
    return interval(values) if values else Interval(None, None, None)
