# SPDX-License-Identifier: GPL-2.0-or-later
"""Flows are spread by a hash of addresses, ports and protocol."""


def rule(pkt, cpus):
    return pkt.hash % cpus
