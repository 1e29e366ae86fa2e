# SPDX-License-Identifier: GPL-2.0-or-later
"""Loading the local fast path for one port, switching it off, and its counters."""

import ctypes
import itertools
import mmap
import os
import socket
import struct
from contextlib import suppress
from ctypes import c_uint64
from enum import IntEnum
from pathlib import Path
from typing import Any, Self

from fastsocket.bpf.libbpf import BpfError, BpfObject, Link
from fastsocket.errors import MissingFeatureError
from fastsocket.native import native_file

__all__ = ["OBJECTS", "WATCHERS", "Counters", "FastPath", "Off", "cgroup_root"]

# include/uapi/linux/bpf.h, enum bpf_attach_type
BPF_SK_MSG_VERDICT = 7
# Alike, but for what a message costs: native/bpf/local.bpf.c.
OBJECTS = ("local-cast.bpf.o", "local.bpf.o")
# What watches for splice(): the first costs nobody else anything, the second every system call.
WATCHERS = ("fs_local_splice", "fs_local_splice_call")
# The cheapest first.
VARIANTS = tuple(itertools.product(OBJECTS, WATCHERS))
SO_NETNS_COOKIE = 71  # include/uapi/asm-generic/socket.h, since Linux 5.14


class Off(IntEnum):
    """enum fs_local_off."""

    ON = 0
    SWITCHED_OFF = 1
    SERVER_BLOCKS = 2

    @property
    def why(self) -> str:
        """The reason in words; empty while it is on."""
        return ("", "it was switched off", "the server reads with blocking calls")[self]


class Counters(ctypes.Structure):
    """struct fs_local of native/include/local.h; the comments on the fields are there."""

    _fields_ = (
        ("off", c_uint64),
        ("connections", c_uint64),
        ("redirected", c_uint64),
        ("passed", c_uint64),
        ("spliced", c_uint64),
    )


def cgroup_root(mounts: Path = Path("/proc/self/mounts")) -> Path:
    """Return where the host's cgroup v2 hierarchy is mounted.

    Raises:
        MissingFeatureError: Nowhere.
    """
    for line in mounts.read_text().splitlines():
        _, where, kind, *_ = line.split()
        if kind == "cgroup2":
            return Path(where)
    raise MissingFeatureError(
        "the local fast path cannot see connections",
        "no cgroup v2 hierarchy is mounted",
        "mount -t cgroup2 none /sys/fs/cgroup/unified",
    )


def _netns_cookie() -> int:
    with socket.socket() as probe:
        raw = probe.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8)
    cookie: int = struct.unpack("=Q", raw)[0]
    return cookie


class FastPath:
    """The fast path of the servers that listen on `port` in this process's network namespace.

    Connections that are established from now on are taken; those that are open are left alone.
    Nothing is pinned: when this object is closed or its process dies, no further connection is
    taken. The sockets that were taken hold the programs and, through them, the maps: they stay as
    they are until they close, for taking one out of the map would lose what it has not read yet.
    After `close` TCP carries what they send; after the death of the process they go on as before.

    Args:
        port: The servers' port, 1 to 65535.
        cgroup: Only sockets of processes in this folder of the cgroup v2 hierarchy; by default
            all of the host's.
        connections: How many may be taken at the same time, where not the program's own number.

    Attributes:
        watches: The one of `WATCHERS` that the kernel took.

    Raises:
        BpfError: The kernel refused the programs, or another program holds the cgroup alone.
        MissingFeatureError: There is no cgroup v2 hierarchy.
    """

    def __init__(
        self,
        port: int,
        cgroup: Path | None = None,
        connections: int | None = None,
    ) -> None:
        self.port = port
        self._links: list[Link] = []
        self._object = self._loaded(connections)
        try:
            self._attach()
            handle = os.open(cgroup or cgroup_root(), os.O_RDONLY | os.O_DIRECTORY)
            try:
                program = self._object.program("fs_local_establish")
                self._links.append(program.attach_cgroup(handle))
            finally:
                os.close(handle)
        except BaseException:
            self._detach()
            self._object.close()
            raise

    def _loaded(self, connections: int | None) -> BpfObject:
        """Load the cheapest that the kernel takes, and let it watch who must be left out."""
        *cheaper, last = VARIANTS
        for variant in cheaper:
            with suppress(BpfError):
                return self._watching(*variant, connections)
        return self._watching(*last, connections)

    def _watching(self, name: str, watcher: str, connections: int | None) -> BpfObject:
        loaded = BpfObject(native_file(name))
        try:
            loaded.set_variable(0, struct.pack("=HxxxxxxQ", self.port, _netns_cookie()))
            if connections is not None:
                loaded.resize_map("local_sockets", 2 * connections)
            for other in WATCHERS:
                loaded.program(other).set_autoload(other == watcher)
            loaded.load()
            self._links.append(loaded.program(watcher).attach())
        except BaseException:
            loaded.close()
            raise
        self.watches = watcher
        return loaded

    def _attach(self) -> None:
        sockets = self._object.map("local_sockets")
        self._object.program("fs_local_send").attach_map(sockets, BPF_SK_MSG_VERDICT)
        self._memory = self._object.map("local_page").mmap(mmap.PAGESIZE)
        self.counters = Counters.from_buffer(self._memory)

    def switch_off(self) -> None:
        """Take no further connection, and let TCP carry what those that were taken send."""
        self.counters.off = self.counters.off or Off.SWITCHED_OFF
        self._detach()

    def _detach(self) -> None:
        while self._links:
            self._links.pop().close()

    def sockets(self) -> int:
        """Return how many sockets are on it now."""
        return len(list(self._object.map("local_sockets").keys()))

    def status(self) -> dict[str, Any]:
        """Return the counters by name, ready for JSON; ``off`` is why it is off, or empty."""
        return {
            "port": self.port,
            "off": Off(self.counters.off).why,
            "connections": self.counters.connections,
            "redirected": self.counters.redirected,
            "passed": self.counters.passed,
            "spliced": self.counters.spliced,
        }

    def close(self) -> None:
        """Switch off and let go."""
        self.switch_off()
        self._object.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
