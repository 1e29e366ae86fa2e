# SPDX-License-Identifier: GPL-2.0-or-later
"""BPF objects, maps, programs and links through libbpf 1.x and ctypes.

Everything here owns a file descriptor or a libbpf handle and frees it in ``close`` or at the end
of a ``with`` block; nothing is pinned, so nothing outlives its holders.
"""

import ctypes
import errno
import mmap
import os
from collections.abc import Iterator, Mapping
from ctypes import POINTER, byref, c_char_p, c_int, c_size_t, c_uint, c_uint32, c_uint64, c_void_p
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from fastsocket.errors import FastsocketError, MissingFeatureError

__all__ = [
    "BpfError",
    "BpfObject",
    "Link",
    "Map",
    "Program",
    "TestRun",
    "library",
    "possible_cpus",
]

BPF_ANY = 0
_PRINT_FN = ctypes.CFUNCTYPE(c_int, c_int, c_char_p, c_void_p)
_messages: list[str] = []


class BpfError(FastsocketError):
    """The kernel or libbpf refused; `log` holds libbpf's words, the verifier's last.

    ``errno`` is the positive error number. It is a missing feature (exit code 3) where the kernel
    says that it lacks the privilege or the program type.
    """

    def __init__(self, what: str, number: int, log: str = "") -> None:
        self.errno, self.log = number, log
        todo = "run as root, or with CAP_BPF and CAP_NET_ADMIN" if number == errno.EPERM else ""
        if number in (errno.EPERM, errno.EINVAL, errno.EOPNOTSUPP):
            self.exit_code = MissingFeatureError.exit_code
        super().__init__(what, os.strerror(number), todo)


class _TestRunOpts(ctypes.Structure):
    """struct bpf_test_run_opts of libbpf 1.x."""

    _fields_ = (
        ("sz", c_size_t),
        ("data_in", c_void_p),
        ("data_out", c_void_p),
        ("data_size_in", c_uint32),
        ("data_size_out", c_uint32),
        ("ctx_in", c_void_p),
        ("ctx_out", c_void_p),
        ("ctx_size_in", c_uint32),
        ("ctx_size_out", c_uint32),
        ("retval", c_uint32),
        ("repeat", c_int),
        ("duration", c_uint32),
        ("flags", c_uint32),
        ("cpu", c_uint32),
        ("batch_size", c_uint32),
    )


class TestRun:
    """Result of a test run: return value, mean duration in ns, and the packet afterwards."""

    __slots__ = ("data", "duration_ns", "retval")
    __test__ = False

    def __init__(self, retval: int, duration_ns: int, data: bytes) -> None:
        self.retval, self.duration_ns, self.data = retval, duration_ns, data


