# SPDX-License-Identifier: GPL-2.0-or-later
"""Topology from recorded trees, and the order in which its CPUs are used."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastsocket.host.cpulist import format_list, format_mask, parse_list, parse_mask
from fastsocket.host.topology import Cpu, Topology, order_physical_first, read_topology

pytestmark = pytest.mark.unit

# Two packages of two cores with two threads each, as Linux numbers them: threads in the second
# half. CPU 7 is offline and CPU 2 isolated.
SIBLINGS = {0: "0,4", 4: "0,4", 1: "1,5", 5: "1,5", 2: "2,6", 6: "2,6", 3: "3"}
FILES = {
    "sys/devices/system/cpu/online": "0-6",
    "sys/devices/system/cpu/present": "0-7",
    "sys/devices/system/cpu/isolated": "2",
    "sys/devices/system/node/online": "0-1",
    "sys/devices/system/node/node0/cpulist": "0-1,4-5",
    "sys/devices/system/node/node0/distance": "10 21",
    "sys/devices/system/node/node1/cpulist": "2-3,6",
    "sys/devices/system/node/node1/distance": "21 10",
}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    files = dict(FILES)
    for cpu, siblings in SIBLINGS.items():
        base = f"sys/devices/system/cpu/cpu{cpu}"
        package = 0 if cpu % 4 < 2 else 1
        files[f"{base}/topology/core_id"] = str(cpu % 2)
        files[f"{base}/topology/physical_package_id"] = str(package)
        files[f"{base}/topology/thread_siblings_list"] = siblings
        files[f"{base}/cache/index0/level"] = "1"
        files[f"{base}/cache/index0/shared_cpu_list"] = siblings
        files[f"{base}/cache/index1/level"] = "3"
        files[f"{base}/cache/index1/shared_cpu_list"] = ("0-1,4-5", "2-3,6")[package]
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return tmp_path


def test_tree_is_read(tree: Path) -> None:
    topology = read_topology(tree)
    assert topology.online == (0, 1, 2, 3, 4, 5, 6)
    assert topology.usable == (0, 1, 3, 4, 5, 6)
    assert topology.nodes == (0, 1) and topology.packages == (0, 1) and topology.cores == 4
    assert topology.cpu(5) == Cpu(5, core=1, package=0, node=0, llc=0, siblings=(1, 5))
    assert topology.cpu(6).llc == 2
    assert topology.cpu(7) == Cpu(7, online=False)
    assert topology.distance(0, 1) == 21 and topology.distance(1, 1) == 10


def test_isolated_partition_of_a_cpuset_counts(tree: Path) -> None:
    (tree / "sys/fs/cgroup").mkdir(parents=True)
    (tree / "sys/fs/cgroup/cpuset.cpus.isolated").write_text("0-1\n")
    assert read_topology(tree).usable == (3, 4, 5, 6)


def test_empty_tree_has_no_cpu(tmp_path: Path) -> None:
    assert read_topology(tmp_path) == Topology(())


def test_order_is_physical_then_threads(tree: Path) -> None:
    topology = read_topology(tree)
    assert order_physical_first(topology, range(8)) == [0, 1, 3, 6, 4, 5]
    assert order_physical_first(topology, range(8), node=1) == [3, 6, 0, 1, 4, 5]
    assert order_physical_first(topology, [5, 4, 6]) == [4, 5, 6]


def test_this_host_has_the_cpu_that_runs_the_test() -> None:
    topology = read_topology()
    assert topology.online
    assert set(order_physical_first(topology, topology.online)) == set(topology.usable)


@given(st.sets(st.integers(0, 300)))
def test_list_and_mask_survive_a_round_trip(cpus: set[int]) -> None:
    assert set(parse_list(format_list(cpus))) == cpus
    assert set(parse_mask(format_mask(cpus))) == cpus


@pytest.mark.parametrize(
    ("cpus", "width", "text"),
    [
        ([], 2, "0"),
        ([0, 1], 2, "3"),
        ([0], 24, "000001"),
        ([33], 40, "02,00000000"),
        ([0, 127], 128, "80000000,00000000,00000000,00000001"),
    ],
)
def test_mask_has_the_bytes_of_the_kernel(cpus: list[int], width: int, text: str) -> None:
    assert format_mask(cpus, width) == text


def test_list_merges_ranges() -> None:
    assert format_list([8, 0, 1, 2, 3, 10]) == "0-3,8,10"
    assert parse_list("0-3,8,10\n") == (0, 1, 2, 3, 8, 10)
