# SPDX-License-Identifier: GPL-2.0-or-later
"""How many CPUs a process may use: affinity, cpuset and CPU quota, through every cgroup above it.

Inside a container the number of CPUs of the machine says little: the cpuset says which of them,
and ``cpu.max`` how much time on them. A slot per CPU of the machine would oversubscribe such a
container, so listen spawn asks here first.

Everything is read below a root folder, so that recorded hosts serve as tests. Sources: cgroups(7),
cpuset(7), Documentation/admin-guide/cgroup-v2.rst, Documentation/scheduler/sched-bwc.rst.
"""

import math
import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from fastsocket.host.cpulist import format_list, parse_list

__all__ = ["CpuLimits", "live_limits", "read_limits"]


@dataclass(frozen=True, slots=True)
class CpuLimits:
    """The CPUs and the CPU time that a process may use.

    Attributes:
        online: CPUs that the kernel runs.
        allowed: CPUs that affinity and cpuset leave, in ascending order, never empty.
        quota: CPU time as a number of CPUs (1.5 is 150 ms in each 100 ms), None without a quota.
        reasons: One line for each limit found, for `status` and `doctor`.
    """

    online: tuple[int, ...]
    allowed: tuple[int, ...]
    quota: float | None
    reasons: tuple[str, ...]

    @property
    def count(self) -> int:
        """Workers that can run at the same time: the allowed CPUs, capped by the quota.

        A quota of 1.5 CPUs counts as two: one worker could not use it up.
        """
        if self.quota is None:
            return len(self.allowed)
        return max(1, min(len(self.allowed), math.ceil(self.quota)))


@dataclass(frozen=True, slots=True)
class _Mount:
    """A cgroup hierarchy as this process sees it: controllers, folder, and what lies above it."""

    controllers: frozenset[str]
    point: Path
    root: PurePosixPath


def live_limits(pid: int | None = None) -> CpuLimits:
    """Return the limits of a process of this host, by default the calling one.

    Raises:
        ProcessLookupError: There is no such process.
    """
    return read_limits(Path("/"), pid, frozenset(os.sched_getaffinity(pid or 0)))


def read_limits(root: Path, pid: int | None, affinity: frozenset[int]) -> CpuLimits:
    """Return the limits of a process of the host whose ``/proc`` and ``/sys`` lie below `root`.

    A limit that cannot be read is no limit: the kernel enforces it anyway, and the worst that a
    missing one does is one slot too many.

    Args:
        root: The folder that holds ``proc`` and ``sys``.
        pid: The process, or None for ``/proc/self``.
        affinity: Its CPU mask (sched_getaffinity(2)), which has no text form in a recording.
    """
    proc = root / "proc" / (str(pid) if pid else "self")
    online_text = _read(root / "sys/devices/system/cpu/online")
    online = frozenset(parse_list(online_text)) if online_text else affinity
    allowed = affinity & online or affinity
    reasons = []
    if allowed < online:
        reasons.append(f"affinity {format_list(allowed)} of {format_list(online)}")
    quota: float | None = None
    mounts = _cgroup_mounts(root, _read(proc / "mountinfo") or "")
    for controllers, path in _memberships(_read(proc / "cgroup") or ""):
        for mount in mounts:
            if not _same_hierarchy(mount, controllers):
                continue
            folders = _folders(mount, path)
            cpuset = _cpuset(folders)
            if cpuset and cpuset & allowed and not allowed <= cpuset:
                allowed &= cpuset
                reasons.append(f"cpuset {format_list(cpuset)} of {path}")
            for folder in folders:
                found = _quota(folder)
                if found is not None and (quota is None or found < quota):
                    quota = found
                    reasons.append(f"quota of {found:g} CPUs in {_shown(folder, root)}")
            break
    return CpuLimits(tuple(sorted(online)), tuple(sorted(allowed)), quota, tuple(reasons))


def _read(path: Path) -> str | None:
    """Return the text of a file, or None where there is none or it may not be read."""
    try:
        return path.read_text().strip()
    except OSError:
        return None


def _cgroup_mounts(root: Path, mountinfo: str) -> list[_Mount]:
    """Return the cgroup mounts in mountinfo (proc_pid_mountinfo(5)); v2 has no controllers."""
    mounts = []
    for line in mountinfo.splitlines():
        fields, _, tail = line.partition(" - ")
        kind, *rest = tail.split()
        if kind not in ("cgroup", "cgroup2"):
            continue
        words = fields.split()
        names = frozenset() if kind == "cgroup2" else frozenset(rest[-1].split(","))
        point = root / _unescape(words[4]).lstrip("/")
        mounts.append(_Mount(names, point, PurePosixPath(_unescape(words[3]))))
    return mounts


def _unescape(word: str) -> str:
    """Undo the octal escapes with which mountinfo writes blanks and backslashes."""
    for code, char in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        word = word.replace(code, char)
    return word


def _memberships(text: str) -> list[tuple[frozenset[str], str]]:
    """Return (controllers, path) of each hierarchy in /proc/PID/cgroup; v2 has no controllers."""
    rows = [line.split(":", 2) for line in text.splitlines() if line.count(":") >= 2]
    return [(frozenset(filter(None, names.split(","))), path) for _, names, path in rows]


def _same_hierarchy(mount: _Mount, controllers: frozenset[str]) -> bool:
    """Say whether a membership belongs to this mount; only CPU controllers are of interest."""
    if not controllers or not mount.controllers:
        return not controllers and not mount.controllers
    return bool(mount.controllers & controllers & {"cpu", "cpuset"})


def _folders(mount: _Mount, path: str) -> list[Path]:
    """Return the folders from the process's cgroup up to the top that is visible here.

    A container without a cgroup namespace sees host paths, but only its own subtree is mounted:
    the mount's root says how much of the path lies above it. A path that leaves the namespace
    (``/..``) is not visible; then the mounted top is all there is.
    """
    own = PurePosixPath(path)
    try:
        inner = own.relative_to(mount.root)
    except ValueError:
        inner = PurePosixPath() if mount.root != PurePosixPath("/") else own.relative_to("/")
    if ".." in inner.parts:
        inner = PurePosixPath()
    leaf = mount.point / inner
    return [leaf, *(leaf.parents[i] for i in range(len(inner.parts)))]


def _cpuset(folders: list[Path]) -> frozenset[int]:
    """Return the effective cpuset: that of the nearest folder which has one (v2 or v1 file)."""
    for folder in folders:
        for name in ("cpuset.cpus.effective", "cpuset.effective_cpus", "cpuset.cpus"):
            text = _read(folder / name)
            if text:
                return frozenset(parse_list(text))
    return frozenset()


def _quota(folder: Path) -> float | None:
    """Return the CPU time limit of one cgroup as a number of CPUs, None for no limit."""
    pair = (_read(folder / "cpu.max") or "").split()
    if not pair:
        pair = [_read(folder / f"cpu.cfs_{name}_us") or "" for name in ("quota", "period")]
    try:
        quota, period = int(pair[0]), int(pair[1])
    except (ValueError, IndexError):
        return None
    return quota / period if quota > 0 and period > 0 else None


def _shown(folder: Path, root: Path) -> str:
    """Return a folder as a person on that host would write it."""
    return "/" + str(folder.relative_to(root))
