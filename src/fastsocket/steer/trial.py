# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs a rule over frames in the kernel's test run and counts where they would go."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from fastsocket.errors import UsageError
from fastsocket.steer.compile import CompiledRule
from fastsocket.steer.layout import Exit
from fastsocket.steer.program import SteerProgram

__all__ = ["Trial", "run_trial"]

_PASSES = {Exit.REDIRECTED, Exit.HERE, Exit.UNREACHABLE}
_REPEAT = 100_000


@dataclass(frozen=True)
class Trial:
    """What a rule did with some frames.

    Attributes:
        packets: How many frames there were.
        cpus: Frames by CPU number, for all CPUs of the set.
        exits: Frames that no CPU was named for, by the way they left.
        counters: The rule's counters afterwards.
        ns_per_packet: Mean time of the program for the first frame, from the kernel's test run.
    """

    packets: int
    cpus: dict[int, int]
    exits: dict[str, int]
    counters: dict[str, int]
    ns_per_packet: int


def run_trial(compiled: CompiledRule, cpus: tuple[int, ...], frames: Iterable[bytes]) -> Trial:
    """Run a rule over `frames`; nothing is sent or redirected.

    Raises:
        UsageError: There are no frames.
        BpfError: The kernel refuses; without root, for want of privileges.
    """
    named: Counter[int] = Counter()
    exits: Counter[str] = Counter()
    first = b""
    with SteerProgram(compiled, cpus, tracing=True) as program:
        for frame in frames:
            first = first or frame
            way, verdict = program.trace(frame)
            if way in _PASSES:
                named[cpus[verdict]] += 1
            else:
                exits[way.label] += 1
        if not first:
            raise UsageError("there are no frames to test", "", "use another capture, or --flows")
        counters = program.counters()
        duration = program.program_run(first, _REPEAT)
    spread = {cpu: named[cpu] for cpu in cpus}
    total = named.total() + exits.total()
    return Trial(total, spread, dict(exits), counters, duration)
