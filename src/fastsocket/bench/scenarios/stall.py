# SPDX-License-Identifier: GPL-2.0-or-later
"""`stall`: one worker is away for 100 ms every 500 ms, at a fixed rate of half the capacity.

nginx stalls as it does on a slow disk: it writes its access log synchronously, so a request whose
log is a full pipe blocks the worker that serves it until somebody reads. Python servers sleep in
such a request. The demo server has an option. In `stall-burn` the worker burns the CPU instead, for
which nginx has no configuration.
"""

import os
import socket
import statistics
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Self

from fastsocket.bench.modes import Mode
from fastsocket.bench.scenario import Measurement, Setup, Stage, stage
from fastsocket.bench.servers import Stall as Plan
from fastsocket.errors import UsageError

__all__ = ["SlowLog", "Stall"]

STALL_MS, EVERY_MS = 100, 500
CAPACITY_SECONDS, CAPACITY_LOADS = 1.0, 3
LOAD_SHARE = 0.5
# Stalled by requests for /slow; the demo server stalls by itself.
_BY_REQUEST = ("nginx", "gunicorn", "granian")
_CHUNK = bytes(4096)


class Stall:
    """Latency of everyone while one worker stalls, and without."""

    metrics = {  # noqa: RUF012  # a constant by the protocol's read-only property
        "p50_us": "us",
        "p99_us": "us",
        "p999_us": "us",
        "p99_us_calm": "us",
        "p99_over_calm": "ratio",
        "cps": "1/s",
        "errors": "connections",
    }

    def __init__(self, name: str, burn: bool) -> None:
        self.name, self._burn = name, burn
        self.servers = ("demo", "gunicorn", "granian") if burn else (*_BY_REQUEST, "demo")

    def prepare(self, setup: Setup) -> Setup:
        """Find the rate: half of what the stock server can do, the same for all modes.

        That is the median of several loads: one alone may meet a time when the machine is slow.
        """
        if not setup.client.versatile:
            raise UsageError(f"{setup.client.name} cannot keep a rate", todo="use fastsocket-load")
        if setup.rate is not None:
            return setup
        with stage(setup, Mode.STOCK) as running:
            loads = [running.load(CAPACITY_SECONDS, setup.warmup) for _ in range(CAPACITY_LOADS)]
        capacity = statistics.median(outcome.per_second or 0 for outcome, _ in loads)
        rate = max(round(capacity * LOAD_SHARE), 1)
        setup.note(f"rate {rate}/s, half of what stock could do")
        return replace(setup, rate=rate)

    def measure(self, setup: Setup, mode: Mode) -> Measurement:
        """See :class:`fastsocket.bench.scenario.Scenario`."""
        taken = Measurement()
        with stage(setup, mode) as running:
            calm, _ = running.load(setup.seconds, setup.warmup, setup.rate)
        with ExitStack() as stack:

            def plan(directory: Path) -> Plan:
                # nginx opens its log at once, and waits there until a FIFO has a reader.
                logs.append(stack.enter_context(SlowLog(directory / "slow.log")))
                return Plan(STALL_MS, EVERY_MS, self._burn, logs[0].path)

            logs: list[SlowLog] = []
            running = stack.enter_context(stage(setup, mode, stall=plan))
            if setup.server.name in _BY_REQUEST:
                stack.enter_context(logs[0].stalling(running))
            stalled, _ = running.load(setup.seconds, setup.warmup, setup.rate)
        for name in ("p50", "p99", "p999"):
            taken.put(f"{name}_us", stalled.latency_us.get(name), "nothing was answered")
        p99, p99_calm = stalled.latency_us.get("p99"), calm.latency_us.get("p99")
        taken.put("p99_us_calm", p99_calm, "nothing was answered")
        both = p99 / p99_calm if p99 and p99_calm else None
        taken.put("p99_over_calm", both, "nothing was answered")
        taken.put("cps", stalled.per_second)
        taken.put("errors", float(stalled.errors + calm.errors))
        return taken


class SlowLog:
    """The FIFO `path` as a log file, kept full for as long as a worker shall wait for it."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self.path = path
        self._fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)

    def block(self) -> None:
        """Leave no room: the next writer waits. Single bytes fill what a page leaves."""
        for chunk in (_CHUNK, _CHUNK[:1]):
            with suppress(BlockingIOError):
                while True:
                    os.write(self._fd, chunk)

    def release(self) -> None:
        """Take out all that is in."""
        with suppress(BlockingIOError):
            while True:
                os.read(self._fd, len(_CHUNK))

    @contextmanager
    def stalling(self, running: Stage) -> Iterator[None]:
        """For a block, let whichever worker serves a request for /slow wait, again and again."""
        ended = threading.Event()
        endpoint = (running.site.address, running.site.port)

        def cycle() -> None:
            with running.netspace.entered():
                while not ended.is_set():
                    self.block()
                    with suppress(OSError), socket.create_connection(endpoint, timeout=1) as one:
                        one.sendall(b"GET /slow HTTP/1.0\r\n\r\n")
                        ended.wait(STALL_MS / 1000)
                    self.release()
                    ended.wait((EVERY_MS - STALL_MS) / 1000)

        thread = threading.Thread(target=cycle, name="slow-log", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
        os.close(self._fd)
