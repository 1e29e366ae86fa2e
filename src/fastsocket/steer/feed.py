# SPDX-License-Identifier: GPL-2.0-or-later
"""Feeds the rule receive_cpu: a raw tracepoint notes where applications read.

It lives and ends with the rule on the device: its link is pinned beside the rule's.
"""

from collections.abc import Sequence
from pathlib import Path

from fastsocket.bpf.libbpf import BpfObject
from fastsocket.native import native_file
from fastsocket.steer import kernel
from fastsocket.steer.program import SteerProgram, settings_for

__all__ = ["pin_feed"]

_TABLE = "READERS"


def pin_feed(program: SteerProgram, cpus: Sequence[int], folder: Path) -> None:
    """Start noting readers in the table of `program`, and pin the link in `folder`.

    Raises:
        BpfError: The kernel has no such tracepoint, or refuses.
    """
    with BpfObject(native_file("receive_cpu.bpf.o")) as feed:
        feed.reuse_map("readers", program.map(_TABLE).fd)
        feed.set_variable(0, bytes(settings_for(cpus)), ".rodata.steer")
        feed.load()
        with feed.program("receive_cpu").attach() as link:
            kernel.pin(link.fd, folder / "feed")
