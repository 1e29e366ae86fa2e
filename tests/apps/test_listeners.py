# SPDX-License-Identifier: GPL-2.0-or-later
"""Kinds of listeners and of waiting: what worker processes do with their sockets."""

import json
import os
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.apps.harness import (
    PROGRAMS,
    Application,
    listening,
    on_cpu,
    python_server,
    say,
    wait_until,
    who_serves,
)

pytestmark = [pytest.mark.apps, pytest.mark.usefixtures("own_network")]

PORT = 8080
HERE = ["127.0.0.1", PORT]


def expect_a_worker_each(app: Application, cpus: Sequence[int], port: int, host: str) -> None:
    """Clients of each CPU must be served by that CPU's worker, unless that was held up."""
    for cpu, answers in who_serves(port, cpus[:2], host=host).items():
        assert cpu in {answer["cpu"] for answer in answers}
    slots = app.slots(port)
    assert sorted(slot["cpu"] for slot in slots) == cpus[:2]
    assert all(slot["accepted"] for slot in slots)
    cookies = {found.cookie for found in listening(port)}
    assert {slot["cookie"] for slot in slots} <= cookies


@pytest.mark.parametrize("wait", ["epoll", "poll", "select"])
def test_ways_to_wait(cpus: list[int], wait: str) -> None:
    with python_server({"listen": [HERE], "wait": wait}) as app:
        app.wait_for_slots(2)
        expect_a_worker_each(app, cpus, PORT, "127.0.0.1")
        assert app.stop() == 0


def test_blocking_workers_share_the_socket(cpus: list[int]) -> None:
    """One that serves a connection at a time must not have a queue that nobody else can reach."""
    with python_server({"listen": [HERE], "wait": "accept"}) as app:
        for cpu in cpus[:2]:
            with on_cpu(cpu):
                assert all(say(PORT, b"?") for _ in range(10))
        assert app.slots() == []
        assert len(listening(PORT)) == 1
        assert app.stop() == 0


def test_own_reuseport(cpus: list[int]) -> None:
    """The sockets that the workers opened are the slots, and no others are made."""
    with python_server({"listen": [HERE], "reuseport": True}) as app:
        app.wait_for_slots(2)
        expect_a_worker_each(app, cpus, PORT, "127.0.0.1")
        assert len(listening(PORT)) == 2
        assert app.stop() == 0


@pytest.mark.parametrize(
    ("host", "v6only", "clients"),
    [("::1", 1, ["::1"]), ("::", 1, ["::1"]), ("::", 0, ["::1", "127.0.0.1"])],
)
def test_ipv6_and_dual_stack(
    cpus: list[int], host: str, v6only: int, clients: Sequence[str]
) -> None:
    with python_server({"listen": [[host, PORT]], "v6only": v6only}) as app:
        app.wait_for_slots(2)
        for client in clients:
            expect_a_worker_each(app, cpus, PORT, client)
        if clients == ["::1"]:
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", PORT))
        assert app.stop() == 0


def test_several_listeners(cpus: list[int]) -> None:
    """Each worker serves the same CPU on all of them."""
    plan = {"listen": [HERE, ["127.0.0.1", 8081], ["::1", 8082]]}
    with python_server(plan) as app:
        for port, host in ((8080, "127.0.0.1"), (8081, "127.0.0.1"), (8082, "::1")):
            app.wait_for_slots(2, port)
            expect_a_worker_each(app, cpus, port, host)
        ports = (8080, 8081, 8082)
        cpu_of = {(slot["pid"], slot["cpu"]) for port in ports for slot in app.slots(port)}
        assert len(cpu_of) == 2
        assert app.stop() == 0


def test_second_listen_changes_the_backlog_of_each_socket(cpus: list[int]) -> None:
    with python_server({"listen": [HERE], "backlog": 7, "again": 9}) as app:
        app.wait_for_slots(2)
        assert [found.backlog for found in listening(PORT)] == [9, 9]
        expect_a_worker_each(app, cpus, PORT, "127.0.0.1")
        assert app.stop() == 0


