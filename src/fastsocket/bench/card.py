# SPDX-License-Identifier: GPL-2.0-or-later
"""A wire that ends in a network card with the flow rules of receive flow deliver.

RPS plays the card's queues (`fastsocket.bench.wires`). It chooses a CPU by a packet's hash, so flow
rules are a hash by destination port, which a program at the sending end sets.
"""

import ctypes
import socket
import struct
from collections.abc import Mapping
from ctypes import byref, c_int, c_size_t, c_uint32

from fastsocket.bench.netspace import Netspace
from fastsocket.bpf.libbpf import BpfError, BpfObject, library
from fastsocket.host.slices import BLOCKS
from fastsocket.native import native_file

__all__ = ["place_flow_rules", "queue_hash"]

_EGRESS = 1 << 1  # BPF_TC_EGRESS


class _Hook(ctypes.Structure):
    """struct bpf_tc_hook."""

    _fields_ = (("sz", c_size_t), ("ifindex", c_int), ("attach_point", c_int), ("parent", c_uint32))


class _Options(ctypes.Structure):
    """struct bpf_tc_opts."""

    _fields_ = (
        ("sz", c_size_t),
        ("prog_fd", c_int),
        ("flags", c_uint32),
        ("prog_id", c_uint32),
        ("handle", c_uint32),
        ("priority", c_uint32),
    )


def queue_hash(position: int, queues: int) -> int:
    """Return a hash that RPS turns into `position` of `queues` (the kernel's reciprocal_scale)."""
    return ((2 * position + 1) << 31) // queues


def place_flow_rules(sender: Netspace, device: str, table: Mapping[int, int], queues: int) -> None:
    """Let what `device` sends be steered by port at the other end; it ends with the device.

    Args:
        sender: Where the device is.
        device: Its name.
        table: Block of ports to position plus 1, see `SlicePlan.table`.
        queues: CPUs that the other end's RPS spreads over.

    Raises:
        BpfError: The kernel refuses, for example for want of cls_bpf.
    """
    hashes = [queue_hash(table[block] - 1, queues) if block in table else 0
              for block in range(BLOCKS)]  # fmt: skip
    card = BpfObject(native_file("card.bpf.o"))
    try:
        card.set_variable(0, struct.pack(f"={BLOCKS}I", *hashes), ".rodata.card")
        card.load()
        with sender.entered():
            hook = _Hook(ctypes.sizeof(_Hook), socket.if_nametoindex(device), _EGRESS)
            options = _Options(ctypes.sizeof(_Options), card.program("card").fd)
            result: int = library().bpf_tc_hook_create(byref(hook))
            if result == 0:
                result = library().bpf_tc_attach(byref(hook), byref(options))
        if result < 0:
            raise BpfError(f"{device} takes no flow rules", -result)
    finally:
        card.close()
