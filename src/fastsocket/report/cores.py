# SPDX-License-Identifier: GPL-2.0-or-later
"""A recording as the 2014 README's production figure: the use of each CPU over hours."""

from itertools import pairwise
from pathlib import Path

from fastsocket.errors import UsageError
from fastsocket.observe.recording import Recording
from fastsocket.observe.sample import CoreUse, Sample, rates
from fastsocket.report.chart import Series, line_chart, ticks
from fastsocket.report.metrics import number
from fastsocket.report.sections import Section
from fastsocket.report.tables import Cell, Table

__all__ = ["recording_section"]

_COLUMNS = 240
"""Points of a line, at most: more than a chart of this width can show helps nobody."""


def recording_section(path: Path, index: int) -> Section:
    """Return one recording's section.

    Raises:
        UsageError: It is not a recording, or holds fewer than two samples.
    """
    recording = Recording(path)
    samples = _thinned(recording)
    if len(samples) < 2:
        raise UsageError(
            f"{path} holds fewer than two samples", "use is a difference", "record for longer"
        )
    times, uses = _uses(samples)
    cpus = sorted({core.cpu for column in uses for core in column})
    span = samples[-1].time - samples[0].time
    unit, name = (
        (3600, "hours") if span >= 7200 else (60, "minutes") if span >= 120 else (1, "seconds")
    )
    lines = {
        cpu: [
            (at / unit, core.busy, None, None)
            for at, column in zip(times, uses, strict=True)
            for core in column
            if core.cpu == cpu
        ]
        for cpu in cpus
    }
    means = {cpu: sum(y for _, y, *_ in line) / len(line) for cpu, line in lines.items()}
    mean = sum(means.values()) / len(means)
    spread = max(means.values()) - min(means.values())
    said = (
        f"{len(cpus)} CPUs over {number(span / unit)} {name}: {mean:.0f} % busy on average, the "
        f"busiest CPU {spread:.0f} points above the idlest"
    )
    chart = line_chart(
        "CPU use per core over time",
        said,
        [Series("", "fastsocket core", line, marks=False) for line in lines.values()],
        x_label=name,
        x_ticks=[tick for tick in ticks(span / unit) if tick <= span / unit * 1.001],
        write_x=lambda x: f"{x:g}",
        write_y=lambda y: f"{y:g} %",
        top=100,
    )
    facts = [
        ("Host", recording.header.host),
        ("Processor", recording.header.model),
        ("Kernel", recording.header.kernel),
        (
            "Recorded",
            f"{number(span / unit)} {name}, a sample every {recording.header.interval:g} s",
        ),
    ]
    text = (
        ["The recording was cut short: its last block is missing."] if recording.cut_short else []
    )
    caption = f"One line a CPU. {said}."
    table = _table(samples[0], samples[-1])
    return Section(
        f"recording-{index}",
        f"Recording: {path.stem}",
        text,
        (),
        [(chart, caption, ())],
        [table],
        facts,
    )


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


def _table(first: Sample, last: Sample) -> Table:
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
    return Table("Use of each CPU over the whole recording", header, rows)
