# SPDX-License-Identifier: GPL-2.0-or-later
"""The local fast path: what it carries arrives as over TCP, and whom it must leave alone."""

import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from local_tools import PATIENCE_S, exchange, pair

from fastsocket.bpf.libbpf import BpfError
from fastsocket.local import fastpath, selftest
from fastsocket.local.fastpath import FastPath, Off

pytestmark = pytest.mark.netns

MIB = 1 << 20
IPPROTO_MPTCP = 262
KERNEL_TYPES = Path("/sys/kernel/btf/vmlinux")


@pytest.fixture(params=["127.0.0.1", "::1"])
def listener(request: pytest.FixtureRequest) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in request.param else socket.AF_INET
    with socket.create_server((request.param, 0), family=family, backlog=256) as made:
        made.settimeout(PATIENCE_S)
        yield made


@pytest.fixture
def v4() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as made:
        made.settimeout(PATIENCE_S)
        yield made


def port_of(listener: socket.socket) -> int:
    port: int = listener.getsockname()[1]
    return port


# -- what it carries -----------------------------------------------------------------------------


@pytest.mark.parametrize("watcher", fastpath.WATCHERS)
@pytest.mark.parametrize("name", fastpath.OBJECTS)
def test_the_self_test_passes_here(
    name: str, watcher: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fastpath, "VARIANTS", ((name, watcher),))
    try:
        trial = selftest.self_test()
    except BpfError as refused:
        if watcher == fastpath.WATCHERS[0]:  # tests/kernel/test_steer.py has kernels that take it
            pytest.skip(f"the kernel has no BPF trampolines: {refused}")
        if name == "local-cast.bpf.o" and b"bpf_rdonly_cast" not in KERNEL_TYPES.read_bytes():
            pytest.skip(f"the kernel cannot cast: {refused}")
        raise
    assert trial.failed == {}
    assert set(trial.limits) <= set(selftest.LIMITS)


def test_questions_and_answers_go_past_tcp(listener: socket.socket) -> None:
    with FastPath(port_of(listener)) as fast, pair(listener) as (client, server):
        exchange(client, server)
        assert fast.status() == {
            "port": port_of(listener),
            "off": "",
            "connections": 1,
            "redirected": 20,
            "passed": 0,
            "spliced": 0,
        }
        assert fast.sockets() == 2
        client.close()
        assert server.recv(1) == b""
        server.close()
        assert fast.sockets() == 0


def test_a_socket_for_both_families(v4: socket.socket) -> None:
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as both:
        both.settimeout(PATIENCE_S)
        with (
            FastPath(port_of(both)) as fast,
            socket.create_connection(("127.0.0.1", port_of(both)), PATIENCE_S) as client,
            both.accept()[0] as server,
        ):
            server.settimeout(PATIENCE_S)
            exchange(client, server)
            assert fast.counters.redirected == 20


def test_it_takes_over_again_after_a_full_buffer(v4: socket.socket) -> None:
    with FastPath(port_of(v4)) as fast, pair(v4) as (client, server):
        client.setblocking(False)
        sent = 0
        with pytest.raises(BlockingIOError):
            while True:
                sent += client.send(bytes(64 << 10))
        while sent:
            sent -= len(server.recv(MIB))
        client.settimeout(PATIENCE_S)
        exchange(client, server)  # the first pieces may still be TCP's
        before = fast.counters.redirected
        exchange(client, server)
        assert fast.counters.redirected == before + 20


# -- whom it leaves alone ------------------------------------------------------------------------


def test_open_connections_stay_as_they_are(v4: socket.socket) -> None:
    with pair(v4) as (client, server), FastPath(port_of(v4)) as fast:
        exchange(client, server)
        assert fast.status()["connections"] == fast.sockets() == 0


def test_other_ports(v4: socket.socket) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other, FastPath(port_of(other)) as fast:
        with pair(v4) as (client, server):
            exchange(client, server)
        assert fast.status()["connections"] == fast.sockets() == 0


def test_a_full_map_is_plain_tcp(v4: socket.socket) -> None:
    with FastPath(port_of(v4), connections=2) as fast, ExitStack() as stack:
        pairs = [stack.enter_context(pair(v4)) for _ in range(6)]
        for client, server in pairs:
            exchange(client, server)
        assert fast.counters.connections == 2
        assert fast.counters.redirected == 2 * 20


