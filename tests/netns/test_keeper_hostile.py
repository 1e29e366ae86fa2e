# SPDX-License-Identifier: GPL-2.0-or-later
"""The keeper against bad input: scribbled and damaged pages, strangers, reused pids, no room."""

import ctypes
import errno
import json
import os
import random
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import Mock

import pytest

import fastsocket
from fastsocket.app import processes, requests
from fastsocket.app.keeper import Keeper
from fastsocket.app.protocol import Op, Request, unpack_error
from fastsocket.bpf.libbpf import BpfError, Map
from fastsocket.bpf.objects import map_info
from fastsocket.config import Parameters
from fastsocket.errors import FastsocketError
from fastsocket.host.journal import entries
from fastsocket.listen import layout
from fastsocket.listen.layout import SlotState, Tier
from fastsocket.listen.page import StatusPage
from fastsocket.listen.select import Selector
from fastsocket.native import LIBRARIES, native_file

pytestmark = pytest.mark.netns

NAME = f"fastsocket/test-{os.getpid()}"
SO_COOKIE = 57
NOBODY = 65534

# Connects, asks if it is told what to, and prints the errno in the answer.
STRANGER = """
import socket, sys
from fastsocket.app.protocol import Op, Request, unpack_error
client = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
client.settimeout(10)
client.connect("\\0" + sys.argv[1])
if sys.argv[2:]:
    client.send(Request(Op[sys.argv[2]]).pack())
print(unpack_error(client.recv(4096)))
"""


