# SPDX-License-Identifier: GPL-2.0-or-later
"""Receive flow deliver without a preload: ports by CPU, given by a cgroup's connect hooks.

For static and Go programs, and where the kernel has no IP_LOCAL_PORT_RANGE. The hooks cover every
process in the cgroup and below; applications that bind a port themselves keep it.
"""

import os
import struct
from enum import IntEnum
from pathlib import Path
from types import TracebackType
from typing import Self

from fastsocket.bpf.libbpf import BpfObject, Link
from fastsocket.errors import UsageError
from fastsocket.host.slices import SlicePlan
from fastsocket.native import native_file
from fastsocket.steer.program import per_cpu_sum, settings_for

__all__ = ["ConnectExit", "ConnectHooks"]


class ConnectExit(IntEnum):
    """What became of a connect() (enum connect_exit)."""

    OWN = 0
    BORROWED = 1
    LEFT = 2
    KEPT = 3


class ConnectHooks:
    """The hooks on a cgroup; they end when this is closed.

    The hooks give out three quarters of each slice. A port that is bound serves one connection,
    while the kernel's own choice may share a port among destinations: the rest is left for that.

    Args:
        cgroup: A folder in the cgroup v2 file system.
        plan: The slices.

    Raises:
        UsageError: There is no such cgroup.
        BpfError: The kernel refuses.
    """

    def __init__(self, cgroup: Path, plan: SlicePlan) -> None:
        self._links: list[Link] = []
        try:
            handle = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            raise UsageError(f"{cgroup} is no cgroup", error.strerror or "") from error
        self._object = BpfObject(native_file("connect.bpf.o"))
        try:
            self._object.set_variable(
                0, bytes(settings_for([part.cpu for part in plan.slices])), ".rodata.steer"
            )
            self._object.set_variable(0, _bits(plan.reserved), ".rodata.ports")
            self._object.load()
            slices = self._object.map("slices")
            for index, part in enumerate(plan.slices):
                given = struct.pack("=II", part.first, part.size * 3 // 4)
                slices.update(struct.pack("=I", index), given)
            for name in ("connect_ipv4", "connect_ipv6"):
                self._links.append(self._object.program(name).attach_cgroup(handle))
        except BaseException:
            self.close()
            raise
        finally:
            os.close(handle)

    @property
    def fds(self) -> set[int]:
        """Descriptors that hold the hooks and what they count."""
        return {link.fd for link in self._links} | {self._object.map("exits").fd}

    def exits(self) -> dict[ConnectExit, int]:
        """Return how many connects went each way so far."""
        exits = self._object.map("exits")
        return {way: per_cpu_sum(exits, int(way)) for way in ConnectExit}

    def counts(self) -> tuple[int, int]:
        """Return how many connections took a port of their CPU's slice, and how many another."""
        exits = self.exits()
        return exits[ConnectExit.OWN], exits[ConnectExit.BORROWED] + exits[ConnectExit.LEFT]

    def close(self) -> None:
        """Take the hooks off."""
        for link in self._links:
            link.close()
        self._links.clear()
        self._object.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _bits(ports: frozenset[int]) -> bytes:
    """Return a bit for each of the 65,536 ports (connect_reserved)."""
    return sum(1 << port for port in ports).to_bytes(65536 // 8, "little")
