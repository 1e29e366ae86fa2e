# SPDX-License-Identifier: GPL-2.0-or-later
"""`local`: questions and answers on long connections, plain and on the local fast path.

One server with its users' own client on 16 connections: `redis-benchmark` asking GET, `pgbench
--select-only`, and for the others, and for redis on demand, `fastsocket-kv`. In mode `fastsocket`
the server runs with its profile and ``--local-fast-path``, and the client is as in the other modes
unless it is given options of ``fastsocket run``. CPU time is that of server and client,
and with it that of the kernel's work in their name; it says more than requests per second where the
machine does other things meanwhile.
"""

import os
import resource
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from fastsocket.bench.askers import ASKERS, Asker, Order, choose
from fastsocket.bench.fastpath import await_fast_path, past_tcp_percent, with_fast_path
from fastsocket.bench.modes import Mode, fastsocket_command
from fastsocket.bench.netspace import Netspace
from fastsocket.bench.process import Program, running_servers
from fastsocket.bench.scenario import ADDRESS, Measurement, Setup, note_tier, site_directory
from fastsocket.bench.servers import Site

__all__ = ["Local"]

CONNECTIONS = 16
WARMUP_SHARE = 0.2
# Until processes that served a connection each have ended, and count as their parent's time.
SETTLE_SECONDS = 0.1


class Local:
    """Requests per second, latency and CPU time of a server on this host."""

    name = "local"
    metrics = {  # noqa: RUF012  # a constant by the protocol's read-only property
        "rps": "1/s",
        "p99_us": "us",
        "cpu_us_per_request": "us",
        "past_tcp_percent": "%",
    }
    servers = tuple(ASKERS)

    def prepare(self, setup: Setup) -> Setup:
        """See :class:`fastsocket.bench.scenario.Scenario`."""
        asker = choose(setup.server.name, setup.asker or "auto")
        asker.check(setup.pipeline)
        profile = ("--profile", setup.server.name)
        options = (*profile, *setup.run_options, *with_fast_path(setup.port))
        return replace(setup, connections=CONNECTIONS, run_options=options, asker=asker.name)

    def measure(self, setup: Setup, mode: Mode) -> Measurement:
        """See :class:`fastsocket.bench.scenario.Scenario`."""
        taken = Measurement()
        asker = choose(setup.server.name, setup.asker)
        order = Order(setup.connections, setup.pipeline, setup.seconds)
        if setup.client_options and mode is Mode.FASTSOCKET:
            order = order._replace(prefix=fastsocket_command(setup.client_options))
        with (
            Netspace.make() if setup.private else Netspace.host() as netspace,
            site_directory() as place,
        ):
            site = Site(ADDRESS, setup.port, setup.workers, place, keep_alive=True)
            with _serving(setup, asker, mode, netspace, site) as server:
                asker.fill(netspace, site)
                asker.ask(netspace, site, order._replace(seconds=WARMUP_SHARE * setup.seconds))
                before, client = _cpu_seconds(server, netspace), _children_seconds()
                answers = asker.ask(netspace, site, order)
                client = _children_seconds() - client
                time.sleep(SETTLE_SECONDS)
                spent = _cpu_seconds(server, netspace) - before + client
                past = None
                if mode is Mode.FASTSOCKET:
                    past = past_tcp_percent(server.pid, netspace)
        taken.put("rps", answers.per_second)
        taken.put("p99_us", answers.p99_us)
        taken.put("cpu_us_per_request", spent * 1e6 / answers.number)
        taken.put("past_tcp_percent", past if mode is Mode.FASTSOCKET else 0.0)
        return taken


@contextmanager
def _serving(
    setup: Setup, asker: Asker, mode: Mode, netspace: Netspace, site: Site
) -> Iterator[subprocess.Popen[str]]:
    """Run the server for a block; in mode fastsocket the fast path has begun before."""
    command = setup.server.command(mode, site)
    if mode is Mode.FASTSOCKET:
        command = fastsocket_command(setup.run_options, command)
    programs = [Program(command, (site.address, site.port), greeting=asker.greeting)]
    with running_servers(programs, netspace, setup.note) as (server,):
        if mode is Mode.FASTSOCKET:
            note_tier(setup, server.pid, netspace)
            await_fast_path(server.pid, netspace)
        yield server


def _cpu_seconds(server: subprocess.Popen[str], netspace: Netspace) -> float:
    """Return the time of the server's processes, and of their children that have ended."""
    ticks = 0
    for pid in netspace.processes() or [server.pid]:
        with suppress(OSError):  # it ended meanwhile
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += sum(int(field) for field in fields[11:15])
    return ticks / os.sysconf("SC_CLK_TCK")


def _children_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
