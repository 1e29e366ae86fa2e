# SPDX-License-Identifier: GPL-2.0-or-later
"""Rules: what is refused, where, and with which remedy; what is accepted."""

import random
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastsocket.steer.check import parse_rule, read_rule
from fastsocket.steer.interval import Interval
from fastsocket.steer.ir import Function
from fastsocket.steer.language import CONSTANTS, FIELDS, LIMITS, RuleError
from fastsocket.steer.library import built_in_rules, find_rule
from fastsocket.steer.lower import lower
from fastsocket.steer.reference import Reference

pytestmark = pytest.mark.unit


def check(source: str, cpus: int = 4) -> Function:
    return lower(parse_rule(source, Path("r.py")), cpus)


def body(*lines: str) -> str:
    return "def rule(pkt, cpus):\n" + "".join(f"    {line}\n" for line in lines)


# What is refused: source, line, column, words of the reason, words of the remedy.
REFUSED = [
    ("import os\n" + body("return 0"), 1, 1, "cannot import", "are there"),
    (body("from os import path"), 2, 5, "cannot import", "are there"),
    (body("while True:", "    pass"), 2, 5, "no bound", "for i in range"),
    (body("for i in range(pkt.sport):", "    pass"), 2, 20, "not constant", "largest number"),
    (body("for i in range(10**9):", "    pass"), 2, 20, "only for constants", "multiply"),
    (body("for i in range(1 << 40):", "    pass"), 2, 14, "more than 32768 times", "less"),
    (body("for i in range(0, 9, 0):", "    pass"), 2, 26, "never ends", "another step"),
    (body("for i in 3, 4:", "    pass"), 2, 14, "over a range", "range(16)"),
    (body("for i in range(4):", "    pass", "else:", "    pass"), 5, 9, "no else", "a name"),
    (body("return pkt.sport // pkt.dport"), 2, 25, "divide by zero", "max(n, 1)"),
    (body("return pkt.sport % (cpus - 4)"), 2, 25, "divide by zero", "if n > 0"),
    (body("return pkt.sport / 2"), 2, 12, "fractions", "//"),
    (body("return pkt.sport ** 2"), 2, 12, "only for constants", "multiply"),
    (body("return 1 << 200"), 2, 17, "shift by 200", "& 63"),
    (body("return pkt.saddr >> pkt.proto"), 2, 25, "shift by 255", "& 63"),
    (body("return pkt.saddr >> -1"), 2, 25, "shift by -1", "& 63"),
    (body("return pkt.flow * 3"), 2, 12, "64 signed bits", "0xffffffff"),
    (body("return pkt.flow * 3 // 2"), 2, 12, "64 signed bits", "mask"),
    (body("return 9223372036854775808"), 2, 12, "63 bits", "fewer"),
    (body("return 4"), 2, 12, "CPU 4", "pkt.hash % cpus"),
    (body("return cpus"), 2, 12, "set has 0 to 3", "below cpus"),
    (body("return pkt.port"), 2, 12, "no field port", "sport"),
    (body("return pkt.src"), 2, 12, "whole address", "saddr"),
    (body("return pkt"), 2, 12, "no integer", "pkt.sport"),
    (body("return x"), 2, 12, "no value", "every way"),
    (body("if pkt.sport:", "    x = 1", "return x"), 4, 12, "no value", "every way"),
    (body("return open('x')"), 2, 12, "call only", "write it out"),
    (body("return pkt.sport.bit_length()"), 2, 12, "call only", "write it out"),
    (body("return 'a'"), 2, 12, "only integers", "number"),
    (body("return 1.5"), 2, 12, "only integers", "number"),
    (body("x = None", "return 0"), 2, 9, "only for return", "PASS"),
    (body("return pkt.sport and 3"), 2, 12, "combine conditions", "!= 0"),
    (body("return pkt.sport in (pkt.dport, 1)"), 2, 26, "no constant", "ip("),
    (body("return pkt.sport is 3"), 2, 12, "compares objects", "=="),
    (body("a = b = 1"), 2, 5, "one plain name", "name = value"),
    (body("a, b = 1, 2"), 2, 5, "one plain name", "name = value"),
    (body("pkt.sport = 1"), 2, 5, "one plain name", "name = value"),
    (body("cpus = 1"), 2, 5, "meaning of its own", "another name"),
    (body("pkt.sport"), 2, 5, "no effect", "leave it out"),
    (body("x: int = 1"), 2, 5, "annotations", "name = value"),
    (body("return lambda: 1"), 2, 12, "one function", "write"),
    (body("return [i for i in range(3)]"), 2, 12, "no lists", "for loop"),
    (body("return pkt[0]"), 2, 12, "nothing to index", "get"),
    (body("try:", "    pass", "except Exception:", "    pass"), 2, 5, "nothing raises", "if"),
    (body("global x"), 2, 5, "keeps nothing", "table"),
    (body("def inner(): pass"), 2, 5, "one function", "rule()"),
    (body("return (x := 3)"), 2, 13, ":=", "own"),
    (body("return " + "-" * 90 + "1"), 2, 90, "nested deeper", "names"),
    ("def rule(pkt):\n    return 0\n", 1, 1, "packet and the number", "def rule"),
    ("def rule(pkt, cpus, x=1):\n    return 0\n", 1, 1, "packet and the number", "def rule"),
    ("@cache\n" + body("return 0"), 1, 2, "no decorators", "leave"),
    ("x = 3\n", 1, 1, "no rule", "def rule"),
    (body("return 0") * 2, 3, 1, "second rule", "keep one"),
    ("def rule(pkt, cpus)\n    return 0", 1, 20, "not Python", "correct"),
    ("T = table(size=0)\n" + body("return 0"), 1, 16, "no size", "use 1 to"),
    ("T = table({1: 2**40})\n" + body("return 0"), 1, 15, "32 bits", "at most"),
    ("T = prefixes({'10.0.0.1/8': 2})\n" + body("return 0"), 1, 15, "no prefix", "10.0.0.0/8"),
    ("T = array({-1: 2})\n" + body("return 0"), 1, 12, "start at 0", "table()"),
    ("T = array({70: 2}, size=9)\n" + body("return 0"), 1, 5, "indices 0 to 8", "size"),
    ("T = table(lru=3)\n" + body("return 0"), 1, 15, "True or False", "lru=True"),
    ("T = table(1, 2, 3, 4)\n" + body("return 0"), 1, 20, "no such argument", "leave"),
    ("T = counter(size=3)\n" + body("return 0"), 1, 18, "no size", "nothing"),
    ("T = 1\nT = 2\n" + body("return 0"), 2, 5, "set twice", "another name"),
    ("T = 1 // 0\n" + body("return 0"), 1, 5, "divides by zero", "divisor"),
    ("T = 2 ** 99\n" + body("return 0"), 1, 5, "exponent", "0 to 63"),
    ("T = {*range(3)}\n" + body("return 0"), 1, 6, "no constant", "numbers"),
    ("T = set()\n" + body("return 0"), 1, 5, "no constant", "numbers"),
    ("T = counter()\n" + body("T.add(-1)"), 3, 11, "upwards", "0 to"),
    ("T = table()\n" + body("T.set(1, pkt.flow)"), 3, 14, "32 signed bits", "0x7fffffff"),
    ("T = table()\n" + body("return T[1]"), 3, 12, "nothing to index", "get"),
    ("T = table()\n" + body("return T.pop(1)"), 3, 12, "no such call", "get(key"),
    ("T = prefixes()\n" + body("return T.get(pkt.saddr, 0)"), 3, 18, "prefixes", "pkt.src"),
    ("T = array()\n" + body("return 1 in T"), 3, 17, "for table()", "get"),
    ("T = ip('300.1.1.1')\n" + body("return 0"), 1, 5, "no IPv4", "192.0.2.1"),
    (body("x = 0", *["x = (x + 1) & 255"] * 9999), 1, 1, "longer than", "tables"),
    (
        body("x = 0", "for i in range(300):", "    for j in range(300):", "        x = i"),
        1,
        1,
        "operations",
        "shorten",
    ),
    (body(*(f"x{i} = 1" for i in range(30))), 26, 5, "24 local names", "again"),
]


