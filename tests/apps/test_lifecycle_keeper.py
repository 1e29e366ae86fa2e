# SPDX-License-Identifier: GPL-2.0-or-later
"""The keeper is killed: connections and workers do not notice, and further workers get slots."""

import os
import signal
from pathlib import Path

import pytest

from tests.apps.harness import Application, wait_until
from tests.apps.lifecycle import load, load_with_kills
from tests.apps.test_lifecycle_nginx import started, until_new, workers
from tests.apps.test_servers import PORT

pytestmark = [pytest.mark.apps, pytest.mark.usefixtures("own_network")]

KILLS = 4


def keeper_of(app: Application) -> int:
    keeper = app.status()["keeper"]
    assert isinstance(keeper, int)
    return keeper


def kill_keeper(app: Application) -> int:
    keeper = keeper_of(app)
    os.kill(keeper, signal.SIGKILL)
    wait_until(lambda: not Path(f"/proc/{keeper}").exists(), "the keeper to be gone")
    return keeper


def children(pid: int) -> set[str]:
    return set(Path(f"/proc/{pid}/task/{pid}/children").read_text().split())


def test_nobody_needs_it_while_no_worker_comes(tmp_path: Path) -> None:
    with started(tmp_path) as app:
        app.wait_for_slots(2)
        before = children(app.pid)
        with load(PORT) as running:
            kill_keeper(app)
        running.expect_nothing_lost()
        assert children(app.pid) == before
        assert app.stop() == 0


def test_workers_killed_with_the_keeper_get_slots_again(tmp_path: Path) -> None:
    """The master starts a keeper as it forks; that one knows the programs and the page."""
    with started(tmp_path) as app:
        app.wait_for_slots(2)
        app.status()  # notes what the kernel holds, for the look after the end
        cookies = {slot["cookie"] for slot in app.slots()}
        with load_with_kills(PORT) as running:
            for number in range(KILLS):
                victim = app.wait_for_slots(2)[number % 2]["pid"]
                killed = kill_keeper(app)
                os.kill(victim, signal.SIGKILL)
                wait_until(lambda gone=victim: Path(f"/proc/{gone}").exists() is False, "the crash")
                assert app.wait_for_slots(2)
                assert keeper_of(app) != killed
        assert running.lost == 0, running.result
        assert running.completed > 10 * KILLS
        assert {slot["cookie"] for slot in app.slots()} & cookies, "the same sockets"
        (listener,) = app.status()["listeners"]
        assert listener["unslotted"] == 0
        assert len(children(app.pid)) == 2
        assert app.stop() == 0


def test_a_reload_after_its_death(tmp_path: Path) -> None:
    with started(tmp_path) as app:
        app.wait_for_slots(2)
        old = workers(app)
        with load(PORT) as running:
            kill_keeper(app)
            os.kill(app.pid, signal.SIGHUP)
            wait_until(lambda: _answers(app), "another keeper")
            until_new(app, old)
        running.expect_nothing_lost()
        assert app.stop() == 0


def _answers(app: Application) -> bool:
    try:
        return bool(app.status())
    except AssertionError:
        return False
