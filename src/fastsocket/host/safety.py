# SPDX-License-Identifier: GPL-2.0-or-later
"""Refuse to preload or load, as root, what somebody else could have written.

A library that a root process preloads, and a BPF object that it loads, run with its rights. Who can
write the file, or rename another one into its place through any folder above it, has those rights
too: so the whole way to the file is checked, symbolic links included.
"""

import errno
import grp
import os
import pwd
import stat
from pathlib import Path

from fastsocket.errors import ConflictError

__all__ = ["require_trusted", "writers_of"]

_MAX_LINKS = 40  # as the kernel: path_resolution(7)


def require_trusted(path: Path, uid: int | None = None) -> None:
    """Check that nobody but root can change a file, where the caller is root.

    Any other user runs with rights that are its own anyway, so nothing is checked for it.

    Args:
        path: The file that is to be preloaded or loaded.
        uid: The user that will run it, by default the effective one.

    Raises:
        ConflictError: Another user can write the file or a folder on the way, which is named.
        OSError: The file cannot be reached.
    """
    if (os.geteuid() if uid is None else uid) != 0:
        return
    for step, below in _way(path.absolute()):
        writers = writers_of(step, below)
        if writers:
            raise ConflictError(
                f"root will not load {path}",
                f"{step} can be written by {writers}",
                "install Fastsocket where only root can write, "
                f"or run 'chown root:root {step} && chmod go-w {step}'",
            )


def writers_of(path: Path, below: Path | None = None) -> str:
    """Return who besides root can change a file, or an entry of a folder; empty where nobody can.

    Args:
        path: The file or folder; a symbolic link is not followed.
        below: The entry on the way. A sticky folder such as /tmp protects an entry of root's.
    """
    info = path.lstat()
    sticky = info.st_mode & stat.S_ISVTX and below is not None and below.lstat().st_uid == 0
    if info.st_uid != 0:
        return f"user {_user(info.st_uid)}, who owns it"
    # A link's own mode means nothing: the folder that holds it decides.
    if sticky or stat.S_ISLNK(info.st_mode):
        return ""
    if info.st_mode & stat.S_IWOTH:
        return "everybody"
    if info.st_mode & stat.S_IWGRP:
        # With an access list the group bits are its mask: any user named in it may be meant.
        if _has_access_list(path):
            return "those in its access list"
        if _has_members(info.st_gid):
            return f"group {_group(info.st_gid)}"
    return ""


def _way(path: Path) -> list[tuple[Path, Path | None]]:
    """Return every folder, link and file on the way to `path`, each with the step below it."""
    steps: list[tuple[Path, Path | None]] = []
    pending = list(path.parts[1:])
    here, links = Path("/"), 0
    while pending:
        name = pending.pop(0)
        if name == "..":
            here = here.parent
            continue
        below = here / name
        steps.append((here, below))
        if below.is_symlink():
            links += 1
            if links > _MAX_LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
            steps.append((below, None))
            target = below.readlink()
            if target.is_absolute():
                here, pending = Path("/"), [*target.parts[1:], *pending]
            else:
                pending = [*target.parts, *pending]
            continue
        here = below
    return [*steps, (here, None)]


def _has_access_list(path: Path) -> bool:
    """Say whether a file has an access list beyond its mode bits (acl(5))."""
    try:
        return "system.posix_acl_access" in os.listxattr(path, follow_symlinks=False)
    except OSError:  # the file system has no extended attributes, hence no access lists
        return False


def _has_members(gid: int) -> bool:
    """Say whether anybody but root is in a group; Debian's `staff`, for one, starts empty."""
    if gid == 0:
        return False
    try:
        members = set(grp.getgrgid(gid).gr_mem)
    except KeyError:
        return True  # a group without a name: nobody can tell who has it
    members |= {user.pw_name for user in pwd.getpwall() if user.pw_gid == gid}
    return bool(members - {"root"})


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _group(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)
