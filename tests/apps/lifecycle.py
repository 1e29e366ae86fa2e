# SPDX-License-Identifier: GPL-2.0-or-later
"""Load that runs while a server's workers come and go, and what of it was lost."""

import json
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastsocket.bench.probe import LOSSES, Probe
from fastsocket.native import native_file
from tests.apps.harness import wait_until

__all__ = ["Load", "load", "load_with_kills"]

FINISH_S = 20.0


@dataclass
class Load:
    """What the client saw, filled in when the block ends."""

    process: "subprocess.Popen[str]"
    result: dict[str, Any] = field(default_factory=dict)
    accepted_lost: int = 0
    queued_lost: int = 0  # reset by the kernel in the queue of a listener

    @property
    def completed(self) -> int:
        return int(self.result["completed"])

    @property
    def lost(self) -> int:
        """Failed connections, less those that died with a worker that had accepted them."""
        errors, causes = self.result["errors"], self.result["other_causes"]
        cut_short = errors["reset"] + causes["closed"] + causes["truncated"]
        cut_short -= sum(self.result["accepted_lost"].values())
        return sum(errors.values()) - self.accepted_lost - cut_short

    def expect_nothing_lost(self, at_least: int = 20) -> None:
        """Fail the test unless every connection was answered, and enough of them."""
        assert sum(self.result["errors"].values()) == 0, self.result
        assert self.completed >= at_least, self.result


def _connected(port: int) -> bool:
    """Whether anything but listeners uses the port, by /proc/net/tcp (0A is LISTEN)."""
    rows = Path("/proc/thread-self/net/tcp").read_text().splitlines()[1:]
    return any(row.split()[1].endswith(f":{port:04X}") and row.split()[3] != "0A" for row in rows)


@contextmanager
def load(port: int, connections: int = 16, *words: str) -> Iterator[Load]:
    """Keep that many connections going for the length of the block."""
    command = [str(native_file("fastsocket-load")), "--json", "-t", "120", "-c", str(connections)]
    process = subprocess.Popen(
        [*command, *words, f"127.0.0.1:{port}"], stdout=subprocess.PIPE, text=True
    )
    running = Load(process)
    try:
        wait_until(lambda: _connected(port), "the load to begin")
        yield running
        process.send_signal(signal.SIGINT)
        running.result = json.loads(process.communicate(timeout=FINISH_S)[0])
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


@contextmanager
def load_with_kills(port: int, connections: int = 16) -> Iterator[Load]:
    """The same, and the kernel tells which connections a killed worker took along."""
    inode = Path("/proc/thread-self/ns/net").stat().st_ino
    with Probe() as probe:
        probe.watch(inode, port)
        with probe.attached(*LOSSES):
            before = probe.events()
            with load(port, connections) as running:
                yield running
            after = probe.events()
            running.accepted_lost = after.accepted_lost - before.accepted_lost
            running.queued_lost = after.queued_lost - before.queued_lost
