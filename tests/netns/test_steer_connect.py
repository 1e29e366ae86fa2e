# SPDX-License-Identifier: GPL-2.0-or-later
"""The connect hooks: ports by CPU, borrowing, and never a failure that stock would not have."""

import ctypes
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastsocket.host.slices import PortRange, plan_slices
from fastsocket.steer.connect import ConnectExit, ConnectHooks
from fastsocket.steer.cpus import online_cpus

pytestmark = pytest.mark.netns

CLONE_NEWNET = 0x40000000


def cgroup_root() -> Path:
    for line in Path("/proc/mounts").read_text().splitlines():
        words = line.split()
        if words[2] == "cgroup2":
            return Path(words[1])
    pytest.skip("needs a mounted cgroup v2 file system")


@pytest.fixture
def cgroup() -> Iterator[Path]:
    """A cgroup and a network namespace of this test; 10.8.0.1 and fd08::1 are its own addresses."""
    libc = ctypes.CDLL(None, use_errno=True)
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    root, own = cgroup_root(), Path("/proc/self/cgroup").read_text()
    before = root / next(line[4:] for line in own.splitlines() if line.startswith("0::/"))
    folder = root / "fastsocket-test"
    folder.mkdir()
    try:
        assert libc.unshare(CLONE_NEWNET) == 0
        for words in ("link set lo up", "addr add 10.8.0.1/32 dev lo",
                      "addr add fd08::1/128 dev lo nodad"):  # fmt: skip
            subprocess.run(["ip", *words.split()], check=True)
        (folder / "cgroup.procs").write_text(str(os.getpid()))
        yield folder
    finally:
        (before / "cgroup.procs").write_text(str(os.getpid()))
        libc.setns(home, CLONE_NEWNET)
        os.close(home)
        folder.rmdir()


def connect(address: str, port: int) -> int:
    """Connect, and return the local port."""
    with socket.create_connection((address, port), 5) as client:
        number: int = client.getsockname()[1]
        return number


@pytest.mark.parametrize("address", ["10.8.0.1", "fd08::1"])
def test_the_port_tells_the_cpu(cgroup: Path, address: str) -> None:
    cpus = online_cpus()
    plan = plan_slices(PortRange(32768, 60999), cpus)
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    before = os.sched_getaffinity(0)
    with (
        socket.create_server((address, 0), family=family, backlog=256) as server,
        ConnectHooks(cgroup, plan) as hooks,
    ):
        try:
            for cpu in cpus:
                os.sched_setaffinity(0, {cpu})
                for _ in range(50):
                    assert plan.owner(connect(address, server.getsockname()[1])) == cpu
        finally:
            os.sched_setaffinity(0, before)
        assert hooks.exits()[ConnectExit.OWN] == 50 * len(cpus)


def test_a_port_of_ones_own_is_kept(cgroup: Path) -> None:
    cpus = online_cpus()
    with (
        socket.create_server(("10.8.0.1", 0)) as server,
        ConnectHooks(cgroup, plan_slices(PortRange(32768, 60999), cpus)) as hooks,
        socket.socket() as client,
    ):
        client.bind(("10.8.0.1", 5555))
        client.connect(server.getsockname())
        assert client.getsockname()[1] == 5555
        assert hooks.exits()[ConnectExit.KEPT] == 1


def test_reserved_ports_are_not_given(cgroup: Path) -> None:
    cpus = online_cpus()
    odd = frozenset(range(32769, 61000, 2))
    plan = plan_slices(PortRange(32768, 60999, odd), cpus)
    with (
        socket.create_server(("10.8.0.1", 0), backlog=256) as server,
        ConnectHooks(cgroup, plan) as hooks,
    ):
        ports = [connect(*server.getsockname()) for _ in range(50)]
        assert hooks.exits()[ConnectExit.OWN] == 50
    assert odd.isdisjoint(ports)


def test_a_slice_that_runs_out_borrows_and_then_leaves_it_to_the_kernel(cgroup: Path) -> None:
    cpus = online_cpus()
    if len(cpus) < 2:
        pytest.skip("needs two CPUs")
    plan = plan_slices(PortRange(40000, 40000 + 64 * (len(cpus) + 2)), cpus)
    before = os.sched_getaffinity(0)
    clients: list[socket.socket] = []
    with (
        socket.create_server(("10.8.0.1", 0), backlog=1024) as server,
        ConnectHooks(cgroup, plan) as hooks,
    ):
        try:
            os.sched_setaffinity(0, {cpus[0]})
            for _ in range(64 * len(cpus) + 100):
                clients.append(socket.create_connection(server.getsockname(), 5))
        finally:
            os.sched_setaffinity(0, before)
            for client in clients:
                client.close()
        exits = hooks.exits()
    assert exits[ConnectExit.OWN] == 48
    assert exits[ConnectExit.BORROWED] > 0
    assert exits[ConnectExit.LEFT] >= 100
