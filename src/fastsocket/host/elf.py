# SPDX-License-Identifier: GPL-2.0-or-later
"""Can the preloaded library reach a command? Decided before exec, from the file alone.

`LD_PRELOAD` is an act of glibc's dynamic loader: a program without that loader (static, musl), or
one for which the loader ignores the variable (set-user-ID, file capabilities), never sees it, and
would run unaccelerated without a word. musl's loader even refuses to start a program whose
preloaded library wants glibc. So the launcher asks here, says why in one line, and leaves the
variable unset. Sources: elf(5), ld.so(8), execve(2), Linux fs/binfmt_script.c.
"""

import os
import stat
import struct
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from fastsocket.errors import FastsocketError

__all__ = ["CommandNotFoundError", "NotExecutableError", "Program", "Reach", "classify", "resolve"]

_PT_DYNAMIC, _PT_INTERP = 2, 3
_ET_EXEC, _ET_DYN = 2, 3
_SCRIPT_LINE = 256  # BINPRM_BUF_SIZE since Linux 5.1 (6eb3c3d0a52d); the kernel reads no more
_SCRIPT_DEPTH = 5  # exec_binprm() gives up beyond this with ELOOP


class CommandNotFoundError(FastsocketError):
    """There is no such command; a shell exits with 127."""

    exit_code = 127


class NotExecutableError(FastsocketError):
    """The command is there but cannot be executed; a shell exits with 126."""

    exit_code = 126


class Reach(StrEnum):
    """Whether, and if not why not, the preloaded library gets into a program."""

    DYNAMIC = "dynamic"
    STATIC = "static"
    MUSL = "musl"
    OTHER_LIBC = "other-libc"
    PRIVILEGED = "privileged"
    FOREIGN = "foreign"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Program:
    """What a command turns out to be.

    Attributes:
        path: The file that a shell would execute.
        image: The ELF file that runs in the end: `path` or, for a script, its interpreter.
        reach: The classification.
        why: One line for people where the library cannot reach it, else empty.
        scripts: The scripts that were followed, outermost first.
    """

    path: Path
    image: Path
    reach: Reach
    why: str
    scripts: tuple[Path, ...] = ()

    @property
    def preloadable(self) -> bool:
        """Whether LD_PRELOAD may be set and will work."""
        return self.reach is Reach.DYNAMIC


def resolve(command: str, path: str | None = None) -> Path:
    """Find a command as a shell does: a name with a slash as it stands, any other through PATH.

    Args:
        command: The first word of the command line.
        path: The value of PATH, by default this process's.

    Raises:
        CommandNotFoundError: Nothing of that name.
        NotExecutableError: It is a folder, or lacks the permission to execute.
    """
    search = os.environ.get("PATH", os.defpath) if path is None else path
    folders = [""] if "/" in command else search.split(os.pathsep) if command else []
    present = [path for path in (Path(folder, command) for folder in folders) if path.exists()]
    for candidate in present:
        if not candidate.is_dir() and os.access(candidate, os.X_OK):
            return candidate
    if present:
        why = f"{present[0]} is {'a folder' if present[0].is_dir() else 'not executable'}"
        raise NotExecutableError(f"{command}: permission denied", why, "name a program")
    where = "there is no such file" if "/" in command else f"not in PATH ({search})"
    raise CommandNotFoundError(f"{command}: command not found", where, "check the name")


def classify(path: Path, uid: int | None = None, gid: int | None = None) -> Program:
    """Say whether the preloaded library can reach the program in a file.

    A script is followed to its interpreter, `env` to the program that it looks up. Reads a few
    hundred bytes; raises nothing about unusual content, which is Reach.UNKNOWN.

    Args:
        path: The file to execute, as `resolve` returns it.
        uid: The real user that will execute it, by default this process's.
        gid: Its real group, likewise.

    Raises:
        CommandNotFoundError: A script's interpreter does not exist.
        NotExecutableError: A script's interpreter cannot be executed, or scripts nest too deep.
    """
    ids = (os.getuid() if uid is None else uid, os.getgid() if gid is None else gid)
    scripts: list[Path] = []
    image = path
    while len(scripts) <= _SCRIPT_DEPTH:
        try:
            with image.open("rb") as file:
                head = file.read(_SCRIPT_LINE)
                if not head.startswith(b"#!"):
                    reach, why = _classify_image(image, head, file.fileno(), ids)
                    return Program(path, image, reach, why, tuple(scripts))
        except PermissionError:  # executable but not readable: glibc runs it, all else is a guess
            why = f"{image} may not be read, so nobody can tell what it is"
            return Program(path, image, Reach.UNKNOWN, why, tuple(scripts))
        scripts.append(image)
        image = _interpreter(image, head)
    raise NotExecutableError(
        f"{path}: too many levels of scripts", f"{scripts[-1]} is a script too", "check its #! line"
    )


