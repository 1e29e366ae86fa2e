# SPDX-License-Identifier: GPL-2.0-or-later
"""nginx under load while its workers crash, reload and are upgraded: nothing is lost."""

import os
import signal
from pathlib import Path

import pytest

from tests.apps.harness import PATIENCE_S, Application, listening, wait_until
from tests.apps.lifecycle import load, load_with_kills
from tests.apps.test_servers import PORT, nginx

pytestmark = [pytest.mark.apps, pytest.mark.usefixtures("own_network")]

KILLS = 10
RELOADS = 4


def started(folder: Path, workers: int = 2, options: tuple[str, ...] = ()) -> Application:
    command = nginx(folder, f"listen 127.0.0.1:{PORT} backlog=4096;")
    configuration = folder / "nginx.conf"
    text = configuration.read_text().replace("worker_processes 2", f"worker_processes {workers}")
    configuration.write_text(text)
    return Application(command, PORT, options=options)


def workers(app: Application) -> set[int]:
    return {slot["pid"] for slot in app.slots()}


def until_new(app: Application, old: set[int], count: int = 2) -> None:
    def new() -> bool:
        now = workers(app)
        return len(now) == count and not now & old

    wait_until(new, "new workers")


def test_crashes(tmp_path: Path) -> None:
    with started(tmp_path) as app:
        app.wait_for_slots(2)
        with load_with_kills(PORT, 64) as running:
            for number in range(KILLS):
                victim = app.wait_for_slots(2)[number % 2]["pid"]
                os.kill(victim, signal.SIGKILL)
                wait_until(lambda gone=victim: gone not in workers(app), "the slot to be given up")
            app.wait_for_slots(2)
        assert running.lost == 0, running.result
        assert running.completed > 10 * KILLS
        assert app.stop() == 0


def test_reloads(tmp_path: Path, cpus: list[int]) -> None:
    with started(tmp_path) as app:
        app.wait_for_slots(2)
        with load(PORT) as running:
            for _ in range(RELOADS):
                old = workers(app)
                os.kill(app.pid, signal.SIGHUP)
                until_new(app, old)
        running.expect_nothing_lost()
        wait_until(
            lambda: sorted(slot["cpu"] for slot in app.slots()) == cpus[:2], "a CPU for each worker"
        )
        assert app.stop() == 0


def test_fewer_and_more_workers(tmp_path: Path) -> None:
    with started(tmp_path) as app:
        app.wait_for_slots(2)
        configuration = tmp_path / "nginx.conf"
        count = 2
        with load(PORT) as running:
            for wanted in (4, 1, 3):
                text = configuration.read_text()
                configuration.write_text(
                    text.replace(f"worker_processes {count}", f"worker_processes {wanted}")
                )
                count, old = wanted, workers(app)
                os.kill(app.pid, signal.SIGHUP)
                until_new(app, old, wanted)
        running.expect_nothing_lost()
        assert app.stop() == 0


def test_binary_upgrade(tmp_path: Path) -> None:
    """The new binary gets an environment of nginx's making; it must be accelerated all the same."""
    with Application(nginx(tmp_path, f"listen 127.0.0.1:{PORT};", "daemon on;"), PORT) as app:
        app.process.wait(PATIENCE_S)
        app.wait_for_slots(2)
        old, pid_file = workers(app), tmp_path / "pid"
        first = int(pid_file.read_text())
        with load(PORT) as running:
            os.kill(first, signal.SIGUSR2)
            wait_until((tmp_path / "pid.oldbin").exists, "the new master")
            wait_until(lambda: len(workers(app) - old) == 2, "its workers' slots")
            os.kill(first, signal.SIGQUIT)
            until_new(app, old)
        running.expect_nothing_lost()
        os.kill(int(pid_file.read_text()), signal.SIGQUIT)
        wait_until(lambda: not listening(PORT), "the new master to go")
        app.expect_nothing_left()


def test_more_workers_than_slots(tmp_path: Path) -> None:
    """Those that find no slot share a socket, as they would without us."""
    parameters = tmp_path / "fastsocket.toml"
    parameters.write_text("slots = 1\n")
    with started(tmp_path, 4, ("--config", str(parameters))) as app:
        app.wait_for_slots(2)
        (listener,) = app.status()["listeners"]
        assert listener["unslotted"] >= 2
        with load_with_kills(PORT) as running:
            for _ in range(3):
                victim = app.wait_for_slots(2)[0]["pid"]
                os.kill(victim, signal.SIGKILL)
                wait_until(lambda gone=victim: gone not in workers(app), "the slot to be given up")
            app.wait_for_slots(2)
        assert running.lost == 0, running.result
        assert running.completed > 100
        assert app.stop() == 0
