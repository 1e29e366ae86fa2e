# SPDX-License-Identifier: GPL-2.0-or-later
"""The BPF file system, in which rules stay when the command that attached them has ended.

Where systemd runs it is there from boot on. Elsewhere the first rule brings it and the last one
takes it away.
"""

import ctypes
import os
from contextlib import suppress
from pathlib import Path

__all__ = ["PLACE", "is_private", "provide", "release"]

PLACE = Path("/sys/fs/bpf")
_SOURCE = "fastsocket"
"""What /proc/mounts names as the device of a file system that we mounted."""
_ALWAYS = {"maps.debug", "progs.debug"}
"""What the kernel puts into each such file system (kernel/bpf/preload)."""

_libc = ctypes.CDLL(None, use_errno=True)


def is_private() -> bool:
    """Say whether this process has mounts of its own, as under ``ip netns exec``.

    What is mounted here would end with them, and the rules in it. A mount has one number and one
    mount namespace (proc_pid_mountinfo(5)).
    """
    own, first = (
        {line.split()[0] for line in Path(f"/proc/{process}/mountinfo").read_text().splitlines()}
        for process in ("self", "1")
    )
    return own.isdisjoint(first)


def provide() -> None:
    """Mount it if it is missing.

    Raises:
        OSError: The kernel refuses.
    """
    if PLACE.is_mount() or is_private():
        return
    if _libc.mount(_SOURCE.encode(), bytes(PLACE), b"bpf", 0, None) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def release() -> None:
    """Unmount what `provide` mounted, if nothing is left in it."""
    with suppress(OSError):  # of others, in use, or gone
        mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
        sources = [words[0] for words in mounts if words[1] == str(PLACE)]
        left = {entry.name for entry in PLACE.iterdir()} - _ALWAYS
        if sources[-1:] == [_SOURCE] and not left:
            _libc.umount2(bytes(PLACE), 0)