def _interpreter(script: Path, head: bytes) -> Path:
    """Return the program that a script's first line names, looking through `env`."""
    line = head[2:].split(b"\n", 1)[0].decode(errors="surrogateescape").strip()
    words = line.split(None, 1)
    if not words:
        raise NotExecutableError(f"{script}: bad interpreter", "its #! line is empty", "name one")
    name = Path(words[0])
    if not name.exists():
        raise CommandNotFoundError(
            f"{script}: bad interpreter", f"{name} does not exist", "install it or change the line"
        )
    if name.name != "env" or len(words) == 1:
        return name
    # env takes one word; with -S it splits the rest, and leading assignments are not the program
    rest = words[1].split()
    rest = [word for word in rest if not word.startswith("-") and "=" not in word]
    return resolve(rest[0]) if rest else name


def _classify_image(image: Path, head: bytes, fd: int, ids: tuple[int, int]) -> tuple[Reach, str]:
    """Classify anything but a script, from its first bytes and its program headers."""
    if not head.startswith(b"\x7fELF"):
        return Reach.UNKNOWN, f"{image} is neither an ELF program nor a script"
    if head[4:6] + head[18:20] != _own_machine():
        return Reach.FOREIGN, f"{image} is for another architecture than libfsocket.so"
    segments = _segments(head, fd)
    if segments is None:
        return Reach.UNKNOWN, f"{image} has a damaged ELF header"
    gains = _gains(image, os.fstat(fd), ids)
    if gains:
        return Reach.PRIVILEGED, f"{image} {gains}, for which the loader ignores LD_PRELOAD"
    return _classify_loader(image, segments, fd)


def _classify_loader(
    image: Path, segments: dict[int, tuple[int, int]], fd: int
) -> tuple[Reach, str]:
    """Classify a program by the loader that it asks for."""
    if _PT_INTERP in segments:
        offset, size = segments[_PT_INTERP]
        loader = os.fsdecode(os.pread(fd, min(size, os.pathconf("/", "PC_PATH_MAX")), offset))
        loader = loader.rstrip("\0")
        if Path(loader).name.startswith("ld-musl"):
            return Reach.MUSL, f"{image} is linked with musl, and libfsocket.so with glibc"
        if not _is_glibc_loader(Path(loader).name):
            return Reach.OTHER_LIBC, f"{image} uses the loader {loader}, which is not glibc's"
    # The loader itself asks for none either, but run as a program it does preload.
    elif not _is_glibc_loader(image.resolve().name):
        pie = " (position independent)" if _PT_DYNAMIC in segments else ""
        return Reach.STATIC, f"{image} is statically linked{pie}, so no library can be preloaded"
    return Reach.DYNAMIC, ""


def _is_glibc_loader(name: str) -> bool:
    """Say whether a file name is one that glibc gives its loader (sysdeps, shlib-versions)."""
    return name.startswith(("ld-linux", "ld64.so", "ld.so", "ld-2."))


def _own_machine() -> bytes:
    """Return class, byte order and machine of this Python, which is of the host's architecture."""
    with Path("/proc/self/exe").open("rb") as file:
        own = file.read(20)
    return own[4:6] + own[18:20]


def _segments(head: bytes, fd: int) -> dict[int, tuple[int, int]] | None:
    """Return type -> (offset, size) of the program headers, None where they make no sense."""
    wide, order = head[4] == 2, "<" if head[5] == 1 else ">"
    try:
        kind = struct.unpack_from(order + "H", head, 16)[0]
        start = struct.unpack_from(order + ("Q" if wide else "I"), head, 32 if wide else 28)[0]
        each, count = struct.unpack_from(order + "HH", head, 54 if wide else 42)
        if kind not in (_ET_EXEC, _ET_DYN) or not 0 < count < 0xFFFF:
            return None
        table = os.pread(fd, each * count, start)
        found = {}
        for index in range(count):
            if wide:
                row = struct.unpack_from(order + "IIQQQQ", table, index * each)
                found[row[0]] = (row[2], row[5])
            else:
                row = struct.unpack_from(order + "IIIII", table, index * each)
                found[row[0]] = (row[1], row[4])
        return found
    except (struct.error, OverflowError, OSError):
        return None


def _gains(image: Path, info: os.stat_result, ids: tuple[int, int]) -> str:
    """Say how executing a file would raise privileges (AT_SECURE, getauxval(3)), if it would.

    Set-id bits to the caller's own ids change nothing, nor do file capabilities for root; a mount
    with nosuid, or no_new_privs (prctl(2)), switches all of them off.
    """
    if os.statvfs(image).f_flag & os.ST_NOSUID or _no_new_privs():
        return ""
    if info.st_mode & stat.S_ISUID and info.st_uid != ids[0]:
        return f"is set-user-ID to user {info.st_uid}"
    group_executes = info.st_mode & stat.S_IXGRP  # without it the bit marks mandatory locking
    if info.st_mode & stat.S_ISGID and group_executes and info.st_gid != ids[1]:
        return f"is set-group-ID to group {info.st_gid}"
    if ids[0] != 0:
        try:
            os.getxattr(image, "security.capability")
        except OSError:
            return ""
        return "has file capabilities"
    return ""


def _no_new_privs() -> bool:
    return "NoNewPrivs:\t1" in Path("/proc/self/status").read_text()
