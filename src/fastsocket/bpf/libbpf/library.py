# SPDX-License-Identifier: GPL-2.0-or-later
"""libbpf itself: loaded once, its functions declared, its refusals as errors."""

import ctypes
import errno
import os
from collections.abc import Mapping
from ctypes import POINTER, c_char_p, c_int, c_size_t, c_uint, c_uint32, c_uint64, c_void_p
from functools import cache
from typing import Any

from fastsocket.errors import FastsocketError, MissingFeatureError

__all__ = ["BpfError", "TestRunOptions", "check", "forget_messages", "library", "possible_cpus"]

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


class TestRunOptions(ctypes.Structure):
    """struct bpf_test_run_opts of libbpf 1.x."""

    __test__ = False

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
    "bpf_prog_test_run_opts": (c_int, (c_int, POINTER(TestRunOptions))),
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


def forget_messages() -> None:
    """Forget what libbpf said so far: an error has only what belongs to it."""
    _messages.clear()


def check(result: int | None, what: str) -> int:
    """Return `result`, or raise what libbpf left in errno (it returns -1/-errno or NULL)."""
    if result is None or result < 0:
        number = ctypes.get_errno() or (-result if result else errno.EIO)
        log = "".join(_messages)
        forget_messages()
        raise BpfError(what, number, log)
    return result
