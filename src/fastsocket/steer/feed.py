# SPDX-License-Identifier: GPL-2.0-or-later
"""Feeds rules: a raw tracepoint notes where and when applications read.

It lives and ends with the rule on the device: its link is pinned beside the rule's.
"""

from pathlib import Path

from fastsocket.bpf.libbpf import BpfObject
from fastsocket.native import native_file
from fastsocket.steer import kernel
from fastsocket.steer.library import is_built_in
from fastsocket.steer.program import SteerProgram, settings_for

__all__ = ["pin_feed"]

_TABLE = "READERS"


def pin_feed(program: SteerProgram, folder: Path) -> None:
    """Start noting when the CPUs read, and pin the link in `folder`.

    For the rule receive_cpu it is also noted which CPU reads what, in the table of `program`.

    Raises:
        BpfError: The kernel has no such tracepoint, or refuses.
    """
    receive_cpu = is_built_in(program.rule, "receive_cpu")
    name = "receive_cpu" if receive_cpu else "steer_read"
    with BpfObject(native_file(f"{name}.bpf.o")) as feed:
        feed.reuse_map("queues", program.system_map("queues").fd)
        if receive_cpu:
            feed.reuse_map("readers", program.map(_TABLE).fd)
            feed.set_variable(0, bytes(settings_for(program.cpus)), ".rodata.steer")
        feed.load()
        with feed.program(name).attach() as link:
            kernel.pin(link.fd, folder / "feed")
