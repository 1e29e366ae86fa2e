# SPDX-License-Identifier: GPL-2.0-or-later
"""Rules from Python and from C: the same answers, and costs that can be compared."""

import struct
from dataclasses import replace

import pytest

from fastsocket.bench.steer import measure_rule
from fastsocket.native import native_file
from fastsocket.steer.compile import compile_rule
from fastsocket.steer.frames import generated_flows
from fastsocket.steer.library import built_in_rules, find_rule
from fastsocket.steer.program import SteerProgram
from tests.netns.bpf_machine import Machine

pytestmark = pytest.mark.netns


@pytest.mark.usefixtures("one_cpu")
def test_the_rules_in_c_are_the_same_rules() -> None:
    frames = list(generated_flows(200)) * 2
    for rule in built_in_rules():
        compiled = compile_rule(rule, 2)
        in_c = replace(compiled, object=native_file(f"steer-c-{rule.name}.bpf.o").read_bytes())
        with (
            SteerProgram(compiled, (0, 1), tracing=True) as ours,
            SteerProgram(in_c, (0, 1), tracing=True) as theirs,
        ):
            if rule.name in ("round_robin", "least_loaded"):  # counters and clocks go their own way
                pairs = {(ours.trace(f)[0], theirs.trace(f)[0]) for f in frames}
                assert all(left == right for left, right in pairs)
                continue
            for frame in frames:
                assert ours.trace(frame) == theirs.trace(frame), rule.name


def executed(program: SteerProgram, frame: bytes) -> int:
    """Return how many instructions the program executes for a frame that it has seen before."""
    _, verdict = program.trace(frame)
    machine = Machine(program, frame)
    assert machine.run() == 2  # XDP_PASS, as it is tracing
    assert machine.left(struct.pack("=q", verdict))
    machine.close()
    return machine.executed


def test_rules_from_python_execute_as_few_instructions_as_those_in_c() -> None:
    frames = list(generated_flows(4))  # TCP and UDP, IPv4 and IPv6
    for rule in built_in_rules():
        compiled = compile_rule(rule, 2)
        in_c = replace(compiled, object=native_file(f"steer-c-{rule.name}.bpf.o").read_bytes())
        with (
            SteerProgram(compiled, (0, 1), tracing=True) as ours,
            SteerProgram(in_c, (0, 1), tracing=True) as theirs,
        ):
            counts = [sum(executed(p, frame) for frame in frames) for p in (ours, theirs)]
        assert counts[0] <= 1.05 * counts[1], (rule.name, counts)


def test_a_rule_has_a_cost() -> None:
    # Timing on a shared machine proves nothing in a few rounds: instructions are counted above.
    for rule in map(find_rule, ("rfd", "tenant")):
        ours, theirs = (measure_rule(rule, in_c, 20_000) for in_c in (False, True))
        assert 0.2 < ours.ns_per_packet / theirs.ns_per_packet < 5
        assert ours.prepare_ms > theirs.prepare_ms > 0
