# SPDX-License-Identifier: GPL-2.0-or-later
"""Receive flow deliver: what answers a connection goes to the CPU that opened it.

A connection that this host opens takes its local port from the slice of ports of its CPU; SLICES,
which the loader fills from the plan of slices, tells the CPU from the port.
"""

SLICES = array(size=1024)  # 64 ports each: position of the CPU in the set, plus 1; 0: no slice


def rule(pkt, cpus):
    if pkt.proto != TCP or pkt.dport < 1024:
        return PASS
    cpu = SLICES.get(pkt.dport >> 6, 0) - 1
    if cpu >= 0 and pkt.sport >= 1024 and pkt.listening:
        return PASS  # a connection to a server of ours whose port lies within a slice
    return cpu
