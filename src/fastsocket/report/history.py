# SPDX-License-Identifier: GPL-2.0-or-later
"""The throughput figure of the 2014 system, with the scalability law judged on each curve."""

import csv
from importlib.resources import files

from fastsocket.bench.usl import judge
from fastsocket.report.sections import Curve, Section, throughput_chart
from fastsocket.report.tables import law_table

__all__ = ["history_sections"]

_SOURCE = (
    "Read off the throughput figure of the 2014 README, to about 5,000 connections per second. "
    "These are that system's figures on its 24-core machine, not this one's."
)
_KERNELS = {"centos-6.5": "CentOS 6.5", "linux-3.13": "Linux 3.13", "fastsocket": "Fastsocket"}
_WORKLOADS = {"nginx": "nginx", "haproxy": "HAProxy"}


def history_sections() -> list[Section]:
    """Return one section for nginx and one for HAProxy, from the data that the package carries."""
    text = (files("fastsocket.bench") / "data/fastsocket-2014-throughput.csv").read_text()
    rows = list(csv.DictReader(line for line in text.splitlines() if line[:1] != "#"))
    sections = []
    for workload, name in _WORKLOADS.items():
        curves: dict[str, Curve] = {
            label: [
                (float(row["cores"]), float(row["cps"]), None, None)
                for row in rows
                if (row["workload"], row["kernel"]) == (workload, kernel)
            ]
            for kernel, label in _KERNELS.items()
        }
        laws = {
            label: judge([int(n) for n, *_ in points], [cps for _, cps, *_ in points])
            for label, points in curves.items()
        }
        title = f"The figure of 2014: {name}"
        chart = throughput_chart(name, "cps", curves, laws)
        charts = [chart] if chart else []
        tables = [law_table(laws)]
        sections.append(Section(f"2014-{workload}", title, [_SOURCE], (), charts, tables))
    return sections
