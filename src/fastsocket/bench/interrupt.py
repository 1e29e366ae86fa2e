# SPDX-License-Identifier: GPL-2.0-or-later
"""Ctrl-C and SIGTERM, of which none is lost.

Both raise KeyboardInterrupt, so that servers are ended and completed rounds are kept. Python drops
an exception that a signal raises within a callback from C, such as libbpf's messages; hence a
signal is also remembered, and asked for before each run.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["check", "interruptible"]


class _Seen:
    """What is known in this process: blocks that are open, and whether a signal came in them."""

    depth = 0
    pending = False


def _remember(number: int, frame: FrameType | None) -> None:
    _Seen.pending = True
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
        _Seen.pending = False
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
