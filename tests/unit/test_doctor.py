# SPDX-License-Identifier: GPL-2.0-or-later
"""The verdict on known facts, and the facts themselves from recorded text and live sockets."""

import os
import select
import socket
from pathlib import Path

import msgspec
import pytest

from fastsocket.errors import UsageError
from fastsocket.host.doctor import Diagnosis, Grade, Verdict, diagnose
from fastsocket.host.limits import CpuLimits
from fastsocket.host.load import Load, load_between, read_counters
from fastsocket.host.sample import HostFacts, ServerFacts, host_facts, server_facts

pytestmark = pytest.mark.unit

HOST = HostFacts(
    cores=16,
    cpus=32,
    usable=32,
    quota=None,
    limits=(),
    nofile=1_000_000,
    somaxconn=4096,
    conntrack=0,
    tables=(),
)
LOAD = Load(
    seconds=1.0,
    busy=0.8,
    softirq=0.3,
    system=0.4,
    connections=50_000.0,
    segments=10.0,
    overflows=0.0,
)
SERVER = ServerFacts(
    pid=1, program="nginx", processes=33, threads=33, ports=(80,), sharers=33, epoll=32,
    nonblocking=True,
)  # fmt: skip


def judge(host: dict = {}, load: dict = {}, server: dict | None = {}) -> Diagnosis:  # noqa: B006
    return diagnose(
        msgspec.structs.replace(HOST, **host),
        msgspec.structs.replace(LOAD, **load),
        None if server is None else msgspec.structs.replace(SERVER, **server),
    )


def grade(diagnosis: Diagnosis, name: str) -> Grade:
    return next(check.grade for check in diagnosis.checks if check.name == name)


def test_the_suitable_scenario() -> None:
    diagnosis = judge()
    assert diagnosis.verdict is Verdict.YES
    assert len(diagnosis.reasons) == 5
    assert {check.grade for check in diagnosis.checks} == {Grade.GOOD}


def test_without_a_server_only_the_host_is_judged() -> None:
    diagnosis = judge(server=None)
    assert diagnosis.verdict is Verdict.YES
    assert not {"epoll", "workers"} & {check.name for check in diagnosis.checks}


@pytest.mark.parametrize(
    ("host", "load", "server", "name", "verdict"),
    [
        ({"usable": 4}, {}, {}, "cores", Verdict.PERHAPS),
        ({"usable": 1}, {}, {}, "cores", Verdict.UNLIKELY),
        ({}, {"softirq": 0.1, "system": 0.1}, {}, "kernel-share", Verdict.UNLIKELY),
        ({}, {"segments": 500.0}, {}, "short-connections", Verdict.UNLIKELY),
        ({}, {}, {"epoll": 0}, "epoll", Verdict.UNLIKELY),
        ({}, {}, {"nonblocking": False}, "epoll", Verdict.UNLIKELY),
        ({}, {}, {"sharers": 1, "threads": 1}, "workers", Verdict.UNLIKELY),
        ({}, {}, {"ports": (), "sharers": 0}, "workers", Verdict.UNLIKELY),
    ],
)
def test_what_speaks_against_it_is_the_reason(
    host: dict, load: dict, server: dict, name: str, verdict: Verdict
) -> None:
    diagnosis = judge(host, load, server)
    assert grade(diagnosis, name) is Grade.POOR
    assert diagnosis.verdict is verdict
    assert [reason.partition(":")[0] for reason in diagnosis.reasons] == [name]


@pytest.mark.parametrize(
    ("load", "name"),
    [
        ({"busy": 0.01}, "kernel-share"),
        ({"connections": 0.0, "segments": None}, "short-connections"),
        ({"connections": 0.5}, "short-connections"),
    ],
)
def test_an_idle_host_is_not_judged(load: dict, name: str) -> None:
    diagnosis = judge(load=load)
    assert grade(diagnosis, name) is Grade.UNKNOWN
    assert diagnosis.verdict is Verdict.PERHAPS


def test_threads_count_as_workers() -> None:
    assert grade(judge(server={"sharers": 1, "threads": 8}), "workers") is Grade.GOOD