# name: (result, arguments)
_SIGNATURES: Mapping[str, tuple[Any, tuple[Any, ...]]] = {
    "libbpf_set_print": (c_void_p, (_PRINT_FN,)),
    "libbpf_num_possible_cpus": (c_int, ()),
    "bpf_object__open_file": (c_void_p, (c_char_p, c_void_p)),
    "bpf_object__open_mem": (c_void_p, (c_void_p, c_size_t, c_void_p)),
    "bpf_object__load": (c_int, (c_void_p,)),
    "bpf_object__close": (None, (c_void_p,)),
    "bpf_object__find_map_by_name": (c_void_p, (c_void_p, c_char_p)),
    "bpf_object__next_map": (c_void_p, (c_void_p, c_void_p)),
    "bpf_object__find_program_by_name": (c_void_p, (c_void_p, c_char_p)),
    "bpf_object__next_program": (c_void_p, (c_void_p, c_void_p)),
    "bpf_map__name": (c_char_p, (c_void_p,)),
    "bpf_map__fd": (c_int, (c_void_p,)),
    "bpf_map__key_size": (c_uint32, (c_void_p,)),
    "bpf_map__value_size": (c_uint32, (c_void_p,)),
    "bpf_map__max_entries": (c_uint32, (c_void_p,)),
    "bpf_map__set_max_entries": (c_int, (c_void_p, c_uint32)),
    "bpf_map__reuse_fd": (c_int, (c_void_p, c_int)),
    "bpf_map__initial_value": (c_void_p, (c_void_p, POINTER(c_size_t))),
    "bpf_map_create": (c_int, (c_int, c_char_p, c_uint32, c_uint32, c_uint32, c_void_p)),
    "bpf_map_lookup_elem": (c_int, (c_int, c_void_p, c_void_p)),
    "bpf_map_update_elem": (c_int, (c_int, c_void_p, c_void_p, c_uint64)),
    "bpf_map_delete_elem": (c_int, (c_int, c_void_p)),
    "bpf_map_get_fd_by_id": (c_int, (c_uint32,)),
    "bpf_prog_get_fd_by_id": (c_int, (c_uint32,)),
    "bpf_prog_get_next_id": (c_int, (c_uint32, POINTER(c_uint32))),
    "bpf_obj_get_info_by_fd": (c_int, (c_int, c_void_p, POINTER(c_uint32))),
    "bpf_map_get_next_key": (c_int, (c_int, c_void_p, c_void_p)),
    "bpf_program__name": (c_char_p, (c_void_p,)),
    "bpf_program__fd": (c_int, (c_void_p,)),
    "bpf_program__set_autoload": (c_int, (c_void_p, ctypes.c_bool)),
    "bpf_program__set_log_level": (c_int, (c_void_p, c_uint32)),
    "bpf_program__attach": (c_void_p, (c_void_p,)),
    "bpf_program__attach_cgroup": (c_void_p, (c_void_p, c_int)),
    "bpf_prog_attach": (c_int, (c_int, c_int, c_int, c_uint)),
    "bpf_prog_detach2": (c_int, (c_int, c_int, c_int)),
    "bpf_prog_test_run_opts": (c_int, (c_int, POINTER(_TestRunOpts))),
    "bpf_link_create": (c_int, (c_int, c_int, c_int, c_void_p)),
    "bpf_link__fd": (c_int, (c_void_p,)),
    "bpf_link__update_program": (c_int, (c_void_p, c_void_p)),
    "bpf_link__destroy": (c_int, (c_void_p,)),
}


@_PRINT_FN  # type: ignore[untyped-decorator]  # ctypes types its decorators as Any
def _collect(level: int, text: bytes, arguments: int) -> int:
    """Keep libbpf's warnings, formatted by the C library, for the error that follows."""
    if level == 0:
        line = ctypes.create_string_buffer(65536)
        _libc().vsnprintf(line, len(line), text, c_void_p(arguments))
        _messages.append(line.value.decode(errors="replace"))
    return 0


@cache
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None)
    libc.vsnprintf.argtypes = (c_char_p, c_size_t, c_char_p, c_void_p)
    return libc


@cache
def library() -> ctypes.CDLL:
    """Load libbpf once and declare what is used of it.

    Raises:
        MissingFeatureError: libbpf 1.x is not installed.
    """
    try:
        lib = ctypes.CDLL("libbpf.so.1", use_errno=True)
    except OSError as error:
        raise MissingFeatureError(
            "libbpf.so.1 cannot be loaded", str(error), "install libbpf 1.x (Debian: libbpf1)"
        ) from error
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    lib.libbpf_set_print(_collect)
    return lib


def possible_cpus() -> int:
    """Return the number of CPUs that the kernel could ever bring online."""
    count: int = library().libbpf_num_possible_cpus()
    return count


