# SPDX-License-Identifier: GPL-2.0-or-later
"""Receive flow deliver for one application: by the library, or by hooks on a cgroup of its own.

The library sets IP_LOCAL_PORT_RANGE on each socket that connects. Where it cannot be preloaded, or
the kernel has no such option, the application runs in a cgroup below the one that it would have
been in, with connect hooks there. The keeper holds them, so that they end with it.
"""

import contextlib
import os
import socket
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastsocket.errors import FastsocketError, MissingFeatureError
from fastsocket.host.slices import SlicePlan, local_slices

if TYPE_CHECKING:
    from fastsocket.steer.connect import ConnectHooks

__all__ = ["Deliver", "own_cgroup", "range_option_works"]

_IP_LOCAL_PORT_RANGE = 51  # linux/in.h, since Linux commit 91d0b78c5177 (in v6.3)
_PREFIX = "fastsocket-"


def range_option_works() -> bool:
    """Say whether a socket can be given a range of local ports of its own."""
    with socket.socket() as tried:
        try:
            ports = struct.pack("=HH", 32768, 32769)
            tried.setsockopt(socket.IPPROTO_IP, _IP_LOCAL_PORT_RANGE, ports)
        except OSError:
            return False
    return True


def own_cgroup() -> Path:
    """Return the folder of this process's cgroup.

    Raises:
        MissingFeatureError: No cgroup v2 file system is mounted.
    """
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    own = [
        line[4:] for line in Path("/proc/self/cgroup").read_text().splitlines() if line[:3] == "0::"
    ]
    found = [Path(words[1], *own) for words in mounts if words[2] == "cgroup2" and own]
    for folder in found:
        if folder.is_dir():  # else another file system is mounted over it
            return folder
    raise MissingFeatureError("no cgroup v2 file system is mounted")


class Deliver:
    """How an application's connections get their ports.

    Args:
        preloads: Whether the library can be preloaded.

    Raises:
        FastsocketError: It cannot be done; says why.
    """

    def __init__(self, preloads: bool) -> None:
        self.plan: SlicePlan = local_slices()
        self.hooks: ConnectHooks | None = None
        if preloads and range_option_works():
            return
        parent = own_cgroup()
        _sweep(parent)
        self._cgroup = parent / f"{_PREFIX}{os.getpid()}"
        try:
            self._cgroup.mkdir()
        except OSError as error:
            raise MissingFeatureError(
                f"{self._cgroup} cannot be made", error.strerror or ""
            ) from error
        try:
            self.hooks = _hooked(self._cgroup, self.plan)
        except FastsocketError:
            self._cgroup.rmdir()
            raise

    @property
    def fds(self) -> set[int]:
        """Descriptors that the keeper needs."""
        return self.hooks.fds if self.hooks else set()

    @property
    def environment(self) -> dict[str, str]:
        """What the library needs."""
        return {} if self.hooks else {"FASTSOCKET_PORT_SLICES": self.plan.text}

    def enter(self) -> None:
        """Move this process to where the hooks are.

        Raises:
            MissingFeatureError: The kernel refuses.
        """
        if self.hooks:
            try:
                (self._cgroup / "cgroup.procs").write_text(str(os.getpid()))
            except OSError as error:
                why = error.strerror or ""
                raise MissingFeatureError(f"{self._cgroup} cannot be entered", why) from error

    def processes(self) -> set[int]:
        """Return the processes under the hooks."""
        return _processes(self._cgroup) if self.hooks else set()

    def status(self) -> dict[str, Any]:
        """Return ``by`` ("library" or "hooks"), ``slices``, and what the hooks counted."""
        slices = {part.cpu: [part.first, part.last] for part in self.plan.slices}
        if not self.hooks:
            return {"by": "library", "slices": slices}
        opened, borrowed = self.hooks.counts()
        return {"by": "hooks", "slices": slices, "opened": opened, "borrowed": borrowed}

    def close(self) -> None:
        """Take the hooks off and remove their cgroup, unless somebody is in it."""
        if self.hooks:
            self.hooks.close()
            with contextlib.suppress(OSError):
                self._cgroup.rmdir()


def _hooked(cgroup: Path, plan: SlicePlan) -> "ConnectHooks":
    from fastsocket.steer.connect import ConnectHooks  # few need it, and it is slow to import

    return ConnectHooks(cgroup, plan)


def _processes(cgroup: Path) -> set[int]:
    try:
        return set(map(int, (cgroup / "cgroup.procs").read_text().split()))
    except OSError:
        return set()


def _sweep(parent: Path) -> None:
    """Remove the cgroups of applications that are gone and whose keeper was killed before."""
    for folder in parent.glob(f"{_PREFIX}[0-9]*"):
        if not Path(f"/proc/{folder.name.removeprefix(_PREFIX)}").exists():
            with contextlib.suppress(OSError):  # a child of the application's lives on in it
                folder.rmdir()
