# SPDX-License-Identifier: GPL-2.0-or-later
"""BPF programs: attached by links that end when they are closed, or test-run on a packet."""

import ctypes
from ctypes import byref, c_char_p, c_void_p
from typing import Self

from fastsocket.bpf.libbpf.library import TestRunOptions, check, library
from fastsocket.bpf.libbpf.maps import Map

__all__ = ["Link", "Program", "TestRun"]


class TestRun:
    """Result of a test run: return value, mean duration in ns, and the packet afterwards."""

    __slots__ = ("data", "duration_ns", "retval")
    __test__ = False

    def __init__(self, retval: int, duration_ns: int, data: bytes) -> None:
        self.retval, self.duration_ns, self.data = retval, duration_ns, data


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
        check(
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
    """One program of a BPF object, usable after its ``load``."""

    def __init__(self, handle: int, owner: object) -> None:
        self.handle, self._owner = handle, owner  # the owner must live as long as the handle
        self.name: str = library().bpf_program__name(handle).decode()

    @property
    def fd(self) -> int:
        """The program's descriptor."""
        return check(library().bpf_program__fd(self.handle), f"{self.name} is not loaded")

    def set_autoload(self, wanted: bool) -> None:
        """Say before ``load`` whether this program is loaded at all."""
        check(library().bpf_program__set_autoload(self.handle, wanted), f"{self.name} is loaded")

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
        check(result, f"the BPF program {self.name} cannot be attached to {target.name}")

    def test_run(
        self, packet: bytes, repeat: int = 1, context: ctypes.Structure | None = None
    ) -> TestRun:
        """Run the program in the kernel on `packet`, `repeat` times.

        Raises:
            BpfError: The program type has no test run, or the packet does not suit it.
        """
        out = ctypes.create_string_buffer(max(len(packet) + 256, 4096))
        options = TestRunOptions(
            sz=ctypes.sizeof(TestRunOptions),
            data_in=ctypes.cast(c_char_p(packet), c_void_p),
            data_size_in=len(packet),
            data_out=ctypes.cast(out, c_void_p),
            data_size_out=len(out),
            repeat=repeat,
        )
        if context is not None:
            options.ctx_in = ctypes.cast(byref(context), c_void_p)
            options.ctx_size_in = ctypes.sizeof(context)
        check(
            library().bpf_prog_test_run_opts(self.fd, byref(options)),
            f"{self.name} cannot be test-run",
        )
        return TestRun(options.retval, options.duration, out.raw[: options.data_size_out])

    def _link(self, handle: int | None, verb: str) -> Link:
        check(0 if handle else None, f"the BPF program {self.name} cannot be {verb}")
        assert handle is not None
        return Link(handle)
