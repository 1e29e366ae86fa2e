# SPDX-License-Identifier: GPL-2.0-or-later
"""`scale`: a server on one core, two, and so on to all, and what that says of sharing.

A proxy has its backend, and a store an instance on each core. Server and client are kept to the
same CPUs, as many workers and client processes as there are: loopback handles a segment on its
sender's CPU, so a client elsewhere would leave no connection a CPU of its own. What one core does
is thus a client's and a server's work, at every core count alike. Whole cores come first, then
their second threads.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import msgspec

from fastsocket.bench.law import Verdict
from fastsocket.bench.modes import Mode
from fastsocket.bench.result import Point, Result
from fastsocket.bench.runner import (
    Progress,
    Rounds,
    assemble,
    core_medians,
    play,
    tabulate,
)
from fastsocket.bench.scenario import SPARE, Measurement, Scenario, Setup
from fastsocket.bench.scenarios.proxy import Proxy
from fastsocket.bench.scenarios.redis import OnEachCore
from fastsocket.bench.scenarios.short import Short
from fastsocket.bench.trace import Trace
from fastsocket.errors import UsageError

__all__ = ["PER_CORE", "Cell", "Scale", "bounded", "core_counts", "setups_by_cores", "verdict_of"]

PER_CORE = 500
"""Connections at once for each core, as in the evaluation of 2014."""


@dataclass(frozen=True)
class Cell:
    """What is run once in each round."""

    cores: int
    mode: Mode

    def __str__(self) -> str:
        return f"{self.cores} core{'s' * (self.cores > 1)}, {self.mode}"


_SHORT, _PROXY, _STORE = Short(), Proxy("proxy", by_rule=False), OnEachCore()
_PLAYED: Mapping[str, Scenario] = {
    "nginx": _SHORT,
    "haproxy": _PROXY,
    "haproxy-single-queue": _PROXY,
    "lighttpd": _SHORT,
    "demo": _SHORT,
    "redis": _STORE,
    "memcached": _STORE,
}


class Scale:
    """The metrics of another scenario, `played`, by number of cores."""

    name = "scale"
    servers = tuple(_PLAYED)

    def __init__(self, played: Scenario = _SHORT) -> None:
        self.played = played

    @staticmethod
    def of(server: str) -> "Scale":
        """Return the scenario for one of its `servers`."""
        return Scale(_PLAYED[server])

    @property
    def metrics(self) -> Mapping[str, str]:
        """See :class:`fastsocket.bench.scenario.Scenario`."""
        return self.played.metrics

    def prepare(self, setup: Setup) -> Setup:
        """See :class:`fastsocket.bench.scenario.Scenario`."""
        return self.played.prepare(setup)

    def measure(self, setup: Setup, mode: Mode) -> Measurement:
        """See :class:`fastsocket.bench.scenario.Scenario`."""
        return self.played.measure(setup, mode)

    def sweep(
        self,
        setups: Mapping[int, Setup],
        modes: Sequence[Mode],
        rounds: int,
        seed: int,
        progress: Progress,
        budget_seconds: float | None = None,
    ) -> Rounds[Cell]:
        """Run all modes on all core counts in each round, in random order.

        Raises:
            FastsocketError: The first round failed.
            KeyboardInterrupt: Nothing was complete yet.
        """
        plan = {
            Cell(cores, mode): partial(self.measure, setup, mode)
            for cores, setup in setups.items()
            for mode in modes
        }
        return play(plan, rounds, seed, progress, budget_seconds)

    def result(
        self,
        setups: Mapping[int, Setup],
        done: Rounds[Cell],
        seed: int,
        notes: Sequence[str],
        traces: Mapping[Mode, Trace] | None = None,
    ) -> Result:
        """Make the result: its main figures are those of the most cores."""
        tables = {cores: _tables(done, cores) for cores in sorted(setups)}
        most = max(setups)
        points = [
            Point(cores, *tabulate(self.metrics, table), core_medians(table))
            for cores, table in tables.items()
        ]
        modes = list(tables[most])
        laws = {
            str(mode): verdict_of({cores: table[mode] for cores, table in tables.items()})
            for mode in modes
        }
        whole = assemble(self, setups[most], done, seed, notes, tables[most], traces)
        return msgspec.structs.replace(whole, points=points, usl=laws)


def core_counts(usable: int) -> list[int]:
    """Return the core counts to run on `usable` CPUs: powers of two, halfway between, and all.

    Those halfway give the scalability law the six counts that it needs from eight CPUs on.
    """
    halfway = (power * 3 // 2 for power in _powers(usable) if power > 1)
    return sorted({*_powers(usable), *(count for count in halfway if count < usable), usable})


def bounded(cores: int, per_core: int, open_files: int) -> int:
    """Return the connections for `cores`, at most what a server may hold with `open_files`.

    A proxy has two descriptors for each connection, and so has HAProxy's reckoning.

    Raises:
        UsageError: There is not even one for each core.
    """
    room = open_files // 2 - 3 * SPARE
    if room < cores:
        raise UsageError(
            f"{open_files} open files are too few", f"{cores} cores need more", "ulimit -Hn"
        )
    return min(cores * per_core, room)


def verdict_of(runs: Mapping[int, Sequence[Measurement]]) -> Verdict:
    """Judge throughput by cores; a refusal says what is missing."""
    points = [
        (cores, speed)
        for cores, each in runs.items()
        for run in each
        if (speed := run.values.get("cps") or run.values.get("rps"))
    ]
    try:
        from fastsocket.bench.usl import judge
    except ImportError as error:
        return Verdict("refused", f"{error.name} is not installed (extra: bench)", None)
    return judge([cores for cores, _ in points], [speed for _, speed in points])


def setups_by_cores(
    setup: Setup, counts: Sequence[int], order: Sequence[int], per_core: int, open_files: int
) -> dict[int, Setup]:
    """Return the setup of each core count; `order` is the CPUs, those to take first in front.

    Raises:
        UsageError: More cores are asked for than there are, or too few files may be open.
    """
    if max(counts) > len(order):
        raise UsageError(
            f"{max(counts)} cores were asked for", f"{len(order)} may be used", "see --cores"
        )
    made = {}
    for count in sorted(set(counts)):
        connections = bounded(count, per_core, open_files)
        if connections < count * per_core:
            setup.note(
                f"{connections} connections on {count} cores instead of {count * per_core}: "
                f"a process may open {open_files} files"
            )
        cpus = tuple(sorted(order[:count]))
        made[count] = replace(setup, cpus=cpus, workers=count, connections=connections)
    return made


def _powers(most: int) -> list[int]:
    """Return the powers of two up to `most`."""
    return [1 << bit for bit in range(most.bit_length())]


def _tables(done: Rounds[Cell], cores: int) -> dict[Mode, list[Measurement]]:
    """Return the measurements of one core count, by mode."""
    cells = [cell for cell in done.keys if cell.cores == cores]
    return {cell.mode: [each[cell] for each in done.complete] for cell in cells}
