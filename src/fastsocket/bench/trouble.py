# SPDX-License-Identifier: GPL-2.0-or-later
"""What befalls a server under test: killed workers, reloads, and a killed keeper."""

import os
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass

import psutil

from fastsocket.app.client import ask
from fastsocket.bench.modes import Mode
from fastsocket.bench.scenario import Stage
from fastsocket.errors import FastsocketError

__all__ = ["ABILITIES", "Ability", "Amounts", "Trouble", "workers_of"]

RESPAWN_SECONDS = 5.0
_PAUSE = 0.01
# HAProxy's master misses a signal that comes while it replaces itself.
_MASTER_BUSY_SECONDS = 0.5


@dataclass(frozen=True)
class Ability:
    """What a server can stand.

    `replaces` is whether its master replaces a worker that died. `reload` is the signal that
    makes it reload, None if there is none; `resizes` whether that takes another number of workers
    from its configuration; `settles` whether it must be done before anything else comes.
    """

    replaces: bool = True
    reload: signal.Signals | None = None
    resizes: bool = False
    settles: bool = False


ABILITIES: Mapping[str, Ability] = {
    "nginx": Ability(reload=signal.SIGHUP, resizes=True),
    "gunicorn": Ability(reload=signal.SIGHUP),
    # Can reload, but takes a worker's death within 5.5 s of that for a crash loop, and ends.
    "granian": Ability(),
    "haproxy": Ability(replaces=False, reload=signal.SIGUSR2, settles=True),
    "demo": Ability(),
}


@dataclass(frozen=True)
class Amounts:
    """How much of each kind: done, or to be done."""

    kills: int = 0
    reloads: int = 0
    keeper_kills: int = 0


class Trouble:
    """Makes trouble for one running server, and counts it.

    Args:
        running: The server.
        mode: Only in mode ``fastsocket`` there is a keeper to kill.
    """

    def __init__(self, running: Stage, mode: Mode) -> None:
        self._running, self._mode = running, mode
        self._ability = ABILITIES[running.setup.server.name]
        self._size = running.setup.workers
        self.done = Amounts()

    def next_of(self, mix: Amounts) -> Callable[[], None]:
        """Return the event of which least was done so far, measured by its share of `mix`."""
        done = self.done
        open_ones = [
            ((count + 1) / wanted, event)
            for count, wanted, event in (
                (done.kills, mix.kills, self.kill_worker),
                (done.reloads, mix.reloads, self.reload),
                (done.keeper_kills, mix.keeper_kills * self._has_keeper, self.kill_keeper),
            )
            if wanted
        ]
        return min(open_ones, key=lambda one: one[0])[1]

    @property
    def _has_keeper(self) -> bool:
        return self._mode is Mode.FASTSOCKET

    def kill_worker(self) -> None:
        """Kill the oldest worker with SIGKILL and wait for its successor.

        A younger one is not taken: granian gives up when the same one's successors die, too.

        Raises:
            FastsocketError: The server does not replace its workers.
        """
        if workers := self.workers():
            with suppress(ProcessLookupError):
                os.kill(workers[0], signal.SIGKILL)
                self._count(kills=1)
        self._await(lambda: len(self.workers()) >= self._size, "replace a killed worker")

    def reload(self) -> None:
        """Let the server reload; one that can goes to one worker less and back by turns.

        A reload alone keeps every listening socket, one with fewer workers gives some up.

        Raises:
            FastsocketError: No new workers come.
        """
        setup, old = self._running.setup, set(self.workers())
        assert self._ability.reload is not None
        if self._ability.resizes:
            self._size = max(setup.workers - (self.done.reloads + 1) % 2, 1)
            setup.server.command(self._mode, self._running.resized(self._size))
        self._running.process.send_signal(self._ability.reload)
        self._count(reloads=1)
        self._await(lambda: bool(set(self.workers()) - old), "start workers at a reload")
        if self._ability.settles:
            self._await(lambda: not set(self.workers()) & old, "end the workers of before a reload")
            time.sleep(_MASTER_BUSY_SECONDS)

    def kill_keeper(self) -> None:
        """Kill the keeper with SIGKILL; another comes as soon as somebody needs one."""
        with self._running.netspace.entered():
            status = ask(self._running.process.pid)
        if status:
            os.kill(status["keeper"], signal.SIGKILL)
            self._count(keeper_kills=1)
        else:
            self.fork()

    def fork(self) -> None:
        """Make the server fork, which brings the next keeper.

        Raises:
            FastsocketError: It does not.
        """
        if self._ability.replaces:
            self.kill_worker()
        else:
            self.reload()

    def workers(self) -> list[int]:
        """Return the server's workers."""
        return workers_of(self._running.process.pid)

    def _count(self, kills: int = 0, reloads: int = 0, keeper_kills: int = 0) -> None:
        done = self.done
        self.done = Amounts(
            done.kills + kills, done.reloads + reloads, done.keeper_kills + keeper_kills
        )

    def _await(self, condition: Callable[[], bool], what: str) -> None:
        end = time.monotonic() + RESPAWN_SECONDS
        while not condition():
            if time.monotonic() > end or self._running.process.poll() is not None:
                raise FastsocketError(f"{self._running.setup.server.name} did not {what}")
            time.sleep(_PAUSE)


def workers_of(pid: int) -> list[int]:
    """Return the children of `pid` that run the same program, the oldest first."""
    with suppress(psutil.Error):
        master = psutil.Process(pid)
        program = master.exe()
        children = sorted(master.children(), key=psutil.Process.create_time)
        return [child.pid for child in children if _runs(child, program)]
    return []


def _runs(process: psutil.Process, program: str) -> bool:
    """Whether `process` lives and runs `program`; a zombie has none."""
    try:
        return bool(process.exe() == program)
    except psutil.Error:
        return False
