# SPDX-License-Identifier: GPL-2.0-or-later
"""`crash`: workers are killed, and the server is reloaded, while clients keep coming.

Under Fastsocket the keeper is killed, too. `bench crash --full` is the same for all servers until
enough has happened, see :mod:`fastsocket.bench.losses`.

What a killed worker had accepted and not yet answered is gone with it on any system. The kernel
tells those connections from those that were lost in a queue, the client tells those that ended
within an answer, and `lost` leaves them out; `accepted_lost` and `queued_lost` show both.
"""

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack

from fastsocket.bench.modes import Mode
from fastsocket.bench.probe import LOSSES
from fastsocket.bench.scenario import Measurement, Setup, stage
from fastsocket.bench.trouble import Amounts, Trouble
from fastsocket.errors import UsageError

__all__ = ["MIXES", "Crash", "unbalanced"]

PAUSE_SECONDS = 0.15
# The last event comes this long before the load ends, so that its losses are seen.
QUIET_END_SECONDS = 0.5

MIXES: Mapping[str, Amounts] = {
    "nginx": Amounts(kills=70, reloads=50, keeper_kills=8),
    "gunicorn": Amounts(kills=60, reloads=10, keeper_kills=4),
    "demo": Amounts(kills=60, keeper_kills=4),
    "granian": Amounts(kills=20, keeper_kills=2),
    "haproxy": Amounts(reloads=10, keeper_kills=2),
}
"""In which proportion events come, by server; `--full` goes on until there were as many."""


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
        "keeper_kills": "events",
    }
    servers = tuple(MIXES)

    def prepare(self, setup: Setup) -> Setup:
        """See :class:`fastsocket.bench.scenario.Scenario`."""
        if not setup.client.versatile:
            raise UsageError(f"{setup.client.name} does not name its errors", todo="use another")
        return setup

    def measure(self, setup: Setup, mode: Mode) -> Measurement:
        """See :class:`fastsocket.bench.scenario.Scenario`."""
        taken, probe = Measurement(), setup.probe
        with ExitStack() as stack:
            running = stack.enter_context(stage(setup, mode, reloads=True))
            if probe:
                probe.watch(running.netspace.inode, setup.port)
                stack.enter_context(probe.attached(*LOSSES))
            before = probe.events() if probe else None
            client = stack.enter_context(running.client(running.order(setup.seconds, 0)))
            trouble = Trouble(running, mode)
            _keep_on(trouble, MIXES[setup.server.name], setup.seconds, client.process.poll)
            outcome = client.finish()
            after = probe.events() if probe else None
        taken.put("completed", float(outcome.completed))
        taken.put("kills", float(trouble.done.kills))
        taken.put("reloads", float(trouble.done.reloads))
        taken.put("keeper_kills", float(trouble.done.keeper_kills))
        if before is None or after is None:
            for name in ("lost", "accepted_lost", "queued_lost"):
                taken.put(name, None, setup.probe_reason)
            return taken
        accepted = after.accepted_lost - before.accepted_lost + outcome.cut_short
        if accepted > outcome.errors:
            setup.note(unbalanced(mode, accepted, outcome.errors))
        taken.put("accepted_lost", float(accepted))
        taken.put("queued_lost", float(after.queued_lost - before.queued_lost))
        taken.put("lost", float(max(outcome.errors - accepted, 0)))
        return taken


def unbalanced(mode: Mode, accepted: int, errors: int) -> str:
    """Say that clients saw fewer errors than there were connections lost with a worker.

    `lost` cannot be told then: it is 0 though some of the errors may be other losses.
    """
    return (
        f"{mode}: {accepted} connections were lost with a worker, clients saw {errors} errors, "
        "so lost may be too low"
    )


def _keep_on(
    trouble: Trouble, mix: Amounts, seconds: float, ended: Callable[[], int | None]
) -> None:
    """Make trouble until shortly before the load ends."""
    end = time.monotonic() + seconds - QUIET_END_SECONDS
    time.sleep(PAUSE_SECONDS)
    while time.monotonic() < end and ended() is None:
        trouble.next_of(mix)()
        time.sleep(PAUSE_SECONDS)
