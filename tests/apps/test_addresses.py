# SPDX-License-Identifier: GPL-2.0-or-later
"""A port is taken for others as long as it would be without us, and free again as soon."""

import signal
import socket
import sys

import pytest

from tests.apps.harness import Application, listening, python_server, say, wait_until

pytestmark = [pytest.mark.apps, pytest.mark.usefixtures("own_network")]

PORT = 8080
HERE = ["127.0.0.1", PORT]


@pytest.mark.parametrize("accelerated", [False, True])
@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0"])
@pytest.mark.parametrize("option", [0, socket.SO_REUSEADDR])
def test_second_server_on_the_port(option: int, address: str, accelerated: bool) -> None:
    """EADDRINUSE, whether or not it runs under Fastsocket too."""
    second = f"""
import errno, socket, sys
listener = socket.socket()
if {option}:
    listener.setsockopt(socket.SOL_SOCKET, {option}, 1)
try:
    listener.bind(({address!r}, {PORT}))
    listener.listen()
except OSError as error:
    sys.exit(error.errno == errno.EADDRINUSE and 7)
"""
    with python_server({"listen": [HERE]}) as app:
        app.wait_for_slots(2)
        with Application([sys.executable, "-c", second], accelerated=accelerated) as other:
            assert other.process.wait(10) == 7
            other.stop()
        assert say(PORT, b"?")
        assert app.stop() == 0


def rebind() -> None:
    """Take the port without SO_REUSEADDR: nothing may be left on it."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", PORT))
        listener.listen()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_port_is_free_after_the_end(number: int) -> None:
    with python_server({"listen": [HERE], "workers": 0}) as app:
        app.wait_for_slots(1)
        assert app.stop(number) == -number
        rebind()


def test_port_is_free_after_the_last_worker_was_killed() -> None:
    with python_server({"listen": [HERE]}) as app:
        pids = {slot["pid"] for slot in app.wait_for_slots(2)}
        assert app.stop(signal.SIGTERM) == 0
        assert not {pid for found in listening(PORT) for pid, _ in found.holders} & pids
        rebind()


CLOSES = """
import os, select, socket
for turn in range(20):
    listener = socket.socket()
    listener.bind(("127.0.0.1", 8080))
    listener.listen(5)
    listener.setblocking(False)
    if turn % 2:  # forked workers, and with them spare siblings in this process
        children = []
        for _ in range(2):
            child = os.fork()
            if not child:
                select.select([listener], [], [], 0.02)
                os._exit(0)
            children.append(child)
        for child in children:
            os.waitpid(child, 0)
    else:
        with select.epoll() as poller:
            poller.register(listener.fileno(), select.EPOLLIN)
            poller.poll(0.001)
    listener.close()
print("done")
"""


def test_close_frees_the_port_at_once() -> None:
    """Bound again without SO_REUSEADDR right after close(), with and without workers."""
    with Application([sys.executable, "-c", CLOSES]) as app:
        assert app.process.wait(20) == 0, app.process.communicate()[0]
        assert app.stop() == 0
        assert app.output == "done\n"


DUP = """
import os, select, socket, sys
listener = socket.create_server(("127.0.0.1", 8080))
if not os.fork():
    listener.setblocking(False)
    ready = select.poll()
    ready.register(listener.fileno(), select.POLLIN)
    while ready.poll():
        try:
            listener.accept()[0].sendall(b"worker")
        except BlockingIOError:
            pass
pipe, other = os.pipe()
fds = list(range(760, 840))
for fd in fds:
    os.dup2(pipe, fd)  # some of these numbers are ours
same = os.fstat(pipe)
assert all(os.path.samestat(os.fstat(fd), same) for fd in fds)
if not os.fork():
    listener.setblocking(False)
    with select.epoll() as poller:
        poller.register(listener.fileno(), select.EPOLLIN)
        while poller.poll():
            try:
                listener.accept()[0].sendall(b"second")
            except BlockingIOError:
                pass
for fd in fds:
    os.close(fd)
for fd in fds:
    try:
        os.fstat(fd)
    except OSError:
        continue
    sys.exit(1)
os.wait()
"""


def test_descriptors_that_the_application_wants() -> None:
    """It may use the numbers of ours; what it puts there is its own, and is gone when closed."""
    with Application([sys.executable, "-c", DUP], PORT) as app:
        slots = app.wait_for_slots(2)
        assert {say(PORT) for _ in range(20)} <= {b"worker", b"second"}
        assert app.process.poll() is None
        for slot in slots:
            app.stop_worker(slot["pid"])
        wait_until(lambda: not listening(PORT), "the port to be free")
        assert app.stop() == -signal.SIGTERM or app.process.returncode == 0


DAEMON = """
import ctypes, os, select, socket, sys
early = socket.create_server(("127.0.0.1", 8081))
select.select([early], [], [], 0)
spare = os.fork()  # binds siblings, which the daemon closes without knowing
if not spare:
    os._exit(0)
os.waitpid(spare, 0)
if os.fork():
    os._exit(0)
os.setsid()
select.select([early], [], [], 0)  # a worker of the listener, until it closes that
how = sys.argv[1]
if how == "close_range":
    ctypes.CDLL(None).close_range(3, 2**32 - 1, 0)
elif how == "closefrom":
    ctypes.CDLL(None).closefrom(3)
elif how == "close":
    for fd in range(3, 2000):
        try:
            os.close(fd)
        except OSError:
            pass
listener = socket.create_server(("127.0.0.1", 8080))
assert listener.fileno() == 3, "the number that it would have had"
for _ in range(2):
    if not os.fork():
        with select.epoll() as poller:
            listener.setblocking(False)
            poller.register(listener.fileno(), select.EPOLLIN)
            while poller.poll():
                try:
                    listener.accept()[0].sendall(b"%d" % os.getpid())
                except BlockingIOError:
                    pass
os.wait()
"""


@pytest.mark.parametrize("how", ["close_range", "closefrom", "close"])
def test_daemon_that_closes_all_descriptors(how: str) -> None:
    """The listeners that it closed wholesale are forgotten, and a new one is spread."""
    with Application([sys.executable, "-c", DAEMON, how], PORT) as app:
        slots = app.wait_for_slots(2)
        assert not listening(8081)
        assert {int(say(PORT)) for _ in range(20)} <= {slot["pid"] for slot in slots}
        for slot in slots:
            app.stop_worker(slot["pid"])
        wait_until(lambda: not listening(PORT), "the port to be free")
        app.expect_nothing_left()
