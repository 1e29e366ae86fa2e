# SPDX-License-Identifier: GPL-2.0-or-later
"""bpf(2) without libbpf, for probes of a few instructions that must work where nothing else does.

Programs are lists of instructions made by the functions below, in the kernel's own encoding
(Documentation/bpf/standardization/instruction-set.rst); numbers of commands, types and helpers
are those of include/uapi/linux/bpf.h.
"""

import ctypes
import errno
import struct
from collections.abc import Iterable
from enum import IntEnum

from fastsocket.host.syscalls import syscall

__all__ = [
    "Helper",
    "MapType",
    "ProgType",
    "add",
    "call",
    "exit_",
    "jump_if_zero",
    "load64",
    "map_create",
    "map_fd",
    "map_lookup",
    "map_update",
    "move",
    "per_cpu_variable",
    "prog_load",
    "raw_tracepoint_open",
    "set_",
    "store32",
    "store64",
    "test_run",
]

# Commands of bpf(2).
_MAP_CREATE, _MAP_LOOKUP, _MAP_UPDATE, _PROG_LOAD, _TEST_RUN, _RAW_TRACEPOINT_OPEN = (
    0,
    1,
    2,
    5,
    10,
    17,
)


class MapType(IntEnum):
    """enum bpf_map_type, as far as it is probed."""

    ARRAY = 2
    SOCKMAP = 15
    CPUMAP = 16
    REUSEPORT_SOCKARRAY = 20


class ProgType(IntEnum):
    """enum bpf_prog_type, as far as it is probed."""

    XDP = 6
    RAW_TRACEPOINT = 17
    SK_REUSEPORT = 21


class Helper(IntEnum):
    """Numbers of BPF helpers (bpf-helpers(7))."""

    MAP_LOOKUP_ELEM = 1
    GET_CURRENT_TASK = 35
    SK_SELECT_REUSEPORT = 82
    PROBE_READ_KERNEL = 113
    PER_CPU_PTR = 153


def _instruction(code: int, dst: int = 0, src: int = 0, offset: int = 0, value: int = 0) -> bytes:
    return struct.pack("<BBhi", code, dst | src << 4, offset, value)


def set_(dst: int, value: int) -> bytes:
    """Set a register to a constant of 32 bits, sign extended."""
    return _instruction(0xB7, dst, value=value)


def move(dst: int, src: int) -> bytes:
    """Copy a register."""
    return _instruction(0xBF, dst, src)


def add(dst: int, value: int) -> bytes:
    """Add a constant to a register."""
    return _instruction(0x07, dst, value=value)


def load64(dst: int, src: int, offset: int) -> bytes:
    """Load 8 bytes from memory at a register plus an offset."""
    return _instruction(0x79, dst, src, offset)


def store64(dst: int, src: int, offset: int) -> bytes:
    """Store a register's 8 bytes to memory at another register plus an offset."""
    return _instruction(0x7B, dst, src, offset)


def store32(dst: int, offset: int, value: int) -> bytes:
    """Store a constant of 4 bytes to memory at a register plus an offset."""
    return _instruction(0x62, dst, offset=offset, value=value)


def jump_if_zero(dst: int, count: int) -> bytes:
    """Skip `count` instructions where a register is 0."""
    return _instruction(0x15, dst, offset=count)


def call(helper: Helper) -> bytes:
    """Call a helper: arguments in r1 to r5, result in r0."""
    return _instruction(0x85, value=helper)


def exit_() -> bytes:
    """Return r0."""
    return _instruction(0x95)


def map_fd(dst: int, fd: int) -> bytes:
    """Load a map by its file descriptor (BPF_PSEUDO_MAP_FD)."""
    return _instruction(0x18, dst, 1, value=fd) + _instruction(0)


def per_cpu_variable(dst: int, btf_id: int) -> bytes:
    """Load a per-CPU variable of the kernel by its BTF id (BPF_PSEUDO_BTF_ID)."""
    return _instruction(0x18, dst, 3, value=btf_id) + _instruction(0)


