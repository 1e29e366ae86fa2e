# SPDX-License-Identifier: GPL-2.0-or-later
"""Fail where a tracked file names a path that exists on one developer's machine only."""

import re
import subprocess
import sys
from pathlib import Path

__all__ = ["find", "main"]

# Home folders and scratch folders; system paths such as /etc or /sys are what the product is about.
PRIVATE = re.compile(
    rb"(?<![\w.$}/-])/(?:work|root|home/\w+|Users/\w+|tmp/[a-z_]*jobs[\w.]*)/[\w.-]+"
)


def find(data: bytes) -> list[tuple[int, str]]:
    """Return (line number from 1, path) of each private path in the bytes of a file."""
    return [
        (number, found.group().decode())
        for number, line in enumerate(data.splitlines(), 1)
        for found in PRIVATE.finditer(line)
    ]


def main() -> int:
    """Check every tracked file; return 1 if one names a private path."""
    listed = subprocess.run(["git", "ls-files", "-z"], capture_output=True, check=True).stdout
    hits = [
        f"{name}:{number}: {path} is a path of one machine only"
        for name in listed.decode().split("\0")
        if name and Path(name).is_file()
        for number, path in find(Path(name).read_bytes())
    ]
    print("\n".join(hits) or "no private paths", file=sys.stderr if hits else sys.stdout)
    return bool(hits)


if __name__ == "__main__":
    sys.exit(main())
