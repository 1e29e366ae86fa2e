# SPDX-License-Identifier: GPL-2.0-or-later
"""BPF objects: opened, completed, loaded."""

import ctypes
import os
from collections.abc import Iterator
from ctypes import byref, c_size_t
from pathlib import Path
from types import TracebackType
from typing import Self

from fastsocket.bpf.libbpf.library import check, forget_messages, library
from fastsocket.bpf.libbpf.maps import Map
from fastsocket.bpf.libbpf.programs import Program
from fastsocket.errors import FastsocketError

__all__ = ["BpfObject"]


class BpfObject:
    """An opened BPF object; set variables, then ``load``, then use its maps and programs.

    Args:
        source: Path of the object file, or its bytes.
        name: How errors name it, for bytes.

    Raises:
        BpfError: Not a BPF object, or unreadable.
    """

    def __init__(self, source: Path | bytes, name: str = "object") -> None:
        self.name = source.name if isinstance(source, Path) else name
        self._handle: int | None = None
        forget_messages()
        if isinstance(source, Path):
            self._handle = library().bpf_object__open_file(os.fsencode(source), None)
        else:
            self._handle = library().bpf_object__open_mem(source, len(source), None)
        check(0 if self._handle else None, f"{self.name} cannot be opened as a BPF object")

    def set_variable(self, offset: int, value: bytes, section: str = ".rodata") -> None:
        """Write `value` at `offset` of a data section before ``load``.

        Raises:
            FastsocketError: No such section, or it is shorter.
        """
        size = c_size_t()
        for handle in self._handles("map"):
            name = library().bpf_map__name(handle).decode()
            if not name.endswith(section):
                continue
            base = library().bpf_map__initial_value(handle, byref(size))
            if base and offset + len(value) <= size.value:
                ctypes.memmove(base + offset, value, len(value))
                return
        raise FastsocketError(f"{self.name} has no {section} of {offset + len(value)} bytes")

    def reuse_map(self, name: str, fd: int) -> None:
        """Let the object use an existing map for its map `name`; call before ``load``."""
        check(library().bpf_map__reuse_fd(self._map_handle(name), fd), f"{name} does not fit")

    def resize_map(self, name: str, max_entries: int) -> None:
        """Set the size of a map before ``load``."""
        result = library().bpf_map__set_max_entries(self._map_handle(name), max_entries)
        check(result, f"{name} cannot hold {max_entries} entries")

    def load(self) -> Self:
        """Create the maps and load the programs.

        Raises:
            BpfError: Refused; `log` holds the verifier's words.
        """
        forget_messages()
        check(library().bpf_object__load(self._handle), f"{self.name} cannot be loaded")
        return self

    def map(self, name: str) -> Map:
        """Return the map `name`.

        Raises:
            FastsocketError: There is none.
        """
        handle, lib = self._map_handle(name), library()
        return Map(
            lib.bpf_map__fd(handle),
            name,
            lib.bpf_map__key_size(handle),
            lib.bpf_map__value_size(handle),
            lib.bpf_map__max_entries(handle),
            owned=False,
        )

    def program(self, name: str) -> Program:
        """Return the program `name`.

        Raises:
            FastsocketError: There is none.
        """
        handle = library().bpf_object__find_program_by_name(self._handle, name.encode())
        if not handle:
            raise FastsocketError(f"{self.name} has no program {name}")
        return Program(handle, self)

    def programs(self) -> list[Program]:
        """Return all programs in the order of the object."""
        return [Program(handle, self) for handle in self._handles("program")]

    def close(self) -> None:
        """Close everything; what is attached or held elsewhere lives on."""
        if self._handle is not None:
            library().bpf_object__close(self._handle)
            self._handle = None

    def _map_handle(self, name: str) -> int:
        handle: int | None = library().bpf_object__find_map_by_name(self._handle, name.encode())
        if not handle:
            raise FastsocketError(f"{self.name} has no map {name}")
        return handle

    def _handles(self, kind: str) -> Iterator[int]:
        following = getattr(library(), f"bpf_object__next_{kind}")
        handle = following(self._handle, None)
        while handle:
            yield handle
            handle = following(self._handle, handle)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
