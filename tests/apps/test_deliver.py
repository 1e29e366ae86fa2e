# SPDX-License-Identifier: GPL-2.0-or-later
"""Receive flow deliver by the library and by hooks: ports that tell the CPU, else as without."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fastsocket.app.deliver import own_cgroup, range_option_works
from fastsocket.host.slices import SlicePlan, local_slices
from tests.apps.harness import PROGRAMS, Application, wait_until

pytestmark = pytest.mark.apps

DELIVER = ["--receive-flow-deliver"]
# In quick succession to one address; `make soak` opens as many as there can be.
FLOOD = int(os.environ.get("FASTSOCKET_FLOOD", "5500"))
# A program that nothing can be preloaded into: opens connections, as many as its first argument
# says, on each of the CPUs that the others name, prints the ports, and waits.
STATIC = r"""
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    struct sockaddr_in at = {.sin_family = AF_INET}, own;
    socklen_t size = sizeof(own);
    int listener = socket(AF_INET, SOCK_STREAM, 0), each = atoi(argv[1]);

    inet_pton(AF_INET, "10.8.0.1", &at.sin_addr);
    if (bind(listener, (struct sockaddr *)&at, size) || listen(listener, 4096) ||
        getsockname(listener, (struct sockaddr *)&at, &size))
        return 1;
    for (int i = 2; i < argc; i++) {
        cpu_set_t set;

        CPU_ZERO(&set);
        CPU_SET(atoi(argv[i]), &set);
        sched_setaffinity(0, sizeof(set), &set);
        for (int j = 0; j < each; j++) {
            int client = socket(AF_INET, SOCK_STREAM, 0);

            if (connect(client, (struct sockaddr *)&at, size) ||
                getsockname(client, (struct sockaddr *)&own, &size))
                return 2;
            printf("%s %d\n", argv[i], ntohs(own.sin_port));
        }
    }
    fflush(stdout);
    return pause();
}
"""


@pytest.fixture
def network(own_network: None) -> None:
    """The test's own addresses 10.8.0.1 and fd08::1, which are not of the loopback networks."""
    for address in ("10.8.0.1/32", "fd08::1/128 nodad"):
        subprocess.run(["ip", "addr", "add", *address.split(), "dev", "lo"], check=True)


def set_ports(first: int, last: int) -> None:
    Path("/proc/sys/net/ipv4/ip_local_port_range").write_text(f"{first} {last}")


def opener(*words: str, options: list[str] | None = None, patience: float = 60) -> Any:
    """Run ``programs/opener.py``, under Fastsocket with `options` if they are given."""
    Path("/proc/sys/net/ipv4/tcp_tw_reuse").write_text("0")
    application = Application(
        [sys.executable, PROGRAMS / "opener.py", *words],
        accelerated=options is not None,
        options=options or [],
    )
    with application:
        said = application.process.communicate(timeout=patience)[0]
        assert application.process.returncode == 0, said
    return json.loads(said)


def wrong(found: dict[str, list[int]], plan: SlicePlan) -> list[int]:
    return [port for cpu in found for port in found[cpu] if plan.owner(port) != int(cpu)]


@pytest.mark.skipif(not range_option_works(), reason="needs IP_LOCAL_PORT_RANGE")
def test_the_port_tells_the_cpu(network: None) -> None:
    found = opener("by_cpu", "40", options=DELIVER)
    assert set(found) == {"10.8.0.1", "fd08::1", "::ffff:10.8.0.1"}
    assert not [host for host in found if wrong(found[host], local_slices())]


@pytest.mark.skipif(not range_option_works(), reason="needs IP_LOCAL_PORT_RANGE")
def test_an_application_notices_nothing_else(network: None) -> None:
    stock, delivered = opener("ways"), opener("ways", options=DELIVER)
    assert delivered["seen"] == stock["seen"]
    assert delivered["seen"]["own port"] == 5555
    plan = local_slices()
    assert {way: plan.owner(port) for way, port in delivered["ports"].items()} == {
        way: min(os.sched_getaffinity(0)) for way in stock["ports"]
    }


