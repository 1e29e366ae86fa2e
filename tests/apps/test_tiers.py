# SPDX-License-Identifier: GPL-2.0-or-later
"""What is left without privileges, without a keeper and without BPF; and a keeper that dies."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.apps.harness import (
    Application,
    library_environment,
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
# Root's files stay readable, and nothing else is allowed.
POWERLESS = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"]


def workers_of(port: int) -> set[int]:
    """Return the processes that hold a listening socket of the port."""
    return {pid for found in listening(port) for pid, _ in found.holders}


def expect_locality(cpus: Sequence[int]) -> None:
    """Clients of one CPU must always meet the same worker, and those of another another."""
    said = who_serves(PORT, cpus[:2])
    served_by = [{answer["pid"] for answer in answers} for answers in said.values()]
    assert [len(pids) for pids in served_by] == [1, 1]
    assert served_by[0] != served_by[1]
    for cpu, answers in said.items():
        assert {answer["cpu"] for answer in answers} == {cpu}


@pytest.mark.parametrize("reuseport", [False, True])
def test_without_privileges(cpus: list[int], reuseport: bool) -> None:
    plan = {"listen": [HERE], "reuseport": reuseport}
    with python_server(plan, prefix=POWERLESS) as app:
        app.wait_for_slots(2)
        status = app.status()
        assert status["tier"] == "classic"
        assert "Operation not permitted" in status["reasons"]["select"]
        assert status["listeners"][0]["tier"] == "classic"
        wait_until(lambda: all(slot["pinned"] for slot in app.slots()), "pinned workers")
        expect_locality(cpus)
        assert app.stop() == 0


@pytest.mark.parametrize("number", [0, 1, 2])
def test_classic_tier_follows_a_workers_death(cpus: list[int], number: int) -> None:
    """No connection may wait on the dead worker's socket, which the others hold open."""
    with python_server({"listen": [HERE], "workers": 3}, prefix=POWERLESS) as app:
        victim = app.wait_for_slots(3)[number]["pid"]
        os.kill(victim, signal.SIGKILL)
        wait_until(lambda: len(app.slots()) == 2, "the dead worker's slot to be free")
        for answers in who_serves(PORT, cpus[:2], connections=20).values():
            assert victim not in {answer["pid"] for answer in answers}
        assert app.stop() == 0


@pytest.mark.parametrize("number", [0, 1])
def test_classic_tier_serves_what_waited_for_a_dead_worker(cpus: list[int], number: int) -> None:
    """Its queue cannot be moved, and nobody else may come by for long."""
    with python_server({"listen": [HERE]}, prefix=POWERLESS) as app:
        victim = app.wait_for_slots(2)[number]
        os.kill(victim["pid"], signal.SIGSTOP)
        with on_cpu(victim["cpu"]), ExitStack() as stack:
            clients = [
                stack.enter_context(socket.create_connection(("127.0.0.1", PORT), timeout=15))
                for _ in range(3)
            ]
            os.kill(victim["pid"], signal.SIGKILL)
            for client in clients:
                client.sendall(b"?")
                assert json.loads(client.recv(4096))["pid"] != victim["pid"]
        assert app.stop() == 0


def test_library_alone(cpus: list[int]) -> None:
    """LD_PRELOAD without the launcher: no keeper, and forked workers are spread all the same."""
    plan = {"listen": [HERE]}
    with python_server(plan, accelerated=False, environment=library_environment()) as app:
        wait_until(lambda: len(listening(PORT)) == 2, "a socket each")
        for cpu in cpus[:2]:  # the workers are pinned with the second claim
            with on_cpu(cpu):
                say(PORT, b"?")
        expect_locality(cpus)
        assert app.stop() == 0


NO_CLASSIC_BPF = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <sys/socket.h>

