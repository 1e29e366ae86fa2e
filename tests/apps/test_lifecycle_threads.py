# SPDX-License-Identifier: GPL-2.0-or-later
"""Threads that poll sockets of their own and end while the process goes on."""

import socket
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.apps.harness import PROGRAMS, Application, on_cpu, say, wait_until
from tests.apps.test_servers import PORT

pytestmark = [pytest.mark.apps, pytest.mark.usefixtures("own_network")]

QUEUED = 4


def test_what_waits_for_a_thread_that_ends_is_served(tmp_path: Path, cpus: list[int]) -> None:
    """No other connection comes that could wake the threads that stay."""
    parameters = tmp_path / "fastsocket.toml"
    parameters.write_text("stall_us = 10000000\n")  # nobody is to help while it goes
    command = [sys.executable, PROGRAMS / "threads.py", str(PORT), "3"]
    with Application(command, PORT, options=("--config", str(parameters))) as app:
        slots = app.wait_for_slots(3)
        for slot in slots:
            with on_cpu(slot["cpu"]):
                wait_until(lambda: int(say(PORT, b"?")), "an answer")
        with on_cpu(cpus[0]), ExitStack() as stack:
            leaving = int(say(PORT, b"leave"))
            clients = [
                stack.enter_context(socket.create_connection(("127.0.0.1", PORT), timeout=10))
                for _ in range(QUEUED)
            ]
            for client in clients:
                client.sendall(b"?")
            waiting = {slot["tid"]: slot["waiting"] for slot in app.slots()}
            answers = {int(client.recv(64)) for client in clients}
        assert leaving not in answers
        assert answers <= {slot["tid"] for slot in slots}
        assert waiting.get(leaving), "it ended before: the test is too slow"
        assert len(app.slots()) == 2, "nobody takes a slot that it does not poll"
        for cpu in cpus[:2]:
            with on_cpu(cpu):
                assert int(say(PORT, b"?")) in {slot["tid"] for slot in slots} - {leaving}
        assert len(app.slots()) == 2
        app.stop()
