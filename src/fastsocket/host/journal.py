# SPDX-License-Identifier: GPL-2.0-or-later
"""The log that `fastsocket log` prints, as `dmesg` printed the 2014 module's lines.

Each line is one write to a file opened with O_APPEND, so that keepers, launchers and people can
write at the same time and no line is torn (write(2)). The file is bounded: at LIMIT bytes it is
renamed to ``log.1``, which replaces the one before.
"""

import contextlib
import fcntl
import os
import time
from dataclasses import dataclass
from pathlib import Path

from fastsocket.errors import ConflictError
from fastsocket.host.runtime import private_dir, runtime_dir

__all__ = ["LIMIT", "LINE_LIMIT", "Entry", "append", "clear", "entries"]

LIMIT = 256 * 1024  # bytes in each of the two files: some 4,000 lines
LINE_LIMIT = 1024  # bytes of one line; more would let one event push all others out

_PREFIX = "Fastsocket: "


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the log: its time in seconds since the epoch, None where the line has none."""

    time: float | None
    text: str


def append(event: str, folder: Path | None = None) -> bool:
    """Add a line ``TIME Fastsocket: EVENT``.

    A log that cannot be written never stops what is being logged.

    Args:
        event: The event; line breaks and other control characters become blanks.
        folder: The runtime folder, by default this user's.

    Returns:
        Whether it was written.
    """
    text = "".join(char if char.isprintable() else " " for char in event)
    stamp = f"{time.time():.6f} {_PREFIX}"
    line = (stamp + text).encode(errors="replace")[: LINE_LIMIT - 1] + b"\n"
    try:
        path = private_dir(folder or runtime_dir()) / "log"
        handle = _open(path)
    except (OSError, ConflictError):
        return False
    try:
        if os.fstat(handle).st_size + len(line) > LIMIT:
            handle = _rotate(path, handle)
        os.write(handle, line)
    finally:
        os.close(handle)
    return True


def entries(folder: Path | None = None) -> list[Entry]:
    """Return the log, oldest line first; empty where nothing was logged."""
    found = []
    for name in ("log.1", "log"):
        with contextlib.suppress(FileNotFoundError):
            text = ((folder or runtime_dir()) / name).read_text(errors="replace")
            found += [_parse(line) for line in text.splitlines()]
    return found


def clear(folder: Path | None = None) -> list[Path]:
    """Remove the log and return the files that were there."""
    gone = []
    for name in ("log", "log.1"):
        with contextlib.suppress(FileNotFoundError):
            path = (folder or runtime_dir()) / name
            path.unlink()
            gone.append(path)
    return gone


def _open(path: Path) -> int:
    """Open the log for appending; a link in its place is not followed."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    return os.open(path, flags, 0o644)


def _rotate(path: Path, handle: int) -> int:
    """Rename the full log aside and return a handle of the new one.

    The lock is on the full file: of several writers that find it full, the first renames it, and
    the others see that the name no longer leads to the file that they locked.
    """
    fcntl.flock(handle, fcntl.LOCK_EX)
    with contextlib.suppress(FileNotFoundError):
        if path.stat().st_ino == os.fstat(handle).st_ino:
            path.rename(path.with_name("log.1"))
    os.close(handle)
    return _open(path)


def _parse(line: str) -> Entry:
    """Split a line into its time and its text."""
    stamp, _, text = line.partition(" ")
    try:
        return Entry(float(stamp), text)
    except ValueError:
        return Entry(None, line)
