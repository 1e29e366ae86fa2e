# SPDX-License-Identifier: GPL-2.0-or-later
"""What an attached rule leaves in the BPF file system, so that later commands find it.

    /sys/fs/bpf/fastsocket/steer/DEVICE@NETNS/
        {note, link, program, exits, queues, counters, tables/NAME}

NETNS is the number of the network namespace. `note` is a symbolic link whose target is JSON: that
file system holds no files of text. Folders are built aside and renamed into place.
"""

import ctypes
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fastsocket.bpf.libbpf import Map
from fastsocket.errors import FastsocketError, MissingFeatureError, UsageError
from fastsocket.steer import bpffs, kernel
from fastsocket.steer.language import Table, TableKind
from fastsocket.steer.layout import Queue
from fastsocket.steer.program import SteerProgram

__all__ = [
    "ROOT",
    "Note",
    "all_places",
    "build",
    "locked",
    "open_map",
    "place_of",
    "swap",
]

ROOT = bpffs.PLACE / "fastsocket/steer"
LOCK = Path("/run/fastsocket-steer.lock")
_NOTE_BYTES = 4000
_OWN_MAPS = {"exits": 8, "counters": 8, "queues": ctypes.sizeof(Queue)}


@dataclass(frozen=True)
class Note:
    """What an attached rule is.

    Attributes:
        device: Name of the device when it was attached.
        rule: Name of the rule.
        mode: ``native`` or ``generic``.
        why: Why this mode, and what it cannot do; or empty.
        cpus: The CPU set.
        tables: Tables and counters, without what they started with.
        lacks: What else is less than it could be, and why; or empty.
    """

    device: str
    rule: str
    mode: str
    why: str
    cpus: tuple[int, ...]
    tables: tuple[Table, ...]
    lacks: str = ""

    @property
    def reasons(self) -> str:
        """All that is less than it could be, and why; or empty."""
        return "; ".join(filter(None, (self.lacks, self.why)))

    def write(self, folder: Path) -> None:
        """Keep the note in `folder`.

        Raises:
            UsageError: The names in the rule are too long for it.
        """
        facts = asdict(self)
        facts["tables"] = [[t.name, t.kind, t.slot, t.size, t.lru] for t in self.tables]
        text = json.dumps(facts, separators=(",", ":"))
        if len(text.encode()) > _NOTE_BYTES:
            raise UsageError("the rule's tables cannot be noted", "too long", "shorten their names")
        (folder / "note").symlink_to(text)

    @classmethod
    def read(cls, folder: Path) -> "Note":
        """Read the note in `folder`.

        Raises:
            FastsocketError: It is missing or damaged.
        """
        try:
            facts: dict[str, Any] = json.loads(str((folder / "note").readlink()))
            tables = tuple(Table(*row) for row in facts.pop("tables"))
            return cls(**{**facts, "cpus": tuple(facts["cpus"]), "tables": tables})
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise FastsocketError(
                f"{folder} is damaged", str(error), f"run 'rm -r {folder}' to detach the rule"
            ) from error


def place_of(device: str) -> Path:
    """Return the folder of `device` in this network namespace, whether it exists or not."""
    # The BPF file system reserves dots, and devices such as eth0.5 have them.
    name = device.replace(".", "%")
    return ROOT / f"{name}@{Path('/proc/thread-self/ns/net').stat().st_ino}"


def all_places() -> list[Path]:
    """Return the folders of all attached rules in this network namespace."""
    suffix = place_of("").name
    try:
        found = sorted(place for place in ROOT.iterdir() if place.name.endswith(suffix))
    except FileNotFoundError:
        return []
    return [place for place in found if ":" not in place.name]  # no device has a colon


@contextmanager
def locked() -> Iterator[None]:
    """Keep other commands from changing anything here meanwhile.

    Raises:
        MissingFeatureError: No BPF file system, or no right to write to it.
    """
    handle = _lock()
    try:
        try:
            bpffs.provide()
            ROOT.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise MissingFeatureError(
                f"{ROOT} cannot be made", error.strerror or "", _remedy()
            ) from error
        try:
            yield
        finally:
            with suppress(OSError):  # not empty
                ROOT.rmdir()
                ROOT.parent.rmdir()
            bpffs.release()
    finally:
        LOCK.unlink(missing_ok=True)
        os.close(handle)


def _lock() -> int:
    """Make and lock a file that only root can open, or nobody else could be kept from locking it.

    Not ROOT itself, which comes and goes, nor what else is there: that is open to all. Who waited
    for a file that its holder took away begins anew.
    """
    while True:
        try:
            handle = os.open(LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise MissingFeatureError(
                f"{LOCK} cannot be made", error.strerror or "", "run as root"
            ) from error
        fcntl.flock(handle, fcntl.LOCK_EX)
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), LOCK.stat()):
                return handle
        os.close(handle)


def _remedy() -> str:
    if os.geteuid() != 0:
        return "run as root"
    if bpffs.is_private():
        return (
            "stay outside of private mounts: instead of 'ip netns exec NAME', write "
            "'nsenter --net=/run/netns/NAME'"
        )
    return "run 'mount -t bpf bpf /sys/fs/bpf'"


def build(program: SteerProgram, place: Path) -> Path:
    """Pin a program and its maps beside `place`; return that folder.

    Raises:
        BpfError: Not on a BPF file system.
    """
    aside = place.with_name(f"new:{place.name}")
    shutil.rmtree(aside, ignore_errors=True)
    (aside / "tables").mkdir(parents=True)
    kernel.pin(program.program.fd, aside / "program")
    for own in ("exits", "queues"):
        kernel.pin(program.system_map(own).fd, aside / own)
    for name, table in program.rule.tables.items():
        if table.kind != TableKind.COUNTER:
            kernel.pin(program.map(name).fd, aside / "tables" / name)
        elif not (aside / "counters").exists():
            kernel.pin(program.map(name).fd, aside / "counters")
    return aside


def swap(aside: Path, place: Path) -> None:
    """Put `aside` in the place of `place`."""
    old = place.with_name(f"old:{place.name}")
    shutil.rmtree(old, ignore_errors=True)
    if place.exists():
        place.rename(old)
    aside.rename(place)
    shutil.rmtree(old, ignore_errors=True)


def open_map(place: Path, table: Table | None = None, own: str = "") -> Map:
    """Open a table of the rule at `place`, or the map `own` (``exits``, ``queues``, ``counters``).

    Raises:
        BpfError: It is gone, or may not be opened.
    """
    if table is None or table.kind == TableKind.COUNTER:
        name = own or "counters"
        return Map(kernel.open_pin(place / name), name, 4, _OWN_MAPS[name], 0, owned=True)
    keys = {TableKind.TABLE: 8, TableKind.ARRAY: 4, TableKind.PREFIXES: 20}
    fd = kernel.open_pin(place / "tables" / table.name)
    return Map(fd, table.name, keys[table.kind], 4, table.size, owned=True)
