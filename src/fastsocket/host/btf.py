# SPDX-License-Identifier: GPL-2.0-or-later
"""Where the fields of the running kernel's structures lie, from its own type information.

Reads ``/sys/kernel/btf/vmlinux`` (Documentation/bpf/btf.rst), only as far as it is needed to find
structures, their members and variables by name.
"""

import struct
from functools import cache
from pathlib import Path

__all__ = ["Btf", "kernel_btf"]

_MAGIC = 0xEB9F
_ARRAY, _STRUCT, _UNION, _ENUM, _FUNC_PROTO = 3, 4, 5, 6, 13
_INT, _VAR, _DATASEC, _DECL_TAG, _ENUM64 = 1, 14, 15, 17, 19
# Types that only give another type a name or a qualifier: typedef, volatile, const, restrict, tag.
_MODIFIERS = frozenset((8, 9, 10, 11, 18))

# Bytes that follow the common 12 of a type: (fixed, for each of its vlen entries).
_EXTRA = {
    **{_INT: (4, 0), _ARRAY: (12, 0), _STRUCT: (0, 12), _UNION: (0, 12), _ENUM: (0, 8)},
    **{_FUNC_PROTO: (0, 8), _VAR: (4, 0), _DATASEC: (0, 12), _DECL_TAG: (4, 0), _ENUM64: (0, 12)},
}


class Btf:
    """Type information in the kernel's format."""

    def __init__(self, data: bytes) -> None:
        """Index the types; about 0.1 s for a kernel's.

        Raises:
            ValueError: The data is not BTF.
        """
        if len(data) < 24 or struct.unpack_from("=H", data)[0] != _MAGIC:
            raise ValueError("not BTF")
        header, types, types_size, strings, size = struct.unpack_from("=IIIII", data, 4)
        self._data = data
        self._strings = data[header + strings : header + strings + size]
        self._position = [0]  # of each type by its id; id 0 is void
        self._first: dict[tuple[int, int], int] = {}  # (kind, offset of the name) -> id
        here, end = header + types, header + types + types_size
        while here < end:
            name, info, _ = struct.unpack_from("=III", data, here)
            kind = info >> 24 & 0x1F
            if kind in (_STRUCT, _UNION, _VAR):
                self._first.setdefault((kind, name), len(self._position))
            self._position.append(here)
            fixed, each = _EXTRA.get(kind, (0, 0))
            here += 12 + fixed + each * (info & 0xFFFF)

    def variable(self, name: str) -> int | None:
        """Return the id of a variable, such as a per-CPU one; None where it is not described."""
        return self._find(_VAR, name)

    def has_struct(self, name: str) -> bool:
        """Say whether the kernel has a structure of this name."""
        return self._find(_STRUCT, name) is not None

    def offset(self, structure: str, path: str) -> int:
        """Return the offset in bytes of a member, as in ``offset("file", "f_path.dentry")``.

        Raises:
            KeyError: There is no such structure or member.
        """
        where = self._find(_STRUCT, structure)
        total = 0
        for member in path.split("."):
            found = None if where is None else self._member(where, member)
            if found is None:
                raise KeyError(f"struct {structure} has no {path}")
            total, where = total + found[0], found[1]
        return total

    def _find(self, kind: int, name: str) -> int | None:
        at = self._strings.find(b"\0" + name.encode() + b"\0")
        return self._first.get((kind, at + 1)) if at >= 0 else None

    def _name(self, offset: int) -> str:
        return self._strings[offset : self._strings.index(b"\0", offset)].decode()

    def _resolve(self, type_id: int) -> int:
        """Follow typedefs and qualifiers to the type itself."""
        while type_id:
            _, info, target = struct.unpack_from("=III", self._data, self._position[type_id])
            if info >> 24 & 0x1F not in _MODIFIERS:
                break
            type_id = target
        return type_id

    def _member(self, type_id: int, name: str) -> tuple[int, int] | None:
        """Return (offset, type) of a member, searched in unnamed structures and unions too."""
        position = self._position[self._resolve(type_id)]
        info = struct.unpack_from("=I", self._data, position + 4)[0]
        if info >> 24 & 0x1F not in (_STRUCT, _UNION):
            return None
        for index in range(info & 0xFFFF):
            entry = position + 12 + 12 * index
            label, target, bits = struct.unpack_from("=III", self._data, entry)
            start = (bits & 0xFFFFFF if info >> 31 else bits) // 8
            if label and self._name(label) == name:
                return start, target
            inner = None if label else self._member(target, name)
            if inner:
                return start + inner[0], inner[1]
        return None


@cache
def kernel_btf() -> Btf:
    """Return the running kernel's type information.

    Raises:
        OSError: The kernel has none (CONFIG_DEBUG_INFO_BTF).
    """
    return Btf(Path("/sys/kernel/btf/vmlinux").read_bytes())
