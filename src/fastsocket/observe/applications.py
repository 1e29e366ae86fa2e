# SPDX-License-Identifier: GPL-2.0-or-later
"""The accelerated applications of this host, asked through their keepers.

A keeper listens on the abstract unix socket ``fastsocket/PID`` and answers a status request with
one JSON document; native/include/keeper.h has the request.
"""

import contextlib
import socket
import struct
from pathlib import Path
from typing import Any

import msgspec

from fastsocket.observe.sample import Listener, Slot

__all__ = ["find_keepers", "listeners_of", "read_listeners"]

_PREFIX = "@fastsocket/"
_MAGIC, _OP_STATUS = 0x46534B31, 4
_REQUEST = struct.pack("=IIIIII", _MAGIC, _OP_STATUS, 0, 0, 0, 0)
_LONGEST_REPLY = 1 << 20
_PATIENCE = 0.2
"""Seconds that a keeper has for its answer: a stopped one must not stop the view of the others."""


def find_keepers(unix: Path = Path("/proc/net/unix")) -> list[int]:
    """Return the pids of the applications that have a keeper, in rising order."""
    pids = set()
    for line in unix.read_text(encoding="utf-8", errors="replace").splitlines()[1:]:
        name = line.split()[-1]
        if name.startswith(_PREFIX) and name.removeprefix(_PREFIX).isdigit():
            pids.add(int(name.removeprefix(_PREFIX)))
    return sorted(pids)


def read_listeners() -> list[Listener]:
    """Ask every keeper; one that is going, or belongs to another user, is left out."""
    listeners = []
    for pid in find_keepers():
        with contextlib.suppress(OSError, msgspec.DecodeError, msgspec.ValidationError):
            listeners += listeners_of(pid, _ask(pid))
    return listeners


def _ask(pid: int) -> Any:
    """Return the status document of one application."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as keeper:
        keeper.settimeout(_PATIENCE)
        keeper.connect(f"\0{_PREFIX[1:]}{pid}")
        keeper.send(_REQUEST)
        return msgspec.json.decode(keeper.recv(_LONGEST_REPLY))


class _PageSlot(msgspec.Struct):
    """A slot as `fastsocket.listen.page.snapshot` gives it; further keys are left alone."""

    slot: int
    pid: int
    cpu: int | None
    state: str
    busy: bool
    live: int
    waiting: int
    accepted: int
    assigned: int
    spilled: int


class _PageListener(msgspec.Struct):
    """A listener as `fastsocket.listen.page.snapshot` gives it."""

    address: str
    port: int
    tier: str
    passed: int
    slots: list[_PageSlot]


class _Application(msgspec.Struct):
    """The part of an application's status document that is sampled."""

    listeners: list[_PageListener]


def listeners_of(pid: int, document: Any) -> list[Listener]:
    """Return the listeners in an application's status document.

    Raises:
        msgspec.ValidationError: The document misses something.
    """
    application = msgspec.convert(document, _Application)
    return [
        Listener(
            pid,
            listener.address,
            listener.port,
            listener.tier,
            listener.passed,
            [
                Slot(
                    slot.slot,
                    slot.pid,
                    -1 if slot.cpu is None else slot.cpu,
                    slot.state,
                    slot.busy,
                    slot.live,
                    slot.waiting,
                    slot.accepted,
                    slot.assigned,
                    slot.spilled,
                )
                for slot in listener.slots
            ],
        )
        for listener in application.listeners
    ]
