# SPDX-License-Identifier: GPL-2.0-or-later
"""Namespaces and BPF counters against known numbers."""

import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from fastsocket.bench.counters import read, window
from fastsocket.bench.netspace import Netspace
from fastsocket.bench.probe import ACCEPTS, EVENTS, LOSSES, SITES, Probe

pytestmark = pytest.mark.netns

COUNT = 50
PORT = 8080


@pytest.fixture
def netspace():
    with Netspace.make() as made:
        yield made


@pytest.fixture
def all_cpus():
    before = os.sched_getaffinity(0)
    yield sorted(before)
    os.sched_setaffinity(0, before)


def connect_and_accept(netspace, client_cpu, server_cpu, count=COUNT):
    """Open `count` connections on one CPU and accept them on another."""
    with netspace.entered(), socket.create_server(("127.0.0.1", PORT), backlog=128) as listener:
        for _ in range(count):
            os.sched_setaffinity(0, {client_cpu})
            with socket.create_connection(listener.getsockname()):
                os.sched_setaffinity(0, {server_cpu})
                listener.accept()[0].close()


def test_namespace_is_private_ready_and_left_again(netspace):
    outside = Path("/proc/thread-self/ns/net").stat().st_ino
    assert netspace.inode != outside
    with netspace.entered():
        assert Path("/proc/thread-self/ns/net").stat().st_ino == netspace.inode
        text = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text(encoding="ascii")
        assert text.split() == ["1024", "65535"]
        with socket.create_server(("127.0.0.1", 8080)) as listener:
            socket.create_connection(listener.getsockname(), timeout=5).close()
    assert Path("/proc/thread-self/ns/net").stat().st_ino == outside


def test_namespace_is_left_after_an_error(netspace):
    outside = Path("/proc/thread-self/ns/net").stat().st_ino
    with pytest.raises(ZeroDivisionError), netspace.entered():
        _ = 1 / 0
    assert Path("/proc/thread-self/ns/net").stat().st_ino == outside


def test_namespace_knows_its_processes(netspace):
    assert netspace.processes() == []
    with netspace.entered():
        child = subprocess.Popen(["sleep", "30"])
    try:
        assert netspace.processes() == [child.pid]
    finally:
        child.kill()
        child.wait()
    assert netspace.processes() == []


def test_accepts_on_the_same_cpu_are_local(netspace, all_cpus):
    with Probe() as probe, probe.attached(*ACCEPTS):
        probe.watch(netspace.inode, PORT)
        connect_and_accept(netspace, all_cpus[0], all_cpus[0])
        assert probe.accepts() == {threading.get_native_id(): (COUNT, COUNT)}


def test_accepts_on_another_cpu_are_not_local(netspace, all_cpus):
    if len(all_cpus) < 2:
        pytest.skip("needs two CPUs")
    with Probe() as probe, probe.attached(*ACCEPTS):
        probe.watch(netspace.inode, PORT)
        connect_and_accept(netspace, all_cpus[0], all_cpus[1])
        assert probe.accepts() == {threading.get_native_id(): (COUNT, 0)}


def test_accepts_elsewhere_and_of_other_kinds_do_not_count(netspace, all_cpus, tmp_path):
    with Probe() as probe, probe.attached(*ACCEPTS), Netspace.make() as other:
        probe.watch(netspace.inode, PORT)
        connect_and_accept(other, all_cpus[0], all_cpus[0])
        assert probe.accepts() == {}
        with netspace.entered(), socket.socket() as idle:
            idle.bind(("127.0.0.1", PORT))
            idle.listen()
            idle.setblocking(False)
            with pytest.raises(BlockingIOError):
                idle.accept()
        assert probe.accepts() == {}


def test_watch_forgets_what_was_before(netspace, all_cpus):
    with Probe() as probe, probe.attached(*ACCEPTS):
        for count in (3, 2):
            probe.watch(netspace.inode, PORT)
            connect_and_accept(netspace, all_cpus[0], all_cpus[0], count)
            assert [each.accepted for each in probe.accepts().values()] == [count]


def test_nothing_counts_unattached(netspace, all_cpus):
    with Probe() as probe:
        probe.watch(netspace.inode, PORT)
        connect_and_accept(netspace, all_cpus[0], all_cpus[0])
        assert probe.accepts() == {}
        assert probe.events() == (0, 0, 0, 0)
        assert probe.sites() == []


def test_connections_lost_in_a_queue_are_told_from_those_of_a_dead_owner(netspace):
    """Three queued and two accepted when the only process dies; one was answered before."""
    code = f"""if True:
        import os, signal, socket, sys
        listener = socket.create_server(("127.0.0.1", {PORT}))
        print("ready", flush=True)
        kept = [listener.accept()[0] for _ in range(3)]
        kept[0].sendall(b"answer")
        print("accepted", flush=True)
        signal.pause()
    """
    with Probe() as probe, probe.attached(*LOSSES):
        probe.watch(netspace.inode, PORT)
        with netspace.entered():
            server = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
            server.stdout.readline()
            clients = [socket.create_connection(("127.0.0.1", PORT)) for _ in range(6)]
        server.stdout.readline()
        assert clients[0].recv(16) == b"answer"
        before = probe.events()
        server.kill()
        server.wait()
        after = probe.events()
        for client in clients:
            client.close()
        server.stdout.close()
    assert after.queued_lost - before.queued_lost == 3
    assert after.accepted_lost - before.accepted_lost == 2


def test_contentions_are_counted_with_their_stacks(all_cpus):
    """Threads of one process that wait for the same futex bucket and pipe contend in the kernel."""
    if len(all_cpus) < 2:
        pytest.skip("needs two CPUs")
    with Probe() as probe, probe.attached(*EVENTS, *SITES):
        probe.watch(0, 0)
        end = time.monotonic() + 10
        while not (probe.sites() and probe.events().contentions) and time.monotonic() < end:
            contend()
        assert probe.events().contentions > 0
        stacks = probe.sites()
        assert sum(count for _, count in stacks) > 0
        assert all(address > 2**63 for frames, _ in stacks for address in frames)


def contend():
    """Let two processes write to and read from one pipe for a moment."""
    reader, writer = os.pipe()
    command = ["dd", "bs=1", "count=30000", "status=none"]
    first = [subprocess.Popen(command, stdin=reader, stdout=subprocess.DEVNULL) for _ in range(2)]
    os.close(reader)
    with Path("/dev/zero").open("rb") as zero:
        second = [subprocess.Popen(command, stdin=zero, stdout=writer) for _ in range(2)]
    os.close(writer)
    for process in first + second:
        process.wait()


def test_window_counts_the_connections_and_segments_of_its_namespace(netspace, all_cpus):
    before = read(netspace, None)
    connect_and_accept(netspace, all_cpus[0], all_cpus[0])
    seen = window(before, read(netspace, None))
    assert seen.opens == COUNT
    # Three to open, and two to four to close: FIN and ACK of each side, sometimes in one.
    assert 5 * COUNT <= seen.segments <= 8 * COUNT
    assert 0 <= seen.busy_seconds <= (seen.seconds + 0.05) * os.cpu_count()
    assert seen.contentions is None
