# SPDX-License-Identifier: GPL-2.0-or-later
"""What a rule costs a packet, against the same rule in C compiled by clang.

Both run in the kernel's test run on one packet, in random order within each round; the ratio is
taken round by round.
"""

import random
from dataclasses import dataclass, replace

from fastsocket.native import native_file
from fastsocket.steer.check import Rule
from fastsocket.steer.compile import compile_rule
from fastsocket.steer.cpus import online_cpus
from fastsocket.steer.frames import generated_flows
from fastsocket.steer.library import built_in_rules
from fastsocket.steer.program import SteerProgram, write_table

__all__ = ["RuleCost", "measure_all", "measure_rule"]

_REPEAT = 1_000_000


@dataclass(frozen=True)
class RuleCost:
    """Nanoseconds a packet, one number for each round.

    Attributes:
        rule: Name of the rule.
        python: As compiled from Python.
        c: As compiled from C.
    """

    rule: str
    python: tuple[int, ...]
    c: tuple[int, ...]

    @property
    def ratios(self) -> tuple[float, ...]:
        """Python's by C's, round by round."""
        return tuple(ours / theirs for ours, theirs in zip(self.python, self.c, strict=True))


def measure_rule(rule: Rule, rounds: int, repeat: int = _REPEAT, seed: int = 1) -> RuleCost:
    """Measure a built-in rule in `rounds` rounds of `repeat` packets each.

    Raises:
        BpfError: Privileges are missing.
    """
    cpus = online_cpus()
    compiled = compile_rule(rule, len(cpus))
    in_c = replace(compiled, object=native_file(f"steer-c-{rule.name}.bpf.o").read_bytes())
    frame, chance = next(generated_flows(1)), random.Random(seed)
    times: dict[str, list[int]] = {"python": [], "c": []}
    with (
        SteerProgram(compiled, cpus, tracing=True) as ours,
        SteerProgram(in_c, cpus, tracing=True) as theirs,
    ):
        programs = {"python": ours, "c": theirs}
        if rule.name == "tenant":  # an empty table would answer without a look
            for program in programs.values():
                write_table(rule.tables["TENANTS"], program.map("TENANTS"), "0.0.0.0/0", 0)
        for _ in range(rounds):
            for name in chance.sample(sorted(programs), k=2):
                times[name].append(programs[name].program_run(frame, repeat))
    return RuleCost(rule.name, tuple(times["python"]), tuple(times["c"]))


def measure_all(rounds: int, repeat: int = _REPEAT) -> list[RuleCost]:
    """Measure all built-in rules.

    Raises:
        BpfError: Privileges are missing.
    """
    return [measure_rule(rule, rounds, repeat) for rule in built_in_rules()]
