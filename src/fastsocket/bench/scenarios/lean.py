# SPDX-License-Identifier: GPL-2.0-or-later
"""`lean`: by how much a client is later where connections are lean, for each way to behave.

A run has two servers side by side, and pairs of connections, one to each, in turn. In mode `stock`
neither is accelerated, which shows what the machine itself makes differ; in mode `fastsocket` the
second is. A pair is made while the second learns, or just after it has learned all: then it is the
first connection that behaves otherwise.
"""

import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastsocket.app.client import ask
from fastsocket.bench.behaviours import (
    BEHAVIOURS,
    SHORT,
    Behaviour,
    Scripted,
    lateness,
    script,
    talk,
    talk_to_each,
)
from fastsocket.bench.interrupt import check
from fastsocket.bench.modes import Mode, fastsocket_command
from fastsocket.bench.netspace import Netspace
from fastsocket.bench.process import Greeting, Program, running_servers
from fastsocket.bench.scenario import (
    ADDRESS,
    DIFFERENCE,
    Measurement,
    Setup,
    note_tier,
    site_directory,
)
from fastsocket.bench.servers import Site
from fastsocket.errors import FastsocketError, MissingFeatureError
from fastsocket.listen.layout import LEAN_PROOF

__all__ = ["Lean", "Pair"]

PAIRS_PER_SECOND = 100
SELDOM_PER_SECOND = 1
PHASES = ("learning", "change")
WARM = 5
MOST_TO_LEARN = 1000
_EXIT = Behaviour((("exit",),))
_GREETING = Greeting(script(SHORT), b"hello")


@dataclass(frozen=True)
class Pair:
    """Two servers to compare: their ports, the pid of an accelerated second, and a flag file."""

    theirs: int
    ours: int
    pid: int | None
    flag: Path

    def renew(self) -> None:
        """Let new workers take over, of which nothing is known.

        Raises:
            FastsocketError: The second server has none.
        """
        before = self._pollers()
        self.compare(_EXIT)
        for _ in range(WARM):
            self.compare(SHORT)
        for _ in range(MOST_TO_LEARN):
            if not self.pid or before.isdisjoint(self._pollers()):
                return
            self.compare(SHORT)
        raise FastsocketError("no new worker came")

    def learn(self) -> None:
        """Make short connections until all means are on that may be.

        Raises:
            FastsocketError: They do not come.
        """
        if not self.pid:
            return
        for number in range(MOST_TO_LEARN):
            if number >= LEAN_PROOF and number % 4 == 0 and self.knows_all():
                return
            talk(self.ours)  # the first server has nothing to learn
        raise FastsocketError("lean connections were not learned")

    def knows_all(self) -> bool:
        """Whether all means are on."""
        if not self.pid:
            return True
        return {each["state"] for each in self.listener()["lean"].values()} <= {"on", "off"}

    def compare(self, behaviour: Behaviour, swapped: bool = False) -> float:
        """Make a pair of connections and return by how many seconds the second was later.

        Raises:
            FastsocketError: They did not say the same.
        """
        ports = [self.ours, self.theirs] if swapped else [self.theirs, self.ours]
        said = talk_to_each(ports, behaviour)
        theirs, ours = reversed(said) if swapped else said
        if not ours.is_as(theirs):
            raise FastsocketError(
                "a lean connection brought other bytes",
                f"{ours.text[:40]!r} ({ours.size}), not {theirs.text[:40]!r} ({theirs.size})",
            )
        return lateness(ours, theirs)

    def late(self, behaviour: Behaviour, pairs: int, learned: bool) -> list[float]:
        """Return by how much each of so many pairs was late, each made in the same state.

        Raises:
            FastsocketError: Not the same bytes, or nothing is learned.
        """
        found = []
        for number in range(pairs):
            check()
            if learned and not (number and self.knows_all()):
                self.renew()
                self.learn()
            elif not learned and number % WARM == 0:
                self.renew()
            found.append(self.late_now(behaviour, bool(number % 2)))
        return found

    def late_now(self, behaviour: Behaviour, swapped: bool = False) -> float:
        """Return by how much one pair was late, in whatever state the second server is.

        Raises:
            FastsocketError: Not the same bytes.
        """
        if behaviour.greets:
            self.flag.touch()
        try:
            return self.compare(behaviour, swapped)
        finally:
            self.flag.unlink(missing_ok=True)

    def listener(self) -> dict[str, Any]:
        """Return what the second server's keeper says of its listener.

        Raises:
            FastsocketError: It says nothing.
        """
        status = ask(self.pid) if self.pid else None
        if not status or not status["listeners"]:
            raise FastsocketError("the server's status cannot be had")
        listener: dict[str, Any] = status["listeners"][0]
        return listener

    def _pollers(self) -> set[int]:
        if not self.pid:
            return set()
        return {slot["pid"] for slot in self.listener()["slots"] if slot["state"] == "claimed"}


class Lean:
    """How late lean connections are, by behaviour."""

    name = "lean"
    servers = (Scripted.name,)
    metrics = {  # noqa: RUF012  # a constant by the protocol's read-only property
        f"{name}_{phase}_{figure}_us": f"us{DIFFERENCE}"
        for name in BEHAVIOURS
        for phase in PHASES
        for figure in ("p50", "p99")
    }

    def prepare(self, setup: Setup) -> Setup:
        """See :class:`fastsocket.bench.scenario.Scenario`."""
        if not setup.private:
            raise MissingFeatureError("two servers side by side", "no namespaces", "run it as root")
        return setup

    def measure(self, setup: Setup, mode: Mode) -> Measurement:
        """See :class:`fastsocket.bench.scenario.Scenario`."""
        taken = Measurement()
        with _pair(setup, mode) as pair:
            for name, behaviour in BEHAVIOURS.items():
                each = SELDOM_PER_SECOND if behaviour.seldom else PAIRS_PER_SECOND
                pairs = max(round(each * setup.seconds), 1)
                for phase in PHASES:
                    late = pair.late(behaviour, pairs, phase == "change")
                    taken.put(f"{name}_{phase}_p50_us", 1e6 * statistics.median(late))
                    taken.put(f"{name}_{phase}_p99_us", 1e6 * _percentile(late, 99))
        return taken


@contextmanager
def _pair(setup: Setup, mode: Mode) -> Iterator[Pair]:
    """Run both servers for a block, in which the calling thread is in their namespace."""
    with Netspace.make() as netspace, site_directory() as place:
        ports = (setup.port, setup.port + 1)
        sites = [Site(ADDRESS, port, 1, place) for port in ports]
        commands = [setup.server.command(mode, site) for site in sites]
        if mode is Mode.FASTSOCKET:
            commands[1] = fastsocket_command(("--lean", "auto", *setup.run_options), commands[1])
        programs = [
            Program(command, (ADDRESS, port), greeting=_GREETING)
            for command, port in zip(commands, ports, strict=True)
        ]
        with running_servers(programs, netspace, setup.note) as (_, second), netspace.entered():
            pid = second.pid if mode is Mode.FASTSOCKET else None
            if pid:
                note_tier(setup, pid, netspace)
            yield Pair(*ports, pid, place / "greets")


def _percentile(values: list[float], percent: int) -> float:
    """Return the least value that `percent` of all do not exceed."""
    return sorted(values)[-(-percent * len(values) // 100) - 1]
