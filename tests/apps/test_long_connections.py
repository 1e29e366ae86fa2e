# SPDX-License-Identifier: GPL-2.0-or-later
"""Connections that stay are spread by live count, also after half of them came anew."""

import statistics
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from fastsocket.native import native_file
from tests.apps.harness import Application, wait_until
from tests.apps.test_servers import PORT

pytestmark = [pytest.mark.apps, pytest.mark.usefixtures("own_network")]

HALF = 1000
MOST_CV = 0.02
STAY_S = "100"

# Whether connections last is judged by those that came within two windows of 2^26 ns: a client that
# leaves sooner had short ones, and then no even spread is promised.
JUDGED_S = 0.2


def holding(stack: ExitStack) -> "subprocess.Popen[bytes]":
    command = [native_file("fastsocket-load"), "--hold", str(HALF), "-t", STAY_S]
    client = stack.enter_context(
        subprocess.Popen([*command, f"127.0.0.1:{PORT}"], stdout=subprocess.DEVNULL)
    )
    stack.callback(client.terminate)
    return client


def live(app: Application, total: int) -> list[int]:
    def settled() -> list[int]:
        counts = [slot["live"] for slot in app.slots()]
        return counts if sum(counts) == total else []

    found: list[int] = wait_until(settled, f"{total} live connections")
    return found


def spread(counts: list[int]) -> float:
    return statistics.pstdev(counts) / statistics.mean(counts)


@pytest.mark.parametrize("workers", [2, 8])
def test_long_connections(tmp_path: Path, workers: int) -> None:
    command = [
        native_file("fastsocket-demo"), "-k", "-w", str(workers), "-a", f"127.0.0.1:{PORT}",
        "-o", tmp_path / "log",
    ]  # fmt: skip
    with Application(command, PORT) as app:
        app.wait_for_slots(workers)
        with ExitStack() as stack:
            leaving = holding(stack)
            holding(stack)
            assert spread(live(app, 2 * HALF)) <= MOST_CV, app.slots()
            leaving.terminate()
            leaving.wait()
            live(app, HALF)
            time.sleep(JUDGED_S)
            holding(stack)
            assert spread(live(app, 2 * HALF)) <= MOST_CV, app.slots()
        assert app.stop() == 0
