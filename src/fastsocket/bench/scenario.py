# SPDX-License-Identifier: GPL-2.0-or-later
"""What a scenario is, and the stage that all of them play on: a namespace, a server, a client."""

import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Protocol

from fastsocket.bench.clients import SOURCES, Client, Load, Outcome
from fastsocket.bench.counters import Window, read, window
from fastsocket.bench.modes import Mode, fastsocket_command, parse_tier, tier_command
from fastsocket.bench.netspace import Netspace
from fastsocket.bench.probe import Probe
from fastsocket.bench.process import confined, running_server, spawn
from fastsocket.bench.servers import CONNECTIONS, Server, Site, Stall
from fastsocket.errors import FastsocketError

__all__ = [
    "ADDRESS",
    "DIFFERENCE",
    "SPARE",
    "Measurement",
    "RunningClient",
    "Scenario",
    "Setup",
    "Stage",
    "note_tier",
    "serving",
    "site_directory",
    "stage",
]

ADDRESS = "127.0.0.1"
# Ends the unit of what is a difference about zero: two of them have no ratio.
DIFFERENCE = " later"
# Connections that a server must have room for besides those of the load: tests, control, logs.
SPARE = 100
# Both ends of the client's own window are left out: starting up and draining are not the steady
# state, and the two clocks start some milliseconds apart.
MARGIN_SECONDS = 0.05
GRACE_SECONDS = 30.0


