# SPDX-License-Identifier: GPL-2.0-or-later
"""What was there before the first change, kept on disk until it is there again.

One file an interface, replaced atomically; it is written before the first change and after the
last, so that a crash at any point leaves enough to restore everything.
"""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import msgspec

from fastsocket.errors import ConflictError, FastsocketError, MissingFeatureError

__all__ = ["STATE_DIR", "Journal", "Store"]

STATE_DIR = Path("/var/lib/fastsocket/nic")
FORMAT = 1


class Journal(msgspec.Struct):
    """The state of one interface. Settings stand under the text of their key."""

    target: str
    interfaces: dict[str, int]
    """The cards below the target, with their interface numbers."""
    boot: str
    state: Literal["applying", "applied", "undoing"]
    profile: str
    before: dict[str, str]
    """Every setting that a plan may touch, or the card may forget, before the first change."""
    wanted: dict[str, str]
    """What was to be changed."""
    after: dict[str, str] = {}
    """The same settings as in `before`, and those that came into being, after the last change."""
    format: int = FORMAT


class Store:
    """The journals of one network namespace in a folder of the state directory."""

    def __init__(self, folder: Path = STATE_DIR, *, namespace: str = "") -> None:
        """Use `folder`; journals of a namespace other than the host's go into one below it."""
        self._folder = folder / namespace if namespace else folder

    @classmethod
    def of_namespace(cls, folder: Path | None = None) -> "Store":
        """Return the store of the network namespace of the caller."""
        # This sysctl exists in the host's own namespace only.
        if Path("/proc/sys/net/core/netdev_max_backlog").exists():
            return cls(folder or STATE_DIR)
        number = Path("/proc/self/ns/net").stat().st_ino
        return cls(folder or STATE_DIR, namespace=f"netns-{number}")

    def _path(self, target: str) -> Path:
        return self._folder / f"{target}.json"

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the lock that lets one process change settings at a time.

        Raises:
            ConflictError: Another process holds it.
            MissingFeatureError: The folder cannot be written.
        """
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o755)
            descriptor = os.open(
                self._folder / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600
            )
        except OSError as error:
            raise MissingFeatureError(
                f"{self._folder} cannot be written", str(error.strerror), "run as root"
            ) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise ConflictError(
                "another 'fastsocket nic' is at work", "", "wait until it is done"
            ) from error
        try:
            yield
        finally:
            os.close(descriptor)

    def load(self, target: str) -> Journal | None:
        """Return the journal of an interface; None where nothing is applied.

        Raises:
            FastsocketError: The file is damaged.
        """
        path = self._path(target)
        try:
            journal = msgspec.json.decode(path.read_bytes(), type=Journal)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.MsgspecError) as error:
            raise FastsocketError(
                f"{path} cannot be read", str(error), "remove it once the settings are right"
            ) from error
        if journal.format != FORMAT:
            raise FastsocketError(
                f"{path} has format {journal.format}", "", "undo with the version that applied it"
            )
        return journal

    def others(self, target: str) -> list[Journal]:
        """Return the journals of all other interfaces."""
        names = [path.stem for path in sorted(self._folder.glob("*.json"))]
        journals = [self.load(name) for name in names if name != target]
        return [journal for journal in journals if journal is not None]

    def save(self, journal: Journal) -> None:
        """Write a journal so that it is whole and on disk when this returns.

        Raises:
            FastsocketError: The disk is full or read-only; the file is whole, old or new.
        """
        path = self._path(journal.target)
        aside = path.with_suffix(".new")
        try:
            with aside.open("wb") as file:
                file.write(msgspec.json.format(msgspec.json.encode(journal), indent=1))
                file.flush()
                os.fsync(file.fileno())
            aside.replace(path)
            self._sync()
        except OSError as error:
            with contextlib.suppress(OSError):  # a disk that became read-only keeps it
                aside.unlink()
            raise _unwritten(path, error) from error

    def remove(self, target: str) -> None:
        """Forget an interface.

        Raises:
            FastsocketError: The disk is read-only.
        """
        path = self._path(target)
        try:
            path.unlink(missing_ok=True)
            self._sync()
        except OSError as error:
            raise _unwritten(path, error) from error

    def _sync(self) -> None:
        descriptor = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _unwritten(path: Path, error: OSError) -> FastsocketError:
    return FastsocketError(
        f"{path} cannot be written", str(error.strerror), "make room, or use --state"
    )
