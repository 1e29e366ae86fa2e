# SPDX-License-Identifier: GPL-2.0-or-later
"""Privileges from recorded /proc files."""

import resource
from pathlib import Path

import pytest

from fastsocket.errors import MissingFeatureError
from fastsocket.host.caps import (
    Privileges,
    ensure_files,
    ensure_memlock,
    live_privileges,
    read_privileges,
    require_bpf,
)

pytestmark = pytest.mark.unit

FIRST = "         0          0 4294967295"


def privileges(root: Path, mask: str, uid_map: str = FIRST, disabled: str = "2") -> Privileges:
    for name, text in (
        ("proc/self/status", f"Name:\tx\nCapPrm:\tffffffffffffffff\nCapEff:\t{mask}\n"),
        ("proc/self/uid_map", uid_map),
        ("proc/sys/kernel/unprivileged_bpf_disabled", disabled),
    ):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return read_privileges(root, (1024, 4096), (-1, -1))


def test_none(tmp_path: Path) -> None:
    found = privileges(tmp_path, "0000000000000000")
    assert found.effective == frozenset()
    assert found.missing_for_bpf == ("CAP_BPF", "CAP_NET_ADMIN")
    with pytest.raises(MissingFeatureError, match="select needs CAP_BPF and CAP_NET_ADMIN") as info:
        require_bpf(found, "select")
    assert info.value.exit_code == 3


def test_only_what_is_needed(tmp_path: Path) -> None:
    found = privileges(tmp_path, f"{1 << 39 | 1 << 12:016x}")
    assert found.effective == {"CAP_BPF", "CAP_NET_ADMIN"}
    assert found.can_load_bpf
    assert not found.has("CAP_PERFMON")
    require_bpf(found, "select")


def test_sys_admin_implies_bpf_but_not_net_admin(tmp_path: Path) -> None:
    found = privileges(tmp_path, f"{1 << 21:016x}")
    assert found.has("CAP_BPF")
    assert found.has("CAP_PERFMON")
    assert found.missing_for_bpf == ("CAP_NET_ADMIN",)


def test_user_namespace_has_no_bpf(tmp_path: Path) -> None:
    found = privileges(tmp_path, "ffffffffffffffff", uid_map="0 1000 1")
    assert not found.can_load_bpf
    with pytest.raises(MissingFeatureError, match="user namespace"):
        require_bpf(found, "select")


def test_unreadable_sysctl(tmp_path: Path) -> None:
    assert privileges(tmp_path, "0", disabled="").unprivileged_bpf_disabled is None


def test_live() -> None:
    found = live_privileges()
    assert found.nofile[0] != 0
    assert found.nofile[1] == -1 or found.nofile[0] <= found.nofile[1]


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> dict[int, tuple[int, int]]:
    """Stand in for the kernel's limits, which a test could lower but not raise again."""
    kept = {resource.RLIMIT_NOFILE: (256, 1024), resource.RLIMIT_MEMLOCK: (65536, 65536)}

    def change(which: int, wanted: tuple[int, int]) -> None:
        if resource.RLIM_INFINITY in wanted:
            raise ValueError("not allowed to raise maximum limit")
        kept[which] = wanted

    monkeypatch.setattr(resource, "getrlimit", kept.__getitem__)
    monkeypatch.setattr(resource, "setrlimit", change)
    return kept


@pytest.mark.parametrize(("count", "soft"), [(100, 256), (256, 256), (257, 257), (1024, 1024)])
def test_files_within_the_hard_limit(limits: dict, count: int, soft: int) -> None:
    ensure_files(count, "the keeper")
    assert limits[resource.RLIMIT_NOFILE] == (soft, 1024)


def test_files_beyond_the_hard_limit(limits: dict) -> None:
    with pytest.raises(MissingFeatureError, match=r"needs 2000 open files; .* is 1024"):
        ensure_files(2000, "the keeper")
    assert limits[resource.RLIMIT_NOFILE] == (256, 1024)


def test_unlimited_files_stay_unlimited(limits: dict) -> None:
    limits[resource.RLIMIT_NOFILE] = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    ensure_files(10**6, "the keeper")
    assert limits[resource.RLIMIT_NOFILE][0] == resource.RLIM_INFINITY


def test_memlock_that_cannot_be_lifted_is_reported(limits: dict) -> None:
    assert not ensure_memlock()
    limits[resource.RLIMIT_MEMLOCK] = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    assert ensure_memlock()