def test_a_client_that_waits_in_its_calls(v4: socket.socket) -> None:
    """Its socket never gets into the map, so MSG_WAITALL and signals are the kernel's own."""
    with FastPath(port_of(v4)) as fast, socket.socket() as client:
        client.connect(v4.getsockname())
        with v4.accept()[0] as server:
            server.send(b"one")
            late = threading.Timer(0.1, server.send, (b"two",))
            late.start()
            assert client.recv(6, socket.MSG_WAITALL) == b"onetwo"
            late.join()
        assert fast.sockets() == fast.counters.connections == 0


def test_a_client_that_begins_to_wait(v4: socket.socket) -> None:
    with FastPath(port_of(v4)) as fast, pair(v4) as (client, server):
        exchange(client, server, 1)
        client.setblocking(True)
        for piece in (b"one", b"two"):
            server.send(piece)
        assert client.recv(6, socket.MSG_WAITALL) == b"onetwo"
        assert fast.counters.redirected == 2
        assert fast.counters.off == Off.ON


def test_a_server_that_waits_switches_it_off(v4: socket.socket) -> None:
    with FastPath(port_of(v4)) as fast, pair(v4) as (client, server):
        server.setblocking(True)
        exchange(client, server)
        assert fast.counters.off == Off.SERVER_BLOCKS
        assert "blocking" in fast.status()["off"]
        assert fast.counters.redirected <= 2


def test_a_server_that_has_not_accepted_yet(v4: socket.socket) -> None:
    with FastPath(port_of(v4)) as fast:
        with socket.create_connection(v4.getsockname(), PATIENCE_S) as client:
            client.send(b"early")
            assert fast.counters.redirected == 0
            with v4.accept()[0] as server:
                server.settimeout(PATIENCE_S)
                assert server.recv(64) == b"early"
                exchange(client, server)
        assert fast.counters.redirected == 20


def test_urgent_data_is_tcps(v4: socket.socket) -> None:
    with FastPath(port_of(v4)) as fast, pair(v4) as (client, server):
        client.send(b"!", socket.MSG_OOB)
        client.sendmsg([b"!"], [], socket.MSG_OOB)
        assert fast.counters.redirected == 0
        assert fast.counters.passed == 2
        # Its own timeout would wait for bytes that are not urgent.
        assert select.select([], [], [server], PATIENCE_S)[2]
        server.setblocking(False)
        assert server.recv(1, socket.MSG_OOB) == b"!"


def test_mptcp(v4: socket.socket) -> None:
    if Path("/proc/sys/net/mptcp/enabled").read_text().strip() != "1":
        pytest.skip("MPTCP is switched off on this host")
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_MPTCP) as both:
        both.bind(("127.0.0.1", 0))
        both.listen()
        both.settimeout(PATIENCE_S)
        with (
            FastPath(port_of(both)) as fast,
            socket.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_MPTCP) as client,
        ):
            client.settimeout(PATIENCE_S)
            client.connect(both.getsockname())
            with both.accept()[0] as server:
                server.settimeout(PATIENCE_S)
                exchange(client, server)
            assert fast.counters.connections == 0


# -- the end of its owner ------------------------------------------------------------------------

OWNER = """
import sys, time
from fastsocket.local.fastpath import FastPath
with FastPath(int(sys.argv[1])):
    print("ready", flush=True)
    time.sleep(60)
"""


def programs() -> set[str]:
    listed = subprocess.run(["bpftool", "prog"], capture_output=True, text=True, check=True).stdout
    return {line.split(":")[0] for line in listed.splitlines() if "name fs_local" in line}


def test_killing_the_owner_disturbs_nothing_and_leaves_nothing(v4: socket.socket) -> None:
    before = programs()
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(port_of(v4))], stdout=subprocess.PIPE, text=True
    )
    assert owner.stdout
    assert owner.stdout.readline() == "ready\n"
    with pair(v4) as (client, server):
        exchange(client, server)
        client.send(b"unread")
        owner.send_signal(signal.SIGKILL)
        owner.wait()
        owner.stdout.close()
        assert server.recv(64) == b"unread"
        exchange(client, server)
        with pair(v4) as later:
            exchange(*later)
    deadline = time.monotonic() + PATIENCE_S
    while programs() - before:
        assert time.monotonic() < deadline, "programs are left"
        time.sleep(0.05)
