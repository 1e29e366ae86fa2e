# SPDX-License-Identifier: GPL-2.0-or-later
"""The Python side of native/include/steer.h; a test holds it against the object's BTF."""

import ctypes
from enum import IntEnum

__all__ = ["MAX_CPUS", "Exit", "Queue", "Settings", "State"]

MAX_CPUS = 1024


class Exit(IntEnum):
    """Every way out of the steer program (enum steer_exit); each has a counter."""

    REDIRECTED = 0
    HERE = 1
    RULE_PASS = 2
    NO_CPU = 3
    UNREACHABLE = 4
    NOT_IP = 5
    TRUNCATED = 6
    MALFORMED = 7
    DEEP_VLAN = 8
    DEEP_OPTIONS = 9
    UNFINISHED = 10

    @property
    def label(self) -> str:
        """Its name in output and JSON."""
        return self.name.lower()


class Settings(ctypes.Structure):
    """struct steer_settings: constants set before loading."""

    _fields_ = (
        ("tracing", ctypes.c_uint32),
        ("frags", ctypes.c_uint32),
        ("cpus", ctypes.c_uint32),
        ("veth", ctypes.c_uint32),
        ("number", ctypes.c_uint16 * MAX_CPUS),
        ("index", ctypes.c_int16 * MAX_CPUS),
    )


class Queue(ctypes.Structure):
    """struct steer_queue: what is on its way to one CPU; times in ns of CLOCK_MONOTONIC."""

    _fields_ = (
        ("sent", ctypes.c_uint64),
        ("since", ctypes.c_uint64),
        ("prompt", ctypes.c_uint32),
        ("unused", ctypes.c_uint32 * 11),
        ("taken", ctypes.c_uint64),
        ("least", ctypes.c_uint64),
        ("window", ctypes.c_uint64),
        ("until", ctypes.c_uint64),
        ("pause", ctypes.c_uint64),
        ("turned", ctypes.c_uint64),
        ("late", ctypes.c_uint64),
        ("read", ctypes.c_uint64),
    )


class State(ctypes.Structure):
    """struct steer_state: what the program leaves under tracing."""

    _fields_ = (
        ("verdict", ctypes.c_int64),
        ("way", ctypes.c_uint64),
    )
