# SPDX-License-Identifier: GPL-2.0-or-later
"""What a report says: a section for each result, with its charts, tables and headline."""

import shlex
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from fastsocket.bench.law import Verdict, predict
from fastsocket.report.chart import Bar, Interval, Series, bar_chart, interval_chart, line_chart
from fastsocket.report.markup import Element
from fastsocket.report.metrics import (
    HEADLINES,
    SCENARIOS,
    compare,
    interval,
    metric_text,
    number,
    ratio,
    ratio_digits,
)
from fastsocket.report.results import Core, Point, Ratio, Result
from fastsocket.report.tables import (
    Table,
    call_site_table,
    heading,
    host_rows,
    law_table,
    loss_table,
    metric_table,
    mode_order,
    scale_table,
    woken_table,
)

__all__ = ["Chart", "Curve", "Section", "result_sections", "throughput_chart"]

_SPEED = ("cps", "rps", "cpu_us_per_conn", "p50_us", "p99_us", "p999_us", "ns_per_packet")
"""Metrics whose ratios are near 1, and so fit on one axis; counts differ by hundreds of times."""

_STYLES = ("stock", "reuseport", "fastsocket", "other")

Curve = Sequence[tuple[float, float, float | None, float | None]]
"""Points of a line: (x, y, low, high)."""

Chart = tuple[Element, str, Sequence[tuple[str, str]]]
"""A chart, its caption, and its key as (style, name)."""


class Section(NamedTuple):
    """One section of the page.

    Attributes:
        key: Its anchor.
        title: Its heading.
        text: Paragraphs.
        cards: Headlines as (label, figure, note), shown at the top of the page.
        charts: Charts in order.
        tables: Tables in order.
        facts: Names and values, such as the host's.
    """

    key: str
    title: str
    text: Sequence[str] = ()
    cards: Sequence[tuple[str, str, str]] = ()
    charts: Sequence[Chart] = ()
    tables: Sequence[Table] = ()
    facts: Sequence[tuple[str, str]] = ()


def result_sections(results: Iterable[Result]) -> list[Section]:
    """Return a section for each result in the scenarios' order, and one for a host they share.

    Within a scenario nginx is first: the server that most readers look for.
    """
    order = list(SCENARIOS)

    def place(one: Result) -> tuple[int, bool]:
        known = order.index(one.scenario) if one.scenario in order else len(order)
        return known, one.server != "nginx"

    known = sorted(results, key=place)
    hosts = list(dict.fromkeys(tuple(host_rows(result.host)) for result in known))
    sections = [
        (_scale_section if result.points else _metric_section)(
            f"result-{index}", result, host_rows(result.host) if len(hosts) > 1 else []
        )
        for index, result in enumerate(known)
    ]
    if crashes := [result for result in known if result.scenario == "crash"]:
        table = loss_table(crashes)
        sections.append(Section("crash", f"{SCENARIOS['crash']}: all servers", tables=[table]))
    if len(hosts) == 1:
        sections.append(Section("host", "Host", facts=hosts[0]))
    return sections


def style_of(mode: str, index: int) -> str:
    """Return the colour class of a mode; modes of another bench take the colours in turn."""
    return mode if mode in _STYLES else _STYLES[index % len(_STYLES)]


