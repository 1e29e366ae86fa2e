# SPDX-License-Identifier: GPL-2.0-or-later
"""`run --batch`: the scheduling policy SCHED_BATCH, and a long time slice.

With the policy, what wakes up does not interrupt what runs on its CPU. With the slice, clients that
have had their share of its CPU do not interrupt it either, for the scheduler lets a task of a
longer slice go on for longer, and picks it later. Its share of the CPU stays (sched(7)).
"""

import ctypes
import os
import struct
from contextlib import suppress
from typing import NamedTuple

from fastsocket.errors import MissingFeatureError
from fastsocket.host.syscalls import syscall

__all__ = ["SLICE_NS", "Scheduling", "leave_batch", "scheduling_of", "take_batch"]

SLICE_NS = 100_000_000
"""The time slice of `--batch`: the longest that the kernel takes. Before Linux 6.12 it has none."""

# struct sched_attr (include/uapi/linux/sched/types.h) of 48 bytes: size, policy, flags, nice,
# priority, runtime (the slice, of these policies), deadline, period.
_ATTRIBUTES = struct.Struct("=IIQiIQQQ")
_OWN_SLICE = 0  # the kernel's default


class Scheduling(NamedTuple):
    """How a process is scheduled.

    Attributes:
        policy: os.SCHED_OTHER, os.SCHED_BATCH and so on.
        slice_ns: Its time slice; 0 where the kernel has one for all, or does not tell.
    """

    policy: int
    slice_ns: int


def scheduling_of(pid: int) -> Scheduling:
    """Return the policy and the slice of a process; 0 is this one.

    Raises:
        OSError: It is gone, or the kernel refuses.
    """
    policy, slice_ns = os.sched_getscheduler(pid) & ~os.SCHED_RESET_ON_FORK, 0
    buffer = ctypes.create_string_buffer(_ATTRIBUTES.size)
    with suppress(OSError):
        syscall("sched_getattr", pid, buffer, len(buffer), 0)
        slice_ns = _ATTRIBUTES.unpack(buffer.raw)[5]
    return Scheduling(policy, slice_ns)


def take_batch() -> None:
    """Take the policy and the slice, which this process's children inherit.

    Raises:
        MissingFeatureError: It has another policy, which it keeps, or the kernel refuses.
    """
    try:
        policy = os.sched_getscheduler(0) & ~os.SCHED_RESET_ON_FORK
        if policy not in (os.SCHED_OTHER, os.SCHED_BATCH):
            raise MissingFeatureError(
                "it was started with a scheduling policy of its own, which it keeps"
            )
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
        with suppress(OSError):  # a filter of system calls that knows older ones
            _schedule(os.SCHED_BATCH, SLICE_NS)
    except OSError as error:
        raise MissingFeatureError("the kernel refuses SCHED_BATCH", error.strerror or "") from error


def leave_batch() -> None:
    """Return to how processes are scheduled by default, if this one inherited `take_batch`."""
    with suppress(OSError):
        if os.sched_getscheduler(0) == os.SCHED_BATCH:
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
            _schedule(os.SCHED_OTHER, _OWN_SLICE)


def _schedule(policy: int, slice_ns: int) -> None:
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    words = _ATTRIBUTES.pack(_ATTRIBUTES.size, policy, 0, nice, 0, slice_ns, 0, 0)
    syscall("sched_setattr", 0, ctypes.create_string_buffer(words, len(words)), 0)
