# SPDX-License-Identifier: GPL-2.0-or-later
"""CPU limits in real control groups, made for the test and removed after it."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make control groups"),
]

SHOW = (
    "import json; from fastsocket.host.limits import live_limits as f; l = f(); "
    "print(json.dumps([l.allowed, l.quota, l.count]))"
)
CGROUP = Path("/sys/fs/cgroup")


def made(parent: Path) -> Iterator[Path]:
    group = parent / f"fastsocket-test-{os.getpid()}"
    group.mkdir()
    yield group
    group.rmdir()


def limits_inside(group: Path) -> tuple[list[int], float | None, int]:
    script = f'echo $$ > {group}/cgroup.procs && exec "$@"'
    command = ["sh", "-c", script, "sh", sys.executable, "-c", SHOW]
    run = subprocess.run(command, capture_output=True, check=True, timeout=30)
    allowed, quota, count = json.loads(run.stdout)
    return allowed, quota, count


@pytest.fixture
def cpu_group() -> Iterator[Path]:
    for parent in (CGROUP / "cpu", CGROUP / "cpu,cpuacct", CGROUP):
        if (parent / "cpu.cfs_quota_us").exists() or (parent / "cpu.max").exists():
            yield from made(parent)
            return
        controllers = parent / "cgroup.subtree_control"
        if controllers.exists() and "cpu" in controllers.read_text().split():
            yield from made(parent)
            return
    pytest.skip("no cgroup with the cpu controller")


@pytest.fixture
def cpuset_group() -> Iterator[Path]:
    for parent in (CGROUP / "cpuset", CGROUP):
        controllers = parent / "cgroup.subtree_control"
        v2 = controllers.exists() and "cpuset" in controllers.read_text().split()
        if v2 or (parent / "cpuset.cpus").exists():
            yield from made(parent)
            return
    pytest.skip("no cgroup with the cpuset controller")


def test_quota(cpu_group: Path) -> None:
    if (cpu_group / "cpu.max").exists():
        (cpu_group / "cpu.max").write_text("50000 100000")
    else:
        (cpu_group / "cpu.cfs_period_us").write_text("100000")
        (cpu_group / "cpu.cfs_quota_us").write_text("50000")
    allowed, quota, count = limits_inside(cpu_group)
    assert set(allowed) == os.sched_getaffinity(0)
    assert (quota, count) == (0.5, 1)


def test_cpuset_of_one_cpu(cpuset_group: Path) -> None:
    cpu = max(os.sched_getaffinity(0))
    mems = cpuset_group.parent / "cpuset.mems"
    if mems.exists():  # v1 lets nobody in without memory
        (cpuset_group / "cpuset.mems").write_text(mems.read_text())
    (cpuset_group / "cpuset.cpus").write_text(str(cpu))
    allowed, _, count = limits_inside(cpuset_group)
    assert (allowed, count) == ([cpu], 1)
