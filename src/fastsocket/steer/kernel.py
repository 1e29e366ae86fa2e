# SPDX-License-Identifier: GPL-2.0-or-later
"""The BPF calls that only steering needs: XDP links by mode, pins, map types, link exchange."""

import ctypes
import errno
import os
from ctypes import POINTER, byref, c_char_p, c_int, c_size_t, c_uint32, c_uint64, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

from fastsocket.bpf.libbpf import BpfError, library

__all__ = [
    "BPF_MAP_TYPE_LRU_HASH",
    "XDP_DRIVER",
    "XDP_GENERIC",
    "allow_frags",
    "attached_program",
    "detach_link",
    "link_program",
    "open_pin",
    "pin",
    "program_name",
    "set_map_type",
    "update_link",
    "xdp_link",
]

BPF_MAP_TYPE_LRU_HASH = 9
XDP_GENERIC = 1 << 1
"""XDP_FLAGS_SKB_MODE: after the kernel made its packet; works on every device."""
XDP_DRIVER = 1 << 2
"""XDP_FLAGS_DRV_MODE: in the driver, which must support it."""

_BPF_XDP = 37
_BPF_F_XDP_HAS_FRAGS = 1 << 5


class _LinkCreateOptions(ctypes.Structure):
    """struct bpf_link_create_opts up to the union."""

    _fields_ = (
        ("sz", c_size_t),
        ("flags", c_uint32),
        ("iter_info", c_void_p),
        ("iter_info_len", c_uint32),
        ("target_btf_id", c_uint32),
        ("rest", c_uint64 * 4),
    )


class _LinkInfo(ctypes.Structure):
    """struct bpf_link_info, as far as XDP links fill it."""

    _fields_ = (
        ("type", c_uint32),
        ("id", c_uint32),
        ("prog_id", c_uint32),
        ("padding", c_uint32),
        ("ifindex", c_uint32),
        ("rest", c_uint64 * 8),
    )


class _ProgramInfo(ctypes.Structure):
    """struct bpf_prog_info up to the name."""

    _fields_ = (
        ("type", c_uint32),
        ("id", c_uint32),
        ("tag", ctypes.c_uint8 * 8),
        ("jited_prog_len", c_uint32),
        ("xlated_prog_len", c_uint32),
        ("jited_prog_insns", c_uint64),
        ("xlated_prog_insns", c_uint64),
        ("load_time", c_uint64),
        ("created_by_uid", c_uint32),
        ("nr_map_ids", c_uint32),
        ("map_ids", c_uint64),
        ("name", ctypes.c_char * 16),
    )


class _XdpQueryOptions(ctypes.Structure):
    """struct bpf_xdp_query_opts."""

    _fields_ = (
        ("sz", c_size_t),
        ("prog_id", c_uint32),
        ("drv_prog_id", c_uint32),
        ("hw_prog_id", c_uint32),
        ("skb_prog_id", c_uint32),
        ("attach_mode", ctypes.c_uint8),
        ("padding", ctypes.c_uint8 * 7),
    )


_SIGNATURES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "bpf_map__set_type": (c_int, (c_void_p, c_int)),
    "bpf_program__set_flags": (c_int, (c_void_p, c_uint32)),
    "bpf_obj_pin": (c_int, (c_int, c_char_p)),
    "bpf_obj_get": (c_int, (c_char_p,)),
    "bpf_link_detach": (c_int, (c_int,)),
    "bpf_link_update": (c_int, (c_int, c_int, c_void_p)),
    "bpf_obj_get_info_by_fd": (c_int, (c_int, c_void_p, POINTER(c_uint32))),
    "bpf_prog_get_fd_by_id": (c_int, (c_uint32,)),
    "bpf_xdp_query": (c_int, (c_int, c_int, c_void_p)),
}


@cache
def _lib() -> ctypes.CDLL:
    lib = library()
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    return lib


def _check(result: int, what: str) -> int:
    if result < 0:
        raise BpfError(what, ctypes.get_errno() or errno.EIO)
    return result


