# SPDX-License-Identifier: GPL-2.0-or-later
"""The local fast path without privileges: layout, reasons, and what the bench reads."""

import json
import subprocess
from pathlib import Path

import pytest

from fastsocket.bench.askers import parse_redis_benchmark
from fastsocket.errors import FastsocketError, MissingFeatureError
from fastsocket.local import selftest
from fastsocket.local.fastpath import Counters, Off, cgroup_root
from fastsocket.native import native_file

pytestmark = pytest.mark.unit


def compiled_types() -> list[dict[str, object]]:
    words = ["bpftool", "-j", "btf", "dump", "file", str(native_file("local.bpf.o"))]
    done = subprocess.run(words, capture_output=True, check=True)
    types: list[dict[str, object]] = json.loads(done.stdout)["types"]
    return types


def test_the_counters_are_laid_out_as_in_c() -> None:
    (compiled,) = (known for known in compiled_types() if known["name"] == "fs_local")
    members = compiled["members"]
    assert isinstance(members, list)
    assert {member["name"]: member["bits_offset"] // 8 for member in members} == {
        name: getattr(Counters, name).offset for name, _ in Counters._fields_
    }


def test_every_reason_has_words() -> None:
    assert all(off.why for off in Off if off)
    assert not Off.ON.why


def test_where_the_hierarchy_is_mounted(tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text("tmpfs /run tmpfs rw 0 0\ncgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n")
    assert cgroup_root(mounts) == Path("/sys/fs/cgroup")
    mounts.write_text("tmpfs /run tmpfs rw 0 0\n")
    with pytest.raises(MissingFeatureError, match="no cgroup v2"):
        cgroup_root(mounts)


def test_a_failed_trial_keeps_it_off(monkeypatch: pytest.MonkeyPatch) -> None:
    trial = selftest.Trial({"FIONREAD": "0 in place of 5"}, {})
    monkeypatch.setattr(selftest, "self_test", lambda: trial)
    assert selftest.start(1) == (None, "FIONREAD: 0 in place of 5", [])


def test_a_kernel_that_refuses_keeps_it_off(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> selftest.Trial:
        raise MissingFeatureError("no cgroup v2 hierarchy is mounted")

    monkeypatch.setattr(selftest, "self_test", refuse)
    assert selftest.start(1) == (None, "no cgroup v2 hierarchy is mounted", [])


def test_what_redis_benchmark_says() -> None:
    head = '"test","rps","avg_latency_ms","min_latency_ms","p50_latency_ms",'
    head += '"p95_latency_ms","p99_latency_ms","max_latency_ms"\n'
    row = '"GET","50000.00","0.2","0.1","0.3","0.4","0.487","2.1"\n'
    assert parse_redis_benchmark(head + row) == (50000.0, 487.0)
    with pytest.raises(FastsocketError, match="unreadable"):
        parse_redis_benchmark("Could not connect")
