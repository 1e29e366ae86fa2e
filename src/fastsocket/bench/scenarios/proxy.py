# SPDX-License-Identifier: GPL-2.0-or-later
"""`proxy`: a client, a proxy and a backend, each in a namespace of its own, wires between them.

The backend is the demo server in its stock configuration, in all modes alike. Requests are as in
`short`: the client's connection and the proxy's own are both closed after one.
"""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from fastsocket.bench.modes import Mode
from fastsocket.bench.netspace import Netspace
from fastsocket.bench.probe import ACTIVE
from fastsocket.bench.process import running_server
from fastsocket.bench.scenario import (
    SPARE,
    Measurement,
    Setup,
    Stage,
    serving,
    site_directory,
)
from fastsocket.bench.scenarios.short import Short, measure_speed, watch_accepts
from fastsocket.bench.servers import CONNECTIONS, HTTP_SERVERS, Site
from fastsocket.bench.wires import spread_packets, wire
from fastsocket.errors import MissingFeatureError, UsageError

__all__ = ["Proxy"]

# Networks for documentation (RFC 5737): no host has them.
CLIENTS = [f"192.0.2.{number}" for number in range(2, 34)]
OUTSIDE, INSIDE, BACKEND = "192.0.2.1", "198.51.100.1", "198.51.100.2"
PREFIX = 24
WATCH_SECONDS = 0.5
WATCH_WARMUP = 0.1


class Proxy(Short):
    """The metrics of `short` for a proxy, and locality of the connections that it opens."""

    name = "proxy"
    metrics = {**Short.metrics, "active_local_percent": "%"}  # noqa: RUF012  # as in Short
    servers = ("haproxy", "haproxy-single-queue", "nginx")

    def prepare(self, setup: Setup) -> Setup:
        """See :class:`fastsocket.bench.scenario.Scenario`."""
        if not setup.private:
            raise MissingFeatureError(
                "proxy needs three network namespaces", "none can be made", "run it as root"
            )
        if not setup.client.versatile:
            raise UsageError(f"{setup.client.name} has one source address", todo="use another")
        return setup

    def measure(self, setup: Setup, mode: Mode) -> Measurement:
        """See :class:`fastsocket.bench.scenario.Scenario`."""
        taken = Measurement()
        with self.staged(setup, mode) as running:
            measure_speed(taken, running)
            watch_accepts(taken, running)
            taken.put("active_local_percent", _active_local(running), setup.probe_reason)
        return taken

    def staged(self, setup: Setup, mode: Mode) -> AbstractContextManager[Stage]:
        """See :class:`fastsocket.bench.scenarios.short.Short`."""
        return _proxied(setup, mode)


@contextmanager
def _proxied(setup: Setup, mode: Mode) -> Iterator[Stage]:
    """Start backend and proxy, and lay the wires, for a block."""
    cpus = sorted(os.sched_getaffinity(0))
    room = max(CONNECTIONS, setup.connections + SPARE)
    with (
        Netspace.make() as clients,
        Netspace.make() as proxy,
        Netspace.make() as behind,
        site_directory() as place,
    ):
        outer = [f"{client}/{PREFIX}" for client in CLIENTS]
        wire(clients, proxy, ("client", "outside"), (outer, f"{OUTSIDE}/{PREFIX}"))
        wire(behind, proxy, ("backend", "inside"), ([f"{BACKEND}/{PREFIX}"], f"{INSIDE}/{PREFIX}"))
        for netspace, device in (
            (clients, "client"),
            (proxy, "outside"),
            (proxy, "inside"),
            (behind, "backend"),
        ):
            spread_packets(netspace, device, cpus)
        backend = Site(BACKEND, setup.port, setup.workers, place, capacity=room)
        end = (backend.address, backend.port)
        command = HTTP_SERVERS["demo"].command(Mode.STOCK, backend)
        site = Site(OUTSIDE, setup.port, setup.workers, place, capacity=room, backend=end)
        with (
            running_server(command, behind, end, setup.note),
            serving(setup, mode, proxy, site) as process,
        ):
            sources = f"{CLIENTS[0]}-{CLIENTS[-1]}"
            yield Stage(setup, proxy, site, process, clients, sources, (clients, behind))


def _active_local(running: Stage) -> float | None:
    """Return the share of the backends' packets that came in on the CPU that had connected."""
    probe, backend = running.setup.probe, running.site.backend
    if probe is None or backend is None:
        return None
    probe.watch_backend(running.netspace.inode, backend[1])
    with probe.attached(*ACTIVE):
        before = probe.events()
        running.load(WATCH_SECONDS, WATCH_WARMUP)
        after = probe.events()
    packets = after.active_packets - before.active_packets
    local = after.local_active_packets - before.local_active_packets
    return 100 * local / packets if packets else None
