# SPDX-License-Identifier: GPL-2.0-or-later
"""What servers do to the descriptor of their listener: copies, children, shutdown(), limits."""

import socket
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.apps.harness import (
    PATIENCE_S,
    Application,
    listening,
    on_cpu,
    say,
    wait_until,
)

pytestmark = [pytest.mark.apps, pytest.mark.usefixtures("own_network")]

PORT = 8080

# Two workers, each with its own socket. `act(listener, poller)` in a worker returns the listener
# that it goes on with; each worker answers a client of any CPU with its name.
WORKERS = """
import os, select, signal, socket, sys, time
def serve(listener, poller):
    while True:
        for fd, _ in poller.poll():
            try:
                connection, _ = listener.accept()
            except OSError:  # nothing there, or it does not listen for a while
                time.sleep(0.01)
                continue
            with connection:
                connection.setblocking(True)
                if connection.recv(100) == b"act":
                    listener = act(listener, poller)
                connection.sendall(b"%d" % os.getpid())
listener = socket.create_server(("127.0.0.1", 8080))
listener.setblocking(False)
children = []
for _ in range(2):
    children.append(os.fork())
    if not children[-1]:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        poller = select.epoll()
        poller.register(listener, select.EPOLLIN)
        serve(listener, poller)
def end(number, frame):
    for child in children:
        os.kill(child, signal.SIGTERM)
        os.waitpid(child, 0)
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
while True:
    time.sleep(3600)
"""

COPY_AND_CLOSE = """
def act(listener, poller):
    copy = listener.dup()
    copy.setblocking(False)
    listener.close()
    return copy
"""

CLOSE_BESIDE_A_CHILD = """
def act(listener, poller):
    os.setpgid(0, 0)
    if os.fork() == 0:  # goes on with what it inherited
        serve(listener, poller)
    listener.close()
    signal.signal(signal.SIGTERM, lambda *_: os.killpg(0, signal.SIGKILL))
    time.sleep(3600)
"""

COPY_OF_NOTHING = """
import ctypes
def act(listener, poller):
    assert ctypes.CDLL(None).dup2(-1, listener.fileno()) == -1
    return listener
"""


def clients(cpus: Sequence[int], count: int = 20) -> set[bytes]:
    """Return who answers clients of each CPU."""
    answers = set()
    for cpu in cpus[:2]:
        with on_cpu(cpu):
            answers |= {say(PORT, b"?") for _ in range(count)}
    return answers


@pytest.mark.parametrize("act", [COPY_AND_CLOSE, COPY_OF_NOTHING], ids=["copy", "failed-dup2"])
def test_goes_on_with_its_slot(cpus: list[int], act: str) -> None:
    """A worker that closes one of two numbers of its listener still polls it."""
    with Application([sys.executable, "-c", act + WORKERS], PORT) as app:
        before = {slot["pid"]: slot["cookie"] for slot in app.wait_for_slots(2)}
        for cpu in cpus[:2]:
            with on_cpu(cpu):
                say(PORT, b"act")
        assert clients(cpus) == {b"%d" % pid for pid in before}
        assert {slot["pid"]: slot["cookie"] for slot in app.slots()} == before
        assert app.stop() == 0


def test_a_child_goes_on_with_what_it_inherited(cpus: list[int]) -> None:
    """Its parent closes the listener: the socket must not stop to listen under the child."""
    with Application([sys.executable, "-c", CLOSE_BESIDE_A_CHILD + WORKERS], PORT) as app:
        (sibling,) = [slot["cpu"] for slot in app.wait_for_slots(2) if slot["slot"] == 1]
        sockets = {found.cookie for found in listening(PORT)}
        with on_cpu(sibling), socket.create_connection(("127.0.0.1", PORT)) as client:
            client.sendall(b"act")
            wait_until(lambda: len(app.slots()) == 1, "the parent to close its listener")
            assert {found.cookie for found in listening(PORT)} == sockets
            assert all(clients(cpus))
        app.stop()


STOP_AND_LISTEN = """
def act(listener, poller):
    listener.shutdown(socket.SHUT_RD)
    poller.unregister(listener)
    while not os.path.exists(sys.argv[1]):
        time.sleep(0.01)
    listener.listen(50)
    poller.register(listener, select.EPOLLIN)
    return listener
"""


def test_shutdown_stops_all_and_listen_revives_them(cpus: list[int], tmp_path: Path) -> None:
    """As it does where all workers share one socket."""
    go_on = tmp_path / "go-on"
    with Application([sys.executable, "-c", STOP_AND_LISTEN + WORKERS, go_on], PORT) as app:
        app.wait_for_slots(2)
        with on_cpu(cpus[0]), socket.create_connection(("127.0.0.1", PORT)) as client:
            client.sendall(b"act")
            wait_until(lambda: not listening(PORT), "no socket to listen")
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", PORT))
            go_on.touch()
            assert client.recv(100)
        wait_until(
            lambda: [found.backlog for found in listening(PORT)] == [50, 50], "both to listen"
        )
        for cpu in cpus[:2]:
            with on_cpu(cpu), socket.create_connection(("127.0.0.1", PORT)) as client:
                client.settimeout(0.1)
                with pytest.raises(TimeoutError):  # its worker waits for what it will say
                    client.recv(100)
                client.settimeout(PATIENCE_S)
                client.sendall(b"?")
                assert client.recv(100)
        assert len(clients(cpus)) == 2
        assert app.stop() == 0


HOARD = """
def act(listener, poller):
    hoard = []
    try:
        while True:
            hoard.append(os.dup(0))
    except OSError:
        pass
    print(len(hoard), flush=True)
    for fd in hoard:
        os.close(fd)
    return listener
"""


@pytest.mark.parametrize(("soft", "hard", "taken"), [(64, 256, 0), (256, 256, 16)])
def test_numbers_are_the_applications(cpus: list[int], soft: int, hard: int, taken: int) -> None:
    """Our sockets take none of those that it may use; or, without a higher limit, few."""
    limit = ["prlimit", f"--nofile={soft}:{hard}", sys.executable, "-c", HOARD + WORKERS]
    numbers = {}
    for accelerated in (False, True):
        with Application(limit, PORT, accelerated=accelerated) as app:
            if accelerated:
                app.wait_for_slots(2)
            say(PORT, b"act")
            app.stop()
            numbers[accelerated] = int(app.output.split()[0])
    assert numbers[False] - taken <= numbers[True] <= numbers[False]
