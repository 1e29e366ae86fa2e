# SPDX-License-Identifier: GPL-2.0-or-later
"""Making the status page and reading it."""

import ctypes
import fcntl
import mmap
import os
import socket
import time
from collections.abc import Iterable, Mapping, Sequence
from enum import IntEnum
from typing import Any, Self

from fastsocket.bpf.libbpf import Map
from fastsocket.bpf.objects import map_by_id
from fastsocket.config import Parameters
from fastsocket.errors import FastsocketError
from fastsocket.listen import layout
from fastsocket.listen.layout import (
    NO_CPU,
    FastEpoll,
    Means,
    Page,
    Pinned,
    Policy,
    SlotState,
    Tier,
)
from fastsocket.listen.lean import lean_snapshot
from fastsocket.listen.queues import Queue

__all__ = ["StatusPage", "snapshot"]

NAME = "fs_page"
BPF_MAP_TYPE_ARRAY = 2
SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
BPF_F_MMAPABLE = 1 << 10
PAGE_SIZE = mmap.ALLOCATIONGRANULARITY
MAPPED = -(-ctypes.sizeof(Page) // PAGE_SIZE) * PAGE_SIZE
FEWEST_SPARE_SLOTS = 16
LARGEST_ERRNO = 4095


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
            self.map = Map.create(BPF_MAP_TYPE_ARRAY, NAME, 4, size, 1, BPF_F_MMAPABLE)
            self.fd = self.map.fd
        except FastsocketError as error:  # no privilege, or no libbpf
            self.missing = str(error)
            self.fd = os.memfd_create(NAME, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            os.ftruncate(self.fd, MAPPED)
            # A worker that truncated it would end all others with SIGBUS.
            fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, SEALS)
        page = self._mapped()
        page.magic, page.version, page.size = layout.MAGIC, layout.VERSION, size
        page.policy = Policy[parameters.policy.upper()]
        page.listen_spawn = parameters.enable_listen_spawn
        page.busy_poll_us = parameters.busy_poll_us
        page.stall_ns, page.slack = parameters.stall_us * 1000, parameters.slack
        spare = parameters.slots or max(FEWEST_SPARE_SLOTS, 2 * len(cpus))
        page.spare_slots = min(spare, layout.MAX_SLOTS)
        page.cpus = min(len(cpus), layout.MAX_CPUS)
        page.cpu_order[: page.cpus] = list(cpus)[: page.cpus]

    def _mapped(self) -> Page:
        self.memory = mmap.mmap(self.fd, MAPPED, mmap.MAP_SHARED)
        self.view = Page.from_buffer(self.memory)
        return self.view

    @classmethod
    def reopen(cls, number: int) -> Self:
        """Return the page that is the BPF map of that id.

        Raises:
            BpfError: There is none, or no privilege.
            FastsocketError: It is another map, or not whole.
        """
        page = cls.__new__(cls)
        page.map, page.missing = map_by_id(number), ""
        page.fd = page.map.fd
        if (page.map.name, page.map.value_size) != (NAME, ctypes.sizeof(Page)):
            page.map.close()
            raise FastsocketError(f"the BPF map {number} is no status page of this version")
        view = page._mapped()
        if (view.magic, view.version) != (layout.MAGIC, layout.VERSION):
            raise FastsocketError(f"the status page {number} is damaged")
        return page

    def forget(self, pids: set[int]) -> None:
        """Clear dead processes from the table that the shim fills."""
        for index, pid in enumerate(self.view.process):
            if pid in pids:
                self.view.process[index] = 0

    def processes(self) -> set[int]:
        """Return the processes that registered, living or dead."""
        return {pid for pid in self.view.process if pid}


def snapshot(
    page: Page, queues: Mapping[int, Queue], among: Iterable[int] = range(layout.MAX_LISTENERS)
) -> list[dict[str, Any]]:
    """Return the listeners of a page with their slots, ready for JSON.

    A listener has ``address`` (text), ``port``, ``tier``, ``decisions``, ``queue``, ``unslotted``
    (workers that got no slot), ``reason`` (why the last one did not), ``passed``, ``stolen``,
    ``lean`` (see :func:`fastsocket.listen.lean.lean_snapshot`) and ``slots``. Its ``decisions`` are
    connections sent to a worker of the CPU that they came in on (``local``) or of another
    (``spilled``), accepted from another worker's slot (``stolen``), and left to the kernel's hash
    because no worker polled (``passed``); its ``queue`` is what its slots have ``waiting`` and
    ``dropped`` in sum, and the longest ``unserved_ms``. A slot has ``slot``, ``pid``, ``tid``,
    ``cpu`` (None if it serves none), ``cookie`` (of its socket, as ``ss -e`` shows it), ``pinned``
    (by Fastsocket), ``roams`` (no more, because other threads of its process do much of the work),
    ``state``, ``accepted``, ``assigned``, ``spilled``, ``live``, ``waiting`` (in its accept queue;
    where the kernel does not tell, assigned and not yet accepted), ``backlog`` (as many may wait)
    and ``dropped`` (by that queue; both None where the kernel does not tell, this one also with
    lean connections, where it counts the ACKs of deferred ones), ``unserved_ms`` (for how long
    connections have waited and none was accepted), ``busy`` (whether its worker is away from its
    wait), ``opened`` (connections that its worker opened from a port of its CPU), ``borrowed``
    (from another port, because those were used up), ``fast_epoll`` (of its worker: ``off`` where
    not asked for, ``on``, or why no longer: ``threads``, ``shared``) and ``merged`` (its epoll_ctl
    calls that were not made).

    Args:
        page: Of an application, which may have scribbled over it.
        queues: What the kernel tells of the accept queues, by socket cookie.
        among: The entries that may be listeners.
    """
    listeners = []
    for index in among:
        entry = page.listener[index]
        if not entry.generation:
            continue
        slots = [
            _slot(page, number, entry.slot[number], queues)
            for number in range(min(entry.slots, layout.MAX_SLOTS))
            if entry.slot[number].state != SlotState.FREE
        ]
        listeners.append(
            {
                "listener": index,
                "address": _address(entry),
                "port": entry.port,
                "tier": _name(Tier, entry.tier),
                "decisions": _decisions(entry),
                "queue": _queue(slots),
                "passed": entry.passed,
                "unslotted": entry.unslotted,
                "reason": os.strerror(entry.reason & LARGEST_ERRNO) if entry.reason else "",
                "stolen": entry.stolen,
                "lean": lean_snapshot(page, entry.lean),
                "slots": slots,
            }
        )
    return listeners


def _decisions(entry: layout.Listener) -> dict[str, int]:
    """Return what the select program chose for the listener so far, and what was stolen."""
    slots = [entry.slot[number] for number in range(min(entry.slots, layout.MAX_SLOTS))]
    assigned = entry.past_assigned + sum(slot.assigned for slot in slots)
    spilled = entry.past_spilled + sum(slot.spilled for slot in slots)
    return {
        "local": max(0, assigned - spilled),
        "spilled": spilled,
        "stolen": entry.stolen,
        "passed": entry.passed,
    }


def _queue(slots: Sequence[Mapping[str, Any]]) -> dict[str, int | None]:
    """Return the accept queues of all slots as one; None where the kernel does not tell."""
    drops = [slot["dropped"] for slot in slots if slot["dropped"] is not None]
    return {
        "waiting": sum(slot["waiting"] for slot in slots),
        "dropped": sum(drops) if drops else None,
        "unserved_ms": max((slot["unserved_ms"] for slot in slots), default=0),
    }


def _name(kind: type[IntEnum], value: int) -> str:
    """Return the name of a value that an application may have scribbled over."""
    return kind(value).name.lower() if value in list(kind) else "unknown"


def _address(entry: layout.Listener) -> str:
    raw = bytes(entry.address)
    if entry.family == socket.AF_INET:
        return socket.inet_ntop(socket.AF_INET, raw[:4])
    return socket.inet_ntop(socket.AF_INET6, raw)


def _slot(
    page: Page, number: int, slot: layout.Slot, queues: Mapping[int, Queue]
) -> dict[str, Any]:
    queue = queues.get(slot.cookie)
    waiting = queue.depth if queue else max(0, slot.assigned - slot.accepted - slot.settled)
    unserved_ns = max(0, time.monotonic_ns() - slot.seen_at)
    if not waiting or slot.accepted != slot.seen_accepted or not slot.seen_at:
        unserved_ns = 0
    worker = page.worker[slot.worker % layout.MAX_WORKERS]
    return {
        "slot": number,
        "pid": worker.pid,
        "tid": worker.tid,
        "cookie": slot.cookie,
        "cpu": None if slot.cpu == NO_CPU else slot.cpu,
        "pinned": worker.pinned == Pinned.YES,
        "roams": worker.pinned == Pinned.NO_MORE,
        "state": _name(SlotState, slot.state),
        "accepted": slot.accepted,
        "assigned": slot.assigned,
        "spilled": slot.spilled,
        "live": max(0, ctypes.c_int32(slot.live).value),
        "waiting": waiting,
        "backlog": queue.limit if queue else None,
        "dropped": queue.drops if queue and not page.lean >> Means.DEFER & 1 else None,
        "unserved_ms": unserved_ns // 1_000_000,
        "busy": worker.busy_since != 0,
        "opened": worker.opened,
        "borrowed": worker.borrowed,
        "fast_epoll": _name(FastEpoll, worker.fast_epoll),
        "merged": worker.merged,
    }