int setsockopt(int fd, int level, int name, const void *value, socklen_t length)
{
	int (*next)(int, int, int, const void *, socklen_t) = dlsym(RTLD_NEXT, "setsockopt");

	if (level == SOL_SOCKET && name == SO_ATTACH_REUSEPORT_CBPF) {
		errno = EPERM;
		return -1;
	}
	return next(fd, level, name, value, length);
}
"""


def test_without_bpf(cpus: list[int], tmp_path: Path) -> None:
    """All workers share the application's own socket, as without us, and status says so."""
    source, library = tmp_path / "refuse.c", tmp_path / "refuse.so"
    source.write_text(NO_CLASSIC_BPF)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True)
    environment = {"LD_PRELOAD": str(library)}
    with python_server({"listen": [HERE]}, prefix=POWERLESS, environment=environment) as app:
        for answers in who_serves(PORT, cpus[:2], connections=20).values():
            assert len(answers) == 20
        assert len(listening(PORT)) == 1
        (listener,) = app.status()["listeners"]
        assert listener["tier"] == "none"
        assert app.stop() == 0


class Clients:
    """Clients that come one after another, on each CPU, until they are stopped."""

    def __init__(self, cpus: Sequence[int]) -> None:
        self.served, self.errors = 0, []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(cpu,)) for cpu in cpus]

    def _run(self, cpu: int) -> None:
        with on_cpu(cpu):
            while not self._stop.wait(0.002):
                try:
                    assert say(PORT, b"?")
                    self.served += 1
                except (OSError, AssertionError) as error:
                    self.errors.append(error)

    def __enter__(self) -> "Clients":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


def test_keeper_killed_under_load(cpus: list[int]) -> None:
    """Its death takes no connection, and the workers go on as they were."""
    with python_server({"listen": [HERE]}) as app:
        app.wait_for_slots(2)
        with Clients(cpus[:2]) as clients:
            wait_until(lambda: clients.served > 50, "clients to be served")
            os.kill(app.ask()["keeper"], signal.SIGKILL)
            before = clients.served
            wait_until(lambda: clients.served > before + 100, "clients to be served after it")
        assert not clients.errors
        for cpu, answers in who_serves(PORT, cpus[:2]).items():
            assert cpu in {answer["cpu"] for answer in answers}
        assert app.stop() == 0


def test_worker_killed_after_its_keeper(cpus: list[int]) -> None:
    """Without a keeper a new worker still serves: it takes over the socket, or shares one."""
    program = """
import os, select, signal, socket
listener = socket.create_server(("127.0.0.1", 8080))
def work():
    listener.setblocking(False)
    while True:
        select.select([listener], [], [])
        try:
            connection, _ = listener.accept()
        except BlockingIOError:
            continue
        connection.setblocking(True)
        connection.sendall(b"%d" % os.getpid())
        connection.close()
def start():
    child = os.fork()
    if not child:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        work()
    return child
children = {start(), start()}
def end(number, frame):
    for child in children:
        os.kill(child, signal.SIGKILL)
    os._exit(0)
signal.signal(signal.SIGTERM, end)
while True:
    child, _ = os.wait()
    children = children - {child} | {start()}
"""
    with Application([sys.executable, "-c", program], PORT) as app:
        victim = app.wait_for_slots(2)[0]["pid"]
        os.kill(app.ask()["keeper"], signal.SIGKILL)
        os.kill(victim, signal.SIGKILL)
        wait_until(lambda: victim not in workers_of(PORT), "the dead worker to go")

        def both_serve() -> bool:
            seen = set()
            for cpu in cpus[:2]:
                with on_cpu(cpu):
                    seen |= {int(say(PORT)) for _ in range(10)}
            return len(seen) == 2

        wait_until(both_serve, "the new worker to serve")
        assert app.stop() == 0


def test_nothing_is_spread_with_listen_spawn_off() -> None:
    with python_server({"listen": [HERE]}, options=["--listen-spawn", "0"]) as app:
        assert say(PORT, b"?")
        assert len(listening(PORT)) == 1
        assert app.ask() is None
        assert app.stop() == 0


def test_application_pins_its_workers(cpus: list[int]) -> None:
    """Mode 1: sockets are spread, and workers that pin themselves are not moved by us."""
    with python_server({"listen": [HERE]}, options=["--listen-spawn", "1"]) as app:
        slots = app.wait_for_slots(2)
        assert not any(slot["pinned"] for slot in slots)
        assert all(os.sched_getaffinity(slot["tid"]) == set(cpus) for slot in slots)
        with socket.create_connection(("127.0.0.1", PORT)) as client:
            client.sendall(b"?")
            assert client.recv(4096)
        assert app.stop() == 0
