# SPDX-License-Identifier: GPL-2.0-or-later
"""The tables of a report, once for the page and once for Markdown."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from fastsocket.bench.law import Interval, Verdict
from fastsocket.bench.modes import Mode
from fastsocket.report.metrics import (
    SCENARIOS,
    compare,
    interval,
    metric_text,
    number,
    ratio,
    ratio_digits,
)
from fastsocket.report.results import Host, Metric, Ratio, Result

__all__ = [
    "Cell",
    "Table",
    "call_site_table",
    "heading",
    "host_rows",
    "law_table",
    "markdown",
    "metric_table",
    "mode_order",
    "scale_table",
    "woken_table",
]

_MODE_ORDER = tuple(mode.value for mode in Mode)
_SUFFIX = {
    "us": " µs",
    "us later": " µs later",
    "ns": " ns",
    "ms": " ms",
    "s": " s",
    "%": " %",
    "percent": " %",
}
"""Units that are written behind a figure; others are in the metric's name."""

_CALL_SITES = 10


class Cell(NamedTuple):
    """A cell: a figure, its interval, and what a ratio shows, such as "better"; or only text."""

    text: str
    interval: str = ""
    tone: str = ""


class Table(NamedTuple):
    """A table: its first column names the rows."""

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]


def mode_order(modes: Iterable[str]) -> list[str]:
    """Return modes as they are shown everywhere: stock first, fastsocket last, then others."""
    names = list(modes)
    known = [mode for mode in _MODE_ORDER if mode in names]
    return known + [name for name in names if name not in known]


def heading(result: Result) -> str:
    """Return the heading of a result, such as "Short connections: nginx"."""
    name = SCENARIOS.get(result.scenario, result.scenario)
    if result.kind:
        name = f"Counts by cores ({result.kind})"
    return f"{name}: {result.server}" if result.server else name


def host_rows(host: Host) -> list[tuple[str, str]]:
    """Return what names a machine."""
    return [
        ("Processor", host.model),
        ("CPUs", str(host.cpus)),
        ("Kernel", host.kernel),
        ("Fastsocket", host.commit),
    ]


def _metric_cell(metric: Metric | None) -> Cell:
    if metric is None:
        return Cell("–")
    if metric.median is None:
        return Cell(metric.reason or "not counted")
    suffix = _SUFFIX.get(metric.unit, "")
    return Cell(number(metric.median) + suffix, interval(metric.low, metric.high))


def _ratio_cell(name: str, found: Ratio | None, rounds: int) -> Cell:
    if found is None or found.median is None:
        return Cell("–")
    pairs = found.rounds(rounds)
    range_ = interval(found.low, found.high, ratio_digits)
    if pairs < rounds:
        range_ = f"{range_} in {pairs} of {rounds} rounds".strip()
    return Cell(ratio(found.median), range_, compare(name, found.low, found.high, pairs))


def metric_table(result: Result) -> Table:
    """Return a scenario's metrics by mode, and their ratios, in the order of the file."""
    modes = mode_order(result.modes)
    rounds = result.round_count()
    names = dict.fromkeys(name for mode in modes for name in result.modes[mode])
    rows = [
        [
            Cell(metric_text(name).label),
            *(_metric_cell(result.modes[mode].get(name)) for mode in modes),
            *(_ratio_cell(name, ratios.get(name), rounds) for ratios in result.ratios.values()),
        ]
        for name in names
    ]
    header = ["Metric", *modes, *(pair.replace("/", " / ") for pair in result.ratios)]
    return Table(f"{heading(result)}: median of the rounds [95 % interval]", header, rows)


def scale_table(result: Result, metric: str) -> Table:
    """Return one metric of `scale` by core count and mode, with the ratios."""
    rounds = result.round_count()
    points = sorted(result.points, key=lambda point: point.cores)
    modes = mode_order(dict.fromkeys(mode for point in points for mode in point.modes))
    pairs = list(dict.fromkeys(pair for point in points for pair in point.ratios))
    rows = [
        [
            Cell(str(point.cores)),
            *(_metric_cell(point.modes.get(mode, {}).get(metric)) for mode in modes),
            *(
                _ratio_cell(metric, point.ratios.get(pair, {}).get(metric), rounds)
                for pair in pairs
            ),
        ]
        for point in points
    ]
    header = ["Cores", *modes, *(pair.replace("/", " / ") for pair in pairs)]
    return Table(f"{metric_text(metric).label} by cores", header, rows)


