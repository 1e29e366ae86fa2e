# SPDX-License-Identifier: GPL-2.0-or-later
"""Ctrl-C and SIGTERM, of which none is lost.

Both raise KeyboardInterrupt, so that servers are ended and completed rounds are kept. Python drops
an exception that a signal raises within a callback from C, such as libbpf's messages; hence a
signal is also remembered, and asked for before each run. What follows soon, as from an impatient
user, or from `timeout` beside a shell, does not interrupt what is ended then.
"""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from math import inf
from types import FrameType

__all__ = ["check", "interruptible"]

GRACE_SECONDS = 3.0
"""For what is ended: servers, or a virtual machine."""


class _Seen:
    """What is known in this process: blocks that are open, and whether a signal came in them."""

    depth = 0
    pending = False
    raised_at = -inf


def _remember(number: int, frame: FrameType | None) -> None:
    _Seen.pending = True
    now = time.monotonic()
    if now - _Seen.raised_at > GRACE_SECONDS:
        _Seen.raised_at = now
        raise KeyboardInterrupt


def check() -> None:
    """Raise what came within the outermost block, even if it was lost meanwhile.

    Raises:
        KeyboardInterrupt: The user wants an end.
    """
    if _Seen.depth and _Seen.pending:
        raise KeyboardInterrupt


@contextmanager
def interruptible() -> Iterator[None]:
    """Treat both signals as an interrupt for a block; blocks may be nested."""
    if _Seen.depth == 0:
        _Seen.pending, _Seen.raised_at = False, -inf
    before = {
        number: signal.signal(number, _remember) for number in (signal.SIGINT, signal.SIGTERM)
    }
    _Seen.depth += 1
    try:
        yield
    finally:
        _Seen.depth -= 1
        for number, handler in before.items():
            signal.signal(number, handler)
