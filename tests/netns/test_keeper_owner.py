# SPDX-License-Identifier: GPL-2.0-or-later
"""The keeper and what it owns: its application, its page, the slots of dead workers, no room."""

import ctypes
import errno
import os
import signal
import socket
import threading
from unittest.mock import Mock

import pytest

from fastsocket.bpf.libbpf import BpfError, Map
from fastsocket.bpf.objects import map_info
from fastsocket.config import Parameters
from fastsocket.errors import FastsocketError
from fastsocket.listen import layout
from fastsocket.listen.layout import SlotState, Tier
from fastsocket.listen.page import StatusPage
from fastsocket.listen.select import Selector
from fastsocket.native import LIBRARIES, native_file
from tests.netns.keeper_tools import NAME, Tame, sleeper

pytestmark = pytest.mark.netns


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
