# SPDX-License-Identifier: GPL-2.0-or-later
"""New flows take the CPUs in turn; a flow stays where it began."""

FLOWS = table(size=65536, lru=True)  # flow: its CPU
TURN = counter()


def rule(pkt, cpus):
    cpu = FLOWS.get(pkt.flow, PASS)
    if cpu < 0:
        cpu = TURN.add(1) % cpus
        FLOWS.set(pkt.flow, cpu)
    return cpu
