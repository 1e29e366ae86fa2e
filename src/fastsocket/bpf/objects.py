# SPDX-License-Identifier: GPL-2.0-or-later
"""Finding BPF objects that the kernel still holds, by their ids; needs CAP_SYS_ADMIN."""

import ctypes
import os
from collections.abc import Iterator
from contextlib import suppress
from ctypes import c_char, c_uint8, c_uint32, c_uint64
from typing import NamedTuple

from fastsocket.bpf.libbpf import BpfError, Map, library

__all__ = ["MapInfo", "ProgramInfo", "map_by_id", "map_info", "program_maps", "programs"]

BPF_OBJ_NAME_LEN = 16
MOST_MAPS = 16  # of one program that are looked at


class _MapInfo(ctypes.Structure):
    """The head of struct bpf_map_info (include/uapi/linux/bpf.h)."""

    _fields_ = (
        ("type", c_uint32),
        ("id", c_uint32),
        ("key_size", c_uint32),
        ("value_size", c_uint32),
        ("max_entries", c_uint32),
        ("map_flags", c_uint32),
        ("name", c_char * BPF_OBJ_NAME_LEN),
    )


class _ProgramInfo(ctypes.Structure):
    """The head of struct bpf_prog_info."""

    _fields_ = (
        ("type", c_uint32),
        ("id", c_uint32),
        ("tag", c_uint8 * 8),
        ("jited_prog_len", c_uint32),
        ("xlated_prog_len", c_uint32),
        ("jited_prog_insns", c_uint64),
        ("xlated_prog_insns", c_uint64),
        ("load_time", c_uint64),
        ("created_by_uid", c_uint32),
        ("nr_map_ids", c_uint32),
        ("map_ids", c_uint64),
        ("name", c_char * BPF_OBJ_NAME_LEN),
    )


class MapInfo(NamedTuple):
    """What the kernel tells of a map."""

    kind: int
    number: int
    name: str
    value_size: int


class ProgramInfo(NamedTuple):
    """What the kernel tells of a program; `maps` are ids."""

    number: int
    name: str
    maps: list[int]


def _info(fd: int, info: ctypes.Structure, what: str) -> None:
    size = c_uint32(ctypes.sizeof(info))
    if library().bpf_obj_get_info_by_fd(fd, ctypes.byref(info), ctypes.byref(size)) < 0:
        raise BpfError(what, ctypes.get_errno())


def map_info(fd: int) -> MapInfo:
    """Return what a map is.

    Raises:
        BpfError: The descriptor is no map.
    """
    info = _MapInfo()
    _info(fd, info, "the BPF map cannot be looked at")
    return MapInfo(info.type, info.id, info.name.decode(errors="replace"), info.value_size)


def map_by_id(number: int) -> Map:
    """Open the map of that id.

    Raises:
        BpfError: There is none, or no privilege.
    """
    fd = library().bpf_map_get_fd_by_id(number)
    if fd < 0:
        raise BpfError(f"the BPF map {number} cannot be opened", ctypes.get_errno())
    info = _MapInfo()
    _info(fd, info, "the BPF map cannot be looked at")
    return Map(
        fd, info.name.decode(errors="replace"), info.key_size, info.value_size, info.max_entries,
        owned=True,
    )  # fmt: skip


def programs(name: str) -> Iterator[tuple[int, ProgramInfo]]:
    """Yield the loaded programs of that name, each with a descriptor that the caller closes.

    Raises:
        BpfError: No privilege.
    """
    number = c_uint32(0)
    while library().bpf_prog_get_next_id(number.value, ctypes.byref(number)) == 0:
        fd = library().bpf_prog_get_fd_by_id(number.value)
        if fd < 0:
            continue  # it went meanwhile
        with suppress(BpfError):
            found = _program(fd)
            if found.name == name:
                yield fd, found
                continue
        os.close(fd)


def _program(fd: int) -> ProgramInfo:
    ids = (c_uint32 * MOST_MAPS)()
    info = _ProgramInfo(nr_map_ids=MOST_MAPS, map_ids=ctypes.addressof(ids))
    _info(fd, info, "the BPF program cannot be looked at")
    count = min(info.nr_map_ids, MOST_MAPS)
    return ProgramInfo(info.id, info.name.decode(errors="replace"), list(ids[:count]))


def program_maps(program: ProgramInfo) -> dict[int, Map]:
    """Open a program's maps: by their type (``enum bpf_map_type``) and id, as ``{id: map}``."""
    found = {}
    for number in program.maps:
        with suppress(BpfError):
            found[number] = map_by_id(number)
    return found
