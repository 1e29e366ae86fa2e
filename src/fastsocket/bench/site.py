# SPDX-License-Identifier: GPL-2.0-or-later
"""Where a server under test listens, how large it is, and what it answers."""

from dataclasses import dataclass
from pathlib import Path

__all__ = ["ANSWER", "CONNECTIONS", "Site", "Stall"]

ANSWER = "0123456789abcdef" * 4
# Below the hard limit of open files that containers usually get (4,096 or more).
CONNECTIONS = 3000


@dataclass(frozen=True)
class Stall:
    """One worker is away for `milliseconds` in every `every_milliseconds`.

    It sleeps, or with `burn` it computes. nginx blocks in a write to `log`, a FIFO that the
    scenario keeps full meanwhile: a log on a slow disk. Python servers sleep or compute in each
    request for /slow.
    """

    milliseconds: int
    every_milliseconds: int
    burn: bool
    log: Path


@dataclass(frozen=True)
class Site:
    """Where and how large: address and port to listen on, workers, and a directory for files.

    `keep_alive` keeps connections open after the answer; `stall` makes one worker stall; `reloads`
    is whether it must be able to reload; `cpus` are those that the workers are kept to (empty: all
    that may be used); `capacity` is how many connections there must be room for; with a `backend`,
    requests are passed on to that.
    """

    address: str
    port: int
    workers: int
    directory: Path
    keep_alive: bool = False
    stall: Stall | None = None
    reloads: bool = False
    cpus: tuple[int, ...] = ()
    capacity: int = CONNECTIONS
    backend: tuple[str, int] | None = None

    def file(self, name: str, text: str) -> Path:
        """Write a file of the server and return its path."""
        path = self.directory / name
        path.write_text(text, encoding="ascii")
        return path
