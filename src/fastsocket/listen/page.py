# SPDX-License-Identifier: GPL-2.0-or-later
"""Making the status page and reading it."""

import ctypes
import mmap
import os
import socket
from collections.abc import Sequence
from enum import IntEnum
from typing import Any

from fastsocket.bpf.libbpf import Map
from fastsocket.config import Parameters
from fastsocket.errors import FastsocketError
from fastsocket.listen import layout
from fastsocket.listen.layout import (
    LEAN_NEVER,
    LEAN_PROOF,
    NO_CPU,
    Contradiction,
    Means,
    Page,
    Policy,
    SlotState,
    Tier,
)

__all__ = ["StatusPage", "snapshot"]

BPF_MAP_TYPE_ARRAY = 2
BPF_F_MMAPABLE = 1 << 10
PAGE_SIZE = mmap.ALLOCATIONGRANULARITY
MAPPED = -(-ctypes.sizeof(Page) // PAGE_SIZE) * PAGE_SIZE
FEWEST_SPARE_SLOTS = 16
CONTRADICTIONS: dict[int, str] = {
    Contradiction.SPOKE_FIRST: "it spoke before it read",
    Contradiction.WAITED: "it waited with the connection open or the request unanswered",
    Contradiction.SLEPT: "it called what may sleep between answer and close",
    Contradiction.WAS_SLOW: "it took long between answer and close",
    Contradiction.READ_ON: "it read from a connection that it had answered",
    Contradiction.SHARED: "another process or descriptor shared the connection",
    Contradiction.SET_OPTION: "it set such options itself",
    Contradiction.VARIED: "it closed after different numbers of answers",
}
_LEAN_OFF: dict[str, dict[str, Any]] = {
    means.name.lower(): {"state": "off", "proof": 0, "need": None, "drops": 0, "why": None}
    for means in Means
}


class StatusPage:
    """The page of one application: a BPF map where that is allowed, else plain shared memory.

    Args:
        cpus: CPUs to fill, in that order; empty to pin nothing.
        parameters: How the application is accelerated.
    """

    def __init__(self, cpus: Sequence[int], parameters: Parameters) -> None:
        self.map: Map | None = None
        self.missing = ""  # why there is no BPF map
        size = ctypes.sizeof(Page)
        try:
            self.map = Map.create(BPF_MAP_TYPE_ARRAY, "fs_page", 4, size, 1, BPF_F_MMAPABLE)
            self.fd = self.map.fd
        except FastsocketError as error:  # no privilege, or no libbpf
            self.missing = str(error)
            self.fd = os.memfd_create("fs_page", os.MFD_CLOEXEC)
            os.ftruncate(self.fd, MAPPED)
        self.memory = mmap.mmap(self.fd, MAPPED, mmap.MAP_SHARED)
        self.view = page = Page.from_buffer(self.memory)
        page.magic, page.version, page.size = layout.MAGIC, layout.VERSION, size
        page.policy = Policy[parameters.policy.upper()]
        page.listen_spawn = parameters.enable_listen_spawn
        page.stall_ns, page.slack = parameters.stall_us * 1000, parameters.slack
        page.lean = parameters.lean == "auto"
        spare = parameters.slots or max(FEWEST_SPARE_SLOTS, 2 * len(cpus))
        page.spare_slots = min(spare, layout.MAX_SLOTS)
        page.cpus = min(len(cpus), layout.MAX_CPUS)
        page.cpu_order[: page.cpus] = list(cpus)[: page.cpus]

    def forget(self, pids: set[int]) -> None:
        """Clear dead processes from the table that the shim fills."""
        for index, pid in enumerate(self.view.process):
            if pid in pids:
                self.view.process[index] = 0

    def processes(self) -> set[int]:
        """Return the processes that registered, living or dead."""
        return {pid for pid in self.view.process if pid}


def snapshot(page: Page) -> list[dict[str, Any]]:
    """Return the listeners of a page with their slots, ready for JSON.

    A listener has ``address`` (text), ``port``, ``tier``, ``passed``, ``unslotted``
    (workers that got no slot), ``reason`` (why the last one did not), ``stolen``, ``lean`` and
    ``slots``. Of each lean means, ``state`` is "off", "learning", "on", "dropped" or
    "own" (of the application), ``proof`` the connections in a row that speak for it, ``need`` how
    many it takes (None: not again), ``drops`` how often it was dropped, and ``why`` what last
    spoke against it. A slot has ``slot``, ``pid``, ``tid``, ``cpu`` (None if it serves none),
    ``cookie`` (of its socket, as ``ss -e`` shows it), ``pinned``, ``state``, ``accepted``,
    ``assigned``, ``spilled``, ``live``, ``waiting`` (assigned and not yet accepted) and ``busy``
    (whether its worker is away from its wait).
    """
    listeners = []
    for index in range(layout.MAX_LISTENERS):
        entry = page.listener[index]
        if not entry.generation:
            continue
        listeners.append(
            {
                "listener": index,
                "address": _address(entry),
                "port": entry.port,
                "tier": _name(Tier, entry.tier),
                "passed": entry.passed,
                "unslotted": entry.unslotted,
                "reason": os.strerror(entry.reason) if entry.reason else "",
                "stolen": entry.stolen,
                "lean": _lean(entry.lean) if page.lean else _LEAN_OFF,
                "slots": [
                    _slot(page, number, entry.slot[number])
                    for number in range(min(entry.slots, layout.MAX_SLOTS))
                    if entry.slot[number].state != SlotState.FREE
                ],
            }
        )
    return listeners


def _name(kind: type[IntEnum], value: int) -> str:
    """Return the name of a value that an application may have scribbled over."""
    return kind(value).name.lower() if value in list(kind) else "unknown"


def _address(entry: layout.Listener) -> str:
    raw = bytes(entry.address)
    if entry.family == socket.AF_INET:
        return socket.inet_ntop(socket.AF_INET, raw[:4])
    return socket.inet_ntop(socket.AF_INET6, raw)


def _lean(lean: layout.Lean) -> dict[str, dict[str, Any]]:
    found = {}
    for means in Means:
        entry = lean.means[means]
        never = entry.need == LEAN_NEVER
        if lean.own >> means & 1:
            state = "own"
        elif lean.on >> means & 1:
            state = "on"
        else:
            state = "dropped" if never or entry.drops else "learning"
        found[means.name.lower()] = {
            "state": state,
            "proof": entry.proof,
            "need": None if never else entry.need or LEAN_PROOF,
            "drops": entry.drops,
            "why": CONTRADICTIONS.get(entry.reason),
        }
    return found


def _slot(page: Page, number: int, slot: layout.Slot) -> dict[str, Any]:
    worker = page.worker[slot.worker % layout.MAX_WORKERS]
    return {
        "slot": number,
        "pid": worker.pid,
        "tid": worker.tid,
        "cookie": slot.cookie,
        "cpu": None if slot.cpu == NO_CPU else slot.cpu,
        "pinned": bool(worker.pinned),
        "state": _name(SlotState, slot.state),
        "accepted": slot.accepted,
        "assigned": slot.assigned,
        "spilled": slot.spilled,
        "live": slot.live,
        "waiting": max(0, slot.assigned - slot.accepted),
        "busy": worker.busy_since != 0,
    }
