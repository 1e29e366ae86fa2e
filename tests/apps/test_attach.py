# SPDX-License-Identifier: GPL-2.0-or-later
"""`fastsocket attach` and `detach` on servers that run without Fastsocket."""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

import fastsocket as fastsocket_package
from fastsocket.native import native_file
from tests.apps.demo_tools import demo, get
from tests.apps.harness import Application, fastsocket_command, on_cpu, wait_until
from tests.apps.lifecycle import load
from tests.apps.test_servers import PORT, hello, nginx

pytestmark = [pytest.mark.apps, pytest.mark.usefixtures("own_network")]

CONNECTIONS = 30


def fastsocket(*words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(fastsocket_command(*words), capture_output=True, text=True, check=False)


def steered(*words: str) -> dict[str, Any]:
    done = fastsocket(*words, "--json")
    assert done.returncode == 0, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def attached_programs() -> int:
    text = subprocess.run(["bpftool", "prog"], capture_output=True, text=True, check=True).stdout
    return text.count("fs_attached")


def local_share(tmp_path: Path, cpus: list[int], act: Callable[[int], None]) -> float:
    """Serve clients on each CPU after `act(pid)`; return the share that stayed on its CPU."""
    words = ("-a", f"127.0.0.1:{PORT}", "-w", "2", "-c", str(cpus[0]), "--reuseport")
    stats = tmp_path / "stats"
    with demo(tmp_path / "log", *words, "--stats", str(stats)) as server:
        act(server.process.pid)
        for cpu in cpus[:2]:
            with on_cpu(cpu):
                for _ in range(CONNECTIONS):
                    hello_demo()
        assert server.stop() == 0
    counted = json.loads(stats.read_text())
    return float(counted["local"]) / float(counted["accepted"])


def hello_demo() -> None:
    assert get(PORT)


def test_connections_stay_on_their_cpu_until_detached(tmp_path: Path, cpus: list[int]) -> None:
    before = attached_programs()

    def act(pid: int) -> None:
        plan = steered("attach", "--dry-run", str(pid))
        assert attached_programs() == before
        done = steered("attach", str(pid))
        assert done["groups"] == plan["groups"]
        (group,) = done["groups"]
        assert sorted(each["cpu"] for each in group["sockets"]) == cpus[:2]
        assert all(each["pinned"] for each in group["sockets"])

    assert local_share(tmp_path, cpus, act) == 1.0
    wait_until(lambda: attached_programs() == before, "the program to go with its group")


def test_detach_puts_it_back_and_loses_nothing(tmp_path: Path) -> None:
    before = attached_programs()
    command = nginx(tmp_path, f"listen 127.0.0.1:{PORT} reuseport;")
    with Application(command, PORT, accelerated=False) as server:
        pid = str(server.pid)
        wait_until(lambda: len(psutil.Process(server.pid).children()) == 2, "the workers")
        with load(PORT) as running:
            for _ in range(3):
                steered("attach", pid)
                steered("attach", pid)
                assert attached_programs() == before + 1
                steered("detach", pid)
                wait_until(lambda: attached_programs() == before, "the program to go")
        running.expect_nothing_lost()
        done = fastsocket("detach", pid)
        assert (done.returncode, "is not attached" in done.stderr) == (4, True)
        server.process.terminate()
        server.process.wait()


def test_a_single_shared_socket_is_refused_in_one_line(tmp_path: Path) -> None:
    command = nginx(tmp_path, f"listen 127.0.0.1:{PORT};")
    with Application(command, PORT, accelerated=False) as server:
        done = fastsocket("attach", str(server.pid))
        assert done.returncode == 4
        assert done.stderr.count("\n") == 1
        assert "one socket for all its workers" in done.stderr
        hello()
        server.process.terminate()
        server.process.wait()


def test_an_accelerated_server_is_refused(tmp_path: Path) -> None:
    with Application(nginx(tmp_path, f"listen 127.0.0.1:{PORT};"), PORT) as app:
        app.wait_for_slots(2)
        done = fastsocket("attach", str(app.pid))
        assert (done.returncode, "already" in done.stderr) == (4, True)
        assert app.stop() == 0


def test_a_process_that_is_not_there_or_does_not_listen() -> None:
    assert fastsocket("attach", "4194304").returncode == 4
    with subprocess.Popen(["sleep", "60"]) as sleeper:
        done = fastsocket("attach", str(sleeper.pid))
        sleeper.kill()
    assert (done.returncode, "does not listen" in done.stderr) == (4, True)


def test_without_privileges(tmp_path: Path) -> None:
    source = str(Path(fastsocket_package.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": source}
    nobody = ["setpriv", "--reuid", "65534", "--clear-groups"]
    assert native_file("attach.bpf.o").exists()
    with subprocess.Popen(["sleep", "60"]) as sleeper:
        command = [*nobody, *fastsocket_command("attach", str(sleeper.pid))]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        sleeper.kill()
    assert done.returncode == 3, done.stderr
