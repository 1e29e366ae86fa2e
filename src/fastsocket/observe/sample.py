# SPDX-License-Identifier: GPL-2.0-or-later
"""A sample: every counter of the host and of its accelerated applications at one moment.

Samples hold raw counters, so that any two of them give exact rates; `rates` does the subtraction.
They are written as arrays, without names, to keep recordings small.
"""

from typing import Protocol

import msgspec

__all__ = ["Core", "CoreUse", "Listener", "Rates", "Sample", "Slot", "SlotUse", "Source", "rates"]


class Core(msgspec.Struct, array_like=True, frozen=True):
    """One CPU's counters since boot, in clock ticks; `net_rx` counts receive softirqs."""

    cpu: int
    total: int
    busy: int
    softirq: int
    net_rx: int


class Slot(msgspec.Struct, array_like=True, frozen=True):
    """One listening socket and its worker; see native/include/page.h.

    Attributes:
        slot: Number within its listener.
        pid: The worker's process, 0 for none.
        cpu: CPU that the slot serves, -1 for none.
        state: "claimed", or another state of the status page.
        busy: Whether the worker was away from its wait.
        live: Connections accepted and not closed yet.
        waiting: Connections chosen for the slot and not accepted yet.
        accepted: Accepted so far.
        assigned: Chosen for the slot so far; `spilled` of these arrived on another CPU.
        spilled: See `assigned`.
    """

    slot: int
    pid: int
    cpu: int
    state: str
    busy: bool
    live: int
    waiting: int
    accepted: int
    assigned: int
    spilled: int


class Listener(msgspec.Struct, array_like=True, frozen=True):
    """One address that an application listens on; `passed` counts choices left to the kernel."""

    app: int
    address: str
    port: int
    tier: str
    passed: int
    slots: list[Slot]


class Sample(msgspec.Struct, array_like=True, frozen=True):
    """All counters at `time`, in seconds since 1970; `steering` is counters of rules by name."""

    time: float
    cores: list[Core]
    listeners: list[Listener]
    steering: dict[str, int]


class Source(Protocol):
    """Where samples come from: the live host, or a recording."""

    def read(self) -> Sample | None:
        """Return the next sample, or None where there is no more."""


class CoreUse(msgspec.Struct, frozen=True):
    """How one CPU spent the time between two samples, in percent; `net_rx` is per second."""

    cpu: int
    busy: float
    softirq: float
    net_rx: float


class SlotUse(msgspec.Struct, frozen=True):
    """What one slot did between two samples.

    Attributes:
        listener: Its listener, in the later sample.
        slot: Its counters, in the later sample.
        accepts: Connections accepted, per second.
        spills: Connections taken over from other CPUs, per second.
        stalled: Connections wait, the worker is busy, and it accepted none between the samples.
    """

    listener: Listener
    slot: Slot
    accepts: float
    spills: float
    stalled: bool


class Rates(msgspec.Struct, frozen=True):
    """What happened between two samples.

    Attributes:
        seconds: Time between them.
        cores: Use of each CPU that both have.
        slots: What each slot of the later sample did.
        local: Connections per second that stayed on the CPU that received them.
        spilled: Connections per second that another CPU's worker took.
        passed: Connections per second that were left to the kernel's choice.
        steering: Counters of rules, per second.
    """

    seconds: float
    cores: list[CoreUse]
    slots: list[SlotUse]
    local: float
    spilled: float
    passed: float
    steering: dict[str, float]

    @property
    def local_percent(self) -> float | None:
        """Share of chosen connections that stayed on their CPU; None where there were none."""
        chosen = self.local + self.spilled + self.passed
        return 100 * self.local / chosen if chosen else None


def rates(before: Sample, after: Sample) -> Rates:
    """Return what happened from `before` to `after`.

    A counter that went back belongs to something that was started anew: it counts from zero.
    """
    seconds = max(after.time - before.time, 1e-9)
    earlier = {core.cpu: core for core in before.cores}
    cores = [
        _core_use(earlier[core.cpu], core, seconds) for core in after.cores if core.cpu in earlier
    ]
    listeners = {_listener_key(listener): listener for listener in before.listeners}
    slots, local, spilled, passed = [], 0, 0, 0
    for listener in after.listeners:
        old = listeners.get(_listener_key(listener))
        known = {slot.slot: slot for slot in old.slots} if old else {}
        passed += _grown(old.passed, listener.passed) if old else 0
        for slot in listener.slots:
            first = known.get(slot.slot, slot)
            accepts = _grown(first.accepted, slot.accepted)
            spills = _grown(first.spilled, slot.spilled)
            local += max(0, _grown(first.assigned, slot.assigned) - spills)
            spilled += spills
            stalled = bool(slot.waiting and slot.busy and first is not slot and not accepts)
            slots.append(SlotUse(listener, slot, accepts / seconds, spills / seconds, stalled))
    steering = {
        name: _grown(before.steering.get(name, count), count) / seconds
        for name, count in after.steering.items()
    }
    return Rates(
        seconds, cores, slots, local / seconds, spilled / seconds, passed / seconds, steering
    )


def _listener_key(listener: Listener) -> tuple[int, str, int]:
    return listener.app, listener.address, listener.port


def _grown(before: int, after: int) -> int:
    """Return by how much a counter grew; one that restarted counts from zero."""
    return after - before if after >= before else after


def _core_use(before: Core, after: Core, seconds: float) -> CoreUse:
    """Return a CPU's use; the kernel may take back a tick of idle time, never more than all."""
    total = max(after.total - before.total, 1)
    busy, softirq = (
        min(100.0, max(0.0, 100 * grown / total))
        for grown in (after.busy - before.busy, after.softirq - before.softirq)
    )
    net_rx = _grown(before.net_rx, after.net_rx) / seconds
    return CoreUse(after.cpu, busy, min(softirq, busy), net_rx)
