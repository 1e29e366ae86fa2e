# SPDX-License-Identifier: GPL-2.0-or-later
"""What each metric is called, how its figures are written, and which way is better."""

from collections.abc import Callable
from typing import NamedTuple

__all__ = [
    "HEADLINES",
    "MIN_ROUNDS",
    "SCENARIOS",
    "MetricText",
    "compare",
    "interval",
    "metric_text",
    "number",
    "ratio",
    "ratio_digits",
]


class MetricText(NamedTuple):
    """A metric for people; `better` is 1 where more is better, -1 where less is, else 0."""

    label: str
    better: int


MIN_ROUNDS = 6
"""Fewest rounds for a claim: n rounds lie on one side of the true median by chance with probability
2^(1-n), which is below 5 % from six on."""

_COST = "ns_per_packet_"
_METRICS = {
    "cps": MetricText("Connections per second", 1),
    "rps": MetricText("Requests per second", 1),
    "cpu_us_per_conn": MetricText("CPU time per connection", -1),
    "lock_contentions_per_1k": MetricText("Lock contentions per 1,000 connections", -1),
    "resched_ipis_per_1k": MetricText("Reschedule interrupts per 1,000 connections", -1),
    "local_percent": MetricText("Connections served on the CPU that received them", 1),
    "active_local_percent": MetricText("Backend packets on the CPU that opened the connection", 1),
    "reader_local_percent": MetricText("Reads of a moving reader that find data of its CPU", 1),
    "prepare_ms": MetricText("CPU time to compile and load a rule", -1),
    "worker_cv_renewed": MetricText("Spread over workers, half of them renewed", -1),
    "segments_per_conn": MetricText("TCP segments per connection, both ends", -1),
    "own_resched_ipis_per_1k": MetricText(
        "Reschedule interrupts per 1,000 connections that made server or client run", -1
    ),
    "core_deviation_percent": MetricText("Core farthest from the mean of accepts", -1),
    "worker_cv": MetricText("Spread over workers (deviation / mean)", -1),
    "p50_us": MetricText("Latency, median", -1),
    "p99_us": MetricText("Latency, 99th percentile", -1),
    "p999_us": MetricText("Latency, 99.9th percentile", -1),
    "p99_us_calm": MetricText("Latency, 99th percentile, no worker stalled", -1),
    "p99_over_calm": MetricText("Latency, 99th percentile, stalled by not stalled", -1),
    "errors": MetricText("Errors that the client saw", -1),
    "lost": MetricText("Connections lost", -1),
    "accepted_lost": MetricText("Lost after a worker had accepted them", -1),
    "queued_lost": MetricText("Lost in a queue", -1),
    "completed": MetricText("Connections completed", 1),
    "kills": MetricText("Workers killed", 0),
    "reloads": MetricText("Reloads", 0),
    "rps_1": MetricText("Requests per second, one instance alone", 1),
    "p99_us_1": MetricText("Latency, 99th percentile, one instance alone", -1),
    "local_percent_1": MetricText("Served on the CPU that received it, one instance alone", 1),
    "cpu_us_per_request": MetricText("CPU time per request", -1),
    "cpu_us_per_request_1": MetricText("CPU time per request, one instance alone", -1),
    "past_tcp_percent": MetricText("Messages that went past TCP", 0),
    "past_tcp_percent_1": MetricText("Messages past TCP, one instance alone", 0),
    "live": MetricText("Connections that live", 0),
    "instructions_per_conn": MetricText("Instructions per connection", -1),
    "launch_ms": MetricText("Time to launch", -1),
    "keeper_mib": MetricText("Memory of the keeper", -1),
    "ns_per_packet": MetricText("Time per packet", -1),
}

SCENARIOS = {
    "short": "Short connections",
    "stall": "One worker stalls",
    "stall-burn": "One worker computes without end",
    "crash": "Workers are killed and the server reloads",
    "soak": "Load for long, with kills and reloads",
    "keepalive": "Requests on connections that stay",
    "longlived": "Long-lived connections",
    "lean": "How late lean connections are",
    "proxy": "Proxy with backend connections",
    "proxy-rule": "Proxy with backend connections, packets steered by a rule",
    "redis": "Stores over loopback",
    "redis-veth": "Stores over veth",
    "kernel": "What the kernel's own features are worth",
    "local": "The local fast path",
    "steer": "Steering rules",
    "overhead": "What Fastsocket itself costs",
    "scale": "Throughput by cores",
}
"""Heading of each scenario; their order is the order of the page."""

HEADLINES = {
    "short": "cps",
    "stall": "p99_us",
    "stall-burn": "p99_us",
    "crash": "lost",
    "soak": "lost",
    "keepalive": "rps",
    "longlived": "worker_cv",
    "proxy": "cps",
    "proxy-rule": "cps",
    "redis": "rps",
    "redis-veth": "rps",
    "kernel": "rps",
    "local": "rps",
    "steer": "ns_per_packet_rfd",
    "overhead": "instructions_per_conn",
}
"""The metric that answers a scenario's question. `scale` has a section of its own, and the figures
of `lean` are differences about zero, whose ratio says nothing."""


def metric_text(name: str) -> MetricText:
    """Return a metric's text; one that is not known yet is shown under its own name."""
    if name.startswith(_COST):
        return MetricText(f"Time per packet, rule {name.removeprefix(_COST)}", -1)
    return _METRICS.get(name) or MetricText(name.replace("_", " ").capitalize(), 0)


def number(value: float | None) -> str:
    """Write a figure with the three to four digits that matter, such as 12,345 or 0.0123."""
    if value is None:
        return "–"
    size = abs(value)
    if size >= 1000 or value == int(value):
        return f"{value:,.0f}"
    if size >= 100:
        return f"{value:.0f}"
    if size >= 10:
        return f"{value:.1f}"
    if size >= 1:
        return f"{value:.2f}"
    return f"{value:#.3g}"


def ratio(value: float | None) -> str:
    """Write a ratio: 1.25×, 0.70×, 0.0136×."""
    return "–" if value is None else f"{ratio_digits(value)}×"


def ratio_digits(value: float) -> str:
    """Write a ratio without its sign, as its interval does."""
    return f"{value:.2f}" if value >= 0.1 else f"{value:#.3g}"


def interval(low: float | None, high: float | None, write: Callable[[float], str] = number) -> str:
    """Write an interval, such as [398–430]; nothing where there is none or it has no width."""
    if low is None or high is None or low == high:
        return ""
    return f"[{write(low)}–{write(high)}]"


def compare(name: str, low: float | None, high: float | None, rounds: int) -> str:
    """Say what a ratio's interval shows: "better", "worse", "no difference shown", or nothing.

    Args:
        name: The metric.
        low: Lower end of the 95 % interval.
        high: Upper end.
        rounds: Rounds behind it; with fewer than `MIN_ROUNDS` nothing is claimed.
    """
    better = metric_text(name).better
    if low is None or high is None or not better:
        return ""
    if low <= 1 <= high:
        return "no difference shown"
    if rounds < MIN_ROUNDS:
        return "too few rounds for a claim"
    return "better" if (low > 1) == (better > 0) else "worse"
