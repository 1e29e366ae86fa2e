# SPDX-License-Identifier: GPL-2.0-or-later
"""The source prefix decides the CPU; prefixes that are not listed stay where they arrive."""

TENANTS = prefixes(size=4096)  # prefix: CPU, set with 'fastsocket steer table'


def rule(pkt, cpus):
    return TENANTS.get(pkt.src, PASS)
