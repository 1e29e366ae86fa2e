# SPDX-License-Identifier: GPL-2.0-or-later
"""The status page as native/include/page.h lays it out; the comments on the fields are there."""

import ctypes
from ctypes import c_uint8, c_uint16, c_uint32, c_uint64
from enum import IntEnum

__all__ = [
    "LEAN_MOST_PROOF",
    "LEAN_NEVER",
    "LEAN_PROOF",
    "MAGIC",
    "MAX_CPUS",
    "MAX_LISTENERS",
    "MAX_SLOTS",
    "MAX_WORKERS",
    "MEANS",
    "NO_CPU",
    "VERSION",
    "Contradiction",
    "FastEpoll",
    "Lean",
    "LeanMeans",
    "Listener",
    "Means",
    "Page",
    "Pinned",
    "Policy",
    "Slot",
    "SlotState",
    "Tier",
    "Worker",
]

MAGIC = 0x46534F434B504731
VERSION = 4
MAX_LISTENERS = 64
MAX_SLOTS = 256
MAX_WORKERS = 1024
MAX_PROCESSES = 1024
MAX_CPUS = 1024
NO_CPU = 0xFFFFFFFF
LEAN_PROOF = 64
LEAN_MOST_PROOF = 4096
LEAN_NEVER = 0xFFFFFFFF
MEANS = 3


class Tier(IntEnum):
    """How connections reach the slots, from the plain socket to migration of closed queues."""

    NONE = 0
    CLASSIC = 1
    SELECT = 2
    MIGRATE = 3


class Policy(IntEnum):
    """Which slot the select program prefers."""

    LOCAL = 0
    SPREAD = 1
    HASH = 2


class SlotState(IntEnum):
    """What may happen to a slot's socket."""

    FREE = 0
    CLAIMED = 1
    PAUSED = 2
    ORPHAN = 3


class Means(IntEnum):
    """What lean connections may do without."""

    DEFER = 0
    HOLD = 1
    ACK = 2


class Contradiction(IntEnum):
    """What a connection did that a means cannot be used with."""

    NOTHING = 0
    SPOKE_FIRST = 1
    WAITED = 2
    SLEPT = 3
    WAS_SLOW = 4
    READ_ON = 5
    SHARED = 6
    SET_OPTION = 7
    VARIED = 8


class FastEpoll(IntEnum):
    """Whether a worker's epoll_ctl calls wait for its next wait, and why they no longer do."""

    OFF = 0
    ON = 1
    THREADS = 2
    SHARED = 3


class Pinned(IntEnum):
    """Whether Fastsocket keeps a worker on its CPU: no more, if its other threads are as busy."""

    NOT = 0
    YES = 1
    NO_MORE = 2


class Worker(ctypes.Structure):
    """struct fs_worker."""

    _fields_ = (
        ("busy_since", c_uint64),
        ("waits", c_uint64),
        ("start", c_uint64),
        ("pid", c_uint32),
        ("tid", c_uint32),
        ("cpu", c_uint32),
        ("pinned", c_uint32),
        ("opened", c_uint64),
        ("borrowed", c_uint64),
        ("merged", c_uint32),
        ("fast_epoll", c_uint32),
    )


class Slot(ctypes.Structure):
    """struct fs_slot."""

    _fields_ = (
        ("cookie", c_uint64),
        ("accepted", c_uint64),
        ("live", c_uint32),
        ("state", c_uint32),
        ("worker", c_uint32),
        ("cpu", c_uint32),
        ("next", c_uint32),
        ("order", c_uint32),
        ("shared", c_uint32),
        ("published", c_uint32),
        ("own", c_uint32),
        ("fd", c_uint32),
        ("settled", c_uint64),
        ("assigned", c_uint64),
        ("spilled", c_uint64),
        ("seen_accepted", c_uint64),
        ("seen_at", c_uint64),
        ("epoch", c_uint32),
        ("patience", c_uint32),
        ("window", c_uint32),
        ("quota", c_uint32),
        ("judged", c_uint32),
        ("help", c_uint16),
        ("forked", c_uint16),
        ("before", c_uint32),
        ("left_in", c_uint32),
    )


class LeanMeans(ctypes.Structure):
    """struct fs_lean_means."""

    _fields_ = (
        ("proof", c_uint32),
        ("need", c_uint32),
        ("drops", c_uint32),
        ("reason", c_uint32),
    )


class Lean(ctypes.Structure):
    """struct fs_lean."""

    _fields_ = (
        ("means", LeanMeans * len(Means)),
        ("on", c_uint32),
        ("own", c_uint32),
        ("exchange", c_uint32),
        ("pad", c_uint32),
    )


class Listener(ctypes.Structure):
    """struct fs_listener."""

    _fields_ = (
        ("generation", c_uint64),
        ("lock", c_uint32),
        ("slots", c_uint32),
        ("claimed", c_uint32),
        ("tier", c_uint32),
        ("group", c_uint32),
        ("family", c_uint16),
        ("port", c_uint16),
        ("address", c_uint8 * 16),
        ("unslotted", c_uint32),
        ("reason", c_uint32),
        ("help", c_uint32),
        ("backlog", c_uint32),
        ("by_live", c_uint32),
        ("stolen", c_uint32),
        ("late_cookie", c_uint64),
        ("lent_cookie", c_uint64),
        ("passed", c_uint64),
        ("past_assigned", c_uint64),
        ("past_spilled", c_uint64),
        ("cpu_slot", c_uint16 * MAX_CPUS),
        ("pad", c_uint8 * 16),
        ("lean", Lean),
        ("slot", Slot * MAX_SLOTS),
    )


class Page(ctypes.Structure):
    """struct fs_page."""

    _fields_ = (
        ("magic", c_uint64),
        ("version", c_uint32),
        ("size", c_uint32),
        ("policy", c_uint32),
        ("listen_spawn", c_uint32),
        ("stall_ns", c_uint64),
        ("slack", c_uint32),
        ("spare_slots", c_uint32),
        ("cpus", c_uint32),
        ("worker_lock", c_uint32),
        ("keeper", c_uint32),
        ("forks", c_uint32),
        ("born", c_uint32),
        ("cpu_order", c_uint16 * MAX_CPUS),
        ("process", c_uint32 * MAX_PROCESSES),
        ("lean", c_uint32),
        ("busy_poll_us", c_uint32),
        ("polled", c_uint32),
        ("pad", c_uint8 * 56),
        ("worker", Worker * MAX_WORKERS),
        ("listener", Listener * MAX_LISTENERS),
    )
