# SPDX-License-Identifier: GPL-2.0-or-later
"""Rules mean in the kernel what they mean in Python."""

import os
import random
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from fastsocket.steer.check import Rule, parse_rule, read_rule
from fastsocket.steer.compile import compile_rule
from fastsocket.steer.language import RuleError
from fastsocket.steer.layout import Exit
from fastsocket.steer.program import SteerProgram, write_table
from fastsocket.steer.reference import Counter, Reference
from tests.netns.steer_random import RandomRule
from tests.netns.steer_reference import parse, random_frame

pytestmark = [pytest.mark.netns, pytest.mark.usefixtures("one_cpu")]

RULES, FRAMES = 52, 2000
BUILT_IN = Path(__file__).parents[2] / "src/fastsocket/steer/rules"


@pytest.fixture(scope="module")
def packets() -> list[tuple[bytes, dict[str, Any]]]:
    """Frames that reach a rule, and their fields; what does not is in test_steer_parse."""
    chance, found = random.Random(11), []
    while len(found) < 5000:
        frame = random_frame(chance)
        parsed = parse(frame)
        if parsed.way is None:
            found.append((frame, parsed.fields))
    return found


def compare(rule: Rule, packets: list[tuple[bytes, dict[str, Any]]], cpus: int = 2) -> int:
    """Run the rule both ways over `packets`; return how many there were."""
    reference = Reference(rule, cpus)
    with SteerProgram(compile_rule(rule, cpus), range(cpus), tracing=True) as program:
        for frame, fields in packets:
            assert program.trace(frame)[1] == reference(fields), (frame.hex(), rule.source)
        counted = {n: t.value for n, t in reference.tables.items() if isinstance(t, Counter)}
        assert program.counters() == counted
    return len(packets)


def test_random_rules_mean_the_same(packets: list[tuple[bytes, dict[str, Any]]]) -> None:
    evaluations = accepted = refused = 0

    @settings(
        max_examples=RULES,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @example(499024)  # reads pkt.queue in several branches
    @given(st.integers(0, 2**48))
    def one(seed: int) -> None:
        nonlocal evaluations, accepted, refused
        sample = random.Random(seed).sample(packets, FRAMES)
        while True:
            try:
                rule = parse_rule(RandomRule(seed).source(), Path("random.py"))
                evaluations += compare(rule, sample)
            except RuleError:
                refused += 1
                seed += 1
                continue
            accepted += 1
            return

    one()
    assert evaluations >= 100_000
    assert accepted > refused


def test_built_in_rules_mean_the_same(packets: list[tuple[bytes, dict[str, Any]]]) -> None:
    # The others read the clock (least_loaded) and sockets (rfd).
    for name in ("hash", "symmetric_hash", "round_robin", "receive_cpu", "tenant"):
        compare(read_rule(BUILT_IN / f"{name}.py"), packets)


@pytest.mark.parametrize(
    ("number", "way"),
    [(2, Exit.NO_CPU), (-7, Exit.RULE_PASS), (2**62, Exit.NO_CPU), (-(2**63) + 1, Exit.RULE_PASS)],
)
def test_a_number_outside_the_set_passes(
    number: int, way: Exit, packets: list[tuple[bytes, dict[str, Any]]]
) -> None:
    source = f"def rule(pkt, cpus):\n    return {number} if pkt.length > 0 else 0\n"
    compiled = compile_rule(parse_rule(source, Path("outside.py")), 2)
    with SteerProgram(compiled, (0, 1), tracing=True) as program:
        assert program.trace(packets[0][0]) == (way, number)


def test_the_cpu_at_work_and_the_clock(packets: list[tuple[bytes, dict[str, Any]]]) -> None:
    source = "def rule(pkt, cpus):\n    return pkt.now * 4 + pkt.cpu\n"
    cpus, frame = tuple(sorted(os.sched_getaffinity(os.getppid()))), packets[0][0]
    compiled = compile_rule(parse_rule(source, Path("cpu.py")), len(cpus))
    with SteerProgram(compiled, cpus, tracing=True) as program:
        for index, cpu in list(enumerate(cpus))[:2]:
            os.sched_setaffinity(0, {cpu})
            before = time.monotonic_ns() // 1_000_000
            now, found = divmod(program.trace(frame)[1], 4)
            assert found == index
            assert before <= now <= time.monotonic_ns() // 1_000_000


def test_a_full_lru_table_lets_the_oldest_go() -> None:
    source = (
        "T = table(size=1024, lru=True)\ndef rule(pkt, cpus):\n    return T.get(pkt.sport, 0)\n"
    )
    rule = parse_rule(source, Path("lru.py"))
    with SteerProgram(compile_rule(rule, 1), (0,), tracing=True) as program:
        table = program.map("T")
        for key in range(4096):
            write_table(rule.tables["T"], table, key, 0)
        left = {int.from_bytes(key, "little") for key in list(table.keys())}
    assert 512 <= len(left) <= 1024
    assert left.issuperset(range(4096 - 128, 4096))
    assert left.isdisjoint(range(1024))
