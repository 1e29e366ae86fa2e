# SPDX-License-Identifier: GPL-2.0-or-later
"""`proxy`: a client, a proxy and a backend, each in a namespace of its own, wires between them.

The backend is the demo server under Fastsocket in all modes alike, without lean connections, so
that its workers wake each other in none. Requests are as in `short`: the client's connection and
the proxy's own are both closed after one.

What the backend sends and gets is spread by flow, as a NIC with a queue for each CPU does it. Under
Fastsocket receive flow deliver takes the place of that at the proxy: its connections take ports of
their CPU, and the card's flow rules, as `fastsocket nic` sets them, steer by these. In `proxy-rule`
the card has none, and the rule rfd steers. Between client and proxy a packet stays on its CPU, as
on the loopback device of `short`.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace

from fastsocket.bench.card import place_flow_rules
from fastsocket.bench.modes import Mode, fastsocket_command
from fastsocket.bench.netspace import Netspace
from fastsocket.bench.probe import ACTIVE
from fastsocket.bench.process import confined, running_server
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
from fastsocket.bench.wires import finish_checksums, spread_packets, wire
from fastsocket.errors import MissingFeatureError, UsageError
from fastsocket.host.slices import local_slices
from fastsocket.steer import device
from fastsocket.steer.compile import compile_rule
from fastsocket.steer.library import find_rule

__all__ = ["Proxy"]

# Networks for documentation (RFC 5737): no host has them.
CLIENTS = [f"192.0.2.{number}" for number in range(2, 34)]
OUTSIDE, INSIDE, BACKEND = "192.0.2.1", "198.51.100.1", "198.51.100.2"
PREFIX = 24
WATCH_SECONDS = 0.5
WATCH_WARMUP = 0.1


class Proxy(Short):
    """The metrics of `short` for a proxy, and locality of the connections that it opens."""

    metrics = {**Short.metrics, "active_local_percent": "%"}  # noqa: RUF012  # as in Short
    servers = ("haproxy", "haproxy-single-queue", "nginx")

    def __init__(self, name: str, by_rule: bool) -> None:
        self.name, self._by_rule = name, by_rule

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
        return _proxied(setup, mode, self._by_rule)


@contextmanager
def _proxied(setup: Setup, mode: Mode, by_rule: bool) -> Iterator[Stage]:
    """Start backend and proxy, and lay the wires, for a block."""
    room = max(CONNECTIONS, setup.connections + SPARE)
    with (
        confined(setup.cpus),
        Netspace.make() as clients,
        Netspace.make() as proxy,
        Netspace.make() as behind,
        site_directory() as place,
    ):
        cpus = sorted(os.sched_getaffinity(0))
        outer = [f"{client}/{PREFIX}" for client in CLIENTS]
        wire(clients, proxy, ("client", "outside"), (outer, f"{OUTSIDE}/{PREFIX}"))
        wire(behind, proxy, ("backend", "inside"), ([f"{BACKEND}/{PREFIX}"], f"{INSIDE}/{PREFIX}"))
        finish_checksums(behind, "backend")
        spread_packets(behind, "backend", cpus)
        arrival: AbstractContextManager[None] = nullcontext()
        table: Mapping[int, int] = {}
        if mode is Mode.FASTSOCKET:
            setup = replace(setup, run_options=[*setup.run_options, "--receive-flow-deliver"])
            with proxy.entered():
                table = local_slices().table(cpus)
        if table and by_rule:
            arrival = _delivered(proxy, cpus, table)
        else:
            spread_packets(proxy, "inside", cpus)
            place_flow_rules(behind, "backend", table, len(cpus))
        common = Site(OUTSIDE, setup.port, setup.workers, place, cpus=setup.cpus, capacity=room)
        backend = replace(common, address=BACKEND)
        end = (backend.address, backend.port)
        demo = HTTP_SERVERS["demo"].command(Mode.FASTSOCKET, backend)
        command = fastsocket_command(("--lean", "off"), demo)
        site = replace(common, backend=end)
        with (
            arrival,
            running_server(command, behind, end, setup.note),
            serving(setup, mode, proxy, site) as process,
        ):
            sources = f"{CLIENTS[0]}-{CLIENTS[-1]}"
            yield Stage(setup, proxy, site, process, clients, sources, (clients, behind))


@contextmanager
def _delivered(proxy: Netspace, cpus: Sequence[int], table: Mapping[int, int]) -> Iterator[None]:
    """Steer what the proxy gets from inside to the CPUs that opened the connections, for a block.

    Raises:
        FastsocketError: The rule cannot be attached.
    """
    with proxy.entered():
        device.attach(compile_rule(find_rule("rfd"), len(cpus)), "inside", cpus)
    try:
        with proxy.entered():
            device.fill_slices("inside", table)
        yield
    finally:
        with proxy.entered():
            device.detach("inside")


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
