# SPDX-License-Identifier: GPL-2.0-or-later
"""`bench crash --full`: the crash scenario for all servers until enough has happened, and the sums.

One server after the other, with all its modes in each round. A server whose rounds are done has a
result file, so an interrupted run goes on where it was.
"""

from collections.abc import Mapping, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fastsocket.bench.modes import Mode
from fastsocket.bench.result import Result
from fastsocket.bench.scenarios.crash import MIXES, Crash
from fastsocket.bench.suite import Step

__all__ = ["BUDGET_SECONDS", "SECONDS", "STEPS", "faults", "table", "totals"]

BUDGET_SECONDS = 900
"""What the whole may take."""
SECONDS = 8.0
"""Of each run."""


def _step(server: str, completed: int, budget_seconds: float) -> Step:
    mix = MIXES[server]
    wanted = {
        "completed": completed,
        "kills": mix.kills,
        "reloads": mix.reloads,
        "keeper_kills": mix.keeper_kills,
    }
    return Step(Crash.name, server, budget_seconds, tuple(wanted.items()))


# The sum leaves a twentieth of the whole for starts, ends and a last round that took longer.
STEPS = (
    _step("nginx", 90_000, 300),
    _step("demo", 90_000, 180),
    _step("gunicorn", 4_000, 120),
    _step("granian", 8_000, 120),
    _step("haproxy", 10_000, 130),
)


def totals(results: Sequence[Result]) -> dict[str, dict[str, float]]:
    """Return the sums over all servers and rounds, by mode and metric; None counts as nothing."""
    sums: dict[str, dict[str, float]] = {}
    for result in results:
        for mode, metrics in result.modes.items():
            into = sums.setdefault(mode, dict.fromkeys(metrics, 0.0))
            for name, metric in metrics.items():
                into[name] += sum(sample or 0.0 for sample in metric.samples)
    return sums


def faults(results: Sequence[Result]) -> list[str]:
    """Say what keeps the results from showing that nothing is lost; empty if they do."""
    found, sums = [], totals(results)
    for result in results:
        ours = totals([result])[Mode.FASTSOCKET]
        for name, where in (("lost", ""), ("queued_lost", " in a queue")):
            if lost := ours[name]:
                what = f"{result.server} lost {lost:.0f} connections{where}"
                found.append(f"{what} under Fastsocket")
        if reason := result.modes[Mode.FASTSOCKET]["lost"].reason:
            found.append(f"losses of {result.server} were not counted: {reason}")
    if not sums.get(Mode.REUSEPORT, {}).get("lost"):
        found.append("the reuseport control lost nothing: the test is too weak")
    return found


def table(results: Sequence[Result]) -> RenderableType:
    """Return what was done and lost by server and mode, and the sums."""
    shown = Table(box=None, padding=(0, 1, 0, 0))
    for name in ("server", "mode"):
        shown.add_column(name)
    for name in ("lost", "with a worker", "in a queue", "completed", "kills", "reloads", "keepers"):
        shown.add_column(name, justify="right")
    for result in results:
        for mode, metrics in totals([result]).items():
            shown.add_row(result.server, mode, *_cells(metrics))
    for mode, metrics in totals(results).items():
        shown.add_row("all", mode, *_cells(metrics), style="bold")
    return Group(shown, *(Text(f"note: {note}") for note in _notes(results)))


def _cells(metrics: Mapping[str, float]) -> list[str]:
    return [f"{metrics[name]:,.0f}" for name in Crash.metrics]


def _notes(results: Sequence[Result]) -> list[str]:
    """Return the notes of all results, each once."""
    return list(dict.fromkeys(note for result in results for note in result.notes))
