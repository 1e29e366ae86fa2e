# SPDX-License-Identifier: GPL-2.0-or-later
"""The two threads by which a CPU takes packets in: which one when, and in order."""

import errno
import json
import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path

import pytest
from click.testing import CliRunner

from fastsocket.bpf.libbpf import BpfError
from fastsocket.cli.steer import command
from fastsocket.steer import device, pins, program
from fastsocket.steer.compile import compile_rule
from fastsocket.steer.cpus import online_cpus
from fastsocket.steer.layout import Queue
from fastsocket.steer.library import find_rule
from fastsocket.steer.threads import schedule_batch
from tests.netns.steer_tools import PEER, Traffic, ip, rule, total

pytestmark = [
    pytest.mark.netns,
    pytest.mark.usefixtures("one_cpu"),  # the first: senders are its children
    pytest.mark.skipif(len(online_cpus()) < 2, reason="needs two CPUs"),
]

LATER = time.monotonic_ns() + 3600 * 10**9
"""Reads in the future: nothing counts as late before."""
TO_THE_SECOND = "def rule(pkt, cpus):\n return 1 if pkt.proto == UDP else PASS\n"
SEQUENCE = """
import socket, struct, sys, time
sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sender.connect(("10.9.0.1", int(sys.argv[1])))
number, end = 0, time.monotonic() + float(sys.argv[2])
while time.monotonic() < end:
    # With its complement, so that all have one checksum: one in 65,536 looks unfinished.
    sender.send(struct.pack("=II", number, number ^ 0xffffffff))
    number += 1
    if number % 20 == 0:
        time.sleep(0.001)
print(number)
"""
COMPUTING = """
import os, sys, time
os.sched_setaffinity(0, {int(sys.argv[1])})
while True:
    end = time.monotonic() + float(sys.argv[2])
    while time.monotonic() < end:
        pass
    time.sleep(float(sys.argv[2]))
"""


@pytest.fixture
def steered(veth: str) -> str:
    """A device whose UDP goes to the second CPU, where nothing of this test runs."""
    cpus = online_cpus()
    ip("netns", "exec", PEER, "ethtool", "-K", "fs1", "tx", "off")
    device.attach(rule(TO_THE_SECOND), veth, cpus)
    return veth


@contextmanager
def queues(name: str) -> Iterator[tuple[Callable[[], Queue], Callable[[Queue], None]]]:
    """Ways to read and to write the second CPU's entry."""
    kept = pins.open_map(pins.place_of(name), own="queues")
    key = struct.pack("=I", online_cpus()[1])
    try:
        yield (
            lambda: Queue.from_buffer_copy(kept.lookup(key) or b""),
            lambda queue: kept.update(key, bytes(queue)),
        )
    finally:
        kept.close()


def threads() -> dict[int, str]:
    """Return the processes that take packets in on the second CPU, with their names."""
    found = {}
    for place in Path("/proc").glob("[0-9]*/comm"):
        try:
            name = place.read_bytes().decode(errors="replace").strip()
        except OSError:
            continue
        if name.startswith(f"cpumap/{online_cpus()[1]}/"):
            found[int(place.parent.name)] = name
    return found


def sleeps(pid: int) -> int:
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.split("\nvoluntary_ctxt_switches:")[1].split()[0])


