# SPDX-License-Identifier: GPL-2.0-or-later
"""`keepalive`: many requests on each connection, where what a connection costs does not count."""

from dataclasses import replace

from fastsocket.bench.modes import Mode
from fastsocket.bench.scenario import Measurement, Setup, stage
from fastsocket.errors import UsageError

__all__ = ["Keepalive"]

REQUESTS = 100


class Keepalive:
    """Requests per second and their latency."""

    name = "keepalive"
    metrics = {  # noqa: RUF012  # a constant by the protocol's read-only property
        "rps": "1/s",
        "p50_us": "us",
        "p99_us": "us",
        "cpu_us_per_request": "us",
        "errors": "connections",
    }
    servers = ("nginx", "granian", "demo")

    def prepare(self, setup: Setup) -> Setup:
        """See :class:`fastsocket.bench.scenario.Scenario`."""
        if not setup.client.versatile:
            raise UsageError(f"{setup.client.name} closes connections", todo="use fastsocket-load")
        return replace(setup, requests=REQUESTS)

    def measure(self, setup: Setup, mode: Mode) -> Measurement:
        """See :class:`fastsocket.bench.scenario.Scenario`."""
        taken = Measurement()
        with stage(setup, mode, keep_alive=True) as running:
            if setup.warmup:  # apart, for the client counts whole connections
                running.load(setup.warmup, 0)
            outcome, seen = running.load(setup.seconds, 0)
        taken.cores = seen.cores
        rate = outcome.requests / outcome.seconds
        taken.put("rps", rate)
        for name in ("p50", "p99"):
            taken.put(f"{name}_us", outcome.latency_us.get(name), "nothing was answered")
        share = seen.busy_seconds / seen.seconds * 1e6
        taken.put("cpu_us_per_request", share / rate if rate else None)
        taken.put("errors", float(outcome.errors))
        return taken
