# SPDX-License-Identifier: GPL-2.0-or-later
"""The benchmark's BPF counters (native/bpf/count.bpf.c), behind the few calls that it needs."""

import os
import platform
import struct
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple, Self

from fastsocket.bpf.libbpf import BpfError, BpfObject, possible_cpus
from fastsocket.errors import MissingFeatureError
from fastsocket.native import native_file

__all__ = [
    "ACCEPTS",
    "ACTIVE",
    "ANY_PORT",
    "EVENTS",
    "LOSSES",
    "READS",
    "RESUMED",
    "SITES",
    "WOKEN",
    "Accepts",
    "Events",
    "Probe",
    "summed",
]

ANY_PORT = 0

# Programs that are attached together.
EVENTS = ("on_contention", "on_reschedule")
ACCEPTS = ("on_accept",)
SITES = ("on_contention_site",)
WOKEN = ("on_waking", "on_woken", "on_interrupt")
RESUMED = ("on_interrupted", "on_switch")
LOSSES = ("on_lost",)
READS = ("on_read",)
ACTIVE = ("on_open", "on_packet")

# Keys of target_map: enum role.
_LISTENER, _BACKEND = struct.pack("=I", 0), struct.pack("=I", 1)

# Numbers of accept and accept4: arch/x86/entry/syscalls/syscall_64.tbl and
# include/uapi/asm-generic/unistd.h, which arm64 uses.
_ACCEPT_NUMBERS = {"x86_64": (43, 288), "aarch64": (202, 242)}


class Events(NamedTuple):
    """Counts since the object was loaded, in the order of ``enum event``.

    Contentions and reschedule interrupts are system-wide. Of the watched listener: connections that
    ended in its queue, connections that ended unanswered because their owner died, and reads of
    its connections, with those that found data of their own CPU. Of the connections to the watched
    backend: packets that came in, and those of them that did on the CPU that had opened it.
    """

    contentions: int
    reschedules: int
    queued_lost: int
    accepted_lost: int
    reads: int
    local_reads: int
    active_packets: int
    local_active_packets: int


class Accepts(NamedTuple):
    """What was accepted, and how much of it came in on the CPU that accepted it."""

    accepted: int
    local: int


def summed(counts: Iterable[tuple[int, Accepts]]) -> dict[int, Accepts]:
    """Add up the counts of each key."""
    found: dict[int, Accepts] = {}
    for key, (accepted, local) in counts:
        before = found.get(key, Accepts(0, 0))
        found[key] = Accepts(before.accepted + accepted, before.local + local)
    return found


class Probe:
    """The loaded counters; only what is attached counts.

    Raises:
        MissingFeatureError: The kernel or the privileges do not allow it; the text says which.
    """

    def __init__(self) -> None:
        machine = platform.machine()
        if machine not in _ACCEPT_NUMBERS:
            raise MissingFeatureError(
                "accepts cannot be counted", f"the system calls of {machine} are not known"
            )
        self._object = BpfObject(native_file("count.bpf.o"))
        try:
            self._object.set_variable(0, struct.pack("=qq", *_ACCEPT_NUMBERS[machine]))
            self._object.load()
        except BpfError as error:
            self._object.close()
            raise MissingFeatureError(
                "the BPF counters cannot be loaded",
                os.strerror(error.errno),
                "they need root, or CAP_BPF and CAP_PERFMON",
            ) from error
        self._cpus = possible_cpus()
        self._events = self._object.map("events")
        self._threads = self._object.map("threads")
        self._sites = self._object.map("sites")
        self._stacks = self._object.map("stacks")
        self._woken = self._object.map("woken")

    @contextmanager
    def attached(self, *programs: str) -> Iterator[None]:
        """Attach `programs` for a block.

        Raises:
            MissingFeatureError: The kernel lacks one of the tracepoints.
        """
        with ExitStack() as stack:
            for name in programs:
                try:
                    stack.callback(self._object.program(name).attach().close)
                except BpfError as error:
                    raise MissingFeatureError(
                        f"{name} cannot be attached", os.strerror(error.errno)
                    ) from error
            yield

    def watch(self, netns: int, port: int = ANY_PORT, ports: int = 1) -> None:
        """Forget accepts, call sites and wake-ups; from now on count for `port` in `netns`.

        With `ports`, also for as many as that from `port` on.
        """
        for table in (self._threads, self._sites, self._woken):
            for key in list(table.keys()):
                table.delete(key)
        last = port + ports - 1
        self._object.map("target_map").update(_LISTENER, struct.pack("=III", netns, port, last))

    def watch_backend(self, netns: int, port: int) -> None:
        """From now on count connections that are opened in namespace `netns` to a `port`."""
        self._object.map("target_map").update(_BACKEND, struct.pack("=III", netns, port, port))

    def events(self) -> Events:
        """Return the counts of what has been attached so far."""
        return Events(*(sum(self._per_cpu(index)) for index in range(len(Events._fields))))

    def acceptors(self) -> dict[tuple[int, int], Accepts]:
        """Return the counts by thread id and CPU since :meth:`watch`."""
        found = {}
        for key in list(self._threads.keys()):
            value = self._threads.lookup(key)
            if value is not None:
                tid, cpu = struct.unpack("=II", key)
                found[tid, cpu] = Accepts(*struct.unpack("=QQ", value))
        return found

    def accepts(self) -> dict[int, Accepts]:
        """Return the counts by thread id since :meth:`watch`."""
        return summed((tid, counts) for (tid, _), counts in self.acceptors().items())

    def sites(self) -> list[tuple[list[int], int]]:
        """Return the stacks (innermost address first) that contended since :meth:`watch`."""
        found = []
        for key in list(self._sites.keys()):
            count, frames = self._sites.lookup(key), self._stacks.lookup(key)
            if count is not None and frames is not None:
                addresses = struct.unpack(f"={len(frames) // 8}Q", frames)
                found.append(([a for a in addresses if a], struct.unpack("=Q", count)[0]))
        return found

    def woken(self) -> dict[str, int]:
        """Return the reschedule interrupts sent since :meth:`watch`, by name of the woken task.

        The empty name stands for those that woke none.
        """
        found = {}
        for key in list(self._woken.keys()):
            count = self._woken.lookup(key)
            if count is not None:
                name = key.rstrip(b"\0").decode(errors="replace")
                found[name] = int.from_bytes(count, sys.byteorder)
        return found

    def close(self) -> None:
        """Unload the counters."""
        self._object.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _per_cpu(self, index: int) -> tuple[int, ...]:
        value = self._events.lookup(struct.pack("=I", index), 8 * self._cpus)
        return struct.unpack(f"={self._cpus}Q", value or bytes(8 * self._cpus))