@pytest.mark.parametrize(
    ("host", "load", "name"),
    [
        ({"usable": 16, "limits": ("quota of 16 CPUs in /x",)}, {}, "cpu-limits"),
        ({"conntrack": 5}, {}, "netfilter"),
        ({"tables": ("filter",)}, {}, "netfilter"),
        ({"nofile": 1024}, {}, "open-files"),
        ({"somaxconn": 128}, {}, "somaxconn"),
        ({}, {"overflows": 2.0}, "somaxconn"),
    ],
)
def test_settings_to_fix_do_not_change_the_verdict(host: dict, load: dict, name: str) -> None:
    diagnosis = judge(host, load)
    assert grade(diagnosis, name) is Grade.FIX
    assert next(check.todo for check in diagnosis.checks if check.name == name)
    assert diagnosis.verdict is Verdict.YES


def test_invisible_netfilter_is_unknown_and_unlimited_files_are_good() -> None:
    diagnosis = judge({"tables": None, "nofile": -1})
    assert grade(diagnosis, "netfilter") is Grade.UNKNOWN
    assert grade(diagnosis, "open-files") is Grade.GOOD


def record(root: Path, scale: int) -> None:
    files = {
        "proc/stat": f"cpu  {10 * scale} 0 {20 * scale} {40 * scale} 10 0 {30 * scale} 0 0 0\ncpu0",
        "proc/9/net/snmp": (
            "Ip: Forwarding DefaultTTL\nIp: 1 64\n"
            "Tcp: MaxConn ActiveOpens PassiveOpens InSegs OutSegs\n"
            f"Tcp: -1 {scale} {9 * scale} {60 * scale} {50 * scale}\n"
        ),
        "proc/9/net/netstat": f"TcpExt: ListenOverflows X\nTcpExt: {4 * scale} 0\n",
    }
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_load_from_recorded_counters(tmp_path: Path) -> None:
    record(tmp_path, 1)
    before = read_counters(tmp_path, 9)
    record(tmp_path, 3)
    load = load_between(before, read_counters(tmp_path, 9), 2.0)
    assert load == Load(
        seconds=2.0,
        busy=120 / 200,
        softirq=60 / 120,
        system=40 / 120,
        connections=10.0,
        segments=11.0,
        overflows=4.0,
    )


def test_no_time_between_readings_divides_by_nothing(tmp_path: Path) -> None:
    record(tmp_path, 1)
    now = read_counters(tmp_path, 9)
    load = load_between(now, now, 1.0)
    assert (load.busy, load.softirq, load.segments) == (0.0, 0.0, None)


def test_host_facts_from_a_recorded_host(tmp_path: Path) -> None:
    files = {
        "proc/9/limits": "Limit  Soft Limit  Hard Limit\nMax open files  1024  4096  files",
        "proc/9/net/ip_tables_names": "nat\nfilter\n",
        "proc/sys/net/core/somaxconn": "128\n",
        "proc/sys/net/netfilter/nf_conntrack_count": "77\n",
        "sys/devices/system/cpu/online": "0-1\n",
        "sys/devices/system/cpu/present": "0-1\n",
        "sys/devices/system/cpu/possible": "0-1\n",
    }
    for cpu in (0, 1):
        base = f"sys/devices/system/cpu/cpu{cpu}/topology"
        files |= {f"{base}/core_id": "0", f"{base}/physical_package_id": "0"}
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    limits = CpuLimits((0, 1), (0, 1), 0.5, ("quota of 0.5 CPUs in /x",))
    assert host_facts(tmp_path, 9, limits) == HostFacts(
        cores=1,
        cpus=2,
        usable=1,
        quota=0.5,
        limits=("quota of 0.5 CPUs in /x",),
        nofile=1024,
        somaxconn=128,
        conntrack=77,
        tables=("nat", "filter"),
    )


def test_a_server_with_a_worker_is_seen() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, select.epoll():
        server.setblocking(False)
        reader, writer = os.pipe()
        worker = os.fork()
        if worker == 0:
            os.close(writer)
            os.read(reader, 1)  # until the parent closes its end
            os._exit(0)
        try:
            facts = server_facts(os.getpid())
        finally:
            os.close(writer)
            os.close(reader)
            os.waitpid(worker, 0)
        port = server.getsockname()[1]
    assert port in facts.ports
    assert (facts.processes, facts.sharers, facts.epoll) == (2, 2, 2)
    assert facts.nonblocking is True


def test_a_blocking_listener_is_seen() -> None:
    with socket.create_server(("127.0.0.1", 0)):
        assert server_facts(os.getpid()).nonblocking is False


def test_no_such_process() -> None:
    with pytest.raises(UsageError, match="no process 4194305") as info:
        server_facts(2**22 + 1)
    assert info.value.exit_code == 2
