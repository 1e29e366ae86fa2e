# SPDX-License-Identifier: GPL-2.0-or-later
"""Programs that treat their listener in unusual ways: each must end as it does without us."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.apps.harness import fastsocket_command

pytestmark = [pytest.mark.apps, pytest.mark.usefixtures("own_network")]

START = """
import ctypes, os, select, socket, subprocess, sys, threading, time
HERE = ("127.0.0.1", 8080)
libc = ctypes.CDLL(None)
def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())
def new_poller(listener):
    poller = select.epoll()
    poller.register(listener, select.EPOLLIN)
    return poller
def serve(poller, name, seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for _ in poller.poll(0.1):
            try:
                connection, _ = listener.accept()
            except BlockingIOError:
                continue
            connection.send(name)
            connection.close()
def ask(cpu, times=12):
    os.sched_setaffinity(0, {cpu})
    names = set()
    for _ in range(times):
        with socket.create_connection(HERE, timeout=10) as client:
            names.add(client.recv(10).decode())
    return sorted(names)
children = []
def forked(work):
    child = os.fork()
    if not child:
        try:
            work()
        finally:
            os._exit(0)
    children.append(child)
    return child
def end():
    for child in children:
        os.kill(child, 9)
        os.waitpid(child, 0)
cpus = sorted(os.sched_getaffinity(0))[:2]
listener = socket.socket()
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
"""
LISTEN = """
listener.bind(HERE)
listener.listen(50)
listener.setblocking(False)
"""
CLOSED_BY_A_RAW_CALL = """
def work():
    poller = new_poller(listener)
    time.sleep(1)
    poller.unregister(listener)
    libc.syscall(3 if os.uname().machine == "x86_64" else 57, listener.fileno())
    time.sleep(60)
forked(work), forked(work)
listener.close()
time.sleep(2)
for cpu in cpus:
    os.sched_setaffinity(0, {cpu})
    with socket.socket() as client:
        client.settimeout(5)
        say(os.strerror(client.connect_ex(HERE)))
with socket.create_server(HERE):
    say("free")
end()
"""
ANOTHER_POLLER = """
def first():
    serve(new_poller(listener), b"a", 60)
def second():
    time.sleep(0.5)
    poller = new_poller(listener)
    poller.unregister(listener)
    keep = os.dup(0)
    serve(new_poller(listener), b"b", 60)
forked(first), forked(second)
time.sleep(2)
say(sorted({*ask(cpus[0]), *ask(cpus[1])}) == ["a", "b"])
end()
"""
A_THREADS_NEXT_POLLER = """
def work():
    def second():
        time.sleep(0.3)
        poller = new_poller(listener)
        serve(poller, b"b", 0.5)
        keep = os.dup(0)
        poller.close()
        number = os.dup(0)
        serve(new_poller(listener), b"b", 60)
    threading.Thread(target=second, daemon=True).start()
    serve(new_poller(listener), b"a", 60)
forked(work)
time.sleep(2)
say(all(ask(cpu, 3) for cpu in cpus))
end()
"""
SMALL_SEGMENTS = "listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 700)"
SEGMENT_SIZE = """
def work():
    serve(new_poller(listener), b"a", 60)
forked(work), forked(work)
time.sleep(1)
for cpu in cpus:
    os.sched_setaffinity(0, {cpu})
    with socket.create_connection(HERE, timeout=10) as client:
        client.recv(10)
        say(client.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG) <= 700)
end()
"""
PROGRAMS_OF_A_WORKER = """
def work():
    poller = new_poller(listener)
    time.sleep(1)
    say("from", len(os.sched_getaffinity(0)) == (1 if len(sys.argv) > 1 else len(cpus)))
    say(subprocess.run(["nproc"], capture_output=True).stdout.decode().strip())
    os.waitpid(os.posix_spawn("/usr/bin/nproc", ["nproc"], os.environ), 0)
    os.system("nproc")
    say(os.popen("nproc").read().strip())
    say("still", len(os.sched_getaffinity(0)) == (1 if len(sys.argv) > 1 else len(cpus)))
forked(work)
poller = new_poller(listener)
os.wait()
"""
BEYOND_THE_LIMIT = """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 4096))
os.waitpid(forked(lambda: None), 0)
for number in (1024, 1025):
    say(libc.dup2(1, number))
listener.close()
with socket.socket() as other:
    other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    other.bind(HERE)
    say("free")
"""
NODE = """
const net = require('net');
const upstream = net.createServer(client => client.end('hi'));
upstream.listen(8081, '127.0.0.1', () => {
  const server = net.createServer();
  server.listen(8080, '127.0.0.1', () => server.close(() => {
    const client = net.connect(8081, '127.0.0.1');
    client.on('data', data => { console.log(`got ${data}`); process.exit(0); });
  }));
});
"""


def outcome(command: list[str], accelerated: bool) -> str:
    words = fastsocket_command("run", "--", *command) if accelerated else command
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    return f"{done.returncode}\n{done.stdout}"


@pytest.mark.parametrize(
    "program",
    [
        pytest.param(LISTEN + CLOSED_BY_A_RAW_CALL, id="closed by a raw call"),
        pytest.param(LISTEN + A_THREADS_NEXT_POLLER, id="a thread's next poller"),
        pytest.param(
            "listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 700)"
            + LISTEN
            + SEGMENT_SIZE,
            id="segment size",
        ),
        pytest.param(LISTEN + BEYOND_THE_LIMIT, id="beyond the limit"),
    ],
)
def test_ends_as_without(cpus: list[int], program: str) -> None:
    command = [sys.executable, "-c", START + program]
    assert outcome(command, accelerated=True) == outcome(command, accelerated=False)


def test_another_poller_of_a_worker() -> None:
    """Both workers are reached. Without us chance decides who accepts, and may leave one out."""
    command = [sys.executable, "-c", START + LISTEN + ANOTHER_POLLER]
    assert outcome(command, accelerated=True) == "0\nTrue\n"


def test_programs_of_a_pinned_worker_are_not_confined(cpus: list[int]) -> None:
    command = [sys.executable, "-c", START + LISTEN + PROGRAMS_OF_A_WORKER]
    assert outcome([*command, "pinned"], accelerated=True) == outcome(command, accelerated=False)


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
def test_node_closes_a_listener_and_uses_its_number(tmp_path: Path) -> None:
    program = tmp_path / "program.js"
    program.write_text(NODE)
    assert outcome(["node", str(program)], accelerated=True) == "0\ngot hi\n"
