# SPDX-License-Identifier: GPL-2.0-or-later
"""The counters of the steering rules on this network namespace's devices."""

from collections.abc import Callable, Sequence

from fastsocket.bpf.libbpf import BpfError
from fastsocket.errors import FastsocketError
from fastsocket.steer.device import Attachment, status

__all__ = ["steering_counters"]


def steering_counters(read: Callable[[], Sequence[Attachment]] = status) -> dict[str, int]:
    """Return packets by device and way out, and each rule's own counters, as "eth0 redirected".

    Ways that no packet took are left out. Without the privilege to look, and while a rule is being
    removed, there is nothing to tell: the rest of a sample does not suffer from that.
    """
    try:
        found = read()
    except (OSError, BpfError, FastsocketError):
        return {}
    counts: dict[str, int] = {}
    for attachment in found:
        for name, count in (*attachment.exits.items(), *attachment.counters.items()):
            if count:
                counts[f"{attachment.note.device} {name}"] = count
    return counts
