# SPDX-License-Identifier: GPL-2.0-or-later
"""The keeper is killed: connections and workers do not notice, and further workers get slots."""

import os
import signal
import sys
from pathlib import Path

import pytest

from tests.apps.harness import Application, http_get, listening, on_cpu, say, wait_until
from tests.apps.lifecycle import load, load_with_kills
from tests.apps.test_lifecycle_nginx import started, until_new, workers
from tests.apps.test_servers import PORT

pytestmark = [pytest.mark.apps, pytest.mark.usefixtures("own_network")]

KILLS = 4


def keeper_of(app: Application) -> int:
    keeper = app.status()["keeper"]
    assert isinstance(keeper, int)
    return keeper


def kill_keeper(app: Application) -> int:
    keeper = keeper_of(app)
    os.kill(keeper, signal.SIGKILL)
    wait_until(lambda: app.ask() is None, "the keeper to be gone")  # maybe a zombie
    return keeper


def children(pid: int) -> set[str]:
    return set(Path(f"/proc/{pid}/task/{pid}/children").read_text().split())


def test_nobody_needs_it_while_no_worker_comes(tmp_path: Path) -> None:
    with started(tmp_path) as app:
        app.wait_for_slots(2)
        before = children(app.pid)
        with load(PORT) as running:
            kill_keeper(app)
        running.expect_nothing_lost()
        assert children(app.pid) == before
        assert app.stop() == 0


def test_workers_killed_with_the_keeper_get_slots_again(tmp_path: Path) -> None:
    """The master starts a keeper as it forks; that one knows the programs and the page."""
    with started(tmp_path) as app:
        app.wait_for_slots(2)
        app.status()  # notes what the kernel holds, for the look after the end
        cookies = {slot["cookie"] for slot in app.slots()}
        with load_with_kills(PORT) as running:
            for number in range(KILLS):
                victim = app.wait_for_slots(2)[number % 2]["pid"]
                killed = kill_keeper(app)
                os.kill(victim, signal.SIGKILL)
                wait_until(lambda gone=victim: Path(f"/proc/{gone}").exists() is False, "the crash")
                assert app.wait_for_slots(2)
                assert keeper_of(app) != killed
        assert running.lost == 0, running.result
        assert running.completed > 10 * KILLS
        assert {slot["cookie"] for slot in app.slots()} & cookies, "the same sockets"
        (listener,) = app.status()["listeners"]
        assert listener["unslotted"] == 0
        assert len(children(app.pid)) == 2
        assert app.stop() == 0


def test_a_reload_after_its_death(tmp_path: Path) -> None:
    with started(tmp_path) as app:
        app.wait_for_slots(2)
        old = workers(app)
        with load(PORT) as running:
            kill_keeper(app)
            os.kill(app.pid, signal.SIGHUP)
            wait_until(lambda: _answers(app), "another keeper")
            until_new(app, old)
        running.expect_nothing_lost()
        assert app.stop() == 0


def test_a_reload_beside_a_keeper_that_does_not_answer(tmp_path: Path) -> None:
    """The new workers are told of, and do not keep the clients waiting until that is heard."""
    with started(tmp_path) as app:
        app.wait_for_slots(2)
        old, keeper = children(app.pid), keeper_of(app)
        with load(PORT) as running:
            os.kill(keeper, signal.SIGSTOP)
            os.kill(app.pid, signal.SIGHUP)
            wait_until(lambda: not children(app.pid) & old, "the old workers to go")
            for _ in range(10):
                http_get(PORT)
            os.kill(keeper, signal.SIGCONT)
            app.wait_for_slots(2)
        running.expect_nothing_lost()
        assert set(map(int, children(app.pid))) <= set(app.status()["processes"])
        assert app.stop() == 0


LATE_WORKERS = """
import os, select, signal, socket, sys
told = {signal.SIGUSR1, signal.SIGTERM}
listener = socket.create_server(("127.0.0.1", 8080))
listener.setblocking(False)
signal.pthread_sigmask(signal.SIG_BLOCK, told)
def work():
    os.setresuid(65534, 65534, 65534)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    signal.sigwait({signal.SIGUSR1})
    poller = select.epoll() if sys.argv[1] == "epoll" else select.poll()
    poller.register(listener, select.POLLIN)
    while True:
        poller.poll()
        try:
            connection, _ = listener.accept()
        except BlockingIOError:
            continue
        connection.sendall(b"%d" % os.getpid())
        connection.close()
children = []
def start():
    children.append(os.fork())
    if not children[-1]:
        work()
start()
start()
while signal.sigwait(told) == signal.SIGUSR1:
    start()
for child in children:
    os.kill(child, signal.SIGTERM)
    os.waitpid(child, 0)
"""


@pytest.mark.parametrize("wait", ["epoll", "poll"])
def test_a_worker_without_a_slot_asks_again(cpus: list[int], wait: str) -> None:
    """A worker may not start a keeper, and shares a socket until its master has started one."""
    with Application([sys.executable, "-c", LATE_WORKERS, wait], PORT) as app:
        wait_until(lambda: len(children(app.pid)) == 2, "two workers")
        first, second = sorted(map(int, children(app.pid)))
        os.kill(first, signal.SIGUSR1)
        app.wait_for_slots(1)
        kill_keeper(app)
        os.kill(second, signal.SIGUSR1)
        wait_until(lambda: int(say(PORT)) == second, "the second worker to serve")
        assert len(listening(PORT)) == 1
        os.kill(app.pid, signal.SIGUSR1)
        wait_until(lambda: _answers(app), "another keeper")
        wait_until(
            lambda: [say(PORT) for _ in range(64)] and len(app.slots()) == 2, "a slot for each"
        )
        served_by = set()
        for cpu in cpus[:2]:
            with on_cpu(cpu):
                served_by |= {int(say(PORT)) for _ in range(10)}
        assert served_by == {first, second}
        (listener,) = app.status()["listeners"]
        assert listener["unslotted"] == 0
        assert app.stop() == 0


def _answers(app: Application) -> bool:
    try:
        return bool(app.status())
    except AssertionError:
        return False