@pytest.mark.parametrize(("source", "line", "column", "reason", "remedy"), REFUSED)
def test_refused_with_place_and_remedy(
    source: str, line: int, column: int, reason: str, remedy: str
) -> None:
    with pytest.raises(RuleError) as caught:
        check(source)
    error = caught.value
    assert reason in error.what
    assert remedy in error.todo
    assert (error.line, error.column) == (line, column)
    assert str(error).startswith(f"r.py:{line}:{column}: ")
    assert "\n" not in str(error)
    assert error.exit_code == 2


ACCEPTED = [
    (body("return None"), Interval(-1, -1)),
    (body("pass"), Interval(-1, -1)),
    (body("return pkt.sport % cpus"), Interval(0, 3)),
    (body("return pkt.cpu"), Interval(-1, 3)),
    (body("return 3 if pkt.proto in {TCP, UDP} else PASS"), Interval(-1, 3)),
    (body("return (pkt.flow * 3 + pkt.hash) % 4"), Interval(0, 3)),
    (body("return (pkt.flow * 3 << 5) & 3"), Interval(0, 3)),
    (
        body("if pkt.dport > 0:", "    return pkt.sport % pkt.dport % cpus", "return 0"),
        Interval(0, 3),
    ),
    (
        body("n = pkt.vlan", "if n == 0 or n > 99:", "    return 0", "return 300 // n % cpus"),
        Interval(0, 3),
    ),
    (body("x = 0", "for i in range(9):", "    x += pkt.sport", "return x >> 18"), Interval(0, 2)),
    (body("if cpus == 9:", "    return 8", "return 0"), Interval(0, 0)),
    (body("for i in range(cpus):", "    if pkt.sport == i:", "        return i"), Interval(-1, 3)),
    (body("return min(pkt.sport, 3)"), Interval(0, 3)),
    (body("return 0 < pkt.sport < 9"), Interval(0, 1)),
]


