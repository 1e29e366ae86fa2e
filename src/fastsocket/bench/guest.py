# SPDX-License-Identifier: GPL-2.0-or-later
"""What runs inside the virtual machine of ``bench scale --vm``: counts by core count and mode.

Called as ``python -m fastsocket.bench.guest ORDER``, with an :class:`Order` in a file. Each core
count has a file as soon as it is done, so that an interrupted run goes on behind it.

Every client process makes the same number of connections, one process on each CPU: what a network
card gives that spreads clients evenly. Nothing is timed.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import msgspec

from fastsocket.bench.counters import Reading, Window, read, window
from fastsocket.bench.modes import Mode, fastsocket_command
from fastsocket.bench.netspace import Netspace
from fastsocket.bench.probe import ACCEPTS, EVENTS, SITES, Probe, summed
from fastsocket.bench.process import confined, running_server, spawn
from fastsocket.bench.scenario import ADDRESS, Measurement, site_directory
from fastsocket.bench.servers import HTTP_SERVERS, Site
from fastsocket.bench.stats import spread
from fastsocket.bench.trace import contended, wake_ups_traced
from fastsocket.errors import FastsocketError
from fastsocket.native import native_file

__all__ = ["AT_ONCE", "METRICS", "Counted", "Order", "comm_of", "deviation", "part_file"]

METRICS = {
    "local_percent": "%",
    "lock_contentions_per_1k": "1/1000 connections",
    "resched_ipis_per_1k": "1/1000 connections",
    "own_resched_ipis_per_1k": "1/1000 connections",
    "worker_cv": "ratio",
    "core_deviation_percent": "%",
    "errors": "connections",
}
PORT = 8080
SOURCES = "127.0.0.2-127.0.0.33"
AT_ONCE = 2
"""Connections of each client process at a time: as many as a worker may have beyond the others
where connections last. Here every one outlives the select program's window of 67 ms."""
WARM_UP = 10
"""Connections on each core before those that count: workers take their sockets meanwhile."""
PATIENCE_SECONDS = 300.0
PAUSE = 0.05
COMM_BYTES = 15  # TASK_COMM_LEN of linux/sched.h, less the final zero


class Order(msgspec.Struct, frozen=True):
    """What the guest is asked for.

    Attributes:
        directory: Of the answers; writable in the guest.
        counts: Numbers of cores.
        modes: What to run on each.
        server: One of the servers of the bench.
        connections: On each core.
        run_options: For ``fastsocket run``.
        commit: Of Fastsocket.
    """

    directory: str
    counts: list[int]
    modes: list[str]
    server: str
    connections: int
    run_options: list[str]
    commit: str


class Counted(msgspec.Struct, frozen=True):
    """The counts on one number of cores by mode; `sites` are contentions by kernel function."""

    order: Order
    kernel: str
    cores: int
    values: dict[str, dict[str, float | None]]
    sites: dict[str, dict[str, float]]
    notes: list[str]


def part_file(directory: Path, cores: int) -> Path:
    """Return where the counts on that many cores are written."""
    return directory / f"cores-{cores}.json"


