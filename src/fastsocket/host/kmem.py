# SPDX-License-Identifier: GPL-2.0-or-later
"""Read the kernel's own structures, to see a fact where it is and not infer it from a version.

Three tiny BPF programs of the raw tracepoint type are run in this process, attached to nothing:
one returns the current task, one reads eight bytes at an address, one finds a per-CPU variable.
Needs CAP_BPF and CAP_PERFMON. They are gone when the object is closed.
"""

import os
import struct
from typing import Self

from fastsocket.host import bpfcall as bpf
from fastsocket.host.btf import Btf, kernel_btf

__all__ = ["KernelMemory"]

_FRAME = 10  # r10, the frame pointer


class KernelMemory:
    """Reads structures of the running kernel; a context manager."""

    def __init__(self) -> None:
        """Load the programs.

        Raises:
            OSError: The rights are missing, or the kernel has no BTF.
        """
        self.btf: Btf = kernel_btf()
        self._fds = [bpf.map_create(bpf.MapType.ARRAY, 4, 8, 1)]
        self._result = self._fds[0]
        try:
            self._current = self._program([bpf.call(bpf.Helper.GET_CURRENT_TASK)])
            self._peek = self._program(
                [
                    bpf.load64(3, 1, 0),
                    bpf.move(1, _FRAME),
                    bpf.add(1, -8),
                    bpf.set_(2, 8),
                    bpf.call(bpf.Helper.PROBE_READ_KERNEL),
                    bpf.load64(0, _FRAME, -8),
                ]
            )
        except OSError:
            self.close()
            raise

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Unload the programs."""
        self.close()

    def close(self) -> None:
        """Unload the programs."""
        while self._fds:
            os.close(self._fds.pop())

    def word(self, address: int) -> int:
        """Return the eight bytes at a kernel address; 0 where nothing is mapped."""
        return self._run(self._peek, address)

    def member(self, address: int, structure: str, path: str) -> int:
        """Return the eight bytes of a member of the structure at an address."""
        return self.word(address + self.btf.offset(structure, path))

    def file(self, fd: int) -> int:
        """Return the address of the ``struct file`` behind a file descriptor of this process."""
        files = self.member(self._run(self._current), "task_struct", "files")
        table = self.member(self.member(files, "files_struct", "fdt"), "fdtable", "fd")
        return self.word(table + 8 * fd)

    def sock(self, fd: int) -> int:
        """Return the address of the ``struct sock`` behind a socket's file descriptor."""
        return self.member(self.member(self.file(fd), "file", "private_data"), "socket", "sk")

    def per_cpu(self, variable: str, cpu: int) -> int:
        """Return the address of a CPU's copy of a per-CPU variable.

        Raises:
            KeyError: The kernel's type information does not describe it.
            OSError: The kernel refuses to look it up.
        """
        btf_id = self.btf.variable(variable)
        if btf_id is None:
            raise KeyError(f"no variable {variable}")
        find = [
            bpf.load64(2, 1, 0),
            bpf.per_cpu_variable(1, btf_id),
            bpf.call(bpf.Helper.PER_CPU_PTR),
        ]
        return self._run(self._program(find), cpu)

    def _program(self, code: list[bytes]) -> int:
        """Load a program that ends by storing r0 into the map."""
        store = [
            bpf.move(6, 0),
            bpf.store32(_FRAME, -12, 0),
            bpf.map_fd(1, self._result),
            bpf.move(2, _FRAME),
            bpf.add(2, -12),
            bpf.call(bpf.Helper.MAP_LOOKUP_ELEM),
            bpf.jump_if_zero(0, 1),
            bpf.store64(0, 6, 0),
            bpf.set_(0, 0),
            bpf.exit_(),
        ]
        fd = bpf.prog_load(bpf.ProgType.RAW_TRACEPOINT, [*code, *store])
        self._fds.append(fd)
        return fd

    def _run(self, program: int, argument: int = 0) -> int:
        bpf.test_run(program, context=struct.pack("=Q", argument))
        value: int = struct.unpack("=Q", bpf.map_lookup(self._result, 0, 8))[0]
        return value
