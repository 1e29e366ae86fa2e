# SPDX-License-Identifier: GPL-2.0-or-later
"""The queues of workers that died: handed over where nobody came for them."""

import sys
from collections import Counter
from ctypes import c_uint64

from fastsocket.app.listeners import Listeners
from fastsocket.app.processes import Processes
from fastsocket.listen import layout
from fastsocket.listen.layout import SlotState, Tier
from fastsocket.listen.queues import queues

__all__ = ["Orphans"]

MOST_CALLS = 5  # for the queue of one socket: its workers may have a reason not to accept


class Orphans:
    """The slots whose workers are gone.

    Args:
        listeners: What was handed in to the keeper.
        processes: Those of the application.
    """

    def __init__(self, listeners: Listeners, processes: Processes) -> None:
        self._listeners, self._processes = listeners, processes
        self._calls: Counter[int] = Counter()  # by cookie

    def rescue(self) -> bool:
        """Hand over the queues that dead workers left; return whether some are left to do.

        A slot whose socket went with its worker is free again. The page may name any socket: only
        one that was handed in to the keeper is touched.
        """
        listeners = self._listeners
        again = not listeners.sweep()
        listening = queues()
        for index in range(layout.MAX_LISTENERS):
            entry = listeners.page.view.listener[index]
            for number in range(min(entry.slots, layout.MAX_SLOTS)):
                slot = entry.slot[number]
                if slot.state != SlotState.ORPHAN:
                    continue
                if listening and slot.cookie not in listening:
                    listeners.native.fsocket_forget(
                        listeners.view, index, number, c_uint64(slot.cookie)
                    )
                elif slot.published:
                    again |= not _hand_over(listeners, self._processes, index, number)
        return self._call_for_help() or again

    def _call_for_help(self) -> bool:
        """Wake the workers of listeners where orphans have queues that the kernel did not move.

        They take from these before their own, but only when they come to accept: an empty
        connection makes one come. Returns whether a queue was left; that may be so for a moment.
        """
        listening, left = queues(), False
        for index in self._listeners.placed():
            entry = self._listeners.page.view.listener[index]
            for number in range(min(entry.slots, layout.MAX_SLOTS)):
                slot = entry.slot[number]
                waiting = listening.get(slot.cookie)
                if slot.state != SlotState.ORPHAN or not entry.claimed or not waiting:
                    continue
                if waiting.depth and self._calls[slot.cookie] < MOST_CALLS:
                    self._calls[slot.cookie] += 1
                    self._listeners.visit(index)
                    left = True
        return left


def _hand_over(listeners: Listeners, processes: Processes, index: int, number: int) -> bool:
    """Hand over one queue; false if the listener's lock was held."""
    slot = listeners.page.view.listener[index].slot[number]
    cookie = int(slot.cookie).to_bytes(8, sys.byteorder)
    known = listeners.knows(index, cookie)
    # In the classic tier siblings are not handed in: they have the listener's address at least.
    if not known and listeners.tier != Tier.CLASSIC:
        return True
    held = processes.borrow(slot.fd, slot.cookie)
    if held is None:
        return True
    with held:
        if not known and not listeners.has_address(index, held):
            return True
        return bool(
            listeners.native.fsocket_hand_over(listeners.view, index, number, held.fileno())
        )
