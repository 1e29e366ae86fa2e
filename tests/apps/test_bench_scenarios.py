# SPDX-License-Identifier: GPL-2.0-or-later
"""The scenarios beside `short`, against controls whose outcome is known."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jsonschema
import pytest

from fastsocket.bench.result import schema

pytestmark = pytest.mark.apps

FASTSOCKET = [sys.executable, "-c", "from fastsocket.cli.main import main; main()"]


# root without any capability: what an ordinary user has, with files that root owns.
POWERLESS = ["setpriv", "--bounding-set", "-all", "--inh-caps", "-all", "--"]


def call(*words, prefix=()):
    return subprocess.run(
        [*prefix, *FASTSOCKET, "bench", *words, "--runs", "1", "--json"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def document_of(*words, prefix=()):
    done = call(*words, prefix=prefix)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    jsonschema.validate(document, schema())
    return document


def bench(*words):
    document = document_of(*words)
    return {
        mode: {name: metric["median"] for name, metric in metrics.items()}
        for mode, metrics in document["modes"].items()
    }


def bench_until(enough, *words, first=4):
    """Run the bench, and longer where that was too short on a slow machine; return the figures."""
    for seconds in (first, 2 * first, 4 * first):
        modes = bench(*words, "--seconds", str(seconds))
        if all(enough(got) for got in modes.values()):
            break
    return modes


def test_crash_of_a_reuseport_server_loses_what_was_queued():
    """A stock listener outlives its workers; one of the worker's own takes its queue along."""

    def enough(got):
        return got["kills"] >= 5 and got["completed"] > 100 and got["accepted_lost"] > 0

    modes = bench_until(enough, "crash", "--server", "demo", "--modes", "stock,reuseport")
    stock, own = modes["stock"], modes["reuseport"]
    assert enough(stock)
    assert enough(own)
    assert stock["queued_lost"] == 0
    # A handshake that ends while the listener closes is reset without having been queued.
    assert stock["lost"] <= stock["kills"] * 2 // 5  # 2 of the 5 kills that there are at least
    assert own["queued_lost"] > 0
    assert own["lost"] > 0


def test_crash_reloads_nginx():
    def enough(got):
        return got["kills"] >= 3 and got["reloads"] >= 1

    stock = bench_until(enough, "crash", "--server", "nginx", "--modes", "stock")["stock"]
    assert enough(stock)
    assert stock["queued_lost"] == 0


@pytest.mark.parametrize("server", ["haproxy", "gunicorn"])
def test_crash_under_fastsocket_loses_nothing(server):
    words = ["--server", server, "--modes", "fastsocket", "--seconds", "6", "--connections", "8"]
    ours = bench("crash", *words)["fastsocket"]
    assert ours["lost"] == ours["queued_lost"] == 0
    assert ours["completed"] > 50
    assert ours["reloads"] >= 1
    assert ours["kills"] >= (server == "gunicorn")


def test_a_soak_looks_at_what_is_left():
    ours = bench("soak", "--server", "demo", "--seconds", "6", "--rate", "20")["fastsocket"]
    assert ours["lost"] == ours["stuck_slots"] == 0
    assert ours["completed"] > 50
    assert ours["kills"] + ours["stops"] + ours["keeper_kills"] >= 3
    for name in ("keeper_pss_kib", "keeper_anon_kib", "library_kib", "keeper_fds", "worker_fds"):
        assert ours[name] > 0


def test_full_is_for_crash_and_chooses_for_itself():
    for words in (["stall", "--full"], ["crash", "--full", "--server", "nginx"]):
        done = call(*words)
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("server", ["nginx", "demo"])
def test_a_stall_shows_in_the_tail_of_reuseport(server):
    """Who is hashed to the stalled worker waits up to 100 ms; every tenth is."""

    def apart(got):
        return got["p50_us"] < got["p99_us"] / 2

    words = ["stall", "--server", server, "--modes", "reuseport", "--rate", "200"]
    got = bench_until(apart, *words, first=2)["reuseport"]
    assert got["errors"] == 0
    assert apart(got)
    assert 60_000 < got["p99_us"] <= got["p999_us"]


