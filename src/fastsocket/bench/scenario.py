# SPDX-License-Identifier: GPL-2.0-or-later
"""What a scenario is, and the stage that all of them play on: a namespace, a server, a client."""

import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from fastsocket.bench.clients import Client, Load, Outcome
from fastsocket.bench.counters import Window, read, window
from fastsocket.bench.modes import Mode, fastsocket_command
from fastsocket.bench.netspace import Netspace
from fastsocket.bench.probe import Probe
from fastsocket.bench.process import running_server, spawn
from fastsocket.bench.servers import Server, Site
from fastsocket.errors import FastsocketError

__all__ = ["ADDRESS", "Measurement", "Scenario", "Setup", "Stage", "stage"]

ADDRESS = "127.0.0.1"
# Both ends of the client's own window are left out: starting up and draining are not the steady
# state, and the two clocks start some milliseconds apart.
MARGIN_SECONDS = 0.05
GRACE_SECONDS = 30.0


@dataclass(frozen=True)
class Setup:
    """Everything that is the same in all modes and rounds.

    `probe` is None where BPF may not be used, and `probe_reason` says why; `private` is whether
    runs get a namespace of their own; `note` collects what the reader of the result must know.
    """

    server: Server
    client: Client
    connections: int
    seconds: float
    warmup: float
    port: int
    workers: int
    probe: Probe | None
    probe_reason: str
    private: bool
    note: Callable[[str], None]
    run_options: Sequence[str] = ()
    call_sites: bool = False


@dataclass
class Measurement:
    """One run: values by metric, and why a value is None; contention sites per 1,000."""

    values: dict[str, float | None] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    sites: dict[str, float] = field(default_factory=dict)

    def put(self, metric: str, value: float | None, reason: str = "") -> None:
        """Record a value, or the reason why there is none."""
        self.values[metric] = value
        if value is None:
            self.reasons[metric] = reason or "nothing was counted"


class Scenario(Protocol):
    """One kind of load with its metrics; one module each in `fastsocket.bench.scenarios`."""

    @property
    def name(self) -> str:
        """The name on the command line and in the result."""

    @property
    def metrics(self) -> Mapping[str, str]:
        """Unit by metric, in the order of the table."""

    @property
    def servers(self) -> Sequence[str]:
        """The servers that it can be run with; the first is the default."""

    def measure(self, setup: Setup, mode: Mode) -> Measurement:
        """Run once in one mode.

        Raises:
            FastsocketError: Server or client failed.
        """


@dataclass(frozen=True)
class Stage:
    """A running server of one mode, and the way to load it."""

    setup: Setup
    netspace: Netspace
    site: Site
    process: subprocess.Popen[str]

    def load(self, seconds: float, warmup: float) -> tuple[Outcome, Window]:
        """Run the client once; return what it saw and what the counters saw meanwhile.

        Raises:
            FastsocketError: The client failed or said something unreadable.
        """
        client = self.setup.client
        if warmup and not client.warms_up:
            self._run_client(self._order(warmup, 0))
            warmup = 0
        return self._run_client(self._order(seconds, warmup))

    def _order(self, seconds: float, warmup: float) -> Load:
        return Load(
            url_host=self.site.address,
            port=self.site.port,
            connections=self.setup.connections,
            seconds=seconds,
            warmup=warmup,
            processes=len(os.sched_getaffinity(0)),
            directory=self.site.directory,
        )

    def _run_client(self, order: Load) -> tuple[Outcome, Window]:
        client, probe = self.setup.client, self.setup.probe
        with tempfile.TemporaryFile() as errors:
            process = spawn(client.command(order), self.netspace, errors.fileno(), subprocess.PIPE)
            try:
                time.sleep(order.warmup + MARGIN_SECONDS)
                before = read(self.netspace, probe)
                time.sleep(max(order.seconds - 2 * MARGIN_SECONDS, MARGIN_SECONDS))
                after = read(self.netspace, probe)
                output, _ = process.communicate(timeout=order.seconds + GRACE_SECONDS)
            except subprocess.TimeoutExpired as error:
                raise FastsocketError(f"{client.name} did not end in time") from error
            finally:
                if process.poll() is None:
                    process.kill()
                process.wait()
            if process.returncode != 0:
                errors.seek(0)
                words = errors.read().decode(errors="replace").strip().splitlines()
                raise FastsocketError(
                    f"{client.name} failed with status {process.returncode}", "".join(words[-1:])
                )
        return client.parse(output), window(before, after)


@contextmanager
def stage(setup: Setup, mode: Mode) -> Iterator[Stage]:
    """Start the server of `setup` in `mode`, alone in a fresh namespace, for a block.

    Raises:
        FastsocketError: It does not start, or the port is taken.
    """
    with (
        Netspace.make() if setup.private else Netspace.host() as netspace,
        tempfile.TemporaryDirectory(prefix="fastsocket-bench-") as directory,
    ):
        Path(directory).chmod(0o755)  # a server that gives up root still reads its files
        site = Site(ADDRESS, setup.port, setup.workers, Path(directory))
        command = setup.server.command(mode, site)
        if mode is Mode.FASTSOCKET:
            command = fastsocket_command(setup.run_options, command)
        endpoint = (site.address, site.port)
        with running_server(command, netspace, endpoint, setup.note) as process:
            yield Stage(setup, netspace, site, process)
