# SPDX-License-Identifier: GPL-2.0-or-later
"""Slices of ports: contiguous, apart, told by one mask, reserved ports respected."""

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastsocket.errors import UsageError
from fastsocket.host.cpulist import parse_list
from fastsocket.host.slices import BLOCK, PortRange, plan_slices, read_ports

pytestmark = pytest.mark.unit


def test_the_usual_range_on_24_cpus() -> None:
    plan = plan_slices(PortRange(32768, 60999), range(24))
    assert plan.slices[0].first == 32768
    assert {part.size for part in plan.slices} == {1024}
    assert plan.text == "32768:1024:0-23"


@given(st.integers(1, 65535), st.integers(1, 65535), st.sets(st.integers(0, 255), min_size=1))
def test_every_plan(first: int, last: int, cpus: set[int]) -> None:
    ports = PortRange(min(first, last), max(first, last))
    room = ports.last - max(ports.first, 1024) + 1
    try:
        plan = plan_slices(ports, tuple(cpus))
    except UsageError:
        assert room < BLOCK * (len(cpus) + 1)
        return
    assert [part.cpu for part in plan.slices] == sorted(cpus)
    assert len({part.size for part in plan.slices}) == 1
    for part in plan.slices:
        # A power of two and aligned: the ports are all that equal the first under the mask.
        assert part.size % BLOCK == 0 and not part.size & (part.size - 1)
        assert part.first % part.size == 0 and part.last & part.mask == part.first
        assert max(ports.first, 1024) <= part.first <= part.last <= ports.last
        for port in (part.first, part.last, (part.first + part.last) // 2):
            assert plan.owner(port) == part.cpu
    for left, right in pairwise(plan.slices):
        assert left.last + 1 == right.first
    assert plan.owner(1023) is None
    assert 5 * sum(part.size for part in plan.slices) >= room - 2 * BLOCK
    begin, size, listed = plan.text.split(":")
    assert (int(begin), int(size)) == (plan.slices[0].first, plan.slices[0].size)
    assert parse_list(listed) == tuple(sorted(cpus))


def test_the_table_knows_the_cpus_of_the_set_alone() -> None:
    plan = plan_slices(PortRange(32768, 60999), range(5))
    table = plan.table((3, 1))
    assert {number: len([b for b in table if table[b] == number]) for number in (1, 2)} == {
        1: plan.slices[0].size // BLOCK,
        2: plan.slices[0].size // BLOCK,
    }
    assert table[plan.slices[3].first // BLOCK] == 1
    assert table[plan.slices[1].last // BLOCK] == 2
    assert plan.slices[0].first // BLOCK not in table


def test_a_slice_whose_ports_are_all_reserved_is_refused() -> None:
    plan = plan_slices(PortRange(32768, 65535, frozenset({32768, 50000})), range(2))
    assert [part.size for part in plan.slices] == [16384, 16384]
    with pytest.raises(UsageError, match="slice of CPU 0 are reserved"):
        plan_slices(PortRange(32768, 65535, frozenset(range(32768, 49152))), range(2))


def test_reads_the_kernels_settings(tmp_path: Path) -> None:
    (tmp_path / "ip_local_port_range").write_text("32768\t60999\n")
    (tmp_path / "ip_local_reserved_ports").write_text("8080,40000-40002\n")
    assert read_ports(tmp_path) == PortRange(32768, 60999, frozenset({8080, 40000, 40001, 40002}))
    (tmp_path / "ip_local_reserved_ports").write_text("\n")
    assert read_ports(tmp_path).reserved == frozenset()
    assert read_ports().first < read_ports().last
