# SPDX-License-Identifier: GPL-2.0-or-later
"""The folder for what lives as long as the host is up: parameters, log, sockets.

For root it is ``/run/fastsocket``; for any other user ``$XDG_RUNTIME_DIR/fastsocket``, which only
that user can reach, or a folder in ``/tmp`` that is made and checked so that nobody else can have
put it there.
"""

import contextlib
import os
import stat
from collections.abc import Mapping
from pathlib import Path

from fastsocket.errors import ConflictError

__all__ = ["HOST_DIR", "private_dir", "runtime_dir", "write_atomically"]

HOST_DIR = Path("/run/fastsocket")


def runtime_dir(uid: int | None = None, environ: Mapping[str, str] = os.environ) -> Path:
    """Return the runtime folder of a user, which need not exist yet.

    Args:
        uid: The user, by default the effective one.
        environ: Where XDG_RUNTIME_DIR is looked up.
    """
    uid = os.geteuid() if uid is None else uid
    if uid == 0:
        return HOST_DIR
    base = environ.get("XDG_RUNTIME_DIR", "")
    if base.startswith("/") and Path(base).is_dir():
        return Path(base) / "fastsocket"
    return Path(f"/tmp/fastsocket-{uid}")


def private_dir(path: Path) -> Path:
    """Make a runtime folder where it is missing, and check that it is this user's alone.

    Anybody can make a folder, or a link, of the expected name in /tmp: one that is not this
    user's, or that others can write, is refused and not repaired.

    Raises:
        ConflictError: Something else lies at the path.
        OSError: It cannot be made.
    """
    uid = os.geteuid()
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
        if uid == 0:  # whatever the umask: any user's preloaded library takes its defaults there
            path.chmod(0o755)
    info = path.lstat()
    if not stat.S_ISDIR(info.st_mode) or info.st_uid != uid or info.st_mode & 0o022:
        raise ConflictError(
            f"{path} cannot be used",
            "it is not a folder that only this user can write",
            "look who made it, then remove it",
        )
    return path


def write_atomically(path: Path, text: str) -> None:
    """Write a file aside and rename it into place, so that readers see the old one or the new one.

    Raises:
        OSError: It cannot be written; the old file is as it was.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
        with os.fdopen(os.open(aside, flags, 0o600), "w") as file:
            os.fchmod(file.fileno(), 0o644)  # whatever the umask: every user reads it
            file.write(text)
        aside.rename(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
