# SPDX-License-Identifier: GPL-2.0-or-later
"""System calls that neither Python nor every C library has a function for."""

import ctypes
import os
import platform

__all__ = ["syscall"]

# x86-64 has a table of its own, newer architectures share the generic one.
_NUMBERS = {
    "bpf": (321, 280),
    "pidfd_getfd": (438, 438),
    "sched_getattr": (315, 275),
    "sched_setattr": (314, 274),
    "userfaultfd": (323, 282),
}
_X86_64 = platform.machine() == "x86_64"
_LIBC = ctypes.CDLL(None, use_errno=True)


def syscall(name: str, *args: int | ctypes.Array[ctypes.c_char] | None) -> int:
    """Make a system call; return what it does.

    Raises:
        OSError: As the system call says.
    """
    number = _NUMBERS[name][0 if _X86_64 else 1]
    words = [ctypes.c_long(arg) if isinstance(arg, int) else arg for arg in args]
    result: int = _LIBC.syscall(ctypes.c_long(number), *words)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result