class Tame(Keeper):
    """A keeper that lets a test take its steps one by one."""

    def sweep_and_rescue(self) -> None:
        self._due = None
        self._rescue()

    def is_due(self) -> bool:
        return self._due is not None

    def step(self, patience: float = 0) -> None:
        for key, _ in self._events.select(patience):
            key.data()

    def place(self, port: int) -> int:
        return self.listeners.place(socket.AF_INET, bytes(16), port, bytes(8), True)

    def watch(self, pid: int) -> None:
        self._watch(pid, vouched=True)

    def adopt(self) -> list[int]:
        self._adopt()
        return list(self.processes)

    def expire(self) -> None:
        self._requests.expire()

    def ask(self, data: bytes, *fds: int) -> int | None:
        """Return the errno in its reply to a request of this process."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
            client.settimeout(10)
            client.connect("\0" + NAME)
            socket.send_fds(client, [data], fds)
            self.step(10)
            self.step(10)
            return unpack_error(client.recv(4096))

    def stranger(self, *words: str, user: int = 0) -> str:
        """Return what the STRANGER prints."""
        source = str(Path(fastsocket.__file__).parents[1])
        command = [sys.executable, "-c", STRANGER, NAME, *words]
        with subprocess.Popen(
            ["setpriv", "--reuid", str(user), "--clear-groups", *command],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": source},
        ) as asking:
            while asking.poll() is None:
                self.step(0.05)
            assert asking.stdout
            return asking.stdout.read().strip()


@pytest.fixture
def keeper() -> Iterator[Tame]:
    environment = os.environ.get("FASTSOCKET_LISTEN_SPAWN")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
        server.bind("\0" + NAME)
        server.listen()
        page = StatusPage(sorted(os.sched_getaffinity(0)), Parameters())
        assert page.map, page.missing
        page.view.keeper = os.getpid()
        yield Tame(page, server, os.getpid(), NAME, ["a test"])
        page.view.keeper = 0  # it may stay mapped, and children of this process inherit that
    if environment is None:
        del os.environ["FASTSOCKET_LISTEN_SPAWN"]


@contextmanager
def sleeper(**environment: str) -> Iterator[int]:
    """A process that lives until the block ends."""
    with subprocess.Popen(["sleep", "600"], env={**os.environ, **environment}) as process:
        try:
            yield process.pid
        finally:
            process.kill()


@contextmanager
def silent(count: int, keeper: Tame) -> Iterator[list[socket.socket]]:
    """Peers that connect and say nothing."""
    peers = []
    for _ in range(count):
        peers.append(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        peers[-1].connect("\0" + NAME)
        keeper.step(10)
    yield peers
    for peer in peers:
        peer.close()


def is_dropped(peer: socket.socket) -> bool:
    try:
        return peer.recv(1, socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False


def test_a_scribbled_page_stops_neither_status_nor_rescue(keeper: Tame) -> None:
    chaos = random.Random(2014)
    placed = [keeper.place(port) for port in (1, 2, 3)]
    size = ctypes.sizeof(layout.Listener)
    before = os.sched_getaffinity(0)
    for _ in range(20):
        for index in (*placed, 9):
            entry = keeper.page.view.listener[index]
            ctypes.memmove(ctypes.addressof(entry), chaos.randbytes(size), size)
            entry.lock = 0  # a garbage one may name a process that lives: that costs time only
            for slot in entry.slot:
                slot.state = chaos.choice([0, 1, 2, 3, 77])
        worker = keeper.page.view.worker[chaos.randrange(layout.MAX_WORKERS)]
        worker.pid = worker.tid = os.getpid()
        worker.pinned = 1
        worker.cpu = chaos.getrandbits(32)
        keeper.sweep_and_rescue()
        shown = json.loads(json.dumps(keeper.status()))["listeners"]
        assert [listener["listener"] for listener in shown] == placed
    assert os.sched_getaffinity(0) == before, "the page may name any thread; none is moved"


def test_a_foreign_socket_that_the_page_names_is_left_alone(keeper: Tame) -> None:
    keeper.watch(os.getpid())
    with socket.create_server(("127.0.0.1", 0)) as foreign:
        entry = keeper.page.view.listener[0]
        entry.generation, entry.tier, entry.slots, entry.claimed = 1, Tier.MIGRATE, 2, 1
        slot = entry.slot[1]
        slot.state, slot.published, slot.fd = SlotState.ORPHAN, 1, foreign.fileno()
        slot.cookie = int.from_bytes(foreign.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8), "little")
        keeper.sweep_and_rescue()
        socket.create_connection(foreign.getsockname(), timeout=2).close()


def test_a_stranger_is_refused_unheard_and_logged(keeper: Tame) -> None:
    assert keeper.stranger(user=NOBODY) == str(errno.EPERM)
    assert keeper.stranger("STATUS", user=NOBODY) != "0"
    assert keeper.status()["refused"] == 2
    assert any(f"of user {NOBODY}" in entry.text for entry in list(entries())[-50:])


def test_a_descendant_of_another_user_is_let_in(keeper: Tame) -> None:
    keeper.watch(os.getpid())
    assert keeper.stranger("WORKER", user=NOBODY) == "0"
    assert keeper.status()["refused"] == 0


def test_our_user_in_another_cgroup_may_only_look(
    keeper: Tame, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert keeper.stranger("WORKER") == "0"
    monkeypatch.setattr(processes, "cgroup_of", lambda pid: b"%d" % pid)
    assert keeper.stranger("STATUS") == "0"
    assert keeper.stranger("WORKER") == str(errno.EPERM)
    assert keeper.status()["refused"] == 1


def test_peers_that_say_nothing_keep_nobody_waiting(
    keeper: Tame, monkeypatch: pytest.MonkeyPatch
) -> None:
    with silent(requests.MOST_PEERS + 3, keeper) as peers:
        assert [is_dropped(peer) for peer in peers[:4]] == [True, True, True, False]
        assert keeper.ask(Request(Op.STATUS).pack()) == 0
        late = requests.time.monotonic() + requests.PATIENCE_S
        monkeypatch.setattr(requests.time, "monotonic", lambda: late)
        keeper.expire()
        assert all(map(is_dropped, peers))


def test_nonsense_is_answered(keeper: Tame) -> None:
    for data in (b"x", bytes(24), b"\xff" * 64, Request(Op.ADD, 99, 9999).pack()):
        assert keeper.ask(data) == errno.EINVAL
    with socket.socket() as member:
        assert keeper.ask(Request(Op.ADD, 99, 9999).pack(), member.fileno()) == errno.EINVAL
    with tempfile.TemporaryFile() as file:
        assert keeper.ask(Request(Op.JOIN).pack(), file.fileno()) == errno.ENOTSOCK


@pytest.mark.parametrize(
    "error",
    [struct.error("of a test"), ValueError("of a test"), BpfError("of a test", errno.EIO)],
    ids=lambda error: type(error).__name__,
)
def test_no_request_ends_it(
    keeper: Tame, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr(keeper, "status", fail)
    assert keeper.ask(Request(Op.STATUS).pack()) == errno.EIO
    assert "of a test" in keeper.reasons["last request"]
    monkeypatch.undo()
    assert keeper.ask(Request(Op.STATUS).pack()) == 0


def test_what_nobody_waits_for_is_not_done(keeper: Tame) -> None:
    """Its worker went on without the slot: the program must not choose that socket later."""
    keeper.listeners.tier = Tier.SELECT
    with socket.socket() as member, silent(2, keeper) as (gone, waiting):
        member.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        member.bind(("127.0.0.1", 0))
        member.listen()
        cookie = member.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8)
        socket.send_fds(gone, [Request(Op.ADD).pack()], [member.fileno()])
        gone.close()
        keeper.step(10)
        assert not keeper.listeners.knows(0, cookie)
        socket.send_fds(waiting, [Request(Op.ADD).pack()], [member.fileno()])
        keeper.step(10)
        assert keeper.listeners.knows(0, cookie)


def test_a_process_that_only_the_page_names_is_not_watched(keeper: Tame) -> None:
    with sleeper() as foreign:
        named = [1, os.getpid(), foreign, processes.LARGEST_PID + 1, 2**31, 2**32 - 1]
        keeper.page.view.process[: len(named)] = named
        assert keeper.adopt() == []
        assert keeper.page.processes() == set(), "forgotten"


@pytest.mark.parametrize("is_map", [True, False], ids=["BPF map", "memfd"])
def test_a_daemon_is_known_by_its_environment_or_by_its_page(
    keeper: Tame, is_map: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not is_map:
        monkeypatch.setattr(Map, "create", Mock(side_effect=BpfError("of a test", errno.EPERM)))
        keeper.processes.page = keeper.page = StatusPage([0], Parameters())
        assert keeper.page.map is None
    child = os.fork()
    if not child:
        signal.pause()
    try:
        with sleeper(FASTSOCKET_KEEPER=NAME) as named, sleeper(FASTSOCKET_KEEPER="x") as other:
            keeper.page.view.process[:3] = [other, named, child]
            assert keeper.adopt() == sorted([named, child])
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_the_page_of_another_keeper_is_none_of_ours(keeper: Tame) -> None:
    keeper.page.view.keeper = 1
    child = os.fork()
    if not child:
        signal.pause()
    try:
        assert not keeper.processes.includes(child)
        keeper.page.view.keeper = os.getpid()
        assert keeper.processes.includes(child)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_it_ends_with_the_application_whatever_the_page_says(keeper: Tame) -> None:
    with sleeper() as foreign, sleeper() as first:
        keeper.page.view.process[:] = [1, foreign] * (layout.MAX_PROCESSES // 2)
        keeper.pid = first
        running = threading.Thread(target=keeper.run, daemon=True)
        running.start()
        os.kill(first, signal.SIGKILL)
        running.join(30)
        assert not running.is_alive()


def test_a_reused_pid_is_no_owner(keeper: Tame) -> None:
    native = ctypes.CDLL(str(native_file(LIBRARIES["off"])))
    page = keeper.page.view
    entry = page.listener[0]
    worker = page.worker[0]
    worker.pid = worker.tid = os.getpid()
    entry.generation, entry.slots, entry.claimed = 1, 1, 1
    for start, state in ((0, SlotState.CLAIMED), (1, SlotState.FREE)):
        entry.slot[0].state, worker.start = SlotState.CLAIMED, start
        assert native.fsocket_sweep(ctypes.byref(page), 0)
        assert entry.slot[0].state == state
    assert entry.claimed == 0


def test_a_dead_workers_slot_is_given_up_once_its_lock_is_free(keeper: Tame) -> None:
    entry = keeper.page.view.listener[0]
    with sleeper() as worker, sleeper() as holder:
        keeper.watch(worker)
        keeper.page.view.worker[0].pid = keeper.page.view.worker[0].tid = worker
        entry.generation, entry.slots, entry.claimed, entry.lock = 1, 1, 1, holder
        entry.slot[0].state = SlotState.CLAIMED
        os.kill(worker, signal.SIGKILL)
        keeper.step(10)
        keeper.sweep_and_rescue()
        assert entry.slot[0].state == SlotState.CLAIMED
        assert keeper.is_due()
        entry.lock = 0
        keeper.sweep_and_rescue()
        assert entry.slot[0].state == SlotState.FREE
        assert not keeper.is_due()
    keeper.watch(worker)  # as one that told of itself and died before that was read
    assert keeper.is_due()


def test_a_claim_counter_that_went_wrong_is_mended(keeper: Tame) -> None:
    native = ctypes.CDLL(str(native_file(LIBRARIES["off"])))
    entry = keeper.page.view.listener[0]
    entry.claimed = 7
    assert native.fsocket_sweep(ctypes.byref(keeper.page.view), 0)
    assert entry.claimed == 0


def test_no_room(keeper: Tame) -> None:
    """A full map refuses a socket, a full page a listener; neither throws out what is there."""
    assert keeper.page.map
    with (
        Selector(keeper.page.map, 0, 1, Tier.SELECT) as selector,
        socket.socket() as member,
        socket.socket() as other,
    ):
        for each in (member, other):
            each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            each.bind(("127.0.0.1", member.getsockname()[1]))
            each.listen()
        selector.add(layout.MAX_SLOTS - 1, member)
        with pytest.raises(BpfError):
            selector.add(layout.MAX_SLOTS, other)
        assert len(selector.cookies()) == 1
    worker = keeper.page.view.worker[0]
    worker.pid = worker.tid = os.getpid()
    for port in range(1, layout.MAX_LISTENERS):
        entry = keeper.page.view.listener[keeper.place(port)]
        entry.slots = entry.claimed = 1
        entry.slot[0].state = SlotState.CLAIMED
    with pytest.raises(OSError, match="in use"):
        keeper.place(layout.MAX_LISTENERS)
    assert keeper.place(1) == 0


def test_a_page_that_is_not_whole_is_not_taken_over(keeper: Tame) -> None:
    assert keeper.page.map
    number = map_info(keeper.page.map.fd).number
    assert StatusPage.reopen(number).view.magic == layout.MAGIC
    keeper.page.view.magic = 0
    with pytest.raises(FastsocketError, match="damaged"):
        StatusPage.reopen(number)
    with Selector(keeper.page.map, 0, 1, Tier.SELECT) as selector:
        other = map_info(selector._sockets.fd).number
        with pytest.raises(FastsocketError, match="no status page"):
            StatusPage.reopen(other)


def test_a_child_that_is_late_is_waited_for(keeper: Tame) -> None:
    """A server that becomes a daemon: its parent may end before the child says that it is there."""
    keeper.page.view.forks = 1
    with sleeper(FASTSOCKET_KEEPER=NAME) as child:

        def be_born() -> None:
            keeper.page.view.process[0] = child
            keeper.page.view.born = 1

        threading.Timer(0.4, be_born).start()
        assert keeper.adopt() == [child]
    keeper.page.view.forks += 1
    assert child in keeper.adopt()
