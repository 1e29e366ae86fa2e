# SPDX-License-Identifier: GPL-2.0-or-later
"""The dispatcher's parser on a million frames, and rules at the limits before the verifier."""

import ctypes
import random
from pathlib import Path

import pytest

from fastsocket.steer import ir
from fastsocket.steer.check import parse_rule
from fastsocket.steer.compile import compile_rule
from fastsocket.steer.language import LIMITS
from fastsocket.steer.layout import Exit
from fastsocket.steer.library import built_in_rules
from fastsocket.steer.lower import lower
from fastsocket.steer.program import SteerProgram
from tests.netns.steer_reference import parse, random_frame

pytestmark = pytest.mark.netns

COMPARED, FUZZED = 20_000, 1_000_000
# One number of everything that parsing yields; `flow` covers addresses, ports and protocol.
DIGEST = """
def rule(pkt, cpus):
    x = pkt.flow ^ pkt.vlan << 40 ^ pkt.inner_vlan << 28 ^ pkt.dscp << 20
    return x ^ pkt.fragment << 60 ^ pkt.tcp_flags << 52 ^ pkt.length ^ pkt.version << 16
"""


def program_of(source: str) -> SteerProgram:
    rule = parse_rule(source, Path("test.py"))
    return SteerProgram(compile_rule(rule, 2), (0, 1), tracing=True)


def test_the_parser_agrees_with_a_second_one() -> None:
    rule = parse_rule(DIGEST, Path("test.py"))
    chance, seen = random.Random(20), dict.fromkeys(Exit, 0)
    with SteerProgram(compile_rule(rule, 2), (0, 1), tracing=True) as program:
        for _ in range(COMPARED):
            frame = random_frame(chance)
            way, verdict = program.trace(frame)
            parsed = parse(frame)
            if parsed.way is not None:
                assert way == parsed.way, frame.hex()
                seen[way] += 1
                continue
            f = parsed.fields
            expected = f["flow"] ^ f["vlan"] << 40 ^ f["inner_vlan"] << 28 ^ f["dscp"] << 20
            expected ^= f["fragment"] << 60 ^ f["tcp_flags"] << 52 ^ f["length"]
            assert verdict == expected ^ f["version"] << 16, frame.hex()
    for way in (Exit.NOT_IP, Exit.TRUNCATED, Exit.MALFORMED, Exit.DEEP_VLAN, Exit.DEEP_OPTIONS):
        assert seen[way] > 10, way


class Options(ctypes.Structure):
    """struct bpf_test_run_opts; a lean loop needs it in hand."""

    _fields_ = (
        ("sz", ctypes.c_size_t),
        ("data_in", ctypes.c_void_p),
        ("data_out", ctypes.c_void_p),
        ("data_size_in", ctypes.c_uint32),
        ("data_size_out", ctypes.c_uint32),
        ("ctx", ctypes.c_void_p * 2),
        ("ctx_size", ctypes.c_uint32 * 2),
        ("retval", ctypes.c_uint32),
        ("rest", ctypes.c_uint32 * 5),
    )


def test_a_million_damaged_frames_pass_and_are_counted() -> None:
    chance = random.Random(30)
    space = 256
    frames = [random_frame(chance)[:space].ljust(space, b"\x06") for _ in range(2000)]
    memory = ctypes.create_string_buffer(b"".join(frames))
    base, options = ctypes.addressof(memory), Options(sz=ctypes.sizeof(Options))
    out = ctypes.create_string_buffer(4096)
    options.data_out = ctypes.addressof(out)
    run, options_at = ctypes.CDLL("libbpf.so.1").bpf_prog_test_run_opts, ctypes.byref(options)
    flips = chance.randbytes(3 * 4096)
    with program_of(DIGEST) as program:
        fd = program.program.fd
        for number in range(FUZZED):
            start = number % len(frames) * space
            flip = number * 3 % len(flips)
            # Frames are damaged more and more, and cut to a length that may be anything.
            memory[start + 12 + flips[flip] % 80] = flips[flip + 1]
            options.data_in = base + start
            options.data_size_out = len(out)
            options.data_size_in = 14 + flips[flip + 2] % 120
            assert run(fd, options_at) == 0
            assert options.retval == 2  # XDP_PASS
        exits = program.exits()
    assert sum(exits.values()) == FUZZED
    assert min(exits[way] for way in (Exit.TRUNCATED, Exit.MALFORMED, Exit.NOT_IP)) > 1000


def test_oversized_frames_pass() -> None:
    with program_of("def rule(pkt, cpus):\n return pkt.length\n") as program:
        for size in (14, 60, 1514, 3000, 9000, 60000):
            frame = bytes(12) + b"\x08\x00\x45" + bytes(size)
            assert program.trace(frame[:size])[0] in (Exit.TRUNCATED, Exit.NO_CPU)


BRANCHY = """
        x = x * 2 + 1 if pkt.sport + i > x else x >> 1
        if x & 1 and pkt.dport > i or pkt.hash + y > 5:
            y = y + 3 & 0xffff
        x = (x ^ y) & 0xffffffff
"""
TABLES = """
        x = T.get(x & 255, i) ^ A.get(x & 63, 3)
        A.set(y & 63, y)
        y = y + (x & 255) & 0xffff
        if y % 7 == i % 5:
            T.set(y, i)
        x = x & 0xffff
"""
DIVIDING = """
        x = (x - 70000) // (i - 3000) % max(pkt.dport & 255, 1) + (y % -7)
        y = (x + i) & 0xffff
"""


@pytest.mark.parametrize("lines", [BRANCHY, TABLES, DIVIDING])
def test_the_verifier_takes_the_longest_rules(lines: str) -> None:
    def source(trips: int) -> str:
        loop = f"    for i in range({trips}):{lines}"
        head = "T = table(size=4096)\nA = array(size=64)\n"
        return f"{head}def rule(pkt, cpus):\n    x = 0\n    y = 0\n{loop}    return x\n"

    once, _ = ir.cost(lower(parse_rule(source(100), Path("t.py")), 2).body)
    trips = LIMITS.steps * 100 // once - 1
    steps, _ = ir.cost(lower(parse_rule(source(trips), Path("t.py")), 2).body)
    assert 0.95 * LIMITS.steps < steps <= LIMITS.steps
    program_of(source(trips)).close()


def test_many_conditions_in_a_row() -> None:
    lines = [f"    if pkt.sport + {i} > pkt.dport ^ {i}:\n        x = x ^ {1 << i % 30}\n"
             for i in range(600)]  # fmt: skip
    program_of("def rule(pkt, cpus):\n    x = 0\n" + "".join(lines) + "    return x\n").close()


def test_many_live_names_fit_the_stack() -> None:
    names = [f"n{i}" for i in range(LIMITS.names)]
    first = [f"    {n} = pkt.hash * {i + 3} + pkt.sport & 0xffffff\n" for i, n in enumerate(names)]
    again = [f"    {n} = {n} * {names[i - 1]} % 65521\n" for i, n in enumerate(names)]
    total = " + ".join(names)
    program_of(f"def rule(pkt, cpus):\n{''.join(first + again)}    return {total}\n").close()


def test_built_in_rules_load_for_a_thousand_cpus() -> None:
    for rule in built_in_rules():
        SteerProgram(compile_rule(rule, 1024), range(1024), tracing=True).close()