@pytest.mark.skipif(not range_option_works(), reason="needs IP_LOCAL_PORT_RANGE")
def test_without_slots_and_by_configuration(network: None, tmp_path: Path) -> None:
    config = tmp_path / "fastsocket.toml"
    config.write_text("enable_receive_flow_deliver = 1\nenable_listen_spawn = 0\n")
    found = opener("by_cpu", "5", options=["--config", str(config)])
    assert not wrong(found["10.8.0.1"], local_slices())
    off = opener("by_cpu", "40", options=["--config", str(config), "--no-receive-flow-deliver"])
    assert wrong(off["10.8.0.1"], local_slices())


@pytest.mark.skipif(not range_option_works(), reason="needs IP_LOCAL_PORT_RANGE")
def test_a_slice_that_is_used_up_borrows_every_port_that_there_is(network: None) -> None:
    count = len(local_slices().slices)
    every = 64 * (count + 2)  # the kernel never takes the last port of an odd number
    set_ports(40000, 40000 + every - 1)
    plan = local_slices()
    stock = opener("hold", str(every + 3))
    delivered = opener("hold", str(every + 3), options=DELIVER)
    assert len(stock["ports"]) == every
    # The keeper tries its programs out on some connections, whose ports may still be taken.
    assert every - 32 <= len(set(delivered["ports"])) <= every
    assert set(delivered["errors"]) == set(stock["errors"]) == {"EADDRNOTAVAIL"}
    first = delivered["ports"][: plan.slices[0].size]
    assert {plan.owner(port) for port in first} == {min(os.sched_getaffinity(0))}


@pytest.mark.skipif(not range_option_works(), reason="needs IP_LOCAL_PORT_RANGE")
def test_connections_in_quick_succession_do_not_fail_for_want_of_a_port(network: None) -> None:
    # Nearly all are used, and stay so for a minute.
    set_ports(1024, min(1024 + FLOOD * 13 // 12, 65535))
    assert opener("flood", str(FLOOD), options=DELIVER, patience=FLOOD / 50) == {"failed": 0}


@pytest.fixture
def static_program(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "opener.c").write_text(STATIC)
    program = tmp_path / "opener"
    subprocess.run(["gcc", "-static", "-o", program, tmp_path / "opener.c"], check=True)
    return program


def test_a_static_program_gets_its_ports_by_hooks(
    network: None, static_program: Path, cpus: list[int]
) -> None:
    words: list[str | Path] = [static_program, "30", *map(str, cpus)]
    parent = own_cgroup()
    with Application(words, options=DELIVER) as application:
        status = wait_until(lambda: done(application, 30 * len(cpus)), "all connections")
        cgroup = parent / f"fastsocket-{application.pid}"
        assert cgroup.is_dir()
        assert (status["by"], status["borrowed"]) == ("hooks", 0)
        assert application.stop() == -signal.SIGTERM
    assert application.output
    plan = local_slices()
    for line in application.output.splitlines()[1:]:
        cpu, port = line.split()
        assert plan.owner(int(port)) == int(cpu)
    wait_until(lambda: not cgroup.exists(), "the cgroup to go")


def done(application: Application, count: int) -> Any:
    """Return its status once it has opened `count` connections."""
    deliver = (application.ask() or {}).get("deliver")
    return deliver if deliver and deliver["opened"] + deliver["borrowed"] >= count else None


def test_what_a_killed_keeper_left_is_swept(
    network: None, static_program: Path, cpus: list[int]
) -> None:
    words: list[str | Path] = [static_program, "1", *map(str, cpus)]
    with Application(words, options=DELIVER) as first:
        status = wait_until(first.ask, "the keeper to answer")
        os.kill(status["keeper"], signal.SIGKILL)
        assert first.stop() == -signal.SIGTERM
    left = own_cgroup() / f"fastsocket-{first.pid}"
    assert left.is_dir()
    with Application(words, options=DELIVER) as second:
        wait_until(lambda: done(second, len(cpus)), "all connections")
        assert not left.exists()
        assert second.stop() == -signal.SIGTERM


def test_without_a_cgroup_it_runs_and_says_so(network: None, static_program: Path) -> None:
    """In a mount namespace whose cgroup file system cannot be written to."""
    hide = ["unshare", "-m", "sh", "-c", 'umount -a -t cgroup2; exec "$@"', "sh"]
    with Application([static_program, "1", "0"], options=DELIVER, prefix=hide) as application:
        comm = Path(f"/proc/{application.pid}/comm")
        wait_until(lambda: comm.read_text() == "opener\n", "the program to begin")
        assert application.stop() == -signal.SIGTERM
    assert "runs without receive flow deliver: no cgroup v2 file system" in application.output
