# SPDX-License-Identifier: GPL-2.0-or-later
"""`crash`: workers are killed, and the server is reloaded, while clients keep coming.

Every fifth event is a reload by SIGHUP, where the server has one; nginx goes to one worker less and
back by turns: a reload alone keeps every listening socket, one with fewer workers gives some up.

What a killed worker had accepted and not yet answered is gone with it on any system. The kernel
tells those connections from those that were lost in a queue, the client tells those that ended
within an answer, and `lost` leaves them out; `accepted_lost` and `queued_lost` show both.
"""

import os
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress

import psutil

from fastsocket.bench.modes import Mode
from fastsocket.bench.probe import LOSSES
from fastsocket.bench.scenario import Measurement, Setup, Stage, stage
from fastsocket.errors import FastsocketError, UsageError

__all__ = ["Crash", "workers_of"]

PAUSE_SECONDS = 0.15
RESPAWN_SECONDS = 5.0
RELOAD_EVERY = 5
# The last event comes this long before the load ends, so that its losses are seen.
QUIET_END_SECONDS = 0.5
_RELOADABLE = ("nginx", "gunicorn")


class Crash:
    """Connections lost to kills and reloads."""

    name = "crash"
    metrics = {  # noqa: RUF012  # a constant by the protocol's read-only property
        "lost": "connections",
        "accepted_lost": "connections",
        "queued_lost": "connections",
        "completed": "connections",
        "kills": "events",
        "reloads": "events",
    }
    servers = ("nginx", "gunicorn", "demo")

    def prepare(self, setup: Setup) -> Setup:
        """See :class:`fastsocket.bench.scenario.Scenario`."""
        if not setup.client.versatile:
            raise UsageError(f"{setup.client.name} does not name its errors", todo="use another")
        return setup

    def measure(self, setup: Setup, mode: Mode) -> Measurement:
        """See :class:`fastsocket.bench.scenario.Scenario`."""
        taken, probe = Measurement(), setup.probe
        with ExitStack() as stack:
            running = stack.enter_context(stage(setup, mode))
            if probe:
                probe.watch(running.netspace.inode, setup.port)
                stack.enter_context(probe.attached(*LOSSES))
            before = probe.events() if probe else None
            client = stack.enter_context(running.client(running.order(setup.seconds, 0)))
            kills, reloads = _trouble(running, mode, client.process.poll)
            outcome = client.finish()
            after = probe.events() if probe else None
        taken.put("completed", float(outcome.completed))
        taken.put("kills", float(kills))
        taken.put("reloads", float(reloads))
        if before is None or after is None:
            for name in ("lost", "accepted_lost", "queued_lost"):
                taken.put(name, None, setup.probe_reason)
            return taken
        accepted = after.accepted_lost - before.accepted_lost + outcome.cut_short
        taken.put("accepted_lost", float(accepted))
        taken.put("queued_lost", float(after.queued_lost - before.queued_lost))
        taken.put("lost", float(max(outcome.errors - accepted, 0)))
        return taken


def workers_of(pid: int) -> list[int]:
    """Return the children of `pid` that run the same program."""
    with suppress(psutil.Error):
        master = psutil.Process(pid)
        program = master.exe()
        return [child.pid for child in master.children() if _runs(child, program)]
    return []


def _runs(process: psutil.Process, program: str) -> bool:
    """Whether `process` lives and runs `program`; a zombie has none."""
    try:
        return bool(process.exe() == program)
    except psutil.Error:
        return False


def _trouble(running: Stage, mode: Mode, ended: Callable[[], int | None]) -> tuple[int, int]:
    """Kill and reload until shortly before the load ends; return how often each."""
    setup, size = running.setup, running.setup.workers
    kills = reloads = 0
    end = time.monotonic() + setup.seconds - QUIET_END_SECONDS
    time.sleep(PAUSE_SECONDS)
    while time.monotonic() < end and ended() is None:
        if setup.server.name in _RELOADABLE and (kills + reloads) % RELOAD_EVERY == 3:
            size = max(setup.workers - (reloads + 1) % 2, 1)
            setup.server.command(mode, running.resized(size))
            running.process.send_signal(signal.SIGHUP)
            reloads += 1
        elif workers := workers_of(running.process.pid):
            with suppress(ProcessLookupError):
                os.kill(workers[kills % len(workers)], signal.SIGKILL)
                kills += 1
            _await_workers(running, size)
        time.sleep(PAUSE_SECONDS)
    return kills, reloads


def _await_workers(running: Stage, size: int) -> None:
    """Wait until the server has `size` workers again; one that was retiring anyway is not replaced.

    Raises:
        FastsocketError: The server does not replace its workers.
    """
    end = time.monotonic() + RESPAWN_SECONDS
    while time.monotonic() < end:
        if len(workers_of(running.process.pid)) >= size:
            return
        time.sleep(0.01)
    raise FastsocketError(f"{running.setup.server.name} did not replace a killed worker")
