# SPDX-License-Identifier: GPL-2.0-or-later
"""The select program, fed with pages that these tests write: which socket gets a connection."""

import ctypes
import os
import random
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest

from fastsocket.config import Parameters
from fastsocket.listen import layout
from fastsocket.listen.layout import NO_CPU, Policy, SlotState, Tier
from fastsocket.listen.page import StatusPage
from fastsocket.listen.select import Selector, migration_works
from tests.apps.harness import on_cpu

pytestmark = pytest.mark.netns

CPUS = sorted(os.sched_getaffinity(0))
GENERATION = 7
PATIENCE_S = 10
WINDOW_SHIFT = 26  # of the program's window of load
HUNG_NS = 2**28  # of the program
PATIENCE = 2**16  # of the program, the most; and how it begins
FIRST_PATIENCE = PATIENCE // 16
STALL_NS = Parameters().stall_us * 1000


class Group:
    """Listening sockets of one port, one slot each, and the page that tells of them."""

    def __init__(self, count: int, tier: Tier = Tier.SELECT) -> None:
        self.page = StatusPage(CPUS, Parameters())
        assert self.page.map, self.page.missing
        self.entry = self.page.view.listener[0]
        self.entry.generation = GENERATION
        self.selector = Selector(self.page.map, 0, GENERATION, tier)
        self.sockets: list[socket.socket] = []
        port = 0
        for index in range(count):
            listener = socket.socket()
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            listener.bind(("127.0.0.1", port))
            listener.listen(1024)
            listener.setblocking(False)
            port = listener.getsockname()[1]
            self.sockets.append(listener)
            self.selector.add(index, listener)
            self.claim(index, CPUS[index % len(CPUS)])
        self.address = ("127.0.0.1", port)

    def claim(self, index: int, cpu: int = NO_CPU) -> None:
        slot = self.entry.slot[index]
        slot.state, slot.worker, slot.cpu = SlotState.CLAIMED, index, cpu
        if cpu != NO_CPU:
            slot.next = self.entry.cpu_slot[cpu]
            self.entry.cpu_slot[cpu] = index + 1
        self.entry.slots = max(self.entry.slots, index + 1)
        self.entry.claimed += 1

    def connect(self, cpu: int) -> int:
        """Connect from a CPU and return the slot whose socket got the connection."""
        with on_cpu(cpu), socket.create_connection(self.address, timeout=PATIENCE_S):
            # The client is connected first: the end of the handshake may still be on its way.
            ready = select.select(self.sockets, [], [], PATIENCE_S)[0]
            assert ready, "no socket got the connection"
            ready[0].accept()[0].close()
            index = self.sockets.index(ready[0])
            self.entry.slot[index].accepted += 1
            return index

    def connect_unaccepted(self, cpu: int, stack: ExitStack) -> None:
        with on_cpu(cpu):
            stack.enter_context(socket.create_connection(self.address, timeout=PATIENCE_S))

    def assigned(self) -> list[int]:
        return [self.entry.slot[index].assigned for index in range(len(self.sockets))]

    def close(self) -> None:
        for listener in self.sockets:
            listener.close()
        self.selector.close()


@pytest.fixture
def group() -> Iterator[Callable[..., Group]]:
    made: list[Group] = []

    def make(count: int, tier: Tier = Tier.SELECT) -> Group:
        made.append(Group(count, tier))
        return made[-1]

    yield make
    for each in made:
        each.close()


def test_the_cpu_of_the_syn_decides(group: Callable[..., Group]) -> None:
    two = group(len(CPUS))
    for cpu in CPUS * 5:
        assert CPUS[two.connect(cpu)] == cpu
    assert sum(two.entry.slot[i].spilled for i in range(len(CPUS))) == 0


def test_a_busy_worker_gets_nothing_beyond_the_threshold(group: Callable[..., Group]) -> None:
    two = group(2)
    two.page.view.worker[0].busy_since = time.monotonic_ns() - 2 * STALL_NS
    assert {two.connect(CPUS[0]) for _ in range(5)} == {1}
    assert two.entry.slot[1].spilled == 5
    two.page.view.worker[0].busy_since = 0
    assert two.connect(CPUS[0]) == 0


def test_the_patience_with_a_worker_grows_with_each_time_that_it_was_in_vain(
    group: Callable[..., Group],
) -> None:
    two = group(2)
    slot, worker = two.entry.slot[0], two.page.view.worker[0]
    away_ns, chosen = STALL_NS // 8, []
    while 0 not in chosen[-1:] and len(chosen) < 20:
        worker.busy_since = time.monotonic_ns() - away_ns
        chosen.append(two.connect(CPUS[0]))
        worker.busy_since = 0
        assert two.connect(CPUS[0]) == 0
    assert chosen[0] == 1, "away for an eighth of the threshold, at first"
    assert chosen[-1] == 0, "it comes back each time"
    assert FIRST_PATIENCE < slot.patience <= PATIENCE


