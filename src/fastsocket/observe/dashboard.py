# SPDX-License-Identifier: GPL-2.0-or-later
"""A Grafana dashboard of the exported metrics, ready to import."""

from typing import Any, NamedTuple

__all__ = ["PANELS", "Panel", "dashboard"]

_WIDTH, _HEIGHT = 12, 8
"""Size of a panel; Grafana's grid is 24 wide."""


class Panel(NamedTuple):
    """One chart: a query, how its lines are named, and a unit in Grafana's own names."""

    title: str
    query: str
    legend: str
    unit: str
    description: str


_RATE = "[$__rate_interval]"
_ASSIGNED = f"sum(rate(fastsocket_assigned_total{_RATE}))"
_SPILLED = f"sum(rate(fastsocket_spilled_total{_RATE}))"
_PASSED = f"sum(rate(fastsocket_passed_total{_RATE}))"

PANELS = (
    Panel(
        "CPU use per core",
        f"rate(fastsocket_cpu_busy_seconds_total{_RATE})",
        "CPU {{cpu}}",
        "percentunit",
        "Lines that lie together are cores that share the load evenly.",
    ),
    Panel(
        "Softirq per core",
        f"rate(fastsocket_cpu_softirq_seconds_total{_RATE})",
        "CPU {{cpu}}",
        "percentunit",
        "One core far above the others receives most packets: see 'fastsocket nic plan'.",
    ),
    Panel(
        "Receive softirqs per core",
        f"rate(fastsocket_cpu_net_rx_softirqs_total{_RATE})",
        "CPU {{cpu}}",
        "ops",
        "How often each core was told that packets arrived.",
    ),
    Panel(
        "Connections accepted",
        f"sum by (listener, slot) (rate(fastsocket_accepted_total{_RATE}))",
        "{{listener}} slot {{slot}}",
        "cps",
        "Per worker; even lines are the aim.",
    ),
    Panel(
        "Local connections",
        f"({_ASSIGNED} - {_SPILLED}) / ({_ASSIGNED} + ({_PASSED} or vector(0)))",
        "local",
        "percentunit",
        "Share of connections accepted on the core that received them.",
    ),
    Panel(
        "Connections that left their core",
        f"{_SPILLED} + ({_PASSED} or vector(0))",
        "spilled or passed",
        "cps",
        "Taken over because a worker stalled or had too many, or left to the kernel.",
    ),
    Panel(
        "Live connections",
        "fastsocket_live_connections",
        "{{listener}} slot {{slot}}",
        "short",
        "Long-lived connections should spread by these counts.",
    ),
    Panel(
        "Connections that wait",
        "fastsocket_waiting_connections",
        "{{listener}} slot {{slot}}",
        "short",
        "A line that stays up belongs to a worker that does not keep up.",
    ),
    Panel(
        "Busy workers",
        "avg by (listener) (fastsocket_worker_busy)",
        "{{listener}}",
        "percentunit",
        "Share of workers that were away from their wait when they were sampled.",
    ),
    Panel(
        "Steering rules",
        f"rate(fastsocket_steering_total{_RATE})",
        "{{counter}}",
        "ops",
        "What the rules' own counters count.",
    ),
)


def dashboard() -> dict[str, Any]:
    """Return the dashboard as Grafana imports it; the data source is asked for at import."""
    source = {"type": "prometheus", "uid": "${DS_PROMETHEUS}"}
    panels = [
        {
            "id": index + 1,
            "type": "timeseries",
            "title": panel.title,
            "description": panel.description,
            "datasource": source,
            "gridPos": {
                "x": index % 2 * _WIDTH,
                "y": index // 2 * _HEIGHT,
                "w": _WIDTH,
                "h": _HEIGHT,
            },
            "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
            "options": {"tooltip": {"mode": "multi"}, "legend": {"displayMode": "list"}},
            "targets": [
                {
                    "refId": "A",
                    "datasource": source,
                    "expr": panel.query,
                    "legendFormat": panel.legend,
                }
            ],
        }
        for index, panel in enumerate(PANELS)
    ]
    return {
        "__inputs": [
            {
                "name": "DS_PROMETHEUS",
                "label": "Prometheus",
                "type": "datasource",
                "pluginId": "prometheus",
            }
        ],
        "title": "Fastsocket",
        "uid": "fastsocket",
        "schemaVersion": 39,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "panels": panels,
    }
