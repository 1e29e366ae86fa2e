# SPDX-License-Identifier: GPL-2.0-or-later
"""Like hash, and both directions of a connection meet on one CPU (for gateways and monitors)."""


def rule(pkt, cpus):
    return pkt.symmetric_hash % cpus
