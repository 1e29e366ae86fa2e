# SPDX-License-Identifier: GPL-2.0-or-later
"""Reads the short files of procfs and sysfs, which may be missing or refuse to be read."""

from pathlib import Path

__all__ = ["read_number", "read_text"]


def read_text(path: Path) -> str:
    """Return what a file says, without blanks around it; nothing where it cannot be read."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def read_number(path: Path, default: int) -> int:
    """Return the integer that a file holds, `default` where it holds none."""
    text = read_text(path)
    return int(text) if text.lstrip("-").isdigit() else default