def _check(result: int | None, what: str) -> int:
    """Return `result`, or raise what libbpf left in errno (it returns -1/-errno or NULL)."""
    if result is None or result < 0:
        number = ctypes.get_errno() or (-result if result else errno.EIO)
        log = "".join(_messages)
        _messages.clear()
        raise BpfError(what, number, log)
    return result


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
        fd = _check(
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
            _check(-1, f"the BPF map {self.name} cannot be read")
        return value.raw

    def update(self, key: bytes, value: bytes, flags: int = BPF_ANY) -> None:
        """Set the value of `key`.

        Raises:
            BpfError: Full, or not allowed for this type of map.
        """
        _check(
            library().bpf_map_update_elem(self.fd, key, value, flags),
            f"the BPF map {self.name} cannot be changed",
        )

    def delete(self, key: bytes) -> bool:
        """Delete `key`; return whether it was there."""
        if library().bpf_map_delete_elem(self.fd, key) < 0:
            if ctypes.get_errno() == errno.ENOENT:
                return False
            _check(-1, f"the BPF map {self.name} cannot be changed")
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


class Link:
    """An attachment that ends when it is closed."""

    def __init__(self, handle: int) -> None:
        self._handle: int | None = handle

    @property
    def fd(self) -> int:
        """The link's descriptor."""
        descriptor: int = library().bpf_link__fd(self._handle)
        return descriptor

    def replace(self, program: "Program") -> None:
        """Exchange the attached program for another in one step.

        Raises:
            BpfError: The type of link or the kernel cannot do so.
        """
        _check(
            library().bpf_link__update_program(self._handle, program.handle),
            f"the program {program.name} cannot take over",
        )

    def close(self) -> None:
        """Detach."""
        if self._handle is not None:
            library().bpf_link__destroy(self._handle)
            self._handle = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Program:
    """One program of a :class:`BpfObject`, usable after its ``load``."""

    def __init__(self, handle: int, owner: "BpfObject") -> None:
        self.handle, self._owner = handle, owner  # the owner must live as long as the handle
        self.name: str = library().bpf_program__name(handle).decode()

    @property
    def fd(self) -> int:
        """The program's descriptor."""
        return _check(library().bpf_program__fd(self.handle), f"{self.name} is not loaded")

    def set_autoload(self, wanted: bool) -> None:
        """Say before ``load`` whether this program is loaded at all."""
        _check(library().bpf_program__set_autoload(self.handle, wanted), f"{self.name} is loaded")

    def attach(self) -> Link:
        """Attach by the section name (tracepoints, raw tracepoints).

        Raises:
            BpfError: Refused by the kernel.
        """
        return self._link(library().bpf_program__attach(self.handle), "attached")

    def attach_cgroup(self, cgroup_fd: int) -> Link:
        """Attach to the cgroup behind `cgroup_fd` by a link.

        Raises:
            BpfError: Refused by the kernel.
        """
        result = library().bpf_program__attach_cgroup(self.handle, cgroup_fd)
        return self._link(result, "attached to the cgroup")

    def attach_map(self, target: Map, kind: int) -> None:
        """Attach to the sockets of a map; `kind` is the kernel's ``enum bpf_attach_type``.

        It ends with the last user's descriptor of the map; sockets that are in the map then keep
        the program until they close.

        Raises:
            BpfError: Refused by the kernel.
        """
        result = library().bpf_prog_attach(self.fd, target.fd, kind, 0)
        _check(result, f"the BPF program {self.name} cannot be attached to {target.name}")

    def test_run(
        self, packet: bytes, repeat: int = 1, context: ctypes.Structure | None = None
    ) -> TestRun:
        """Run the program in the kernel on `packet`, `repeat` times.

        Raises:
            BpfError: The program type has no test run, or the packet does not suit it.
        """
        out = ctypes.create_string_buffer(max(len(packet) + 256, 4096))
        options = _TestRunOpts(
            sz=ctypes.sizeof(_TestRunOpts),
            data_in=ctypes.cast(c_char_p(packet), c_void_p),
            data_size_in=len(packet),
            data_out=ctypes.cast(out, c_void_p),
            data_size_out=len(out),
            repeat=repeat,
        )
        if context is not None:
            options.ctx_in = ctypes.cast(byref(context), c_void_p)
            options.ctx_size_in = ctypes.sizeof(context)
        _check(
            library().bpf_prog_test_run_opts(self.fd, byref(options)),
            f"{self.name} cannot be test-run",
        )
        return TestRun(options.retval, options.duration, out.raw[: options.data_size_out])

    def _link(self, handle: int | None, verb: str) -> Link:
        _check(0 if handle else None, f"the BPF program {self.name} cannot be {verb}")
        assert handle is not None
        return Link(handle)


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
        _messages.clear()
        if isinstance(source, Path):
            self._handle = library().bpf_object__open_file(os.fsencode(source), None)
        else:
            self._handle = library().bpf_object__open_mem(source, len(source), None)
        _check(0 if self._handle else None, f"{self.name} cannot be opened as a BPF object")

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
        _check(library().bpf_map__reuse_fd(self._map_handle(name), fd), f"{name} does not fit")

    def resize_map(self, name: str, max_entries: int) -> None:
        """Set the size of a map before ``load``."""
        result = library().bpf_map__set_max_entries(self._map_handle(name), max_entries)
        _check(result, f"{name} cannot hold {max_entries} entries")

    def load(self) -> Self:
        """Create the maps and load the programs.

        Raises:
            BpfError: Refused; `log` holds the verifier's words.
        """
        _messages.clear()
        _check(library().bpf_object__load(self._handle), f"{self.name} cannot be loaded")
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
