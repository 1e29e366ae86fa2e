# SPDX-License-Identifier: GPL-2.0-or-later
"""Profiles that bring settings in an application's own terms."""

import signal
import socket
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.apps.harness import PATIENCE_S, Application, on_cpu
from tests.apps.test_servers import PORT, haproxy

pytestmark = [pytest.mark.apps, pytest.mark.usefixtures("own_network")]


def _threads_that_serve(cpu: int) -> set[bytes]:
    """Open connections from a CPU, keep them, and return the threads that answer.

    They are too few to be spread because they last.
    """
    threads = set()
    with on_cpu(cpu), ExitStack() as stack:
        for _ in range(3):
            connection = stack.enter_context(
                socket.create_connection(("127.0.0.1", PORT), timeout=PATIENCE_S)
            )
            connection.sendall(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n")
            threads.add(connection.recv(4096).split()[-1])
    return threads


def test_haproxys_profile_keeps_connections_where_they_were_accepted(
    tmp_path: Path, cpus: list[int]
) -> None:
    first, second = cpus[:2]
    answer = 'http-request return status 200 content-type text/plain lf-string "thread %[thread]"'
    parameters = tmp_path / "fastsocket.toml"
    parameters.write_text("stall_us = 2000000\n")  # a worker that waits for its CPU is not late
    options = ["--config", str(parameters)]
    with Application(haproxy(tmp_path, answer), PORT, options=options) as app:
        app.wait_for_slots(2)
        assert len(_threads_that_serve(first)) == 2, "by default it hands connections on"
        assert app.stop(signal.SIGUSR1) == 0
    options += ["--profile", "haproxy"]
    with Application(haproxy(tmp_path, answer), PORT, options=options) as app:
        app.wait_for_slots(2)
        served = _threads_that_serve(first), _threads_that_serve(second)
        assert [len(threads) for threads in served] == [1, 1]
        assert served[0] != served[1]
        assert app.stop(signal.SIGUSR1) == 0