@pytest.mark.parametrize("server", ["nginx", "demo"])
def test_longlived_counts_every_connection(server):
    words = ["--server", server, "--modes", "reuseport", "--workers", "3"]
    got = bench("longlived", *words)["reuseport"]
    assert got["live"] == 2000
    # A hash spreads 2,000 over n workers with a deviation of sqrt(n - 1) / 45.
    assert got["worker_cv"] < 0.4
    assert got["worker_cv_renewed"] < 0.4


def medians(metrics):
    return {name: metric["median"] for name, metric in metrics.items()}


def test_scale_on_one_core_is_local():
    words = ["--server", "nginx", "--modes", "fastsocket", "--seconds", "0.3"]
    document = document_of("scale", *words, "--connections", "20")
    usable = len(os.sched_getaffinity(0))
    assert [point["cores"] for point in document["points"]][:: usable - 1 or 1] == [1, usable]
    for mode, metrics in document["points"][0]["modes"].items():
        one = medians(metrics)
        assert one["errors"] == 0
        assert one["cps"] > 100
        # Where server and client have one CPU, everything is local.
        assert one["local_percent"] == 100
        assert one["worker_cv"] == 0
        assert len(document["points"][0]["per_core"][mode]) == os.cpu_count()
    assert document["connections"] == 20 * usable
    assert set(document["usl"]) == {"fastsocket"}


@pytest.mark.parametrize(("server", "mode"), [("haproxy", "fastsocket"), ("redis", "stock")])
def test_backend_and_store_share_the_one_core(server, mode):
    words = ["--server", server, "--modes", mode, "--seconds", "0.3", "--cores", "1"]
    document = document_of("scale", *words, "--connections", "20", "--no-call-sites")
    (point,) = document["points"]
    one = medians(point["modes"][mode])
    assert one["errors"] == 0
    assert one["local_percent"] == 100
    assert one.get("active_local_percent", 100) == 100
    assert (one.get("rps") or one["cps"]) > 50


@pytest.mark.parametrize("server", ["nginx", "demo"])
def test_scale_without_privileges(server):
    words = ["--server", server, "--modes", "stock", "--seconds", "0.3", "--cores", "1"]
    document = document_of("scale", *words, prefix=POWERLESS)
    (point,) = document["points"]
    metrics = point["modes"]["stock"]
    assert metrics["cps"]["median"] > 100
    assert "CAP_BPF" in metrics["local_percent"]["reason"]


SHARE = 100 / len(os.sched_getaffinity(0))
# Every client process asks every instance, so one of as many reads as there are CPUs is local
# where nobody steers; what the fast path brings came in on no CPU.
WAYS = [
    ("redis", "redis", "fastsocket", None, pytest.approx(100, abs=1)),
    ("redis-veth", "memcached", "fastsocket", pytest.approx(100, abs=2), 0),
    ("redis-veth", "redis", "rfs", pytest.approx(100, abs=10), 0),
    ("kernel", "nginx", "no-skb-defer", pytest.approx(SHARE, rel=0.7), 0),
]
SWITCHES = [Path("/proc/sys/net/core", name) for name in ("skb_defer_max", "rps_sock_flow_entries")]


def switches():
    return [path.read_text() for path in SWITCHES if path.exists()]


@pytest.mark.parametrize(("scenario", "server", "mode", "local", "past"), WAYS)
def test_one_and_eight_instances_are_asked(scenario, server, mode, local, past):
    if "defer" in mode and not SWITCHES[0].exists():
        pytest.skip("the kernel has no net.core.skb_defer_max")
    before = switches()
    words = ["--server", server, "--modes", mode, "--seconds", "0.3", "--connections", "32"]
    pipeline = ["--pipeline", "4"] if server == "memcached" else []
    (got,) = bench(scenario, *words, *pipeline).values()
    assert got["errors"] == 0
    for suffix in ("", "_1"):
        assert got[f"rps{suffix}"] > 1000
        assert got[f"p99_us{suffix}"] > 0
        assert got[f"past_tcp_percent{suffix}"] == past
        assert got[f"local_percent{suffix}"] == local
    assert switches() == before


