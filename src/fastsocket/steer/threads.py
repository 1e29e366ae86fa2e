# SPDX-License-Identifier: GPL-2.0-or-later
"""The threads by which CPUs take in redirected packets: those of a cpumap, one each CPU."""

import os
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

__all__ = ["schedule_batch"]

_PROC = Path("/proc")
_KTHREADD = b"2"
"""The parent of the kernel's threads."""


def schedule_batch(map_number: int, cpus: Collection[int]) -> frozenset[int]:
    """Let the threads of a cpumap wait until what runs on their CPU sleeps (SCHED_BATCH).

    Args:
        map_number: The kernel's id of the cpumap, which its threads have in their names. Linux
            before 5.17 cuts names at 15 bytes; who has less of a name is not found.
        cpus: Those that the map has.

    Returns:
        The CPUs whose threads do so. Others could not be found, as in a namespace of processes, or
        the kernel refuses.
    """
    wanted = {f"cpumap/{cpu}/map:{map_number}".encode(): cpu for cpu in cpus}
    done = set()
    # The newest processes first: these threads have just begun.
    for pid in sorted((int(d.name) for d in _PROC.iterdir() if d.name.isdigit()), reverse=True):
        if not wanted:
            break
        with suppress(OSError):
            # proc_pid_stat(5): the number, the name in parentheses, the state, the parent.
            head, _, tail = (_PROC / str(pid) / "stat").read_bytes().rpartition(b")")
            name, parent = head.partition(b"(")[2], tail.split()[1]
            if parent == _KTHREADD and name in wanted:
                cpu = wanted.pop(name)
                os.sched_setscheduler(pid, os.SCHED_BATCH, os.sched_param(0))
                done.add(cpu)
    return frozenset(done)
