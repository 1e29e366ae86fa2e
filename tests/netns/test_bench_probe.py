# SPDX-License-Identifier: GPL-2.0-or-later
"""Namespaces and BPF counters against known numbers."""

import errno
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
from fastsocket.bench.probe import ACCEPTS, ACTIVE, EVENTS, LOSSES, READS, SITES, WOKEN, Probe

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


@pytest.mark.parametrize("reserved", [False, True])
def test_a_client_is_not_given_the_port_of_a_server(netspace, reserved):
    """It would connect to itself, and the server could not have its port for a minute."""
    if reserved:
        netspace.reserve(PORT)
        netspace.reserve(PORT + 5)  # of a second server
    with netspace.entered(), socket.socket() as client:
        ports = Path("/proc/sys/net/ipv4/ip_local_port_range")
        ports.write_text(f"{PORT} {PORT + 1}", encoding="ascii")  # even ones are taken first
        refused = client.connect_ex(("127.0.0.1", PORT)) == errno.ECONNREFUSED
    assert refused is reserved


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
        assert probe.events() == (0,) * 8
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


def exchange(netspace, client_cpu, server_cpu, reverse=False):
    """Connect and send `COUNT` messages on one CPU, each read on the other before the next."""
    with netspace.entered(), socket.create_server(("127.0.0.1", PORT)) as listener:
        os.sched_setaffinity(0, {client_cpu})
        with socket.create_connection(listener.getsockname()) as client:
            server = listener.accept()[0]
            writer, reader = (server, client) if reverse else (client, server)
            for _ in range(COUNT):
                os.sched_setaffinity(0, {server_cpu if reverse else client_cpu})
                writer.sendall(b"x")
                os.sched_setaffinity(0, {client_cpu if reverse else server_cpu})
                assert reader.recv(16) == b"x"
            server.close()


@pytest.mark.parametrize("apart", [False, True])
def test_reads_are_local_where_the_data_came_in(netspace, all_cpus, apart):
    if apart and len(all_cpus) < 2:
        pytest.skip("needs two CPUs")
    with Probe() as probe, probe.attached(*READS):
        probe.watch(netspace.inode, PORT)
        exchange(netspace, all_cpus[0], all_cpus[int(apart)])
        seen = probe.events()
    assert seen.reads == COUNT
    assert seen.local_reads == (0 if apart else COUNT)


@pytest.mark.parametrize("apart", [False, True])
def test_packets_of_an_opened_connection_are_local_to_its_opener(netspace, all_cpus, apart):
    """Loopback hands the SYN-ACK to the opener's CPU, and data to that of the sender."""
    if apart and len(all_cpus) < 2:
        pytest.skip("needs two CPUs")
    with Probe() as probe, probe.attached(*ACTIVE), Netspace.make() as other:
        probe.watch_backend(netspace.inode, PORT)
        exchange(other, all_cpus[0], all_cpus[0], reverse=True)
        assert probe.events().active_packets == 0
        exchange(netspace, all_cpus[0], all_cpus[int(apart)], reverse=True)
        seen = probe.events()
    # The SYN-ACK and the server's FIN come from the opener's CPU, the messages from the server's.
    assert seen.active_packets == COUNT + 2
    assert seen.local_active_packets == (2 if apart else COUNT + 2)


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


# Renames itself, says so, and waits on a pipe for one byte after another.
SLEEPER = """
import os
open("/proc/self/comm", "w").write("woken-one")
print("ready", flush=True)
while os.read(0, 1):
    os.write(1, b".")
"""


def test_reschedule_interrupts_are_charged_to_the_woken_task(all_cpus):
    """A sleeper is woken on a CPU that idle-class work keeps from its idle loop."""
    if len(all_cpus) < 2:
        pytest.skip("needs two CPUs")
    if not Path("/sys/kernel/tracing/events/ipi/ipi_send_cpu").exists():
        pytest.skip("the kernel has no tracepoint ipi_send_cpu")
    here, there = all_cpus[:2]
    os.sched_setaffinity(0, {there})
    filler = subprocess.Popen(["chrt", "-i", "0", "sh", "-c", "while :; do :; done"])
    sleeper = subprocess.Popen(
        [sys.executable, "-c", SLEEPER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
    )
    try:
        os.sched_setaffinity(0, {here})
        assert sleeper.stdout.readline() == b"ready\n"
        with Probe() as probe, probe.attached(*WOKEN):
            probe.watch(0, 0)
            end = time.monotonic() + 10
            while "woken-one" not in probe.woken() and time.monotonic() < end:
                sleeper.stdin.write(b".")
                sleeper.stdout.read(1)
            assert probe.woken()["woken-one"] >= 1
            probe.watch(0, 0)
            assert "woken-one" not in probe.woken()
    finally:
        for process in (filler, sleeper):
            process.kill()
            process.communicate()


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