@dataclass(frozen=True)
class Setup:
    """Everything that is the same in all modes and rounds.

    `probe` is None where BPF may not be used, and `probe_reason` says why; `private` is whether
    runs get a namespace of their own; `note` collects what the reader of the result must know;
    `rate` is in connections per second, for scenarios that keep one; `cpus` are those that server
    and client are kept to, empty for all that may be used; the client makes so many `requests` on
    each connection, and is itself lean with `lean_client`; `pipeline` is how many requests of a
    connection that stays are under way at once; `asker` names who asks where it is not `client`,
    and `client_options` has it run under ``fastsocket run``, too, in mode ``fastsocket``.
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
    rate: float | None = None
    cpus: tuple[int, ...] = ()
    requests: int = 1
    lean_client: bool = False
    pipeline: int = 1
    asker: str = ""
    client_options: Sequence[str] = ()


@dataclass
class Measurement:
    """One run: values by metric, and why a value is None.

    `cores` is the percent of each CPU's time that was work, and that was softirq.
    """

    values: dict[str, float | None] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    cores: Mapping[int, tuple[float, float]] = field(default_factory=dict)

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

    def prepare(self, setup: Setup) -> Setup:
        """Complete the setup before the first round.

        Raises:
            FastsocketError: The scenario cannot be run with it.
        """

    def measure(self, setup: Setup, mode: Mode) -> Measurement:
        """Run once in one mode.

        Raises:
            FastsocketError: Server or client failed.
        """


@dataclass(frozen=True)
class Stage:
    """A running server of one mode, and the way to load it.

    `client_netspace` is where the client runs, from the addresses `sources`; segments are counted
    there, in `netspace` and in the `others`.
    """

    setup: Setup
    netspace: Netspace
    site: Site
    process: subprocess.Popen[str]
    client_netspace: Netspace
    sources: str = SOURCES
    others: Sequence[Netspace] = ()

    def resized(self, workers: int) -> Site:
        """Return the site with another number of workers, for a reload."""
        return replace(self.site, workers=workers)

    def load(
        self, seconds: float, warmup: float, rate: float | None = None
    ) -> tuple[Outcome, Window]:
        """Run the client once; return what it saw and what the counters saw meanwhile.

        Raises:
            FastsocketError: The client failed or said something unreadable.
        """
        client = self.setup.client
        if warmup and not client.warms_up:
            self._run_client(self.order(warmup, 0))
            warmup = 0
        return self._run_client(self.order(seconds, warmup, rate))

    def order(
        self, seconds: float, warmup: float, rate: float | None = None, hold: int | None = None
    ) -> Load:
        """Return what to ask of a client of this stage."""
        return Load(
            url_host=self.site.address,
            port=self.site.port,
            connections=self.setup.connections,
            seconds=seconds,
            warmup=warmup,
            processes=len(os.sched_getaffinity(0)),
            directory=self.site.directory,
            rate=rate,
            hold=hold,
            sources=self.sources,
            requests=self.setup.requests,
            lean=self.setup.lean_client,
        )

    def _run_client(self, order: Load) -> tuple[Outcome, Window]:
        probe = self.setup.probe
        with self.client(order) as running:
            time.sleep(order.warmup + MARGIN_SECONDS)
            before = read(self.netspace, probe, self.others)
            time.sleep(max(order.seconds - 2 * MARGIN_SECONDS, MARGIN_SECONDS))
            after = read(self.netspace, probe, self.others)
            return running.finish(), window(before, after)

    @contextmanager
    def client(self, order: Load) -> Iterator["RunningClient"]:
        """Run the client beside a block; it is ended with the block at the latest."""
        with tempfile.TemporaryFile() as errors:
            command = self.setup.client.command(order)
            process = spawn(command, self.client_netspace, errors.fileno(), subprocess.PIPE)
            try:
                yield RunningClient(self.setup.client, process, errors, order)
            finally:
                if process.poll() is None:
                    process.kill()
                process.communicate()


@dataclass(frozen=True)
class RunningClient:
    """A client at work."""

    client: Client
    process: subprocess.Popen[str]
    errors: IO[bytes]
    order: Load

    def finish(self) -> Outcome:
        """Wait for its end and return what it saw.

        Raises:
            FastsocketError: It failed, hung, or said something unreadable.
        """
        try:
            output, _ = self.process.communicate(
                timeout=self.order.warmup + self.order.seconds + GRACE_SECONDS
            )
        except subprocess.TimeoutExpired as error:
            raise FastsocketError(f"{self.client.name} did not end in time") from error
        if self.process.returncode != 0:
            self.errors.seek(0)
            words = self.errors.read().decode(errors="replace").strip().splitlines()
            raise FastsocketError(
                f"{self.client.name} failed with status {self.process.returncode}",
                "".join(words[-1:]),
            )
        return self.client.parse(output)


@contextmanager
def stage(
    setup: Setup,
    mode: Mode,
    keep_alive: bool = False,
    stall: Callable[[Path], Stall] | None = None,
    reloads: bool = False,
) -> Iterator[Stage]:
    """Start the server of `setup` in `mode`, alone in a fresh namespace, for a block.

    `stall` is given the directory of the run, and makes one worker stall; `reloads` configures the
    server so that it can be reloaded.

    Raises:
        FastsocketError: It does not start, or the port is taken.
    """
    with (
        Netspace.make() if setup.private else Netspace.host() as netspace,
        site_directory() as place,
    ):
        site = Site(
            ADDRESS,
            setup.port,
            setup.workers,
            place,
            keep_alive=keep_alive,
            stall=stall(place) if stall else None,
            reloads=reloads,
            cpus=setup.cpus,
            capacity=max(CONNECTIONS, setup.connections + SPARE),
        )
        with serving(setup, mode, netspace, site) as process:
            yield Stage(setup, netspace, site, process, netspace)


@contextmanager
def site_directory() -> Iterator[Path]:
    """Make a directory for the files of a server, for a block."""
    with tempfile.TemporaryDirectory(prefix="fastsocket-bench-") as directory:
        Path(directory).chmod(0o755)  # a server that gives up root still reads its files
        yield Path(directory)


@contextmanager
def serving(
    setup: Setup, mode: Mode, netspace: Netspace, site: Site
) -> Iterator[subprocess.Popen[str]]:
    """Start the server of `setup` on `site`, note its tier, and keep to `setup.cpus` for a block.

    Raises:
        FastsocketError: It does not start, or the port is taken.
    """
    command = setup.server.command(mode, site)
    if mode is Mode.FASTSOCKET:
        command = fastsocket_command(setup.run_options, command)
    endpoint = (site.address, site.port)
    with confined(setup.cpus), running_server(command, netspace, endpoint, setup.note) as process:
        if mode is Mode.FASTSOCKET:
            note_tier(setup, process.pid, netspace)
        yield process


def note_tier(setup: Setup, pid: int, netspace: Netspace) -> None:
    """Note how the accelerated process `pid` is accelerated."""
    status = spawn(tier_command(pid), netspace, subprocess.DEVNULL, subprocess.PIPE)
    setup.note(parse_tier(status.communicate(timeout=GRACE_SECONDS)[0]))
