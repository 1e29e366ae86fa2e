# SPDX-License-Identifier: GPL-2.0-or-later
"""How CPython's results are read and judged."""

import pytest

from tools import cpython

pytestmark = pytest.mark.unit

P, F, S = "passed", "failed", "skipped"


@pytest.mark.parametrize(
    ("stock", "ours", "different"),
    [
        ([P, P, P, P, P], [P, P, P, P, P], False),
        ([P, P, P, P, P], [F, F, F, F, F], True),
        ([P, P, P, P, P], [F, P, P, P, P], False),  # one stray failure
        ([P, P, P, P, P], [F, P, P, F, P], True),  # now and then, but only with us
        ([F, P, P, F, P], [F, P, F, P, P], False),  # fails by itself as well
        ([F, P, P, P, P], [F, F, F, F, F], True),
        ([F, F, F, F, F], [P, P, P, P, P], True),  # better is different, too
        ([P], ["absent"], True),  # too many differences to rerun
        ([S, S, S, S, S], [P, P, P, P, P], True),
    ],
)
def test_judge(stock: list[str], ours: list[str], different: bool) -> None:
    assert cpython.judge(stock, ours) is different


def test_read() -> None:
    document = """<testsuites><testsuite>
      <testcase name="a"/><testcase name="b"><failure/></testcase>
      <testcase name="c"><error/></testcase><testcase name="d"><skipped/></testcase>
    </testsuite></testsuites>"""
    assert cpython.read(document) == {"a": P, "b": F, "c": F, "d": S}


def test_a_failure_in_a_subtest_is_named_by_the_output_alone() -> None:
    document = '<testsuite><testcase start="1"/><testcase name="test.test_x.C.test_b"/></testsuite>'
    output = "ok\nFAIL: test_a (test.test_x.C.test_a) (number=3)\nTraceback\n"
    assert cpython.read(document, output) == {
        "test.test_x.C.test_a": F,
        "test.test_x.C.test_b": P,
    }


def test_the_report_names_what_was_not_run() -> None:
    result = cpython.Comparison({"a": P, "b": P, "c": F}, {"b": "stock 5 passed"}, {})
    lines = result.text().splitlines()
    told = ["1 failed, 2 passed", "DIFFERENT b: stock 5 passed", "failed on both sides c"]
    assert lines[:3] == told
    assert len(lines) == 3 + len(cpython.DESELECTED)
