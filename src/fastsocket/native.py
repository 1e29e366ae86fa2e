# SPDX-License-Identifier: GPL-2.0-or-later
"""Where the compiled parts are: the preloaded library, the BPF objects, the demo programs."""

from pathlib import Path

from fastsocket.errors import FastsocketError

__all__ = ["LIBRARIES", "NATIVE_DIR", "library_name", "native_file"]

# What is preloaded without fast epoll, by the parameter `lean`.
LIBRARIES = {"auto": "libfsocket.so", "off": "libfsocket-plain.so"}
NATIVE_DIR = Path(__file__).parent / "_native"


def library_name(lean: str, fast_epoll: bool) -> str:
    """Return the name of the library that has what these parameters ask for, and no more."""
    name = LIBRARIES[lean]
    return name.replace(".so", "-epoll.so") if fast_epoll else name


def native_file(name: str) -> Path:
    """Return the path of a compiled part, such as ``libfsocket.so`` or ``select.bpf.o``.

    Raises:
        FastsocketError: It was not built.
    """
    path = NATIVE_DIR / name
    if not path.exists():
        raise FastsocketError(
            f"{name} is missing", f"{path.parent} has not been built", "run 'make setup'"
        )
    return path
