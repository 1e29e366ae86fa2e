# SPDX-License-Identifier: GPL-2.0-or-later
"""HAProxy reloads under load, by its master and by hand, with and without handing sockets over."""

import os
import signal
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.apps.harness import PATIENCE_S, Application, listening, say, wait_until
from tests.apps.lean_tools import REQUEST
from tests.apps.lifecycle import load
from tests.apps.test_servers import ANSWER, PORT, haproxy

pytestmark = [pytest.mark.apps, pytest.mark.usefixtures("own_network")]

RELOADS = 3


def workers(app: Application) -> set[int]:
    return {slot["pid"] for slot in app.slots()}


def handed_on(app: Application, handed_over: int) -> bool:
    """Whether nothing is left where nobody polls, but for the empty queue of one socket.

    The new worker keeps the socket that HAProxy handed over, and polls others where its threads
    were quicker than the end of the old worker.
    """
    orphans = app.slots(state="orphan")
    kept = all(slot["cookie"] == handed_over for slot in orphans)
    return kept and not any(slot["waiting"] for slot in orphans)


@pytest.mark.parametrize("hands_over", [True, False])
def test_reloads_by_the_master(tmp_path: Path, hands_over: bool) -> None:
    expose = " expose-fd listeners" if hands_over else ""
    stats = f"stats socket {tmp_path}/stats mode 600 level admin{expose}"
    command = haproxy(tmp_path, ANSWER, stats)
    command[command.index("-db")] = "-W"
    with Application(command, PORT) as app:
        app.wait_for_slots(2)
        with load(PORT) as running:
            for _ in range(RELOADS):
                (old,) = workers(app)
                os.kill(app.pid, signal.SIGUSR2)
                wait_until(
                    lambda old=old: workers(app) and old not in workers(app), "the new worker"
                )
                wait_until(lambda old=old: not Path(f"/proc/{old}").exists(), "the old one to go")
                app.wait_for_slots(2)
                time.sleep(0.5)  # the master misses a signal while it replaces itself
        running.expect_nothing_lost()
        app.stop()


def test_a_reload_after_the_keepers_death(tmp_path: Path) -> None:
    """The master executes itself anew before it forks: a program that has seen no page yet."""
    stats = f"stats socket {tmp_path}/stats mode 600 level admin expose-fd listeners"
    command = haproxy(tmp_path, ANSWER, stats)
    command[command.index("-db")] = "-W"
    with Application(command, PORT) as app:
        app.wait_for_slots(2)
        (old,) = workers(app)
        before = app.status()
        held = {
            fd: each.cookie for each in listening(PORT) for pid, fd in each.holders if pid == old
        }
        own = held[min(held)]  # the others have numbers out of HAProxy's way
        with load(PORT) as running:
            os.kill(before["keeper"], signal.SIGKILL)
            os.kill(app.pid, signal.SIGUSR2)
            wait_until(lambda: old not in workers(app) and workers(app), "the new worker")
            app.wait_for_slots(2)
        running.expect_nothing_lost()
        after = app.status()
        assert after["keeper"] != before["keeper"]
        assert after["tier"] == before["tier"]
        wait_until(
            lambda: say(PORT, REQUEST) and handed_on(app, own),  # by workers at work
            "the old worker's slots to be handed on",
        )
        app.stop()


def test_a_reload_by_hand_under_a_keeper_of_its_own(tmp_path: Path) -> None:
    """As init scripts do it: a second HAProxy starts, and tells the first one to finish."""
    command = haproxy(tmp_path, ANSWER)
    with Application(command, PORT) as first:
        first.wait_for_slots(2)
        with ExitStack() as stack:
            with load(PORT) as running:
                second = stack.enter_context(Application([*command, "-sf", str(first.pid)], PORT))
                second.wait_for_slots(2)
                assert first.process.wait(PATIENCE_S) == 0
                second.wait_for_slots(2)
            running.expect_nothing_lost()
            first.expect_nothing_left()
            second.stop(signal.SIGUSR1)
