# SPDX-License-Identifier: GPL-2.0-or-later
"""What status tells of each connection's way: decisions by name, and the accept queues."""

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.apps.harness import (
    Application,
    fastsocket_command,
    http_get,
    on_cpu,
    python_server,
    say,
    wait_until,
    who_serves,
)
from tests.apps.test_lifecycle_nginx import started as nginx_started
from tests.apps.test_lifecycle_nginx import until_new
from tests.apps.test_servers import PORT

pytestmark = [pytest.mark.apps, pytest.mark.usefixtures("own_network")]

BACKLOG = 3
ADDRESS = ("127.0.0.1", PORT)


def started(options: tuple[str, ...] = (), **plan: Any) -> Application:
    return python_server({"listen": [ADDRESS], **plan}, options=options)


def listener(app: Application) -> dict[str, Any]:
    (only,) = (app.ask() or {})["listeners"]
    assert isinstance(only, dict)
    return only


@contextmanager
def stopped(*pids: int) -> Iterator[None]:
    """Keep workers from running, as a slow disk would, for a block."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def settled(app: Application, cpus: list[int]) -> list[dict[str, Any]]:
    """Return the two slots once each CPU's connections reach its own: a claim comes before that."""

    def local() -> bool:
        said = who_serves(PORT, cpus[:2], 1)
        return len({answer["pid"] for (answer,) in said.values()}) == 2

    slots = app.wait_for_slots(2)
    wait_until(local, "each CPU to have its worker")
    return slots


def connected(stack: ExitStack) -> socket.socket:
    return stack.enter_context(socket.create_connection(ADDRESS, timeout=10))


def test_local_connections(tmp_path: Path, cpus: list[int]) -> None:
    parameters = tmp_path / "fastsocket.toml"
    parameters.write_text("stall_us = 2000000\n")  # a worker that waits for its CPU is not late
    with started(("--config", str(parameters))) as app:
        settled(app, cpus)
        before = listener(app)["decisions"]
        who_serves(PORT, cpus[:2], 6)
        assert listener(app)["decisions"] == {**before, "local": before["local"] + 12}
        assert app.stop() == 0


def test_a_late_worker_is_spared_and_helped(cpus: list[int]) -> None:
    """What waits for it already is taken over, what comes then goes to another CPU's worker."""
    with started() as app, ExitStack() as stack:
        slots = settled(app, cpus)
        before, late = listener(app)["decisions"], slots[0]
        with on_cpu(late["cpu"]), stopped(late["pid"]):
            first = connected(stack)
            first.sendall(b"?")
            wait_until(lambda: listener(app)["queue"]["unserved_ms"] >= 50, "it to be late")
            state = listener(app)
            assert state["decisions"]["local"] == before["local"] + 1
            assert state["queue"]["waiting"] == 1
            (slot,) = (one for one in state["slots"] if one["pid"] == late["pid"])
            assert slot["waiting"] == 1
            assert slot["unserved_ms"] <= state["queue"]["unserved_ms"]
            say(PORT, b"?")
            assert f'"pid": {slots[1]["pid"]}' in first.recv(4096).decode()
            state = listener(app)
            assert state["decisions"]["spilled"] == before["spilled"] + 1
            assert state["decisions"]["stolen"] == before["stolen"] + 1
            assert state["queue"] == {"waiting": 0, "dropped": 0, "unserved_ms": 0}
        assert app.stop() == 0


def test_without_workers_the_kernel_chooses(cpus: list[int]) -> None:
    """The first process holds the sockets and never polls them."""
    with started() as app, ExitStack() as stack:
        workers = [slot["pid"] for slot in settled(app, cpus)]
        for pid in workers:
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not app.slots(), "the slots to be given up")
        before = listener(app)["decisions"]
        connected(stack)
        assert listener(app)["decisions"] == {**before, "passed": before["passed"] + 1}
        assert listener(app)["queue"]["waiting"] == 1


def test_a_full_queue_is_told_for_its_worker(cpus: list[int]) -> None:
    with started(backlog=BACKLOG) as app, ExitStack() as stack:
        slots = settled(app, cpus)
        with stopped(*(slot["pid"] for slot in slots)):
            assert [slot["dropped"] for slot in listener(app)["slots"]] == [0, 0]
            for _ in range(3 * (BACKLOG + 1)):
                client = stack.enter_context(socket.socket())
                client.setblocking(False)
                client.connect_ex(ADDRESS)
            # A SYN that finds a full queue is sent again, and may find the other one.
            wait_until(
                lambda: listener(app)["queue"]["waiting"] == 2 * (BACKLOG + 1), "full queues"
            )
            state = wait_until(
                lambda: (now := listener(app))["queue"]["dropped"] and now, "a drop to be counted"
            )
            for one in state["slots"]:
                assert (one["waiting"], one["backlog"]) == (BACKLOG + 1, BACKLOG)
            assert state["queue"]["dropped"] == sum(one["dropped"] for one in state["slots"])
            assert (app.ask() or {})["listen_overflows"] >= 1


def test_counts_outlive_their_slots(tmp_path: Path, cpus: list[int]) -> None:
    """A slot that is used for another socket begins at zero; what was decided stays decided."""
    with nginx_started(tmp_path) as app:
        app.wait_for_slots(2)
        for cpu in cpus[:2]:
            with on_cpu(cpu):
                for _ in range(5):
                    http_get(PORT)
        before = listener(app)
        assert all(slot["assigned"] for slot in before["slots"])
        configuration, count = tmp_path / "nginx.conf", 2
        for wanted in (1, 2):
            text = configuration.read_text()
            configuration.write_text(
                text.replace(f"worker_processes {count}", f"worker_processes {wanted}")
            )
            count, old = wanted, {slot["pid"] for slot in app.slots()}
            os.kill(app.pid, signal.SIGHUP)
            until_new(app, old, wanted)
        state = listener(app)
        assert state["decisions"] == before["decisions"]
        assert sum(slot["assigned"] for slot in state["slots"]) < sum(
            slot["assigned"] for slot in before["slots"]
        )
        assert app.stop() == 0


def test_people_and_programs_read_the_decisions(cpus: list[int]) -> None:
    with started() as app:
        settled(app, cpus)
        counts = listener(app)["decisions"]
        command = fastsocket_command("status", str(app.pid))
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert f"{counts['local']} local (to their own CPU's worker), " in said
        assert f"{counts['spilled']} spilled (to another CPU's), " in said
        told = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True)
        (status,) = json.loads(told.stdout)["applications"]
        assert status["pid"] == app.pid
        assert status["listeners"][0]["decisions"] == counts
        assert app.stop() == 0


def test_who_accepts_without_waiting_is_not_late(tmp_path: Path, cpus: list[int]) -> None:
    """Its last wait was long ago, but it goes on accepting: that is no stall (gunicorn)."""
    parameters = tmp_path / "fastsocket.toml"
    parameters.write_text("stall_us = 1500000\n")
    with started(("--config", str(parameters)), wait=["once", "epoll"]) as app:
        slots = app.wait_for_slots(2)
        first = min(slots, key=lambda slot: int(slot["pid"]))
        with on_cpu(first["cpu"]):
            end = time.monotonic() + 2
            while time.monotonic() < end:
                say(PORT, b"?")
                time.sleep(0.05)
            (answers,) = who_serves(PORT, [first["cpu"]], 10).values()
        assert [answer["pid"] for answer in answers].count(first["pid"]) >= 5
        assert app.stop() == 0