def loss_table(results: Sequence[Result]) -> Table:
    """Return what `crash` did and what was lost, in sum over the rounds, by server and mode."""
    names = dict.fromkeys(name for one in results for mode in one.modes.values() for name in mode)
    sums: dict[tuple[str, str], dict[str, float]] = {}
    for one in results:
        for place in ("all", one.server):
            for mode in mode_order(one.modes):
                into = sums.setdefault((place, mode), {})
                for name, metric in one.modes[mode].items():
                    into[name] = into.get(name, 0.0) + sum(each or 0.0 for each in metric.samples)
    rows = [
        [Cell(place), Cell(mode), *(Cell(number(into.get(name))) for name in names)]
        for (place, mode), into in sorted(sums.items(), key=lambda item: item[0][0] == "all")
    ]
    header = ["Server", "Mode", *(metric_text(name).label for name in names)]
    return Table("Sums over all rounds", header, rows)


def call_site_table(sites: dict[str, dict[str, float]]) -> Table:
    """Return where locks were contended: the kernel functions that matter, the worst first."""
    caption = "Lock contentions per 1,000 connections by call site"
    return _remaining_table(caption, "Function", sites)


def woken_table(woken: dict[str, dict[str, float]]) -> Table:
    """Return whom reschedule interrupts woke: the tasks, most first."""
    caption = "Reschedule interrupts per 1,000 connections by woken task"
    return _remaining_table(caption, "Task", woken)


def _remaining_table(caption: str, what: str, sites: dict[str, dict[str, float]]) -> Table:
    modes = mode_order(sites)
    functions = dict.fromkeys(name for mode in modes for name in sites[mode])
    worst = sorted(functions, key=lambda name: -max(sites[mode].get(name, 0) for mode in modes))
    rows = [
        [Cell(name), *(Cell(number(sites[mode].get(name, 0))) for mode in modes)]
        for name in worst[:_CALL_SITES]
    ]
    return Table(caption, [what, *modes], rows)


def law_table(laws: dict[str, Verdict]) -> Table:
    """Return what the scalability law says about each mode; its peak is a model, and named so."""
    rows = []
    for mode in mode_order(laws):
        law = laws[mode]
        said = [Cell(mode), Cell(f"{law.verdict}: {law.reason}")]
        if law.fit is None:
            rows.append([*said, *[Cell("–")] * 4])
            continue
        parts = (law.fit.contention, law.fit.coherency)
        shares = (Cell(number(part.value), interval(part.low, part.high)) for part in parts)
        rows.append([*said, Cell(f"{law.fit.r2:.3f}"), *shares, _peak_cell(law.fit.peak_cores)])
    header = [
        "Mode",
        "Does the law hold?",
        "R²",
        "Contention σ",
        "Coherency κ",
        "Peak, cores (model)",
    ]
    return Table("Universal Scalability Law, fitted", header, rows)


def _peak_cell(peak: Interval) -> Cell:
    """Write where throughput is greatest; "none" for a curve that never stops growing."""
    value, low, high = (
        "none" if end is None else number(round(end, 1))
        for end in (peak.value, peak.low, peak.high)
    )
    return Cell(value, f"[{low}–{high}]" if low != high else "")


def markdown(table: Table) -> str:
    """Write a table as GitHub's Markdown; what a ratio shows follows it in words."""

    def line(cells: Iterable[str]) -> str:
        safe = (cell.replace("|", "\\|").replace("\n", " ") for cell in cells)
        return f"| {' | '.join(safe)} |"

    def words(cell: Cell) -> str:
        figure = f"{cell.text} {cell.interval}".rstrip()
        return f"{figure}, {cell.tone}" if cell.tone else figure

    rule = ["---", *["---:"] * (len(table.header) - 1)]
    body = [line(map(words, row)) for row in table.rows]
    return "\n".join([line(table.header), line(rule), *body]) + "\n"
