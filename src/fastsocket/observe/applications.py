# SPDX-License-Identifier: GPL-2.0-or-later
"""The listeners of every accelerated application of this host, as their keepers tell them."""

import time
from collections.abc import Callable
from typing import Any

import msgspec

from fastsocket.app.client import applications, ask
from fastsocket.observe.sample import Listener, Slot

__all__ = ["Applications", "listeners_of"]


class Applications:
    """Reads all listeners; looking for new applications is dear, so that is done more rarely.

    Args:
        rescan: Seconds after which all processes are looked through for new applications.
        find: Returns the status of every application.
        again: Returns the status of one, by its pid and its keeper's, or None if it is gone.
    """

    def __init__(
        self,
        rescan: float,
        find: Callable[[], list[dict[str, Any]]] = applications,
        again: Callable[[int, int], dict[str, Any] | None] = ask,
    ) -> None:
        self._rescan, self._find, self._again = rescan, find, again
        self._known: dict[int, int] = {}
        self._due = 0.0

    def read(self) -> list[Listener]:
        """Return the listeners now; an application that does not answer is left out."""
        if time.monotonic() >= self._due:
            found = self._find()
            # After the search, so that a slow one does not follow itself at once.
            self._due = time.monotonic() + self._rescan
        else:
            answers = (self._again(pid, keeper) for pid, keeper in self._known.items())
            found = [status for status in answers if status is not None]
        self._known = {status["pid"]: status["keeper"] for status in found}
        return [listener for status in found for listener in listeners_of(status)]


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

    pid: int
    listeners: list[_PageListener]


def listeners_of(document: Any) -> list[Listener]:
    """Return the listeners in an application's status document.

    Raises:
        msgspec.ValidationError: The document misses something.
    """
    application = msgspec.convert(document, _Application)
    return [
        Listener(
            application.pid,
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