def _facts(result: Result, host: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return the host, where it differs between results, and how long was measured."""
    facts = list(host)
    if result.rounds is not None:
        rounds = f"{result.rounds} rounds"
        facts.append(("Measured", rounds + (f" of {result.seconds:g} s" if result.seconds else "")))
    if result.client:
        load = f", {result.connections} connections" if result.connections else ""
        facts.append(("Load", result.client + load))
    if result.run_options:
        facts.append(("Options of run", shlex.join(result.run_options)))
    if result.client_options:
        facts.append(("Options of the client's run", shlex.join(result.client_options)))
    if result.date:
        facts.append(("Date", result.date))
    return facts


def _text(result: Result) -> list[str]:
    """Return what must be said before the figures."""
    stopped = "This run was interrupted: the figures are those of its complete rounds."
    return [
        *([stopped] if result.interrupted else []),
        *(f"{note[:1].upper()}{note[1:]}." for note in result.notes),
    ]


def _metric_section(key: str, result: Result, host: Sequence[tuple[str, str]]) -> Section:
    charts = [
        *_ratio_charts(result),
        *_core_charts(result.per_core, result.host.cpus),
    ]
    tables = [metric_table(result)]
    if any(result.call_sites.values()):
        tables.append(call_site_table(result.call_sites))
    if any(result.woken.values()):
        tables.append(woken_table(result.woken))
    return Section(
        key,
        heading(result),
        _text(result),
        _cards(result),
        charts,
        tables,
        _facts(result, host),
    )


def _cards(result: Result) -> list[tuple[str, str, str]]:
    """Return the answer to the scenario's question, if the file has it: fastsocket over stock."""
    name = HEADLINES.get(result.scenario, "")
    found = result.ratios.get("fastsocket/stock", {}).get(name)
    if found is not None and found.median is not None:
        return [_ratio_card(result, name, found, "Fastsocket over stock")]
    figures = {
        mode: number(metric.median)
        for mode in mode_order(result.modes)
        if (metric := result.modes[mode].get(name)) is not None and metric.median is not None
    }
    if not figures:
        return []
    mode = "fastsocket" if "fastsocket" in figures else next(iter(figures))
    others = ", ".join(f"{other} {text}" for other, text in figures.items() if other != mode)
    note = f"{metric_text(name).label}, {mode}" + (f"; {others}" if others else "")
    return [(heading(result), figures[mode], note)]


def _ratio_card(result: Result, name: str, found: Ratio, pair: str) -> tuple[str, str, str]:
    """Return a headline with a ratio, its interval, and what the interval shows."""
    shown = compare(name, found.low, found.high, found.rounds(result.round_count()))
    range_ = interval(found.low, found.high, ratio_digits)
    note = f"{metric_text(name).label}, {pair} {range_}".strip()
    return heading(result), ratio(found.median), f"{note}: {shown}" if shown else note


def _ratio_charts(result: Result) -> list[Chart]:
    """Return a chart of the ratios for each pair of modes."""
    charts: list[Chart] = []
    for pair, ratios in result.ratios.items():
        mode, _, base = pair.partition("/")
        rows = [
            Interval(
                metric_text(name).label,
                style_of(mode, 2),
                found.median,
                found.low,
                found.high,
                f"{ratio(found.median)} {interval(found.low, found.high, ratio_digits)}".rstrip(),
            )
            for name in _SPEED
            if (found := ratios.get(name)) is not None
            and found.median is not None
            and found.low is not None
            and found.high is not None
            and found.low > 0
        ]
        if rows:
            said = "; ".join(f"{row.label} {row.text}" for row in rows)
            chart = interval_chart(f"{mode} over {base}", said, rows)
            caption = "Dot: median of the rounds' ratios; band: 95 % interval; 1×: no difference."
            charts.append((chart, caption, ()))
    return charts


def _core_charts(per_core: dict[str, list[Core]], cpus: int) -> list[Chart]:
    """Return the use of every CPU, one chart a mode, on one scale."""
    charts: list[Chart] = []
    for mode in mode_order(per_core):
        cores = sorted(per_core[mode], key=lambda core: core.cpu)
        if not cores:
            continue
        busy = [core.busy for core in cores]
        bars = [
            Bar(
                str(core.cpu),
                (("softirq", core.softirq), ("rest", max(0.0, core.busy - core.softirq))),
            )
            for core in cores
        ]
        low, high = f"{min(busy):.0f}", f"{max(busy):.0f}"
        span = f"{low} % busy each" if low == high else f"from {low} to {high} % busy"
        said = f"{len(cores)} of {cpus} CPUs, {span}"
        chart = bar_chart(
            f"CPU use per core, {mode}",
            said,
            bars,
            x_label="CPU",
            write_y=lambda y: f"{y:g} %",
            top=100,
        )
        key = (("softirq", "softirq"), ("rest", "all other work"))
        charts.append((chart, f"{said[0].upper()}{said[1:]}.", key))
    return charts


def _scale_section(key: str, result: Result, host: Sequence[tuple[str, str]]) -> Section:
    """Return throughput by cores with the law, and each CPU's use at the most cores."""
    points = sorted(result.points, key=lambda point: point.cores)
    measured = {name for point in points for metrics in point.modes.values() for name in metrics}
    metric = next((name for name in ("cps", "rps") if name in measured), "")
    if not metric:
        return _count_section(key, result, host, measured)
    curves: dict[str, Curve] = {
        mode: [
            (float(point.cores), found.median, found.low, found.high)
            for point in points
            if (found := point.modes.get(mode, {}).get(metric)) is not None
            and found.median is not None
        ]
        for mode in mode_order(dict.fromkeys(mode for point in points for mode in point.modes))
    }
    chart = throughput_chart(heading(result), metric, curves, result.usl)
    tables = [scale_table(result, name) for name in _scale_metrics(measured, metric)]
    if result.usl:
        tables.append(law_table(result.usl))
    last = points[-1]
    cards = []
    final = last.ratios.get("fastsocket/stock", {}).get(metric)
    if final is not None and final.median is not None:
        pair = f"Fastsocket over stock, {last.cores} cores"
        cards.append(_ratio_card(result, metric, final, pair))
    charts = [*([chart] if chart else []), *_core_charts(last.per_core, result.host.cpus)]
    return Section(key, heading(result), _text(result), cards, charts, tables, _facts(result, host))


def _count_section(
    key: str, result: Result, host: Sequence[tuple[str, str]], measured: set[str]
) -> Section:
    """Return what was counted by cores where nothing was timed, with the call sites of each."""
    if not measured:
        nothing = ("The file holds no figures.",)
        return Section(key, heading(result), nothing, facts=_facts(result, host))
    first = next(iter(result.points[0].modes.values()))
    tables = [scale_table(result, name) for name in first]
    for point in result.points:
        if any(point.call_sites.values()):
            table = call_site_table(point.call_sites)
            tables.append(table._replace(caption=f"{table.caption}, {point.cores} cores"))
    text = [*_text(result), *_growth(result.points)]
    return Section(key, heading(result), text, tables=tables, facts=_facts(result, host))


def _growth(points: Sequence[Point]) -> list[str]:
    """Say how contentions per connection grew from the fewest cores to the most, by mode."""
    ordered = sorted(points, key=lambda point: point.cores)
    first, last = ordered[0], ordered[-1]
    grown = []
    for mode in mode_order(last.modes):
        ends = [
            found.median
            for point in (first, last)
            if (found := point.modes.get(mode, {}).get("lock_contentions_per_1k"))
            and found.median is not None
        ]
        if len(ends) == 2:
            times = f" ({ratio(ends[1] / ends[0])})" if ends[0] else ""
            grown.append(f"{mode} from {number(ends[0])} to {number(ends[1])}{times}")
    if not grown or first is last:
        return []
    label = metric_text("lock_contentions_per_1k").label
    return [f"{label}, from {first.cores} cores to {last.cores}: {'; '.join(grown)}."]


def _scale_metrics(measured: set[str], first: str) -> list[str]:
    """Return the metrics worth a table by cores: throughput, then what explains it."""
    wanted = (
        first,
        "lock_contentions_per_1k",
        "resched_ipis_per_1k",
        "local_percent",
        "active_local_percent",
        "worker_cv",
        "errors",
    )
    return [name for name in wanted if name in measured]


def throughput_chart(
    title: str,
    metric: str,
    curves: dict[str, Curve],
    laws: dict[str, Verdict],
) -> Chart | None:
    """Draw throughput by cores in the form of the 2014 figure, with the law where it holds.

    Args:
        title: Heading of the chart.
        metric: "cps" or "rps".
        curves: Points (cores, value, low, high) by mode; a mode without points is left out.
        laws: What the scalability law says, by mode; drawn dashed, between measured counts.
    """
    curves = {mode: points for mode, points in curves.items() if points}
    if not curves:
        return None
    series = []
    for index, (mode, points) in enumerate(curves.items()):
        style = style_of(mode, index)
        law = laws.get(mode)
        if law is not None and law.verdict == "holds" and law.fit is not None:
            first, last = points[0][0], points[-1][0]
            steps = [first + (last - first) * step / 60 for step in range(61)]
            model = [(n, predict(n, law.fit), None, None) for n in steps]
            series.append(Series("", f"{style} model", model, marks=False))
        series.append(Series(mode, style, points))
    counts = sorted({n for points in curves.values() for n, *_ in points})
    said = "; ".join(
        f"{mode} {number(points[0][1])} on {points[0][0]:g} and {number(points[-1][1])} "
        f"on {points[-1][0]:g} cores"
        for mode, points in curves.items()
    )
    chart = line_chart(
        f"{title}, {metric_text(metric).label.lower()}",
        said,
        series,
        x_label="cores",
        x_ticks=counts,
        write_x=lambda x: f"{x:g}",
        write_y=_thousands,
    )
    dashed = any(not line.label for line in series)
    caption = "Dashed: the fitted scalability law, a model." if dashed else ""
    return chart, caption, ()


def _thousands(value: float) -> str:
    """Write a figure of an axis: 475k, or 80."""
    return f"{value / 1000:g}k" if value >= 1000 else f"{value:g}"
