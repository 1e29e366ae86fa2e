# SPDX-License-Identifier: GPL-2.0-or-later
"""A recording as the 2014 README's production figure: the use of each CPU over hours."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from fastsocket.errors import UsageError
from fastsocket.observe.recording import Recording
from fastsocket.observe.sample import CoreUse, Sample, rates
from fastsocket.report.chart import Series, line_chart
from fastsocket.report.metrics import number
from fastsocket.report.sections import Chart, Section
from fastsocket.report.tables import Cell, Table

__all__ = ["recordings_section"]

_UNITS = ((3600, "hours"), (60, "minutes"), (1, "seconds"))
_STEPS = (1, 2, 3, 4, 5, 6, 10, 12, 24, 48, 96, 168)

_COLUMNS = 240
"""Points of a line, at most: more than a chart of this width can show helps nobody."""


def recordings_section(paths: Sequence[Path]) -> Section:
    """Return one section with a chart for each recording side by side, such as before and after.

    Raises:
        UsageError: One is not a recording, or holds fewer than two samples.
    """
    charts, tables, text, facts = [], [], [], []
    for path in paths:
        recording = Recording(path)
        samples = _thinned(recording)
        if len(samples) < 2:
            raise UsageError(
                f"{path} holds fewer than two samples", "use is a difference", "record for longer"
            )
        if recording.cut_short:
            text.append(f"{path.stem} was cut short: its last block is missing.")
        charts.append(_chart(path.stem, samples))
        tables.append(_table(path.stem, samples[0], samples[-1]))
        head = recording.header
        every = f"a sample every {head.interval:g} s"
        facts.append((path.stem, f"{head.host}, {head.model}, Linux {head.kernel}, {every}"))
    return Section("recordings", "CPU use over time", text, (), charts, tables, facts)


def _chart(name: str, samples: list[Sample]) -> Chart:
    """Draw a line for each CPU, with what they say in words."""
    times, uses = _uses(samples)
    cpus = sorted({core.cpu for column in uses for core in column})
    span = samples[-1].time - samples[0].time
    size, unit = next((size, unit) for size, unit in _UNITS if span >= 2 * size or size == 1)
    lines = {
        cpu: [
            (at / size, core.busy, None, None)
            for at, column in zip(times, uses, strict=True)
            for core in column
            if core.cpu == cpu
        ]
        for cpu in cpus
    }
    means = [sum(y for _, y, *_ in line) / len(line) for line in lines.values()]
    said = (
        f"{len(cpus)} CPUs over {number(span / size)} {unit}: {sum(means) / len(means):.0f} % busy "
        f"on average, the busiest CPU {max(means) - min(means):.0f} points above the idlest"
    )
    chart = line_chart(
        f"CPU use per core, {name}",
        said,
        [Series("", "fastsocket core", line, marks=False) for line in lines.values()],
        x_label=unit,
        x_ticks=_time_ticks(span / size),
        write_x=lambda x: f"{x:g}",
        write_y=lambda y: f"{y:g} %",
        end=span / size,
        top=100,
    )
    return chart, f"One line a CPU. {said}.", ()


def _time_ticks(span: float) -> list[float]:
    """Return at most nine figures from 0 to `span` that divide a day, an hour or a minute."""
    step = next((step for step in _STEPS if span / step <= 8), _STEPS[-1])
    return [float(step * index) for index in range(int(span / step * 1.001) + 1)]


def _thinned(recording: Recording) -> list[Sample]:
    """Return at most twice `_COLUMNS` samples, evenly spaced; counters need no others."""
    kept: list[Sample] = []
    stride = 1
    last: Sample | None = None
    for index, sample in enumerate(recording):
        last = sample
        if index % stride == 0:
            kept.append(sample)
        if len(kept) == 2 * _COLUMNS:
            kept, stride = kept[::2], stride * 2
    if last is not None and kept[-1] is not last:
        kept.append(last)
    return kept


def _uses(samples: list[Sample]) -> tuple[list[float], list[list[CoreUse]]]:
    """Return the middle of each step, in seconds from the start, and the use of the CPUs in it."""
    start = samples[0].time
    times, uses = [], []
    for before, after in pairwise(samples):
        if after.time > before.time:
            times.append((before.time + after.time) / 2 - start)
            uses.append(rates(before, after).cores)
    return times, uses


def _table(name: str, first: Sample, last: Sample) -> Table:
    """Return each CPU's use over the whole recording."""
    rows = [
        [
            Cell(str(core.cpu)),
            Cell(f"{core.busy:.1f} %"),
            Cell(f"{core.softirq:.1f} %"),
            Cell(number(core.net_rx)),
        ]
        for core in rates(first, last).cores
    ]
    header = ["CPU", "Busy", "Softirq", "Receive softirqs per second"]
    return Table(f"{name}: use of each CPU over the whole recording", header, rows)
