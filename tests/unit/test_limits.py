# SPDX-License-Identifier: GPL-2.0-or-later
"""CPU limits of recorded hosts: cgroup v1 and v2, nested groups, containers."""

import os
from pathlib import Path

import pytest

from fastsocket.host.limits import live_limits, read_limits

pytestmark = pytest.mark.unit

ALL = frozenset(range(8))
V2_MOUNT = "30 23 0:26 {root} /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw"


def host(tmp_path: Path, files: dict[str, str]) -> Path:
    given = {"sys/devices/system/cpu/online": "0-7", **files}
    for name, text in given.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return tmp_path


def v2(tmp_path: Path, group: str, groups: dict[str, str], root: str = "/") -> Path:
    files = {f"sys/fs/cgroup/{name}": text for name, text in groups.items()}
    mount = V2_MOUNT.format(root=root)
    return host(
        tmp_path, {"proc/self/cgroup": f"0::{group}", "proc/self/mountinfo": mount, **files}
    )


def test_without_limits_all_cpus_count(tmp_path: Path) -> None:
    limits = read_limits(host(tmp_path, {}), None, ALL)
    assert limits.allowed == tuple(range(8))
    assert (limits.quota, limits.count, limits.reasons) == (None, 8, ())


def test_affinity_is_named(tmp_path: Path) -> None:
    limits = read_limits(host(tmp_path, {}), None, frozenset({1, 2, 5}))
    assert limits.allowed == (1, 2, 5)
    assert limits.reasons == ("affinity 1-2,5 of 0-7",)


def test_offline_cpus_do_not_count(tmp_path: Path) -> None:
    root = host(tmp_path, {"sys/devices/system/cpu/online": "0-2,4"})
    assert read_limits(root, None, ALL).allowed == (0, 1, 2, 4)


@pytest.mark.parametrize(
    ("text", "quota", "count"),
    [
        ("max 100000", None, 8),
        ("150000 100000", 1.5, 2),
        ("50000 100000", 0.5, 1),
        ("200000 100000", 2.0, 2),
        ("6400000 100000", 64.0, 8),
        ("damaged", None, 8),
    ],
)
def test_v2_quota(tmp_path: Path, text: str, quota: float | None, count: int) -> None:
    limits = read_limits(v2(tmp_path, "/a", {"a/cpu.max": text}), None, ALL)
    assert (limits.quota, limits.count) == (quota, count)


def test_v2_the_tightest_group_above_counts(tmp_path: Path) -> None:
    groups = {"a/b/cpu.max": "400000 100000", "a/cpu.max": "300000 100000", "cpu.max": "max 1"}
    limits = read_limits(v2(tmp_path, "/a/b", groups), None, ALL)
    assert limits.quota == 3.0
    assert limits.reasons[-1] == "quota of 3 CPUs in /sys/fs/cgroup/a"


def test_v2_cpuset_of_the_nearest_group_that_has_one(tmp_path: Path) -> None:
    groups = {"a/cpuset.cpus.effective": "2-3", "cpuset.cpus.effective": "0-7", "a/b/x": ""}
    limits = read_limits(v2(tmp_path, "/a/b", groups), None, ALL)
    assert limits.allowed == (2, 3)


def test_container_that_sees_host_paths(tmp_path: Path) -> None:
    # No cgroup namespace: the path is the host's, but only the container's subtree is mounted.
    root = v2(tmp_path, "/docker/abc/in", {"cpu.max": "100000 100000"}, root="/docker/abc")
    assert read_limits(root, None, ALL).count == 1


def test_path_outside_of_the_cgroup_namespace(tmp_path: Path) -> None:
    root = v2(tmp_path, "/../other", {"cpu.max": "200000 100000"})
    assert read_limits(root, None, ALL).quota == 2.0


def test_v1_quota_and_cpuset(tmp_path: Path) -> None:
    mounts = (
        "31 23 0:27 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
        "32 23 0:28 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n"
        "33 23 0:29 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw"
    )
    members = "5:cpuset:/web\n4:cpu,cpuacct:/web/a\n1:name=systemd:/x\n0::/init.scope"
    files = {
        "proc/7/mountinfo": mounts,
        "proc/7/cgroup": members,
        "sys/fs/cgroup/cpu,cpuacct/web/a/cpu.cfs_quota_us": "-1",
        "sys/fs/cgroup/cpu,cpuacct/web/a/cpu.cfs_period_us": "100000",
        "sys/fs/cgroup/cpu,cpuacct/web/cpu.cfs_quota_us": "250000",
        "sys/fs/cgroup/cpu,cpuacct/web/cpu.cfs_period_us": "100000",
        "sys/fs/cgroup/cpuset/web/cpuset.cpus": "4-7",
    }
    limits = read_limits(host(tmp_path, files), 7, ALL)
    assert limits.allowed == (4, 5, 6, 7)
    assert (limits.quota, limits.count) == (2.5, 3)


def test_mount_point_with_a_blank(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "0::/",
        "proc/self/mountinfo": "30 23 0:26 / /my\\040groups rw - cgroup2 cgroup2 rw",
        "my groups/cpu.max": "100000 100000",
    }
    assert read_limits(host(tmp_path, files), None, ALL).quota == 1.0


def test_live_host_agrees_with_the_scheduler() -> None:
    assert set(live_limits().allowed) == os.sched_getaffinity(0)
    assert 1 <= live_limits(os.getpid()).count <= len(os.sched_getaffinity(0))


def test_no_such_process() -> None:
    with pytest.raises(ProcessLookupError):
        live_limits(2**22 + 1)