@pytest.mark.parametrize("patience", [FIRST_PATIENCE, PATIENCE // 2])
def test_a_real_stall_leaves_the_patience_as_it_was(
    group: Callable[..., Group], patience: int
) -> None:
    two = group(2)
    slot, worker = two.entry.slot[0], two.page.view.worker[0]
    two.page.view.stall_ns = stall_ns = 96_000_000
    slot.patience = patience
    worker.busy_since = time.monotonic_ns() - stall_ns * 3 // 4
    assert two.connect(CPUS[0]) == 1
    assert slot.patience == patience * 3 // 2
    time.sleep(stall_ns / 1e9)
    assert {two.connect(CPUS[0]) for _ in range(3)} == {1}
    assert slot.patience == patience


def test_a_long_threshold_is_never_shortened(group: Callable[..., Group]) -> None:
    two = group(2)
    two.page.view.stall_ns = stall_ns = 10**9
    two.page.view.worker[0].busy_since = time.monotonic_ns() - stall_ns // 2
    assert two.connect(CPUS[0]) == 0


def test_the_patience_wanes(group: Callable[..., Group]) -> None:
    two = group(2)
    slot = two.entry.slot[0]
    slot.patience = PATIENCE
    for _ in range(5):
        assert two.connect(CPUS[0]) == 0
        time.sleep(2 ** (WINDOW_SHIFT + 1) / 1e9)
    assert FIRST_PATIENCE < slot.patience < PATIENCE * (31 / 32) ** 3


def test_a_worker_that_accepts_nothing_asks_for_help(group: Callable[..., Group]) -> None:
    two = group(2)
    with ExitStack() as stack:
        two.connect_unaccepted(CPUS[0], stack)
        time.sleep(2 * STALL_NS / 1e9)
        two.connect_unaccepted(CPUS[0], stack)
        assert two.assigned() == [1, 1]
        assert two.entry.help == 1
        assert two.entry.slot[0].help


def test_when_all_are_late_locality_remains(group: Callable[..., Group]) -> None:
    two = group(2)
    for worker in range(2):
        two.page.view.worker[worker].busy_since = time.monotonic_ns() - 2 * STALL_NS
    assert {two.connect(CPUS[0]) for _ in range(5)} == {0}


def test_one_source_cpu_is_spread(group: Callable[..., Group]) -> None:
    """Where all connections come in on one CPU, its worker takes its share and no more."""
    two = group(2)
    two.page.view.stall_ns = 10**12  # nobody accepts here: that is not what spreads them
    with ExitStack() as stack:
        clients = [stack.enter_context(socket.socket()) for _ in range(600)]
        for client in clients:
            client.setblocking(False)
        with on_cpu(CPUS[0]):
            for client in clients:  # some ten microseconds each: many within a window of 67 ms
                client.connect_ex(two.address)
        first, second = two.assigned()
    assert first + second == len(clients)
    assert second > len(clients) / 10


def test_connections_that_last_are_spread_by_live_count(group: Callable[..., Group]) -> None:
    two = group(2)
    for _ in range(400):
        two.entry.slot[two.connect(CPUS[0])].live += 1
    live = [two.entry.slot[index].live for index in range(2)]
    assert abs(live[0] - live[1]) <= 8
    for index, left in ((0, 150), (1, 50)):  # half of them go, unevenly
        two.entry.slot[index].live = left
    time.sleep(3 * 2**WINDOW_SHIFT / 1e9)  # else they would not have lasted
    for _ in range(200):
        two.entry.slot[two.connect(CPUS[0])].live += 1
    live = [two.entry.slot[index].live for index in range(2)]
    assert abs(live[0] - live[1]) <= 8


def test_late_for_a_moment_a_worker_keeps_its_share_of_what_lasts(
    group: Callable[..., Group],
) -> None:
    """Else the workers would be uneven for as long as the connections last."""
    two = group(2)
    two.entry.by_live = 1
    for index in range(2):
        two.entry.slot[index].live = 500
    for _ in range(60):
        two.page.view.worker[0].busy_since = time.monotonic_ns() - 2 * STALL_NS
        two.entry.slot[two.connect(CPUS[0])].live += 1
    live = [two.entry.slot[index].live for index in range(2)]
    assert live[1] - live[0] in range(1, 12), live


def test_a_worker_that_hangs_gets_nothing_that_lasts(group: Callable[..., Group]) -> None:
    two = group(2)
    two.entry.by_live = 1
    two.entry.slot[0].live, two.entry.slot[1].live = 100, 400
    two.page.view.worker[0].busy_since = time.monotonic_ns() - 2 * HUNG_NS
    assert {two.connect(CPUS[0]) for _ in range(10)} == {1}


def test_a_few_live_connections_leave_short_ones_local(group: Callable[..., Group]) -> None:
    two = group(2)
    two.page.view.slack = 1000
    slot = two.entry.slot[0]
    slot.live, slot.epoch = 6, time.monotonic_ns() >> WINDOW_SHIFT
    slot.window = 100
    assert {two.connect(CPUS[0]) for _ in range(8)} == {0}


def test_the_least_late_of_two_late_workers(group: Callable[..., Group]) -> None:
    two = group(2)
    now = time.monotonic_ns()
    two.page.view.worker[0].busy_since = now - 50 * STALL_NS
    two.page.view.worker[1].busy_since = now - 2 * STALL_NS
    assert {two.connect(CPUS[0]) for _ in range(5)} == {1}


def test_handshakes_that_never_end_are_forgotten(group: Callable[..., Group]) -> None:
    two = group(2)
    two.connect(CPUS[0])
    two.entry.slot[0].assigned += 5
    two.connect(CPUS[0])
    time.sleep(2 * STALL_NS / 1e9)
    assert two.connect(CPUS[0]) == 1, "slot 0 seems to accept nothing"
    time.sleep(1.1)
    assert two.connect(CPUS[0]) == 0
    assert two.entry.slot[0].settled == 5


def test_stray_packets_are_no_connections(group: Callable[..., Group]) -> None:
    """Data for a connection that is gone reaches the program too, as nothing else takes it."""
    two = group(2)
    before = sum(two.assigned())
    with raw_segment(two.address[1]) as send:
        for _ in range(10):
            send()
    assert sum(two.assigned()) == before
    two.connect(CPUS[0])
    assert sum(two.assigned()) == before + 1


@contextmanager
def raw_segment(port: int) -> Iterator[Callable[[], int]]:
    """Send ACKs of no connection to a port of 127.0.0.1."""
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP) as raw:
        ack = struct.pack("!HHIIBBHHH", 9, port, 1, 1, 5 << 4, 0x10, 1024, 0, 0)
        pseudo = socket.inet_aton("127.0.0.1") * 2 + struct.pack("!BBH", 0, 6, len(ack))
        total = sum(struct.unpack(f"!{len(pseudo + ack) // 2}H", pseudo + ack))
        total = (total & 0xFFFF) + (total >> 16)
        total = (total & 0xFFFF) + (total >> 16)
        segment = ack[:16] + struct.pack("!H", ~total & 0xFFFF) + ack[18:]
        yield lambda: raw.sendto(segment, ("127.0.0.1", 0))


def test_policies(group: Callable[..., Group]) -> None:
    two = group(2)
    two.page.view.policy = Policy.SPREAD
    two.page.view.stall_ns = 10**12
    with ExitStack() as stack:
        for _ in range(20):
            two.connect_unaccepted(CPUS[0], stack)
        assert two.assigned() == [10, 10]
        for listener in two.sockets:
            for _ in range(10):
                listener.accept()[0].close()
    two.page.view.policy = Policy.HASH
    before = two.assigned()
    for _ in range(5):
        two.connect(CPUS[0])
    assert two.assigned() == before  # the kernel chose


def test_paused_orphaned_and_free_slots_get_nothing(group: Callable[..., Group]) -> None:
    for state in (SlotState.PAUSED, SlotState.ORPHAN, SlotState.FREE):
        two = group(2)
        two.entry.slot[0].state = state
        two.entry.claimed = 1
        assert {two.connect(CPUS[0]) for _ in range(5)} == {1}


def test_another_generation_is_left_to_the_kernel(group: Callable[..., Group]) -> None:
    two = group(2)
    two.entry.generation = GENERATION + 1
    for _ in range(5):
        two.connect(CPUS[0])
    assert two.assigned() == [0, 0]


def test_a_scribbled_page_loses_no_connection(group: Callable[..., Group]) -> None:
    """Whatever a hostile worker writes, connections reach one of its application's sockets."""
    two = group(2, Tier.MIGRATE)
    chaos = random.Random(20141)
    size = ctypes.sizeof(layout.Listener)
    for _ in range(60):
        memory = chaos.randbytes(size)
        ctypes.memmove(ctypes.addressof(two.entry), memory, size)
        two.entry.generation = GENERATION
        for worker in range(layout.MAX_WORKERS):
            two.page.view.worker[worker].busy_since = chaos.getrandbits(64)
        two.connect(chaos.choice(CPUS))


def test_migration_is_tried_by_doing() -> None:
    page = StatusPage(CPUS, Parameters())
    assert page.map
    with Selector(page.map, layout.MAX_LISTENERS - 1, 0, Tier.MIGRATE) as selector:
        assert migration_works(selector) == ""


def test_a_closed_slots_queue_moves(group: Callable[..., Group]) -> None:
    two = group(2, Tier.MIGRATE)
    two.page.view.stall_ns = 10**12
    two.entry.slot[1].live = 100  # so that all of them stay local
    with ExitStack() as stack:
        for _ in range(8):
            two.connect_unaccepted(CPUS[0], stack)
        assert two.assigned() == [8, 0]
        two.entry.slot[0].state = SlotState.ORPHAN
        two.entry.claimed = 1
        two.sockets[0].close()
        two.sockets[1].setblocking(True)
        two.sockets[1].settimeout(PATIENCE_S)
        for _ in range(8):
            two.sockets[1].accept()[0].close()
