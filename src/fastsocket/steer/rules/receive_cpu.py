# SPDX-License-Identifier: GPL-2.0-or-later
"""Receive-CPU-select: packets go where the application last read from the connection."""

READERS = table(size=65536, lru=True)  # flow: CPU of the reader, kept by the receive_cpu program


def rule(pkt, cpus):
    return READERS.get(pkt.flow, PASS)