@contextmanager
def computing(cpu: int, seconds: float = 60) -> Iterator[None]:
    """Compute on `cpu` for a block, with a pause as long after so many seconds."""
    process = subprocess.Popen([sys.executable, "-c", COMPUTING, str(cpu), str(seconds)])
    try:
        yield
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def unseen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads of this host are not noted, so that a test can say when there was one."""
    monkeypatch.setattr(device, "pin_feed", lambda *_: None)


@pytest.mark.usefixtures("unseen")
def test_packets_go_to_the_thread_that_waits(veth: str) -> None:
    before = set(threads())
    ip("netns", "exec", PEER, "ethtool", "-K", "fs1", "tx", "off")
    device.attach(rule(TO_THE_SECOND), veth, online_cpus())
    own = set(threads()) - before
    policies = {pid: os.sched_getscheduler(pid) for pid in own}
    assert sorted(policies.values()) == [os.SCHED_OTHER, os.SCHED_BATCH]
    time.sleep(0.1)  # until both wait
    slept = {pid: sleeps(pid) for pid in own}
    with queues(veth) as (_, write):
        write(Queue(read=LATER))
    assert Traffic(100, pause=0.001).received() == (100, {online_cpus()[1]})
    for pid, policy in policies.items():
        assert (sleeps(pid) > slept[pid]) == (policy == os.SCHED_BATCH)
    device.detach(veth)
    end = time.monotonic() + 5
    while set(threads()) & own:
        assert time.monotonic() < end, "the threads stay"
        time.sleep(0.05)


def test_none_overtakes_and_none_is_lost_while_the_threads_take_turns(steered: str) -> None:
    """Something computes on the second CPU every other second: packets change over and back."""
    second = online_cpus()[1]
    seen: list[int] = []
    ways: list[int] = []
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver,
        computing(second, 1.0),
        queues(steered) as (read, _),
    ):
        receiver.setsockopt(socket.SOL_SOCKET, 33, 1 << 24)  # SO_RCVBUFFORCE
        receiver.bind(("10.9.0.1", 0))
        receiver.settimeout(2)
        words = map(str, (receiver.getsockname()[1], 8))
        command = ["ip", "netns", "exec", PEER, sys.executable, "-c", SEQUENCE, *words]
        sender = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        with suppress(TimeoutError):
            while True:
                seen.append(struct.unpack("=I", receiver.recv(8)[:4])[0])
                ways.append(read().prompt)
        assert seen == list(range(int(sender.communicate(timeout=5)[0])))
        assert read().sent == read().taken
    assert sum(one != other for one, other in pairwise(ways)) >= 3, "hardly changed over"


def test_changes_over_when_nothing_is_on_its_way(steered: str) -> None:
    with queues(steered) as (read, write):
        soon = time.monotonic_ns() + 60 * 10**9
        write(Queue(until=soon))
        assert Traffic(1).received()[0] == 1
        assert read().prompt == 1
        # On their way.
        write(Queue(sent=5, until=soon))
        assert Traffic(1).received()[0] == 1
        assert read().prompt == 0


def test_what_was_lost_is_not_waited_for(steered: str) -> None:
    """Under steady traffic, whose packets are on their way now and then."""
    with queues(steered) as (read, write):
        write(Queue(sent=5))
        assert Traffic(400, pause=0.001).received()[0] == 400
        assert read().sent == read().taken == 405


def test_what_comes_although_it_counted_as_lost_is_not_counted_again(steered: str) -> None:
    with queues(steered) as (read, write):
        write(Queue(taken=5))
        assert Traffic(10).received()[0] == 10
        assert read().sent == read().taken == 10


def test_none_overtakes_on_the_cpu_itself(steered: str) -> None:
    os.sched_setaffinity(0, {online_cpus()[1]})
    with queues(steered) as (_, write):
        assert Traffic(1).received()[0] == 1
        assert (total("here"), total("redirected")) == (1, 0)
        write(Queue(sent=5))
        assert Traffic(1).received()[0] == 1
        assert (total("here"), total("redirected")) == (1, 1)


def test_returns_when_the_time_is_over(steered: str) -> None:
    with queues(steered) as (read, write):
        write(Queue(prompt=1, until=1))
        assert Traffic(1).received()[0] == 1
        assert (read().prompt, read().until) == (1, 0)
        assert read().late == 64, "one more that is late is enough"
        assert Traffic(1).received()[0] == 1
        assert read().prompt == 0


def test_late_again_lasts_longer(steered: str) -> None:
    pauses = []
    for pause in (0, 10**9, 2 * 10**9, 64 * 10**9):
        with queues(steered) as (read, write), computing(online_cpus()[1]):
            time.sleep(0.1)
            write(Queue(late=64, pause=pause, turned=LATER))
            for _ in range(20):
                if not read().until:
                    Traffic(5, pause=0.003).received()
            pauses.append(read().pause / 10**9)
    assert pauses == [1, 2, 4, 64]


def test_behind_a_reader_packets_are_not_late(unseen: None, steered: str) -> None:
    with queues(steered) as (read, write), computing(online_cpus()[1]):
        time.sleep(0.1)
        write(Queue(late=64, read=LATER))
        Traffic(50, pause=0.003).received()
        assert read().taken == 50
        assert (read().until, read().late) < (1, 64)


@pytest.mark.parametrize("name", ["receive_cpu", "hash"])
def test_reads_are_noted_for_their_cpu(veth: str, name: str) -> None:
    cpus = online_cpus()
    device.attach(compile_rule(find_rule(name), len(cpus)), veth, cpus)
    ip("link", "set", "lo", "up")
    with queues(veth) as (read, _), socket.create_server(("127.0.0.1", 0)) as server:
        with socket.create_connection(server.getsockname()) as client:
            connection, _ = server.accept()
            connection.send(b"x")
            os.sched_setaffinity(0, {cpus[1]})
            before = time.monotonic_ns()
            client.recv(1)
            connection.close()
        assert before <= read().read <= time.monotonic_ns()


def test_a_rule_works_where_reads_cannot_be_seen(
    veth: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise BpfError("no such tracepoint", errno.ENOENT)

    monkeypatch.setattr(device, "pin_feed", refuse)
    note = device.attach(rule(TO_THE_SECOND), veth, online_cpus()).note
    assert "readers count as computing" in note.reasons
    with pytest.raises(BpfError):
        device.attach(compile_rule(find_rule("receive_cpu"), 2), veth, online_cpus())
    monkeypatch.undo()
    note = device.attach(rule(TO_THE_SECOND), veth, online_cpus()).note  # an exchange
    assert "readers count as computing" not in note.reasons


def test_without_threads_that_wait_packets_interrupt(
    veth: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = online_cpus()[1]
    monkeypatch.setattr(program, "schedule_batch", lambda *_: frozenset())
    ip("netns", "exec", PEER, "ethtool", "-K", "fs1", "tx", "off")
    before = set(threads())
    note = device.attach(rule(TO_THE_SECOND), veth, online_cpus()).note
    assert "packets interrupt CPU" in note.reasons
    assert Traffic(50, pause=0.001).received() == (50, {second})
    end = time.monotonic() + 5
    while len(set(threads()) - before) > 1:  # that of the map without entries ends
        assert time.monotonic() < end
        time.sleep(0.05)


def test_status_names_cpus_that_are_interrupted(steered: str) -> None:
    second = online_cpus()[1]
    for until, prompt in ((LATER, [second]), (1, [])):
        with queues(steered) as (_, write):
            write(Queue(prompt=1, until=until))
        said = CliRunner().invoke(command, ["status", "--json"]).output
        assert json.loads(said)["devices"][0]["prompt"] == prompt
        text = CliRunner().invoke(command, ["status"]).output
        assert (f"interrupts CPU {second} for now" in text) == bool(prompt)
    (pins.place_of(steered) / "queues").unlink()  # as attached by an earlier version
    assert device.status()[0].prompt == ()


def test_only_threads_of_the_kernel_are_scheduled(veth: str) -> None:
    """A program may take any name."""
    device.attach(rule(TO_THE_SECOND), veth, online_cpus())
    name = next(iter(threads().values()))
    code = "import sys,time;open('/proc/self/comm','w').write(sys.argv[1]);print();time.sleep(60)"
    poser = subprocess.Popen([sys.executable, "-c", code, name], stdout=subprocess.PIPE)
    try:
        assert poser.stdout is not None
        poser.stdout.readline()
        number = int(name.rpartition(":")[2])
        assert schedule_batch(number, online_cpus()[1:2]) == {online_cpus()[1]}
        assert os.sched_getscheduler(poser.pid) == os.SCHED_OTHER
    finally:
        poser.kill()
        poser.wait()


def test_threads_of_no_map_are_not_found() -> None:
    assert schedule_batch(2**31, online_cpus()) == frozenset()
