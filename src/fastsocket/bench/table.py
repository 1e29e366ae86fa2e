# SPDX-License-Identifier: GPL-2.0-or-later
"""A result as a person reads it, within 80 columns; on fewer it folds, and nothing is cut."""

from collections.abc import Mapping

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from fastsocket.bench.result import Interval, Metric, Result

__all__ = ["figure", "print_result", "render", "span"]

# Metrics and units of the contract, in words that fit a column.
LABELS = {
    "cps": "connections/s",
    "cpu_us_per_conn": "CPU us/connection",
    "lock_contentions_per_1k": "lock contentions/1k",
    "resched_ipis_per_1k": "resched IPIs/1k",
    "local_percent": "local %",
    "segments_per_conn": "segments/connection",
    "worker_cv": "worker spread (CV)",
    "worker_cv_renewed": "  half renewed (CV)",
    "p99_us_calm": "p99 us, no stall",
    "p99_over_calm": "  p99 by that",
    "accepted_lost": "lost with a worker",
    "queued_lost": "lost in a queue",
    "rps": "requests/s",
    "cpu_us_per_request": "CPU us/request",
    "past_tcp_percent": "past TCP %",
    "rps_1": "requests/s, 1 alone",
    "cpu_us_per_request_1": "CPU us/req., 1 alone",
    "past_tcp_percent_1": "past TCP %, 1 alone",
    "p99_us_1": "p99 us, 1 alone",
    "local_percent_1": "local %, 1 alone",
    "active_local_percent": "backend local %",
    "own_resched_ipis_per_1k": "  of server, client",
    "core_deviation_percent": "core off the mean, %",
    "reader_local_percent": "local reads, moved %",
    "prepare_ms": "compile and load ms",
}
SITES_SHOWN = 8
_NARROW = 60
"""Columns below which the figures of three modes do not fit side by side."""


def figure(value: float) -> str:
    """Return three significant digits, thousands as k: 0.0123, 4.56, 789, 12.3k."""
    if abs(value) >= 9_999.5:
        return f"{value / 1000:.1f}k" if abs(value) < 99_950 else f"{value / 1000:.0f}k"
    if abs(value) >= 99.95:
        return f"{value:.0f}"
    if abs(value) >= 9.995:
        return f"{value:.1f}"
    return f"{value:.2f}" if abs(value) >= 0.0995 or value == 0 else f"{value:.3f}"


def span(interval: Interval | Metric) -> str:
    """Return median and interval, such as ``1.08 [1.02–1.15]``; a dash where there is none."""
    if interval.median is None or interval.low is None or interval.high is None:
        return "–"
    return f"{figure(interval.median)} [{figure(interval.low)}–{figure(interval.high)}]"


def render(result: Result, apart: bool = False) -> RenderableType:
    """Return the tables of medians, of ratios and of call sites, and the notes.

    Args:
        result: What to show.
        apart: Whether each mode, and each pair of modes, has a table of its own.
    """
    host = result.host
    length = f"{result.rounds} round{'s' * (result.rounds != 1)} of {result.seconds:g} s"
    head = Text(
        f"{result.scenario}: {result.server}, {result.kind or length}, "
        f"{result.connections} connections, {result.client}\n"
        f"{host.model}, {host.cpus} CPUs, Linux {host.kernel}, commit {host.commit}\n"
        "median [95 % bootstrap interval]; ratios taken round by round"
    )
    parts: list[RenderableType] = [head]
    for columns in (result.modes, result.ratios):
        if apart:
            parts.extend(_table({name: column}) for name, column in columns.items())
        elif columns:
            parts.append(_table(columns))
    if result.points:
        parts.extend(_by_cores(result))
    parts.extend(_remaining("Lock contentions/1k by call site", "function", result.call_sites))
    parts.extend(_remaining("Resched IPIs/1k by woken task", "task", result.woken))
    parts.extend(
        Text(f"note: {note}") for note in [*result.notes, *_reasons(result), *_left_out(result)]
    )
    return Group(*parts)


def _remaining(title: str, what: str, modes: Mapping[str, Mapping[str, float]]) -> list[Table]:
    """Return what was traced beside the rounds, a column for each mode, the most first."""
    names = {name for rates in modes.values() for name in rates}
    most = sorted(names, key=lambda name: -max(rates.get(name, 0.0) for rates in modes.values()))
    if not most:
        return []
    table = Table(title=f"{title} (a run apart)", box=None, title_justify="left")
    table.add_column(what, overflow="fold")
    for mode in modes:
        table.add_column(mode, justify="right", overflow="fold")
    for name in most[:SITES_SHOWN]:
        table.add_row(name, *(figure(rates.get(name, 0.0)) for rates in modes.values()))
    return [table]


def _by_cores(result: Result) -> list[RenderableType]:
    """Return throughput by cores, and what the scalability law says of it.

    Where nothing was timed, all that was counted.
    """
    counted = next(iter(result.points[0].modes.values()))
    tables = []
    speed = [metric for metric in ("cps", "rps") if metric in counted]
    for metric in speed or counted:
        title = f"{LABELS.get(metric, metric)} by cores".capitalize()
        table = Table(title=title, box=None, title_justify="left")
        table.add_column("cores", justify="right", overflow="fold")
        for mode in result.modes:
            table.add_column(mode, justify="right", overflow="fold")
        for point in result.points:
            figures = (_brief(metrics[metric]) for metrics in point.modes.values())
            table.add_row(str(point.cores), *figures)
        tables.append(table)
    laws = (
        Text(f"scalability law, {mode}: {law.verdict}: {law.reason}")
        for mode, law in result.usl.items()
    )
    return [*tables, *laws]


def _brief(metric: Metric) -> str:
    """Return median and interval; one run alone has none."""
    if len(metric.samples) == 1 and metric.median is not None:
        return figure(metric.median)
    return span(metric)


def print_result(result: Result, console: Console) -> None:
    """Print the tables."""
    console.print(render(result, apart=console.width < _NARROW))


def _table(columns: Mapping[str, Mapping[str, Metric | Interval]]) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), title_justify="left")
    table.add_column("", overflow="fold")
    for name in columns:
        table.add_column(name, justify="right", overflow="fold")
    metrics = list(next(iter(columns.values())))
    for metric in metrics:
        table.add_row(
            LABELS.get(metric, metric.replace("_us", " us")),
            *(span(column[metric]) for column in columns.values()),
        )
    return table


def _left_out(result: Result) -> list[str]:
    """Return one line for each pair of modes with ratios of fewer rounds than were run."""
    found = []
    for pair, metrics in result.ratios.items():
        fewer = [
            f"{name} {ratio.pairs}"
            for name, ratio in metrics.items()
            if ratio.pairs and ratio.pairs < result.rounds
        ]
        if fewer:
            rest = "in the others a value is missing or zero"
            found.append(f"{pair} of {result.rounds} rounds: {', '.join(fewer)}; {rest}")
    return found


def _reasons(result: Result) -> list[str]:
    """Return one line for each reason why something was not measured, with its metrics."""
    found: dict[str, list[str]] = {}
    for metrics in result.modes.values():
        for name, metric in metrics.items():
            if metric.reason and name not in found.setdefault(metric.reason, []):
                found[metric.reason].append(name)
    return [f"no {', '.join(names)}: {reason}" for reason, names in found.items()]
