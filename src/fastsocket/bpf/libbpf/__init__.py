# SPDX-License-Identifier: GPL-2.0-or-later
"""BPF objects, maps, programs and links through libbpf 1.x and ctypes.

Everything here owns a file descriptor or a libbpf handle and frees it in ``close`` or at the end
of a ``with`` block; nothing is pinned, so nothing outlives its holders.
"""

from fastsocket.bpf.libbpf.library import BpfError, library, possible_cpus
from fastsocket.bpf.libbpf.maps import Map
from fastsocket.bpf.libbpf.object import BpfObject
from fastsocket.bpf.libbpf.programs import Link, Program, TestRun

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
