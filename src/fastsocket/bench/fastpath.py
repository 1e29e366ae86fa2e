# SPDX-License-Identifier: GPL-2.0-or-later
"""The local fast path of a server under test: waiting for it, and how much goes past TCP."""

import time
from typing import Any

from fastsocket.app.client import ask
from fastsocket.bench.netspace import Netspace
from fastsocket.errors import FastsocketError

__all__ = ["await_fast_path", "past_tcp_percent", "with_fast_path"]

PATIENCE_SECONDS = 15.0
_PAUSE = 0.02


def with_fast_path(port: int) -> tuple[str, str]:
    """Return the options of ``fastsocket run`` that switch it on for `port`."""
    return "--local-fast-path", str(port)


def await_fast_path(pid: int, netspace: Netspace) -> None:
    """Return when the fast path of the accelerated process `pid` has begun.

    Raises:
        FastsocketError: It stays off here, or nothing is heard of it.
    """
    end = time.monotonic() + PATIENCE_SECONDS
    while _status(pid, netspace) is None:
        if time.monotonic() > end:
            raise FastsocketError("the local fast path did not begin", "its keeper does not answer")
        time.sleep(_PAUSE)


def past_tcp_percent(pid: int, netspace: Netspace) -> float | None:
    """Return the percentage of messages past TCP; None where there were none.

    Raises:
        FastsocketError: The fast path is off.
    """
    local = _status(pid, netspace) or {"redirected": 0, "passed": 0}
    total = local["redirected"] + local["passed"]
    return 100 * local["redirected"] / total if total else None


def _status(pid: int, netspace: Netspace) -> dict[str, Any] | None:
    """Return the counters of the fast path, None while the keeper does not answer yet."""
    with netspace.entered():
        application = ask(pid)
    if application is None:
        return None
    local: dict[str, Any] | None = application["local"]
    if local is None:
        reason = application["reasons"].get("local-fast-path", "")
        raise FastsocketError("the local fast path stays off", reason)
    if local["off"]:
        raise FastsocketError("the local fast path was switched off", local["off"])
    return local
