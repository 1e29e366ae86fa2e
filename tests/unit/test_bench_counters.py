# SPDX-License-Identifier: GPL-2.0-or-later
"""Parsing of counters, of clients' output and of kernel symbols."""

import json
from pathlib import Path

import pytest

from fastsocket.bench.clients import CLIENTS, Load, client
from fastsocket.bench.counters import Reading, parse_snmp, parse_stat, window
from fastsocket.bench.kallsyms import Symbols, call_site
from fastsocket.bench.modes import Mode
from fastsocket.bench.servers import Site
from fastsocket.bench.session import Request, perform
from fastsocket.bench.stores import SERVERS, server
from fastsocket.bench.trace import NOBODY, by_task
from fastsocket.errors import FastsocketError, UsageError

pytestmark = pytest.mark.unit

SNMP = """\
Ip: Forwarding DefaultTTL
Ip: 1 64
Tcp: RtoAlgorithm ActiveOpens PassiveOpens OutSegs
Tcp: 1 20 7 130
"""
STAT = """\
cpu  100 1 50 400 30 2 7 11 0 0
cpu0 50 0 25 200 15 1 3 6 0 0
cpu1 50 1 25 200 15 1 4 5 0 0
intr 12
"""
AB = """\
Concurrency Level:      64
Time taken for tests:   1.002 seconds
Complete requests:      14000
Failed requests:        3
Percentage of the requests served within a certain time (ms)
  50%      4
  90%      5
  99%      9
 100%     20 (longest request)
"""
SAID = {
    "seconds": 1.5,
    "completed": 300,
    "requests": 300,
    "cps": 200.0,
    "errors": {"reset": 5, "refused": 2, "timeout": 3, "other": 4},
    "other_causes": {"status": 0, "closed": 3, "truncated": 1, "protocol": 0, "system": 0},
    "accepted_lost": {"before_request": 2, "after_request": 4},
    "latency_us": {"mean": 10, "p50": 9, "p90": 12, "p99": 20, "p999": 30, "max": 40},
}


def test_snmp_reads_the_tcp_lines():
    assert parse_snmp(SNMP)["OutSegs"] == 130
    assert parse_snmp(SNMP)["PassiveOpens"] == 7
    with pytest.raises(ValueError, match="no Tcp"):
        parse_snmp("Ip: a\nIp: 1\n")


def test_stat_takes_idle_iowait_and_steal_as_rest():
    assert parse_stat(STAT, 100) == (2, pytest.approx(4.41))


def test_window_divides_by_its_own_connections():
    before = Reading(10.0, 2, 5.0, 1000, 100, 50, None, {})
    after = Reading(11.0, 2, 5.5, 2000, 200, 74, None, {})
    seen = window(before, after)
    assert seen.busy_seconds == pytest.approx(1.5)
    assert seen.per_connection(seen.segments) == 10
    assert seen.contentions == 24
    assert seen.reschedules is None
    assert seen.per_connection(seen.reschedules) is None
    idle = window(before, before)
    assert idle.per_connection(1.0) is None


def test_project_client_reads_json():
    got = CLIENTS["fastsocket-load"].parse(json.dumps(SAID))
    assert (got.completed, got.errors, got.per_second) == (300, 14, 200)
    # Nine were reset or closed early, six of them without a byte of an answer.
    assert got.cut_short == 3
    assert got.latency_us["p99"] == 20


def test_wrk_reads_its_last_json_line():
    line = '{"seconds":2.0,"completed":10,"errors":1,"latency_us":{"p50":5.0,"p99":6.0}}'
    got = CLIENTS["wrk"].parse(f"Running 2s test\n  2 threads\n{line}\n")
    assert (got.completed, got.errors, got.per_second) == (10, 1, 5)


def test_ab_reads_its_report():
    got = CLIENTS["ab"].parse(AB)
    assert (got.completed, got.errors, got.latency_us["p99"]) == (14000, 3, 9000)


@pytest.mark.parametrize("name", sorted(CLIENTS))
@pytest.mark.parametrize("output", ["", "Segmentation fault\n", '{"seconds": 1}\n', "[]\n"])
def test_unreadable_output_is_one_clear_line(name, output):
    with pytest.raises(FastsocketError, match=f"output of {name} cannot be read"):
        CLIENTS[name].parse(output)


def test_clients_are_bounded_in_time(tmp_path):
    order = Load("127.0.0.1", 80, 64, 1.5, 0.25, 2, tmp_path)
    assert "2s" in CLIENTS["wrk"].command(order)
    command = CLIENTS["ab"].command(order)
    assert command[command.index("-t") + 1] == "2"


def test_unknown_names_list_the_choice():
    for lookup in (server, client):
        with pytest.raises(UsageError, match="choose one of"):
            lookup("apache")


# The demo server has no file, and PostgreSQL makes a whole database, without a mode.
@pytest.mark.parametrize("name", sorted(SERVERS.keys() - {"demo", "postgresql"}))
def test_only_the_listening_differs_between_modes(name, tmp_path):
    """Stock and Fastsocket get the same files; reuseport changes one line."""
    texts = {}
    for mode in SERVERS[name].modes:
        directory = tmp_path / mode
        directory.mkdir()
        SERVERS[name].command(mode, Site("127.0.0.1", 8080, 4, directory))
        files = sorted(directory.iterdir())
        texts[mode] = "".join(path.read_text() for path in files).replace(str(directory), "DIR")
    assert texts[Mode.STOCK] == texts[Mode.FASTSOCKET]
    if Mode.REUSEPORT in texts:
        old, new = texts[Mode.STOCK].splitlines(), texts[Mode.REUSEPORT].splitlines()
        changed = [pair for pair in zip(old, new, strict=True) if pair[0] != pair[1]]
        assert len(changed) == 1
        assert "8080" in changed[0][0]


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (Request("nosuch"), "no scenario"),
        (Request("short", server="lighttpd", modes=["reuseport"]), "has no mode 'reuseport'"),
        (Request("short", modes=["fast"]), "no mode 'fast'"),
    ],
)
def test_bad_requests(request_, words):
    with pytest.raises(UsageError, match=words):
        perform(request_, quiet=True)


def test_symbols_and_call_sites():
    symbols = Symbols(
        [
            "ffffffff81000000 T _stext",
            "ffffffff81000100 t inet_put_port",
            "ffffffff81000200 D some_data",
            "ffffffff81000300 T _raw_spin_lock_bh",
        ]
    )
    assert symbols.name(0xFFFFFFFF81000250) == "inet_put_port"
    assert symbols.name(0x10) == "0x10"
    stack = ["bpf_prog_1_on", "__traceiter_contention_begin", "_raw_spin_lock_bh", "inet_put_port"]
    assert call_site(stack) == "inet_put_port"
    assert call_site(["_raw_spin_lock"]) == "unknown"


def test_threads_of_each_cpu_are_one_task():
    counts = {"nginx": 5, "ksoftirqd/0": 2, "ksoftirqd/11": 1, "": 4}
    assert by_task(counts) == {"nginx": 5, "ksoftirqd": 3, NOBODY: 4}


def test_kallsyms_of_this_kernel_parse():
    if not Path("/proc/kallsyms").exists():
        pytest.skip("the kernel has no /proc/kallsyms")
    assert Symbols.running().name(2**64 - 1) != ""
