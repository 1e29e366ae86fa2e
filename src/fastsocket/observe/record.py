# SPDX-License-Identifier: GPL-2.0-or-later
"""Recording: samples at a fixed pace until told to stop."""

import platform
import select
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from fastsocket.observe.recording import Header
from fastsocket.observe.sample import Sample, Source

__all__ = ["Stop", "describe", "record", "stop_on_signals"]


class Stop:
    """Something to wait for that a signal handler may set.

    A `threading.Event` is not: its `set` takes a lock that the interrupted `wait` may hold.
    """

    def __init__(self) -> None:
        self._set = False
        self._waiter, self._waker = socket.socketpair()

    def is_set(self) -> bool:
        """Return whether it was set."""
        return self._set

    def set(self) -> None:
        """Set it for good, and end all waits."""
        self._set = True
        self._waker.close()

    def wait(self, timeout: float | None = None) -> None:
        """Wait until it is set, for at most `timeout` seconds."""
        limit = None if timeout is None else max(0.0, timeout)
        select.select([self._waiter], [], [], limit)


def describe(interval: float) -> Header:
    """Return the header of a recording of this machine."""
    cpuinfo = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    models = (
        line.partition(":")[2].strip() for line in cpuinfo.splitlines() if "model name" in line
    )
    model = next(models, platform.machine())
    return Header(socket.gethostname(), platform.release(), model, interval)


def record(
    source: Source, add: Callable[[Sample], None], interval: float, duration: float, stop: Stop
) -> None:
    """Take a sample every `interval` seconds, for `duration` seconds or until `stop` is set.

    Samples keep to the grid of the start: work and sleep do not add up to a drift.
    """
    start = time.monotonic()
    taken = 0
    while not stop.is_set():
        sample = source.read()
        if sample is None:
            return
        add(sample)
        now = time.monotonic() - start
        taken = max(taken + 1, int(now / interval))
        if taken * interval > duration + interval / 1000:
            return
        stop.wait(taken * interval - now)


@contextmanager
def stop_on_signals(stop: Stop) -> Iterator[None]:
    """Set `stop` on SIGINT and SIGTERM, and put the handlers back afterwards."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda *_: stop.set()) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