def _bpf(command: int, attributes: bytes) -> int:
    """Call bpf(2) with a copy of the attributes, at most a few times where it is interrupted."""
    buffer = ctypes.create_string_buffer(attributes, len(attributes))
    for _ in range(5):  # the verifier gives up with EAGAIN on a pending signal
        try:
            return syscall("bpf", command, buffer, len(attributes))
        except OSError as error:
            if error.errno != errno.EAGAIN:
                raise
    return syscall("bpf", command, buffer, len(attributes))


def map_create(kind: MapType, key_size: int, value_size: int, entries: int) -> int:
    """Create a map and return its file descriptor.

    Raises:
        OSError: EPERM without the rights, EINVAL where the kernel lacks the type.
    """
    return _bpf(_MAP_CREATE, struct.pack("=5I", kind, key_size, value_size, entries, 0))


def map_update(fd: int, key: int, value: bytes) -> None:
    """Set an entry of a map whose keys are 32-bit numbers.

    Raises:
        OSError: As the map type says.
    """
    key_buffer = ctypes.create_string_buffer(struct.pack("=I", key), 4)
    buffer = ctypes.create_string_buffer(value, len(value))
    pointers = ctypes.addressof(key_buffer), ctypes.addressof(buffer)
    _bpf(_MAP_UPDATE, struct.pack("=IxxxxQQQ", fd, *pointers, 0))


def map_lookup(fd: int, key: int, size: int) -> bytes:
    """Return an entry of `size` bytes of a map whose keys are 32-bit numbers.

    Raises:
        OSError: ENOENT where there is none.
    """
    key_buffer = ctypes.create_string_buffer(struct.pack("=I", key), 4)
    buffer = ctypes.create_string_buffer(size)
    pointers = ctypes.addressof(key_buffer), ctypes.addressof(buffer)
    _bpf(_MAP_LOOKUP, struct.pack("=IxxxxQQQ", fd, *pointers, 0))
    return buffer.raw


def prog_load(kind: ProgType, code: Iterable[bytes], expected_attach: int = 0) -> int:
    """Load a program and return its file descriptor.

    Raises:
        OSError: EPERM without the rights, EINVAL or EACCES where the verifier refuses it.
    """
    text = b"".join(code)
    buffer = ctypes.create_string_buffer(text, len(text))
    licence = ctypes.create_string_buffer(b"GPL")
    attributes = struct.pack(
        "=IIQQIIQII16sII",
        *(kind, len(text) // 8, ctypes.addressof(buffer), ctypes.addressof(licence)),
        *(0, 0, 0, 0, 0, b"fastsocket", 0, expected_attach),
    )
    return _bpf(_PROG_LOAD, attributes)


def test_run(fd: int, data: bytes = b"", context: bytes = b"") -> int:
    """Run a program once in this process (BPF_PROG_TEST_RUN) and return what it returned.

    Raises:
        OSError: EOPNOTSUPP or EINVAL where this type cannot be run so.
    """
    packet = ctypes.create_string_buffer(data, len(data)) if data else None
    arguments = ctypes.create_string_buffer(context, len(context)) if context else None
    attributes = struct.pack(
        "=IIIIQQIIIIQQIII",
        *(fd, 0, len(data), 0, ctypes.addressof(packet) if packet else 0, 0),
        *(1 if data else 0, 0, len(context), 0),
        *(ctypes.addressof(arguments) if arguments else 0, 0, 0, 0, 0),
    )
    buffer = ctypes.create_string_buffer(attributes, len(attributes))
    syscall("bpf", _TEST_RUN, buffer, len(attributes))
    result: int = struct.unpack_from("=I", buffer, 4)[0]
    return result


def raw_tracepoint_open(name: str, program: int) -> int:
    """Attach a program to a tracepoint until the returned file descriptor is closed.

    Raises:
        OSError: ENOENT where there is no such tracepoint.
    """
    buffer = ctypes.create_string_buffer(name.encode())
    return _bpf(_RAW_TRACEPOINT_OPEN, struct.pack("=QIxxxx", ctypes.addressof(buffer), program))