@pytest.mark.parametrize(("source", "returns"), ACCEPTED)
def test_accepted_with_the_range_of_its_result(source: str, returns: Interval) -> None:
    assert check(source).returns == returns


def test_built_in_rules_are_right_on_small_and_large_hosts() -> None:
    rules = built_in_rules()
    assert {rule.name for rule in rules} == {
        "hash",
        "least_loaded",
        "receive_cpu",
        "rfd",
        "round_robin",
        "symmetric_hash",
        "tenant",
    }
    for rule in rules:
        assert rule.text
        for cpus in (1, 2, 24, 1024):
            assert lower(rule, cpus).cpus == cpus


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "bad.py"
    path.write_bytes(b"x = 1\ny = \xff\n")
    with pytest.raises(RuleError, match=r"bad.py:2:5: this is not UTF-8"):
        read_rule(path)


def test_ranges_hold_what_rules_compute() -> None:
    source = body("a = (pkt.saddr - 2**31) // -7 ^ pkt.sport", "return a % 5 - a // 3 + (a >> 2)")
    source = source.replace("2**31", "2147483648")
    rule = parse_rule(source, Path("r.py"))
    function, reference, chance = lower(rule, 4), Reference(rule, 4), random.Random(3)
    for _ in range(500):
        fields = {"saddr": chance.getrandbits(32), "sport": chance.getrandbits(16)}
        assert reference(fields) in function.returns


SMALL = st.integers(-40, 40)


@settings(max_examples=300, deadline=None)
@given(SMALL, SMALL, SMALL, SMALL)
def test_interval_arithmetic_holds_every_result(a: int, b: int, c: int, d: int) -> None:
    left, right = Interval(min(a, b), max(a, b)), Interval(min(c, d), max(c, d))
    shift = Interval(abs(right.lo) % 20, abs(right.lo) % 20 + 3)
    for x in {left.lo, left.hi, (left.lo + left.hi) // 2}:
        assert -x in -left
        assert ~x in ~left
        assert abs(x) in left.absolute()
        assert x << shift.hi in left << shift
        assert x >> shift.lo in left >> shift
        for y in {right.lo, right.hi, (right.lo + right.hi) // 2}:
            assert x + y in left + right
            assert x - y in left - right
            assert x * y in left * right
            assert x & y in left & right
            assert x | y in left | right
            assert x ^ y in left ^ right
            assert min(x, y) in left.minimum(right)
            assert max(x, y) in left.maximum(right)
            if 0 not in right:
                assert x // y in left // right
                assert x % y in left % right


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=200))
def test_any_text_is_refused_or_accepted_never_worse(text: str) -> None:
    for source in (text, body("return 0") + text, body(text.replace("\n", "\n    "))):
        try:
            check(source)
        except RuleError as error:
            assert error.todo


def test_documentation_names_every_field_and_limit() -> None:
    page = (Path(__file__).parents[2] / "docs/rules.md").read_text()
    for name in (*FIELDS, *CONSTANTS, "src", "dst"):
        assert f"`{name}`" in page, name
    for number in (LIMITS.steps, LIMITS.names, LIMITS.source_bytes):
        assert f"{number:,}" in page
    assert find_rule("hash").name == "hash"


def test_llvmlite_is_needed_only_to_compile() -> None:
    code = "import sys, fastsocket.cli.steer; sys.exit('llvmlite' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
