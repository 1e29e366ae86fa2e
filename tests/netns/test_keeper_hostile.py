# SPDX-License-Identifier: GPL-2.0-or-later
"""The keeper against bad input: scribbled and damaged pages, strangers, reused pids, no room."""

import ctypes
import json
import os
import random
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import fastsocket
from fastsocket.app.keeper import Keeper
from fastsocket.app.protocol import Op, Request
from fastsocket.bpf.libbpf import BpfError
from fastsocket.bpf.objects import map_info
from fastsocket.config import Parameters
from fastsocket.errors import FastsocketError
from fastsocket.host.journal import entries
from fastsocket.listen import layout
from fastsocket.listen.layout import SlotState, Tier
from fastsocket.listen.page import StatusPage
from fastsocket.listen.select import Selector
from fastsocket.native import native_file

pytestmark = pytest.mark.netns

NAME = f"fastsocket/test-{os.getpid()}"
SO_COOKIE = 57
NOBODY = 65534

STRANGER = """
import socket, sys
from fastsocket.app.protocol import Op, Request
client = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
client.connect("\\0" + sys.argv[1])
client.send(Request(Op.STATUS).pack())
print(int.from_bytes(client.recv(4096)[4:8], "little", signed=True))
"""


class Tame(Keeper):
    """A keeper that lets a test take its steps one by one."""

    def sweep_and_rescue(self) -> None:
        self._rescue()

    def serve_once(self) -> None:
        self._serve()

    def place(self, port: int) -> int:
        return self._place(socket.AF_INET, bytes(16), port, bytes(8), True)

    def watch(self, pid: int) -> None:
        self._watch(pid)


@pytest.fixture
def keeper() -> Iterator[Tame]:
    environment = os.environ.get("FASTSOCKET_LISTEN_SPAWN")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
        server.bind("\0" + NAME)
        server.listen()
        page = StatusPage(sorted(os.sched_getaffinity(0)), Parameters())
        assert page.map, page.missing
        yield Tame(page, server, os.getpid(), ["a test"])
    if environment is None:
        del os.environ["FASTSOCKET_LISTEN_SPAWN"]


def test_a_scribbled_page_stops_neither_status_nor_rescue(keeper: Tame) -> None:
    chaos = random.Random(2014)
    size = ctypes.sizeof(layout.Listener)
    before = os.sched_getaffinity(0)
    for _ in range(20):
        for index in range(3):
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
        assert json.loads(json.dumps(keeper.status()))["listeners"]
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


def test_a_stranger_is_refused_and_logged(keeper: Tame) -> None:
    source = str(Path(fastsocket.__file__).parents[1])
    keeper.pid = -1  # else the stranger, a child of this test, would be one of the family
    serving = threading.Thread(target=keeper.serve_once)
    serving.start()
    done = subprocess.run(
        ["setpriv", "--reuid", str(NOBODY), "--clear-groups", sys.executable, "-c", STRANGER, NAME],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": source},
    )
    serving.join()
    assert done.stdout == "1\n", done.stderr  # EPERM
    assert any(f"of user {NOBODY}" in entry.text for entry in list(entries())[-50:])


def test_nonsense_is_answered_or_dropped(keeper: Tame) -> None:
    for data in (b"", b"x", bytes(24), b"\xff" * 64, Request(Op.ADD, 99, 9999).pack()):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
            client.connect("\0" + NAME)
            client.send(data)
            keeper.serve_once()


def test_a_reused_pid_is_no_owner(keeper: Tame) -> None:
    native = ctypes.CDLL(str(native_file("libfsocket.so")))
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


def test_a_claim_counter_that_went_wrong_is_mended(keeper: Tame) -> None:
    native = ctypes.CDLL(str(native_file("libfsocket.so")))
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
        other = map_info(selector.sockets_fd).number
        with pytest.raises(FastsocketError, match="no status page"):
            StatusPage.reopen(other)
