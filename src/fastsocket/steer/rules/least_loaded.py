# SPDX-License-Identifier: GPL-2.0-or-later
"""New flows go to the CPU that got the least traffic lately; a flow stays where it began."""

FLOWS = table(size=65536, lru=True)  # flow: its CPU
LOAD = array(size=1024)  # CPU: traffic in units of 64 bytes, halved every 128 ms
CLOCK = array(size=1)  # when LOAD was halved last


def rule(pkt, cpus):
    cpu = FLOWS.get(pkt.flow, PASS)
    if cpu < 0 or cpu >= cpus:
        clock = pkt.now >> 7 & 0xFFFFFF
        age = min((clock - CLOCK.get(0, 0)) & 0xFFFFFF, 31)
        if age > 0:
            CLOCK.set(0, clock)
            for i in range(cpus):
                LOAD.set(i, LOAD.get(i, 0) >> age)
        cpu = 0
        least = LOAD.get(0, 0)
        for i in range(1, cpus):
            load = LOAD.get(i, 0)
            if load < least:
                least = load
                cpu = i
        FLOWS.set(pkt.flow, cpu)
    LOAD.add(cpu, (pkt.length >> 6) + 1)
    return cpu
