# SPDX-License-Identifier: GPL-2.0-or-later
"""`soak`: one server for as long as the rounds last, in random trouble all along.

In each round short connections come at a rate while others stay; workers are killed, stopped for a
moment and reloaded, and in the first quarter of the rounds the keeper is killed, too. Between two
rounds nothing runs, and memory, descriptors and slots are looked at: none of them may grow. Mode
`stock` is a control: what it loses is lost to a machine that is too slow.
"""

import os
import random
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from statistics import median
from typing import Any

from fastsocket.app.client import ask
from fastsocket.bench.footprint import anonymous_kib, descriptors, library_kib, pss_kib, stuck
from fastsocket.bench.modes import Mode
from fastsocket.bench.probe import LOSSES
from fastsocket.bench.scenario import Measurement, Setup, Stage, stage
from fastsocket.bench.scenarios.crash import unbalanced
from fastsocket.bench.trouble import ABILITIES, Trouble
from fastsocket.errors import FastsocketError, UsageError

__all__ = ["LIMITS", "Soak", "growth"]

FEWEST_SECONDS = 5.0
RATE = 50.0
HELD = 50
PAUSES_SECONDS = (0.05, 0.8)
STOP_SECONDS = (0.01, 0.3)
QUIET_END_SECONDS = 0.5
CALM_SECONDS = 10.0
# Of a server without a keeper, until that must have brought one.
FORKS = 3
_CONTROL = "there is none without Fastsocket"
_KEEPS_ALIVE = ("nginx", "demo")

LIMITS: Mapping[str, float] = {
    "keeper_anon_kib": 512,
    "library_kib": 64,
    "keeper_fds": 2,
    "master_fds": 2,
    "worker_fds": 2,
}
"""By how much the last third of the rounds may be above the first: what allocators and one slot
more or less make up. A leak at each kill or reload is ten times that within minutes."""


@dataclass
class _Kept:
    """The server that all rounds share."""

    mode: Mode
    running: Stage
    trouble: Trouble
    rng: random.Random
    keeper_kills_until: int
    rounds: int = 0


