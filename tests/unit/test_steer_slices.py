# SPDX-License-Identifier: GPL-2.0-or-later
"""Slices of ports: contiguous, apart, aligned where they fit, reserved ports respected."""

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastsocket.errors import UsageError
from fastsocket.steer.slices import BLOCK, PortRange, plan_slices, read_ports

pytestmark = pytest.mark.unit


def test_the_usual_range_on_24_cpus() -> None:
    plan = plan_slices(PortRange(32768, 60999), 24)
    assert all(part.aligned for part in plan.slices)
    assert plan.slices[0].first == 32768
    assert {part.last - part.first + 1 for part in plan.slices} == {1024}


def test_plain_slices_where_aligned_ones_would_waste_more_than_half() -> None:
    plan = plan_slices(PortRange(33000, 33000 + 3 * BLOCK * 3 - 1), 2)
    sizes = {part.last - part.first + 1 for part in plan.slices}
    assert len(sizes) == 1
    assert all(part.first % BLOCK == 0 for part in plan.slices)


@given(st.integers(1, 65535), st.integers(1, 65535), st.integers(1, 128))
def test_every_plan(first: int, last: int, cpus: int) -> None:
    ports = PortRange(min(first, last), max(first, last))
    try:
        plan = plan_slices(ports, cpus)
    except UsageError:
        assert (ports.last - max(ports.first, 1024) + 1) < BLOCK * (cpus + 1)
        return
    table = plan.table()
    assert [part.index for part in plan.slices] == list(range(cpus))
    for part in plan.slices:
        assert max(ports.first, 1024) <= part.first <= part.last <= ports.last
        for port in (part.first, part.last, (part.first + part.last) // 2):
            assert plan.owner(port) == part.index
            assert table[port // BLOCK] == part.index + 1
    for left, right in pairwise(plan.slices):
        assert left.last + 1 == right.first
    assert plan.owner(1023) is None


def test_borrowing_tries_every_other_slice_once_and_starts_elsewhere() -> None:
    plan = plan_slices(PortRange(32768, 60999), 5)
    for index in range(5):
        order = plan.borrow_order(index)
        assert sorted([*order, index]) == list(range(5))
    assert len({plan.borrow_order(index)[0] for index in range(5)}) == 5


def test_reserved_ports_do_not_count_and_must_leave_some() -> None:
    reserved = frozenset({32768, 32769, 50000})
    plan = plan_slices(PortRange(32768, 65535, reserved), 2)
    assert [part.usable for part in plan.slices] == [16382, 16383]
    with pytest.raises(UsageError, match="are reserved"):
        plan_slices(PortRange(32768, 65535, frozenset(range(32768, 49152))), 2)


def test_reads_the_kernels_settings(tmp_path: Path) -> None:
    (tmp_path / "ip_local_port_range").write_text("32768\t60999\n")
    (tmp_path / "ip_local_reserved_ports").write_text("8080,40000-40002\n")
    assert read_ports(tmp_path) == PortRange(32768, 60999, frozenset({8080, 40000, 40001, 40002}))
    (tmp_path / "ip_local_reserved_ports").write_text("\n")
    assert read_ports(tmp_path).reserved == frozenset()
    assert read_ports().first < read_ports().last
