# SPDX-License-Identifier: GPL-2.0-or-later
"""`redis`: one instance of a store, and eight pinned to the CPUs in turn, over loopback.

Connections stay and requests are small, as in the evaluation of 2014. All instances listen on one
port, each at a loopback address of its own. `scale` has one instance on each of its cores.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from fastsocket.bench.modes import Mode, fastsocket_command
from fastsocket.bench.netspace import Netspace
from fastsocket.bench.probe import READS
from fastsocket.bench.process import Program, confined, running_servers
from fastsocket.bench.scenario import (
    Measurement,
    Setup,
    Stage,
    note_tier,
    site_directory,
)
from fastsocket.bench.servers import Site
from fastsocket.bench.stores import STORES, Kv

__all__ = ["INSTANCES", "OnEachCore", "Redis"]

INSTANCES = 8
WATCH_SECONDS = 0.5
WATCH_WARMUP = 0.1


class Redis:
    """Requests per second, and how much of what is read came in on the reader's CPU.

    Names that end in _1 are those of a single instance, the others those of all `INSTANCES`.
    """

    name = "redis"
    metrics = {  # noqa: RUF012  # a constant by the protocol's read-only property
        "rps": "1/s",
        "p99_us": "us",
        "local_percent": "%",
        "rps_1": "1/s",
        "p99_us_1": "us",
        "local_percent_1": "%",
        "errors": "connections",
    }
    servers = tuple(STORES)

    def prepare(self, setup: Setup) -> Setup:
        """See :class:`fastsocket.bench.scenario.Scenario`; stores have a client of their own."""
        return replace(setup, client=Kv(STORES[setup.server.name], _hosts(INSTANCES)))

    def measure(self, setup: Setup, mode: Mode) -> Measurement:
        """See :class:`fastsocket.bench.scenario.Scenario`."""
        taken = Measurement()
        errors = 0
        for instances, suffix in self._counts(setup):
            with _stores(setup, mode, instances) as running:
                outcome, seen = running.load(setup.seconds, setup.warmup)
                taken.cores = seen.cores
                local = _local_percent(running)
            errors += outcome.errors
            taken.put(f"rps{suffix}", outcome.per_second)
            taken.put(f"p99_us{suffix}", outcome.latency_us.get("p99"), "nothing was answered")
            taken.put(f"local_percent{suffix}", local, setup.probe_reason)
        taken.put("errors", float(errors))
        return taken

    def _counts(self, setup: Setup) -> Sequence[tuple[int, str]]:
        """Return how many instances to ask, and how the names of those metrics end."""
        return ((1, "_1"), (INSTANCES, ""))


class OnEachCore(Redis):
    """An instance on each CPU of the setup, and its clients on the same CPUs."""

    metrics = {  # noqa: RUF012  # as in Redis
        name: unit for name, unit in Redis.metrics.items() if not name.endswith("_1")
    }

    def measure(self, setup: Setup, mode: Mode) -> Measurement:
        """See :class:`fastsocket.bench.scenario.Scenario`."""
        with confined(setup.cpus):
            return super().measure(setup, mode)

    def _counts(self, setup: Setup) -> Sequence[tuple[int, str]]:
        return ((setup.workers, ""),)


def _hosts(instances: int) -> list[str]:
    """Return the addresses of that many instances."""
    return [f"127.0.0.{number}" for number in range(1, instances + 1)]


@contextmanager
def _stores(setup: Setup, mode: Mode, instances: int) -> Iterator[Stage]:
    """Start instances of the store, pinned to the CPUs in turn, for a block."""
    store, hosts = STORES[setup.server.name], _hosts(instances)
    with (
        Netspace.make() if setup.private else Netspace.host() as netspace,
        site_directory() as place,
    ):
        site = Site(hosts[0], setup.port, 1, place)
        programs = list(_programs(setup, mode, site, hosts))
        with running_servers(programs, netspace, setup.note) as processes:
            if mode is Mode.FASTSOCKET:
                note_tier(setup, processes[0].pid, netspace)
            loaded = replace(setup, client=Kv(store, hosts))
            yield Stage(loaded, netspace, site, processes[0], netspace)


def _programs(setup: Setup, mode: Mode, site: Site, hosts: Sequence[str]) -> Iterator[Program]:
    """Return what to start for each instance."""
    store, cpus = STORES[setup.server.name], sorted(os.sched_getaffinity(0))
    for index, host in enumerate(hosts):
        command = store.command(mode, replace(site, address=host))
        if mode is Mode.FASTSOCKET:
            command = fastsocket_command(setup.run_options, command)
        pinned = [cpus[index % len(cpus)]]
        yield Program(command, (host, site.port), pinned, store.greeting)


def _local_percent(running: Stage) -> float | None:
    """Return the share of reads that found data of their own CPU, from a second load."""
    probe = running.setup.probe
    if probe is None:
        return None
    probe.watch(running.netspace.inode, running.site.port)
    with probe.attached(*READS):
        before = probe.events()
        running.load(WATCH_SECONDS, WATCH_WARMUP)
        after = probe.events()
    reads = after.reads - before.reads
    return 100 * (after.local_reads - before.local_reads) / reads if reads else None