class Soak:
    """What grows, sticks or is lost in the long run."""

    name = "soak"
    metrics = {  # noqa: RUF012  # a constant by the protocol's read-only property
        "lost": "connections",
        "accepted_lost": "connections",
        "queued_lost": "connections",
        "completed": "connections",
        "kills": "events",
        "stops": "events",
        "reloads": "events",
        "keeper_kills": "events",
        "stuck_slots": "slots",
        "keeper_pss_kib": "KiB",
        "keeper_anon_kib": "KiB",
        "library_kib": "KiB",
        "keeper_fds": "descriptors",
        "master_fds": "descriptors",
        "worker_fds": "descriptors",
    }
    servers = ("nginx", "gunicorn", "haproxy", "demo")

    def __init__(self) -> None:
        self._kept: _Kept | None = None

    def prepare(self, setup: Setup) -> Setup:
        """See :class:`fastsocket.bench.scenario.Scenario`."""
        if not setup.client.versatile:
            raise UsageError(f"{setup.client.name} cannot keep a rate", todo="use fastsocket-load")
        if setup.seconds < FEWEST_SECONDS:
            raise UsageError(f"a round of soak takes {FEWEST_SECONDS:g} s", todo="use --seconds")
        return setup

    @staticmethod
    def mode_of(asked: Sequence[str], modes: Sequence[Mode]) -> list[Mode]:
        """Return the one mode to run: Fastsocket, unless another was asked for.

        Raises:
            UsageError: It was more than one.
        """
        if not asked:
            return [Mode.FASTSOCKET]
        if len(modes) > 1:
            raise UsageError("soak runs one mode", todo="call it once for each")
        return list(modes)

    @contextmanager
    def kept(self, setup: Setup, mode: Mode, rounds: int, seed: int) -> Iterator[None]:
        """Keep the server of `setup` in `mode` for a block of that many rounds.

        Raises:
            FastsocketError: It does not start.
        """
        keep_alive = setup.server.name in _KEEPS_ALIVE
        with stage(setup, mode, keep_alive=keep_alive, reloads=True) as running:
            trouble = Trouble(running, mode)
            self._kept = _Kept(mode, running, trouble, random.Random(seed), -(-rounds // 4))
            try:
                yield
            finally:
                self._kept = None

    def measure(self, setup: Setup, mode: Mode) -> Measurement:
        """Run one round on the server that is kept."""
        kept, probe = self._kept, setup.probe
        assert kept is not None, "measured outside of a block of kept()"
        taken, running, before = Measurement(), kept.running, kept.trouble.done
        with ExitStack() as stack:
            if probe:
                probe.watch(running.netspace.inode, setup.port)
                stack.enter_context(probe.attached(*LOSSES))
            earlier = probe.events() if probe else None
            if setup.server.name in _KEEPS_ALIVE:
                stack.enter_context(running.client(running.order(10 * setup.seconds, 0, hold=HELD)))
            order = running.order(setup.seconds, 0, setup.rate or RATE)
            client = stack.enter_context(running.client(order))
            stops = _random_trouble(kept, setup.seconds)
            outcome = client.finish()
            later = probe.events() if probe else None
        if earlier is None or later is None:
            for name in ("lost", "accepted_lost", "queued_lost"):
                taken.put(name, None, setup.probe_reason)
        else:
            accepted = later.accepted_lost - earlier.accepted_lost + outcome.cut_short
            lost = max(outcome.errors - accepted, 0)
            if lost:
                setup.note(f"errors of round {kept.rounds + 1}: {dict(outcome.kinds)}")
            if accepted > outcome.errors:
                setup.note(unbalanced(mode, accepted, outcome.errors))
            taken.put("lost", float(lost))
            taken.put("accepted_lost", float(accepted))
            taken.put("queued_lost", float(later.queued_lost - earlier.queued_lost))
        done = kept.trouble.done
        taken.put("completed", float(outcome.completed))
        taken.put("kills", float(done.kills - before.kills))
        taken.put("stops", float(stops))
        taken.put("reloads", float(done.reloads - before.reloads))
        taken.put("keeper_kills", float(done.keeper_kills - before.keeper_kills))
        kept.rounds += 1
        _look(kept, taken)
        return taken

    def faults(self, rounds: Sequence[Mapping[Mode, Measurement]]) -> FastsocketError | None:
        """Return what the rounds show that must not be, if anything."""
        samples = [one.values for each in rounds for one in each.values()]
        found = []
        for name, what in (("lost", "connections lost"), ("stuck_slots", "slots stuck")):
            if count := sum(one.get(name) or 0.0 for one in samples):
                found.append(f"{count:.0f} {what}")
        ours = [each[Mode.FASTSOCKET].values for each in rounds if Mode.FASTSOCKET in each]
        if count := sum(one.get("queued_lost") or 0.0 for one in ours):
            found.append(f"{count:.0f} connections lost in a queue")
        calm = samples[-(-len(samples) // 4) :]  # since keepers are no longer killed
        for name, limit in LIMITS.items():
            series = [value for one in calm if (value := one.get(name)) is not None]
            if (grown := growth(series)) > limit:
                found.append(f"{name} grew by {grown:g}")
        return FastsocketError("the soak found faults", "; ".join(found)) if found else None


def growth(series: Sequence[float]) -> float:
    """Return by how much the median of the last third of `series` is above that of the first."""
    third = max(len(series) // 3, 1)
    return median(series[-third:]) - median(series[:third]) if series else 0.0


def _random_trouble(kept: _Kept, seconds: float) -> int:
    """Make random trouble until shortly before the load ends; return how often a worker stopped."""
    trouble, rng = kept.trouble, kept.rng
    ability = ABILITIES[kept.running.setup.server.name]
    weights = {
        "kill": 4 * ability.replaces,
        "reload": 2 * (ability.reload is not None),
        "stop": 2,
        "keeper": kept.mode is Mode.FASTSOCKET and kept.rounds < kept.keeper_kills_until,
    }
    stops, end = 0, time.monotonic() + seconds - QUIET_END_SECONDS
    while time.monotonic() < end:
        time.sleep(rng.uniform(*PAUSES_SECONDS))
        match rng.choices(list(weights), list(weights.values()))[0]:
            case "kill":
                trouble.kill_worker()
            case "reload":
                trouble.reload()
            case "keeper":
                trouble.kill_keeper()
            case _:
                _stop_one(trouble, rng)
                stops += 1
    return stops


def _stop_one(trouble: Trouble, rng: random.Random) -> None:
    """Keep a worker from running for a moment."""
    if workers := trouble.workers():
        victim = rng.choice(workers)
        with suppress(ProcessLookupError):
            os.kill(victim, signal.SIGSTOP)
            try:
                time.sleep(rng.uniform(*STOP_SECONDS))
            finally:
                os.kill(victim, signal.SIGCONT)


def _look(kept: _Kept, taken: Measurement) -> None:
    """Note memory, descriptors and slots once all is calm.

    Raises:
        FastsocketError: There is no keeper any more.
    """
    running, trouble, master = kept.running, kept.trouble, kept.running.process.pid
    taken.put("master_fds", descriptors(master))
    counts = [count for pid in trouble.workers() if (count := descriptors(pid)) is not None]
    taken.put("worker_fds", max(counts, default=None))
    if kept.mode is not Mode.FASTSOCKET:
        for name in ("stuck_slots", "keeper_pss_kib", "keeper_anon_kib", "library_kib"):
            taken.put(name, None, _CONTROL)
        taken.put("keeper_fds", None, _CONTROL)
        return
    status, left, end = _status(kept), -1, time.monotonic() + CALM_SECONDS
    while (left := stuck(status, trouble.workers())) and time.monotonic() < end:
        time.sleep(0.1)
        status = _status(kept)
    if left:
        slots = [slot for listener in status["listeners"] for slot in listener["slots"]]
        running.setup.note(f"stuck after round {kept.rounds}: {slots}")
    keeper = status["keeper"]
    taken.put("stuck_slots", float(left))
    taken.put("keeper_pss_kib", pss_kib(keeper))
    taken.put("keeper_anon_kib", anonymous_kib(keeper))
    taken.put("library_kib", library_kib(master))
    taken.put("keeper_fds", descriptors(keeper))


def _status(kept: _Kept) -> dict[str, Any]:
    """Return the server's status; a keeper that was killed comes again with the next fork.

    Raises:
        FastsocketError: It does not come.
    """
    running, end = kept.running, time.monotonic()
    for _ in range(FORKS):
        while True:
            with running.netspace.entered():
                status = ask(running.process.pid)
            if status:
                return status
            if time.monotonic() > end:
                break
            time.sleep(0.1)
        kept.trouble.fork()
        end = time.monotonic() + CALM_SECONDS
    raise FastsocketError("no keeper came in place of one that was killed")
