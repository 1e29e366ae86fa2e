# SPDX-License-Identifier: GPL-2.0-or-later
"""Samples in the form that Prometheus scrapes. Each name and label is part of the contract."""

import os
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from fastsocket.observe.sample import Sample, Slot, Source

__all__ = ["METRICS", "MetricRow", "SampleCollector"]

Values = Iterator[tuple[list[str], float]]


class MetricRow(NamedTuple):
    """One metric.

    Attributes:
        name: Without Prometheus' ending ``_total`` of counters.
        counter: Whether it only grows; else it is a gauge.
        help: What it counts.
        labels: Names of its labels.
        values: Gives its values, each with the labels' values, out of a sample.
    """

    name: str
    counter: bool
    help: str
    labels: tuple[str, ...]
    values: Callable[[Sample], Values]


_TICKS = os.sysconf("SC_CLK_TCK")
_CPU = ("cpu",)
_LISTENER = ("app", "listener")
_SLOT = ("app", "listener", "slot", "cpu")


def _per_slot(read: Callable[[Slot], float]) -> Callable[[Sample], Values]:
    """Return what gives one figure of every slot with the labels `_SLOT`."""

    def values(sample: Sample) -> Values:
        for listener in sample.listeners:
            for slot in listener.slots:
                cpu = "" if slot.cpu < 0 else str(slot.cpu)
                address = f"{listener.address}:{listener.port}"
                yield [str(listener.app), address, str(slot.slot), cpu], read(slot)

    return values


def _passed(sample: Sample) -> Values:
    for listener in sample.listeners:
        yield [str(listener.app), f"{listener.address}:{listener.port}"], listener.passed


METRICS = (
    MetricRow(
        "fastsocket_cpu_busy_seconds",
        True,
        "Time that a CPU was not idle, softirq included.",
        _CPU,
        lambda sample: (([str(core.cpu)], core.busy / _TICKS) for core in sample.cores),
    ),
    MetricRow(
        "fastsocket_cpu_softirq_seconds",
        True,
        "Time that a CPU spent in softirq.",
        _CPU,
        lambda sample: (([str(core.cpu)], core.softirq / _TICKS) for core in sample.cores),
    ),
    MetricRow(
        "fastsocket_cpu_net_rx_softirqs",
        True,
        "Receive softirqs that a CPU ran.",
        _CPU,
        lambda sample: (([str(core.cpu)], core.net_rx) for core in sample.cores),
    ),
    MetricRow(
        "fastsocket_accepted",
        True,
        "Connections that a slot's worker accepted.",
        _SLOT,
        _per_slot(lambda slot: slot.accepted),
    ),
    MetricRow(
        "fastsocket_assigned",
        True,
        "Connections that were chosen for a slot.",
        _SLOT,
        _per_slot(lambda slot: slot.assigned),
    ),
    MetricRow(
        "fastsocket_spilled",
        True,
        "Connections that were chosen for a slot although another CPU received them.",
        _SLOT,
        _per_slot(lambda slot: slot.spilled),
    ),
    MetricRow(
        "fastsocket_passed",
        True,
        "Connections for which no slot could be chosen, left to the kernel.",
        _LISTENER,
        _passed,
    ),
    MetricRow(
        "fastsocket_live_connections",
        False,
        "Connections that a slot's worker accepted and has not closed.",
        _SLOT,
        _per_slot(lambda slot: slot.live),
    ),
    MetricRow(
        "fastsocket_waiting_connections",
        False,
        "Connections that were chosen for a slot and wait to be accepted.",
        _SLOT,
        _per_slot(lambda slot: slot.waiting),
    ),
    MetricRow(
        "fastsocket_worker_busy",
        False,
        "1 while a slot's worker is away from its wait, else 0.",
        _SLOT,
        _per_slot(lambda slot: float(slot.busy)),
    ),
    MetricRow(
        "fastsocket_steering",
        True,
        "What the counters of steering rules counted.",
        ("counter",),
        lambda sample: (([name], count) for name, count in sample.steering.items()),
    ),
)
"""Every metric there is; docs/export.md lists them, and a test compares."""


class SampleCollector(Collector):
    """Takes a sample at each scrape; one that is not scraped costs nothing.

    Args:
        source: Where samples come from.
    """

    def __init__(self, source: Source) -> None:
        self._source = source

    def describe(self) -> Iterable[Metric]:
        """Return the metrics without values, so that registering takes no sample."""
        return [_family(row) for row in METRICS]

    def collect(self) -> Iterator[Metric]:
        """Return every metric with its values now."""
        sample = self._source.read()
        if sample is None:
            return
        for row in METRICS:
            family = _family(row)
            for labels, value in row.values(sample):
                family.add_metric(labels, value)
            yield family


def _family(row: MetricRow) -> CounterMetricFamily | GaugeMetricFamily:
    kind = CounterMetricFamily if row.counter else GaugeMetricFamily
    return kind(row.name, row.help, labels=row.labels)
