# SPDX-License-Identifier: GPL-2.0-or-later
"""`redis`, `redis-veth`, `kernel`: one instance of a store, and eight pinned to the CPUs in turn.

Connections stay and requests are small, as in the evaluation of 2014. Each instance has a port of
its own. Clients come over loopback, or over a veth pair from a namespace of their own. `scale` has
one instance on each of its cores.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from fastsocket.bench.arrivals import arriving
from fastsocket.bench.fastpath import await_fast_path, past_tcp_percent, with_fast_path
from fastsocket.bench.modes import Mode, fastsocket_command
from fastsocket.bench.netspace import Netspace
from fastsocket.bench.probe import READS
from fastsocket.bench.process import Program, confined, running_servers
from fastsocket.bench.scenario import (
    ADDRESS,
    Measurement,
    Setup,
    Stage,
    note_tier,
    site_directory,
)
from fastsocket.bench.servers import Site
from fastsocket.bench.stores import QUESTIONS, STORES, Kv
from fastsocket.bench.wires import finish_checksums, wire
from fastsocket.errors import MissingFeatureError

__all__ = ["INSTANCES", "REDIS", "OnEachCore", "Redis"]

INSTANCES = 8
WATCH_SECONDS = 0.5
WATCH_WARMUP = 0.1
# A network for documentation (RFC 5737): no host has it.
NEAR, FAR, PREFIX = "192.0.2.1", "192.0.2.2", 24
DEVICE = "stores"
PAST = "what went past TCP came in on no CPU"


class Redis:
    """Requests per second, and how much of what is read came in on the reader's CPU.

    Names that end in _1 are those of a single instance, the others those of all `INSTANCES`.

    Args:
        name: On the command line.
        wired: Whether clients come over a veth pair. Fastsocket's way is the rule receive_cpu
            there, and the local fast path over loopback, which takes no rule.
        modes: The modes that it has, of all servers alike.
    """

    metrics: Mapping[str, str] = {
        "rps": "1/s",
        "p99_us": "us",
        "cpu_us_per_request": "us",
        "local_percent": "%",
        "past_tcp_percent": "%",
        "rps_1": "1/s",
        "p99_us_1": "us",
        "cpu_us_per_request_1": "us",
        "local_percent_1": "%",
        "past_tcp_percent_1": "%",
        "errors": "connections",
    }
    servers = (*STORES, "nginx")

    def __init__(self, name: str, wired: bool, modes: Sequence[Mode]) -> None:
        self.name, self._wired, self.modes = name, wired, tuple(modes)

    def prepare(self, setup: Setup) -> Setup:
        """See :class:`fastsocket.bench.scenario.Scenario`; stores have a client of their own."""
        if not setup.private:
            raise MissingFeatureError(
                f"{self.name} needs network namespaces", "none can be made", "run it as root"
            )
        return replace(setup, client=self._client(setup, ADDRESS, [setup.port]))

    def measure(self, setup: Setup, mode: Mode) -> Measurement:
        """See :class:`fastsocket.bench.scenario.Scenario`."""
        taken = Measurement()
        errors = 0
        for instances, suffix in self._counts(setup):
            with self._stores(setup, mode, instances) as running:
                outcome, seen = running.load(setup.seconds, setup.warmup)
                taken.cores = seen.cores
                local: float | None = None
                past: float | None = 0.0
                if self._is_past_tcp(mode):
                    past = past_tcp_percent(running.process.pid, running.netspace)
                else:
                    local = _local_percent(running, instances)
            errors += outcome.errors
            per_second = outcome.per_second
            cost = seen.busy_seconds * 1e6 / seen.seconds
            nothing = "nothing was answered"
            taken.put(f"rps{suffix}", per_second)
            taken.put(f"p99_us{suffix}", outcome.latency_us.get("p99"), nothing)
            each = cost / per_second if per_second else None
            taken.put(f"cpu_us_per_request{suffix}", each, nothing)
            why = PAST if self._is_past_tcp(mode) else setup.probe_reason
            taken.put(f"local_percent{suffix}", local, why)
            taken.put(f"past_tcp_percent{suffix}", past, nothing)
        taken.put("errors", float(errors))
        return taken

    def _counts(self, setup: Setup) -> Sequence[tuple[int, str]]:
        """Return how many instances to ask, and how the names of those metrics end."""
        return ((1, "_1"), (INSTANCES, ""))

    def _is_past_tcp(self, mode: Mode) -> bool:
        return mode is Mode.LOCAL or (mode is Mode.FASTSOCKET and not self._wired)

    def _client(self, setup: Setup, address: str, ports: Sequence[int]) -> Kv:
        targets = [(address, port) for port in ports]
        return Kv(QUESTIONS[setup.server.name], targets, setup.pipeline)

    @contextmanager
    def _stores(self, setup: Setup, mode: Mode, instances: int) -> Iterator[Stage]:
        """Start instances of the store, pinned to the CPUs in turn, for a block."""
        cpus = sorted(os.sched_getaffinity(0))
        with ExitStack() as stack:
            place = stack.enter_context(site_directory())
            netspace = clients = stack.enter_context(Netspace.make())
            address, device = ADDRESS, "lo"
            if self._wired:
                address, device = NEAR, DEVICE
                clients = stack.enter_context(Netspace.make())
                ends = ([f"{FAR}/{PREFIX}"], f"{NEAR}/{PREFIX}")
                wire(clients, netspace, ("clients", DEVICE), ends)
                finish_checksums(clients, "clients")
            stack.enter_context(arriving(mode, netspace, device, cpus, rule=self._wired))
            ports = [setup.port + index for index in range(instances)]
            site = Site(address, setup.port, 1, place, keep_alive=True)
            programs = list(self._programs(setup, mode, site, ports))
            processes = stack.enter_context(running_servers(programs, netspace, setup.note))
            if mode in (Mode.FASTSOCKET, Mode.LOCAL):
                note_tier(setup, processes[0].pid, netspace)
            if self._is_past_tcp(mode):
                for process in processes:
                    await_fast_path(process.pid, netspace)
            loaded = replace(setup, client=self._client(setup, address, ports))
            yield Stage(loaded, netspace, site, processes[0], clients)

    def _programs(
        self, setup: Setup, mode: Mode, site: Site, ports: Sequence[int]
    ) -> Iterator[Program]:
        """Return what to start for each instance."""
        cpus = sorted(os.sched_getaffinity(0))
        for index, port in enumerate(ports):
            cpu = cpus[index % len(cpus)]
            directory = Path(site.directory, str(port))
            directory.mkdir()
            own = replace(site, port=port, directory=directory, cpus=(cpu,))
            command = setup.server.command(mode, own)
            if mode in (Mode.FASTSOCKET, Mode.LOCAL):
                past = with_fast_path(port) if self._is_past_tcp(mode) else ()
                command = fastsocket_command([*setup.run_options, *past], command)
            greeting = QUESTIONS[setup.server.name].greeting
            yield Program(command, (site.address, port), [cpu], greeting)


class OnEachCore(Redis):
    """An instance on each CPU of the setup, and its clients on the same CPUs, over loopback."""

    metrics: Mapping[str, str] = {
        name: unit for name, unit in Redis.metrics.items() if not name.endswith("_1")
    }

    def __init__(self) -> None:
        super().__init__("scale", wired=False, modes=())

    def measure(self, setup: Setup, mode: Mode) -> Measurement:
        """See :class:`fastsocket.bench.scenario.Scenario`."""
        with confined(setup.cpus):
            return super().measure(setup, mode)

    def _counts(self, setup: Setup) -> Sequence[tuple[int, str]]:
        return ((setup.workers, ""),)


def _local_percent(running: Stage, instances: int) -> float | None:
    """Return the share of reads that found data of their own CPU, from a second load."""
    probe = running.setup.probe
    if probe is None:
        return None
    probe.watch(running.netspace.inode, running.site.port, instances)
    with probe.attached(*READS):
        before = probe.events()
        running.load(WATCH_SECONDS, WATCH_WARMUP)
        after = probe.events()
    reads = after.reads - before.reads
    return 100 * (after.local_reads - before.local_reads) / reads if reads else None


_STEERED = (Mode.STOCK, Mode.RPS, Mode.RFS)
REDIS = (
    Redis("redis", wired=False, modes=(*_STEERED, Mode.FASTSOCKET)),
    Redis("redis-veth", wired=True, modes=(*_STEERED, Mode.LOCAL, Mode.FASTSOCKET)),
    Redis("kernel", wired=True, modes=(Mode.STOCK, Mode.NO_EARLY_DEMUX, Mode.NO_SKB_DEFER)),
)
"""The scenario with each of its paths, and the one of what the kernel has."""
