# SPDX-License-Identifier: GPL-2.0-or-later
"""What a process takes (/proc/PID, see proc(5)), and whether slots are in order."""

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

__all__ = ["anonymous_kib", "descriptors", "library_kib", "pss_kib", "stuck"]

LIBRARY = "libfsocket"
PAGE = "bpf-map"
_MAPPING = re.compile(r"([0-9a-f]+)-([0-9a-f]+) \S+ \S+ \S+ \S+\s*(.*)")


def pss_kib(pid: int) -> float | None:
    """Return the memory of a process in KiB, shared pages by their share; None if it is gone."""
    return _field(_read(pid, "smaps_rollup"), "Pss")


def anonymous_kib(pid: int) -> float | None:
    """Return the part of that which is its own: no file's pages; None if it is gone."""
    return _field(_read(pid, "smaps_rollup"), "Pss_Anon")


def library_kib(pid: int) -> float | None:
    """Return what of our library is in a process's memory, in KiB; None if it is not there.

    That is its own mappings with the zeroed data behind the last one, and the status page; shared
    pages in full, since their share changes with the number of workers.
    """
    total, behind, found = 0.0, "", False
    for block in re.split(r"\n(?=[0-9a-f]+-[0-9a-f]+ )", _read(pid, "smaps")):
        match = _MAPPING.match(block)
        if match is None:
            continue
        first, last, name = match.groups()
        ours = LIBRARY in name or PAGE in name or (not name and first == behind)
        behind = last if ours and PAGE not in name else ""
        if ours:
            found = True
            total += _field(block, "Rss") or 0.0
    return total if found else None


def descriptors(pid: int) -> float | None:
    """Return how many descriptors a process has open; None if it is gone."""
    try:
        return float(len(list(Path(f"/proc/{pid}/fd").iterdir())))
    except OSError:
        return None


def stuck(status: dict[str, Any], workers: Collection[int]) -> int:
    """Return how many slots of an application at rest are not as they should be.

    Its `workers` poll theirs; those that nobody polls, and all others, have an empty queue.
    """
    slots = [slot for listener in status["listeners"] for slot in listener["slots"]]
    return sum(
        bool(slot["waiting"]) or (slot["state"] != "orphan" and slot["pid"] not in workers)
        for slot in slots
    )


def _read(pid: int, name: str) -> str:
    try:
        return Path(f"/proc/{pid}/{name}").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _field(text: str, name: str) -> float | None:
    match = re.search(rf"^{name}:\s+(\d+) kB$", text, re.MULTILINE)
    return float(match[1]) if match else None