@dataclass(frozen=True)
class Load:
    """The client's work on a running server: on `cores` CPUs, in its namespace.

    `program` is the name of the server's processes, as the kernel keeps it.
    """

    netspace: Netspace
    cores: int
    program: str

    def run(self, connections: int) -> int:
        """Make that many connections on each core; return how many failed.

        Raises:
            FastsocketError: The client failed.
        """
        return self._errors(self._start("-n", str(connections * self.cores)))

    def steady(self, connections: int, probe: Probe) -> Window:
        """Count what that many connections on each core cost, clients started and none done."""
        process = self._start("-t", str(int(PATIENCE_SECONDS)))
        try:
            before = self._await(process, self._opens() + WARM_UP * self.cores, probe)
            after = self._await(process, before.opens + connections * self.cores, probe)
        finally:
            process.terminate()
            self._errors(process)
        return window(before, after)

    def _start(self, *length: str) -> "subprocess.Popen[str]":
        command = [str(native_file("fastsocket-load")), "-j", "-p", str(self.cores), "-s", SOURCES]
        command += [*length, "-c", str(AT_ONCE * self.cores)]
        command += ["--timeout", str(int(PATIENCE_SECONDS * 1000)), f"{ADDRESS}:{PORT}"]
        return spawn(command, self.netspace, subprocess.DEVNULL, subprocess.PIPE)

    @staticmethod
    def _errors(process: "subprocess.Popen[str]") -> int:
        output, _ = process.communicate()
        if process.returncode != 0:
            raise FastsocketError(f"fastsocket-load failed with status {process.returncode}")
        return sum(json.loads(output)["errors"].values())

    def _opens(self) -> int:
        return read(self.netspace, None).opens

    def _await(self, process: "subprocess.Popen[str]", opens: int, probe: Probe) -> Reading:
        """Return the counters once that many connections were opened in all."""
        while (seen := read(self.netspace, probe)).opens < opens:
            if process.poll() is not None:
                raise FastsocketError("fastsocket-load ended before its connections were counted")
            time.sleep(PAUSE)
        return seen

    def count(self, connections: int, probe: Probe) -> Measurement:
        """Count while the clients make their connections."""
        taken = Measurement()
        self.run(WARM_UP)
        probe.watch(self.netspace.inode, PORT)
        with probe.attached(*ACCEPTS):
            errors = self.run(connections)
        acceptors = probe.acceptors()
        threads = summed((tid, counts) for (tid, _), counts in acceptors.items()).values()
        cpus = summed((cpu, counts) for (_, cpu), counts in acceptors.items()).values()
        with probe.attached(*EVENTS):
            seen = self.steady(connections, probe)
        total = sum(each.accepted for each in threads)
        local = sum(each.local for each in threads)
        contentions, interrupts = seen.contentions or 0, seen.reschedules or 0
        taken.put("local_percent", 100 * local / total if total else None)
        taken.put("lock_contentions_per_1k", seen.per_connection(1000 * contentions))
        taken.put("resched_ipis_per_1k", seen.per_connection(1000 * interrupts))
        taken.put("worker_cv", spread([each.accepted for each in threads], self.cores))
        taken.put("core_deviation_percent", deviation([each.accepted for each in cpus], self.cores))
        taken.put("errors", float(errors))
        return taken

    def trace(self, connections: int, probe: Probe, taken: Measurement) -> dict[str, float]:
        """Name what remains, in a load of its own.

        Returns:
            Contentions per 1,000 connections by kernel function; the interrupts that made the
            server or a client run go into `taken`.
        """
        probe.watch(self.netspace.inode, PORT)
        before = self._opens()
        with probe.attached(*SITES), wake_ups_traced(probe):
            self.run(connections)
        made = self._opens() - before
        own = sum(probe.woken().get(name, 0) for name in (self.program, "fastsocket-load"))
        taken.put("own_resched_ipis_per_1k", 1000 * own / made)
        return {site: 1000 * times / made for site, times in contended(probe).items()}


def deviation(counts: list[int], cores: int) -> float | None:
    """Return by how much the CPU farthest from the mean of `cores` is off, in percent of it."""
    everyone = [*counts, *[0] * (cores - len(counts))]
    mean = fmean(everyone)
    return 100 * max(abs(count - mean) for count in everyone) / mean if mean else None


def comm_of(command: Sequence[str]) -> str:
    """Return the name that the kernel gives to a command's process: 15 bytes (proc_pid_comm(5))."""
    return os.fsdecode(os.fsencode(Path(command[0]).name)[:COMM_BYTES])


@contextmanager
def loaded(order: Order, cores: int, mode: Mode, notes: list[str]) -> Iterator[Load]:
    """Start the server on the first `cores` CPUs, in a namespace of its own, for a block."""
    cpus = tuple(sorted(os.sched_getaffinity(0))[:cores])
    with Netspace.make() as netspace, site_directory() as place, confined(cpus):
        site = Site(ADDRESS, PORT, cores, place, cpus=cpus)
        command = HTTP_SERVERS[order.server].command(mode, site)
        program = comm_of(command)
        if mode is Mode.FASTSOCKET:
            command = fastsocket_command(order.run_options, command)
        end = (ADDRESS, PORT)
        with running_server(command, netspace, end, notes.append, PATIENCE_SECONDS):
            yield Load(netspace, cores, program)


def main(order: Order) -> None:
    """Count on each number of cores, and write each when it is complete."""
    directory = Path(order.directory)
    with Probe() as probe:
        for cores in order.counts:
            done = Counted(order, os.uname().release, cores, {}, {}, [])
            for word in order.modes:
                print(f"{cores} cores, {word}", flush=True)
                with loaded(order, cores, Mode(word), done.notes) as load:
                    taken = load.count(order.connections, probe)
                    done.sites[word] = load.trace(order.connections, probe, taken)
                    done.values[word] = {name: taken.values[name] for name in METRICS}
            path = part_file(directory, cores)
            path.with_suffix(".new").write_bytes(msgspec.json.encode(done))
            path.with_suffix(".new").replace(path)


if __name__ == "__main__":
    ordered = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=Order)
    try:
        main(ordered)
    except FastsocketError as error:
        Path(ordered.directory, "error").write_text(str(error), encoding="utf-8")
        sys.exit(error.exit_code)
