# SPDX-License-Identifier: GPL-2.0-or-later
"""`longlived`: connections that stay, and how evenly the workers hold them.

2,000 connections are opened and kept, half of them are closed, and as many come anew. Connections
are counted where they live: the established sockets that each process has open.
"""

import time
from collections.abc import Iterable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path

from fastsocket.bench.modes import Mode
from fastsocket.bench.scenario import Measurement, Setup, Stage, stage
from fastsocket.bench.stats import spread
from fastsocket.errors import FastsocketError, UsageError

__all__ = ["Longlived", "established", "live_connections"]

HALF = 1000
SETTLE_SECONDS = 30.0
# How long the clients would stay if nobody ended them.
STAY_SECONDS = 300.0
_ESTABLISHED = "01"


class Longlived:
    """Spread of live connections over the workers."""

    name = "longlived"
    metrics = {  # noqa: RUF012  # a constant by the protocol's read-only property
        "worker_cv": "ratio",
        "worker_cv_renewed": "ratio",
        "live": "connections",
    }
    servers = ("nginx", "granian", "demo")

    def prepare(self, setup: Setup) -> Setup:
        """See :class:`fastsocket.bench.scenario.Scenario`."""
        if not setup.client.versatile:
            raise UsageError(f"{setup.client.name} cannot hold connections", todo="use another")
        return setup

    def measure(self, setup: Setup, mode: Mode) -> Measurement:
        """See :class:`fastsocket.bench.scenario.Scenario`."""
        taken = Measurement()
        with stage(setup, mode, keep_alive=True) as running, ExitStack() as clients:
            order = running.order(STAY_SECONDS, 0, hold=HALF)
            leaving = clients.enter_context(running.client(order))
            clients.enter_context(running.client(order))
            counts = _await_total(running, 2 * HALF)
            taken.put("worker_cv", spread(counts, setup.workers))
            leaving.process.terminate()
            leaving.process.wait()
            _await_total(running, HALF)
            clients.enter_context(running.client(order))
            counts = _await_total(running, 2 * HALF)
            taken.put("worker_cv_renewed", spread(counts, setup.workers))
            taken.put("live", float(sum(counts)))
        return taken


def established(table: str, port: int) -> set[str]:
    """Return the inodes of the established sockets of local port `port` in a /proc/net/tcp."""
    found = set()
    for line in table.splitlines()[1:]:
        fields = line.split()
        if fields[3] == _ESTABLISHED and int(fields[1].rpartition(":")[2], 16) == port:
            found.add(fields[9])
    return found


def live_connections(processes: Iterable[int], inodes: set[str]) -> Mapping[int, int]:
    """Return how many of the sockets `inodes` each process has open, of those that have any."""
    counts = {}
    for pid in processes:
        names = []
        with suppress(OSError):  # it ended meanwhile
            for entry in Path(f"/proc/{pid}/fd").iterdir():
                with suppress(OSError):
                    names.append(str(entry.readlink()))
        held = {name[8:-1] for name in names if name.startswith("socket:[")} & inodes
        if held:
            counts[pid] = len(held)
    return counts


def _await_total(running: Stage, total: int) -> list[int]:
    """Wait until the workers hold `total` connections between them, and return how many each.

    Raises:
        FastsocketError: They never do.
    """
    end = time.monotonic() + SETTLE_SECONDS
    while True:
        with running.netspace.entered():
            table = Path("/proc/thread-self/net/tcp").read_text(encoding="ascii")
        processes = running.netspace.processes() or [running.process.pid]
        counts = live_connections(processes, established(table, running.site.port))
        if sum(counts.values()) == total:
            return list(counts.values())
        if time.monotonic() > end:
            raise FastsocketError(
                f"{running.setup.server.name} holds {sum(counts.values())} connections",
                f"{total} were expected",
            )
        time.sleep(0.05)
