# SPDX-License-Identifier: GPL-2.0-or-later
"""gunicorn and uvicorn under load while their workers come and go."""

import os
import signal
import time
from pathlib import Path

import pytest

from tests.apps.harness import PROGRAMS, Application, wait_until
from tests.apps.lifecycle import load, load_with_kills
from tests.apps.test_servers import PORT, python_server

pytestmark = [pytest.mark.apps, pytest.mark.usefixtures("own_network")]


def gunicorn() -> list[str]:
    return python_server(
        "gunicorn", "-w", "2", "-b", f"127.0.0.1:{PORT}", "--chdir", str(PROGRAMS),
        "hello_wsgi:application", "--no-control-socket",
    )  # fmt: skip


def workers(app: Application) -> set[int]:
    return {slot["pid"] for slot in app.slots()}


def test_gunicorn_reloads_and_scales(tmp_path: Path) -> None:
    with Application(gunicorn(), PORT) as app:
        app.wait_for_slots(2)
        with load(PORT) as running:
            for _ in range(2):
                old = workers(app)
                os.kill(app.pid, signal.SIGHUP)
                wait_until(
                    lambda old=old: len(now := workers(app)) == 2 and not now & old, "new workers"
                )
            os.kill(app.pid, signal.SIGTTIN)
            app.wait_for_slots(3)
            os.kill(app.pid, signal.SIGTTOU)
            app.wait_for_slots(2)
        running.expect_nothing_lost()
        assert app.stop() == 0


def test_gunicorn_worker_crashes() -> None:
    with Application(gunicorn(), PORT) as app:
        app.wait_for_slots(2)
        with load_with_kills(PORT) as running:
            for number in range(4):
                victim = app.wait_for_slots(2)[number % 2]["pid"]
                os.kill(victim, signal.SIGKILL)
                wait_until(lambda gone=victim: gone not in workers(app), "the slot to be given up")
            app.wait_for_slots(2)
        assert running.lost == 0, running.result
        assert running.completed > 20
        assert app.stop() == 0


def test_uvicorn_reloads(tmp_path: Path) -> None:
    """One worker at a time; between two of them connections wait on the supervisor's socket."""
    source = tmp_path / "served.py"
    source.write_text((PROGRAMS / "hello_asgi.py").read_text())
    command = python_server(
        "uvicorn", "--reload", "--host", "127.0.0.1", "--port", str(PORT), "--app-dir",
        str(tmp_path), "--log-level", "warning", "served:application",
    )  # fmt: skip
    with Application(command, PORT, directory=tmp_path) as app:
        (first,) = app.wait_for_slots(1)
        time.sleep(1)  # until the supervisor has looked at its files for the first time
        with load_with_kills(PORT) as running:
            source.write_text(source.read_text() + "\n# changed\n")
            wait_until(lambda: workers(app) and first["pid"] not in workers(app), "a new worker")
        errors = running.result["errors"]
        # uvicorn itself closes connections that it accepted and has not read from yet.
        assert running.queued_lost == errors["refused"] == errors["timeout"] == 0, running.result
        app.stop(signal.SIGINT)
