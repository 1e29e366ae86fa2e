# SPDX-License-Identifier: GPL-2.0-or-later
"""Names for kernel addresses, and the function that a contention is charged to."""

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from pathlib import Path

__all__ = ["Symbols", "call_site"]

# Frames of the counter and of the lock itself: the site is who called them.
_LOCKING = (
    "bpf_", "__bpf_", "__traceiter_", "trace_contention", "stack_trace",
    "_raw_", "__raw_", "native_queued_spin_lock", "__pv_", "pv_queued", "kvm_",
    "queued_", "do_raw_", "mutex_", "__mutex", "rwsem_", "down_", "up_", "percpu_",
    "raw_spin_rq_lock", "task_rq_lock", "__task_rq_lock", "lock_timer_base",
    "osq_", "__lock", "lock_sock", "rt_mutex", "srso_", "__x86_",
)  # fmt: skip


class Symbols:
    """The text symbols of a kallsyms file."""

    def __init__(self, lines: Iterable[str]) -> None:
        found = []
        for line in lines:
            address, kind, name = line.split()[:3]
            if kind in "tTwW":
                found.append((int(address, 16), name))
        found.sort()
        self._addresses = [address for address, _ in found]
        self._names = [name for _, name in found]

    @classmethod
    def running(cls) -> "Symbols":
        """Read those of the running kernel; without privileges all addresses are zero there."""
        with Path("/proc/kallsyms").open(encoding="ascii", errors="replace") as lines:
            return cls(lines)

    def name(self, address: int) -> str:
        """Return the function that `address` lies in."""
        index = bisect_right(self._addresses, address) - 1
        return self._names[index] if index >= 0 else hex(address)


def call_site(names: Sequence[str]) -> str:
    """Return the first function of a stack, innermost first, that is neither lock nor counter."""
    outside = [name for name in names if not name.startswith(_LOCKING)]
    return outside[0] if outside else "unknown"
