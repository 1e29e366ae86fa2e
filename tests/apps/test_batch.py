# SPDX-License-Identifier: GPL-2.0-or-later
"""`run --batch`: who gets SCHED_BATCH and a long time slice, and who keeps what it has."""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from fastsocket.app.scheduling import SLICE_NS, scheduling_of
from tests.apps.harness import (
    PATIENCE_S,
    Application,
    fastsocket_command,
    python_server,
    wait_until,
)
from tests.apps.test_lifecycle_keeper import keeper_of, kill_keeper
from tests.apps.test_lifecycle_nginx import started

pytestmark = [pytest.mark.apps, pytest.mark.usefixtures("own_network")]

PORT = 8080
STATIC = """
#include <sched.h>
#include <stdio.h>

int main(void)
{
	printf("%d\\n", sched_getscheduler(0));
}
"""
PLAN = {"listen": [["127.0.0.1", PORT]]}
POLICY = [sys.executable, "-c", "import os; print(os.sched_getscheduler(0))"]


def run(
    *words: str, prefix: tuple[str, ...] = (), command: Sequence[str] = POLICY
) -> tuple[str, str]:
    """Return what a command under ``fastsocket run`` says of its own policy, and what run says."""
    done = subprocess.run(
        [*prefix, *fastsocket_command("run", *words, "--", *command)],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=True,
    )
    return done.stdout.strip(), done.stderr


def shown(app: Application) -> str:
    """Return what ``fastsocket status`` prints of it, in one line."""
    command = fastsocket_command("status", str(app.pid))
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return " ".join(done.stdout.split())


@pytest.mark.parametrize(
    ("options", "policy"), [(["--batch"], os.SCHED_BATCH), ([], os.SCHED_OTHER)]
)
def test_the_workers_have_it_and_their_keeper_has_not(options: list[str], policy: int) -> None:
    with python_server(PLAN, options=options) as app:
        workers = {slot["pid"] for slot in app.wait_for_slots(2)}
        default = scheduling_of(0).slice_ns
        slice_ns = (default and SLICE_NS) if options else default  # one for all before 6.12
        assert {scheduling_of(pid) for pid in workers | {app.pid}} == {(policy, slice_ns)}
        status = app.status()
        assert scheduling_of(status["keeper"]) == (os.SCHED_OTHER, default)
        assert status["batch"] == (len(status["processes"]) if options else 0)
        told = "(SCHED_BATCH, slices of 100 ms)" if default else "(SCHED_BATCH)"
        assert (told in shown(app)) == bool(options)
        app.stop()


def test_a_keeper_in_place_of_a_killed_one_has_not(tmp_path: Path) -> None:
    """It is started by a process that has it."""
    with started(tmp_path, options=("--batch",)) as app:
        victim = app.wait_for_slots(2)[0]["pid"]
        assert os.sched_getscheduler(victim) == os.SCHED_BATCH
        killed = kill_keeper(app)
        os.kill(victim, signal.SIGKILL)  # its master starts another, and a keeper
        wait_until(lambda: not Path(f"/proc/{victim}").exists(), "the worker to be gone")
        app.wait_for_slots(2)
        assert keeper_of(app) != killed
        assert scheduling_of(keeper_of(app)) == scheduling_of(0)
        app.stop()


def test_a_static_program_has_it_too(tmp_path: Path) -> None:
    source, program = tmp_path / "policy.c", tmp_path / "policy"
    source.write_text(STATIC)
    subprocess.run(["gcc", "-static", "-o", program, source], check=True)
    policy, said = run("--batch", command=[str(program)])
    assert policy == str(os.SCHED_BATCH)
    assert said.startswith("fastsocket: gets only the policy of --batch: ")
    assert len(said.splitlines()) == 1


def test_with_listen_spawn_off_it_has_it_too() -> None:
    assert run("--batch", "--listen-spawn", "0") == (str(os.SCHED_BATCH), "")


def test_a_policy_of_its_own_stays() -> None:
    policy, said = run("--batch", prefix=("chrt", "--idle", "0"))
    assert policy == str(os.SCHED_IDLE)
    assert said.startswith(
        "fastsocket: runs without batch: it was started with a scheduling policy"
    )
    assert len(said.splitlines()) == 1
    assert run("--batch", prefix=("chrt", "--batch", "0")) == (str(os.SCHED_BATCH), "")


def test_niceness_stays() -> None:
    nice = [sys.executable, "-c", "import os; print(os.sched_getscheduler(0), os.nice(0))"]
    found = run("--batch", prefix=("nice", "-n", "5"), command=nice)
    assert found == (f"{os.SCHED_BATCH} {os.nice(0) + 5}", "")


@pytest.mark.parametrize(
    ("refused", "policy", "said"),
    [
        ("scheduling.syscall", os.SCHED_BATCH, ""),  # knows nothing of time slices
        (
            "scheduling.os.sched_setscheduler",
            os.SCHED_OTHER,
            "fastsocket: runs without batch: the kernel refuses SCHED_BATCH; not here\n",
        ),
    ],
)
def test_a_filter_of_system_calls(refused: str, policy: int, said: str) -> None:
    """As containers have them: the policy comes alone, or not at all."""
    refuse = f"""
import sys
from fastsocket.app import scheduling
from fastsocket.cli.main import main
{refused} = lambda *_: (_ for _ in ()).throw(PermissionError(1, "not here"))
sys.argv = ["fastsocket", "run", "--batch", "--", *sys.argv[1:]]
main()
"""
    command = [sys.executable, "-c", refuse, *POLICY]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(policy)
    assert done.stderr == said