def test_backlog_of_each_socket_is_the_applications(cpus: list[int]) -> None:
    with python_server({"listen": [HERE], "backlog": 7}) as app:
        app.wait_for_slots(len(cpus[:2]))
        assert [found.backlog for found in listening(PORT)] == [7, 7]
        assert app.stop() == 0


MANAGER = """
import os, signal, subprocess, sys
workers = []
def start(number=0, frame=None):
    workers.append(subprocess.Popen(sys.argv[2:], pass_fds=[int(sys.argv[1])]))
start()
start()
def end(number, frame):
    for worker in workers:
        worker.terminate()
        worker.wait()
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
signal.signal(signal.SIGUSR1, start)
while True:
    signal.pause()
"""


def test_with_one_worker_the_port_is_nobody_elses() -> None:
    with python_server({"listen": [HERE], "workers": 0}) as app:
        app.wait_for_slots(1)
        with socket.socket() as stranger:
            stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            with pytest.raises(OSError, match="Address already in use"):
                stranger.bind(("127.0.0.1", PORT))
        app.stop()


@pytest.mark.parametrize("number", [0, signal.SIGTERM, signal.SIGKILL])
def test_inherited_listener_and_workers_that_exec(cpus: list[int], number: int) -> None:
    """As systemd hands over a socket: it listened before our library was there, and goes on after.

    At the end systemd tells all processes at once, the keeper too. One that is killed earlier has a
    successor as soon as a worker comes.
    """
    with socket.create_server(("127.0.0.1", PORT)) as listener:
        plan = json.dumps({"inherit": [listener.fileno()], "workers": 0})
        worker = [sys.executable, str(PROGRAMS / "server.py"), plan]
        command = [sys.executable, "-c", MANAGER, str(listener.fileno()), *worker]
        with Application(command, PORT, pass_fds=[listener.fileno()]) as app:
            app.wait_for_slots(2)
            expect_a_worker_each(app, cpus, PORT, "127.0.0.1")
            assert listener.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT)
            keeper = app.status()["keeper"]
            os.kill(keeper, number)
            if number == signal.SIGKILL:
                os.kill(app.pid, signal.SIGUSR1)
                wait_until(
                    lambda: (status := app.ask()) and status["keeper"] != keeper, "another keeper"
                )
            assert app.stop() == 0
        assert not listener.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT)


OTHERS = """
import os, socket, sys
datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
datagrams.bind(("127.0.0.1", 8080))
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen(5)
if not os.fork():
    connection, _ = listener.accept()
    connection.sendall(b"stream")
    os._exit(0)
data, sender = datagrams.recvfrom(100)
reuseport = [s.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT) for s in (datagrams, listener)]
datagrams.sendto(data + bytes(reuseport), sender)
os.wait()
"""


def test_other_sockets_are_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with Application([sys.executable, "-c", OTHERS, path]) as app:
        wait_until(path.exists, "the unix listener")
        with socket.socket(socket.AF_UNIX) as client:
            wait_until(lambda: client.connect_ex(str(path)) == 0, "a connection")
            assert client.recv(100) == b"stream"
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.settimeout(5)
            client.sendto(b"x", ("127.0.0.1", PORT))
            assert client.recv(100) == b"x\0\0"
        app.process.wait(5)
        assert app.stop() == 0


def test_forking_server() -> None:
    """A child for each connection, which closes the listener: nothing is left of the sockets."""
    program = """
import os, socket
listener = socket.create_server(("127.0.0.1", 8080))
for _ in range(30):
    connection, _ = listener.accept()
    if not os.fork():
        listener.close()
        connection.sendall(b"%d" % os.getpid())
        os._exit(0)
    connection.close()
    os.wait()
listener.close()
again = socket.create_server(("127.0.0.1", 8080))
"""
    with Application([sys.executable, "-c", program], PORT) as app:
        served = {int(_read(PORT)) for _ in range(30)}
        assert len(served) == 30
        assert app.process.wait(10) == 0, app.process.communicate()[0]
        assert app.stop() == 0


def _read(port: int) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        return client.recv(100)
