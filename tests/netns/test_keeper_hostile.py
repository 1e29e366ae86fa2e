# SPDX-License-Identifier: GPL-2.0-or-later
"""The keeper against bad input: scribbled pages, strangers, nonsense."""

import ctypes
import errno
import json
import os
import random
import socket
import struct
import tempfile

import pytest

from fastsocket.app import processes, requests
from fastsocket.app.protocol import Op, Request
from fastsocket.bpf.libbpf import BpfError
from fastsocket.host.journal import entries
from fastsocket.listen import layout
from fastsocket.listen.layout import SlotState, Tier
from tests.netns.keeper_tools import NOBODY, SO_COOKIE, Tame, is_dropped, silent, sleeper

pytestmark = pytest.mark.netns


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