def test_pgbench_on_the_local_fast_path():
    if not shutil.which("pgbench"):
        pytest.skip("PostgreSQL with pgbench is not installed")
    got = bench("local", "--server", "postgresql", "--modes", "fastsocket", "--seconds", "0.2")
    assert got["fastsocket"]["rps"] > 100
    assert got["fastsocket"]["p99_us"] > 0
    # What a server says before its client has been accepted, and what fills a buffer, is TCP's.
    assert got["fastsocket"]["past_tcp_percent"] > 80


@pytest.mark.parametrize("client", ["auto", "redis-benchmark", "fastsocket-kv"])
def test_redis_on_the_local_fast_path_by_either_client(client):
    words = ("--server", "redis", "--modes", "fastsocket", "--seconds", "0.3", "--client", client)
    document = document_of("local", *words)
    assert document["client"] == ("redis-benchmark" if client == "auto" else client)
    got = document["modes"]["fastsocket"]
    assert got["rps"]["median"] > 1000
    assert got["past_tcp_percent"]["median"] > 99


def test_a_client_that_runs_under_fastsocket_too():
    words = ("--server", "redis", "--modes", "fastsocket", "--seconds", "0.3")
    document = document_of("local", *words, "--client-options=--fast-epoll")
    assert document["client_options"] == ["--fast-epoll"]
    assert document["modes"]["fastsocket"]["rps"]["median"] > 1000


@pytest.mark.parametrize("server", ["haproxy", "nginx"])
def test_packets_for_a_stock_proxy_come_in_anywhere(server):
    got = bench("proxy", "--server", server, "--modes", "stock", "--seconds", "0.5")["stock"]
    assert got["errors"] == 0
    assert got["cps"] > 50
    # Two connections of some ten segments each.
    assert 14 <= got["segments_per_conn"] <= 24
    share = 100 / len(os.sched_getaffinity(0))
    assert got["active_local_percent"] == pytest.approx(share, abs=15)


@pytest.mark.parametrize(("scenario", "server"), [("proxy", "nginx"), ("proxy-rule", "haproxy")])
def test_packets_for_a_proxy_under_fastsocket_come_in_where_it_opened_the_connection(
    scenario, server
):
    got = bench(scenario, "--server", server, "--modes", "fastsocket", "--seconds", "0.5")
    assert got["fastsocket"]["errors"] == 0
    assert got["fastsocket"]["active_local_percent"] >= 99.9


def test_rules_are_compared_with_c_and_readers_with_the_kernel():
    flows = Path("/proc/sys/net/core/rps_sock_flow_entries")
    before = flows.read_text()
    got = bench("steer", "--seconds", "0.2")
    for mode in ("stock", "fastsocket"):
        assert got[mode]["ns_per_packet_rfd"] > 0
        assert got[mode]["reader_local_percent"] > 90
    assert got["fastsocket"]["reader_local_percent"] >= 99
    assert flows.read_text() == before


@pytest.mark.parametrize("scenario", ["proxy", "redis"])
def test_some_scenarios_need_namespaces(scenario):
    done = call(scenario, prefix=POWERLESS)
    assert done.returncode == 3
    assert done.stderr.count("\n") == 1
    assert "namespaces" in done.stderr


def test_all_keeps_what_is_complete_when_interrupted(tmp_path):
    results = tmp_path / "results"
    words = ["--runs", "1", "--seconds", "0.2", "--output", str(results)]
    everything = [*FASTSOCKET, "bench", "all", *words]
    bench = subprocess.Popen(everything, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    end = time.monotonic() + 60
    while not (results / "short-nginx.json").exists() and time.monotonic() < end:
        time.sleep(0.1)
    bench.send_signal(signal.SIGINT)
    _, said = bench.communicate(timeout=30)
    assert bench.returncode == 130
    assert b"the same command goes on" in said
    document = json.loads((results / "short-nginx.json").read_text())
    jsonschema.validate(document, schema())
    assert document["scenario"] == "short"


def test_all_chooses_for_itself():
    done = call("all", "--server", "nginx")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1


def test_bad_core_counts():
    for counts in ("1,x", "100000"):
        done = call("scale", "--cores", counts)
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1
