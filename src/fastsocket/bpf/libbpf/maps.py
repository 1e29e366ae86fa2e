# SPDX-License-Identifier: GPL-2.0-or-later
"""BPF maps."""

import ctypes
import errno
import mmap
import os
from collections.abc import Iterator
from ctypes import byref, c_size_t, c_uint32, c_uint64
from typing import Self

from fastsocket.bpf.libbpf.library import check, library

__all__ = ["Map"]

BPF_ANY = 0


class Map:
    """One BPF map; keys and values are bytes of exactly `key_size` and `value_size`.

    It owns `fd` only if `owned`; maps of a :class:`BpfObject` are closed with the object.
    """

    def __init__(
        self, fd: int, name: str, key_size: int, value_size: int, max_entries: int, owned: bool
    ) -> None:
        self.fd, self.name, self.owned = fd, name, owned
        self.key_size, self.value_size, self.max_entries = key_size, value_size, max_entries

    @classmethod
    def create(
        cls,
        kind: int,
        name: str,
        key_size: int,
        value_size: int,
        max_entries: int,
        flags: int = 0,
    ) -> Self:
        """Create a map of the kernel's type number `kind` (``enum bpf_map_type``).

        Raises:
            BpfError: Refused by the kernel.
        """

        class Options(ctypes.Structure):
            _fields_ = (
                ("sz", c_size_t),
                ("btf_fd", c_uint32),
                ("btf_key_type_id", c_uint32),
                ("btf_value_type_id", c_uint32),
                ("btf_vmlinux_value_type_id", c_uint32),
                ("inner_map_fd", c_uint32),
                ("map_flags", c_uint32),
                ("map_extra", c_uint64),
                ("numa_node", c_uint32),
                ("map_ifindex", c_uint32),
            )

        options = Options(sz=ctypes.sizeof(Options), map_flags=flags)
        fd = check(
            library().bpf_map_create(
                kind, name.encode(), key_size, value_size, max_entries, byref(options)
            ),
            f"the BPF map {name} cannot be created",
        )
        return cls(fd, name, key_size, value_size, max_entries, owned=True)

    def lookup(self, key: bytes, value_size: int | None = None) -> bytes | None:
        """Return the value of `key`, or None; `value_size` for per-CPU maps is the whole array."""
        value = ctypes.create_string_buffer(value_size or self.value_size)
        if library().bpf_map_lookup_elem(self.fd, key, value) < 0:
            if ctypes.get_errno() == errno.ENOENT:
                return None
            check(-1, f"the BPF map {self.name} cannot be read")
        return value.raw

    def update(self, key: bytes, value: bytes, flags: int = BPF_ANY) -> None:
        """Set the value of `key`.

        Raises:
            BpfError: Full, or not allowed for this type of map.
        """
        check(
            library().bpf_map_update_elem(self.fd, key, value, flags),
            f"the BPF map {self.name} cannot be changed",
        )

    def delete(self, key: bytes) -> bool:
        """Delete `key`; return whether it was there."""
        if library().bpf_map_delete_elem(self.fd, key) < 0:
            if ctypes.get_errno() == errno.ENOENT:
                return False
            check(-1, f"the BPF map {self.name} cannot be changed")
        return True

    def keys(self) -> Iterator[bytes]:
        """Yield the keys; entries changed meanwhile may be missed or come twice."""
        current: bytes | None = None
        following = ctypes.create_string_buffer(self.key_size)
        while library().bpf_map_get_next_key(self.fd, current, following) == 0:
            current = following.raw
            yield current

    def mmap(self, size: int, writable: bool = True) -> mmap.mmap:
        """Map the values of a BPF_F_MMAPABLE array into memory, shared with the kernel."""
        access = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        return mmap.mmap(self.fd, size, mmap.MAP_SHARED, access)

    def close(self) -> None:
        """Close the descriptor, if this object owns it."""
        if self.owned and self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