def set_map_type(map_handle: int, kind: int) -> None:
    """Change the type of a map of an object that is not loaded yet."""
    _check(_lib().bpf_map__set_type(map_handle, kind), "the type of a map cannot be set")


def allow_frags(program_handle: int) -> None:
    """Declare that a program handles packets of several buffers; call before loading.

    Since Linux commit c2f2cdbeffda ("bpf: introduce BPF_F_XDP_HAS_FRAGS flag in prog_flags
    loading the ebpf program") (in v5.18); older kernels refuse to load it.
    """
    _check(_lib().bpf_program__set_flags(program_handle, _BPF_F_XDP_HAS_FRAGS), "flags not set")


def xdp_link(program_fd: int, ifindex: int, mode: int) -> int:
    """Attach a program to a device in `mode` and return the descriptor of the link.

    Raises:
        BpfError: EBUSY if another program is attached, EOPNOTSUPP if the driver has no XDP.
    """
    options = _LinkCreateOptions(sz=ctypes.sizeof(_LinkCreateOptions), flags=mode)
    return _check(
        _lib().bpf_link_create(program_fd, ifindex, _BPF_XDP, byref(options)),
        "the steer program cannot be attached",
    )


def update_link(link_fd: int, program_fd: int) -> None:
    """Exchange the program of a link in one step.

    Raises:
        BpfError: Refused by the kernel.
    """
    _check(_lib().bpf_link_update(link_fd, program_fd, None), "the rule cannot be exchanged")


def detach_link(link_fd: int) -> None:
    """End an attachment now: the last close of a link ends it only some time later.

    Raises:
        BpfError: Refused by the kernel.
    """
    _check(_lib().bpf_link_detach(link_fd), "the rule cannot be detached")


def link_program(link_fd: int) -> tuple[int, int]:
    """Return the ids of the program of an XDP link and of its device (0 if the device went).

    Raises:
        BpfError: Refused by the kernel.
    """
    info = _LinkInfo()
    _info(link_fd, info)
    return info.prog_id, info.ifindex


def program_name(program_id: int) -> str:
    """Return the name of a loaded program.

    Raises:
        BpfError: There is none, or it may not be read.
    """
    fd = _check(_lib().bpf_prog_get_fd_by_id(program_id), f"program {program_id} cannot be read")
    try:
        info = _ProgramInfo()
        _info(fd, info)
        return bytes(info.name).decode(errors="replace")
    finally:
        os.close(fd)


def attached_program(ifindex: int) -> tuple[int, str]:
    """Return the id of the XDP program of a device (0 if none) and its mode.

    Raises:
        BpfError: No such device, or it may not be asked.
    """
    options = _XdpQueryOptions(sz=ctypes.sizeof(_XdpQueryOptions))
    _check(_lib().bpf_xdp_query(ifindex, 0, byref(options)), "the device cannot be asked for XDP")
    ways = (
        (options.hw_prog_id, "hardware"),
        (options.drv_prog_id, "native"),
        (options.skb_prog_id, "generic"),
        (options.prog_id, "native"),
    )
    return next(((number, mode) for number, mode in ways if number), (0, ""))


def pin(fd: int, path: Path) -> None:
    """Give a BPF object a name in the BPF file system.

    Raises:
        BpfError: The name is taken, or the path is on no BPF file system.
    """
    _check(_lib().bpf_obj_pin(fd, os.fsencode(path)), f"{path} cannot be made")


def open_pin(path: Path) -> int:
    """Return a descriptor of the BPF object at `path`.

    Raises:
        BpfError: There is none, or it may not be opened.
    """
    return _check(_lib().bpf_obj_get(os.fsencode(path)), f"{path} cannot be opened")


def _info(fd: int, info: ctypes.Structure) -> None:
    size = c_uint32(ctypes.sizeof(info))
    _check(_lib().bpf_obj_get_info_by_fd(fd, byref(info), byref(size)), "it cannot be described")
