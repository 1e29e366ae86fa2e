# SPDX-License-Identifier: GPL-2.0-or-later
"""`fastsocket bench` with real servers: every metric, bad circumstances, nothing left."""

import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jsonschema
import msgspec
import pytest
from rich.console import Console

from fastsocket.bench.behaviours import BEHAVIOURS
from fastsocket.bench.result import Result, schema
from fastsocket.bench.scenarios import lean
from fastsocket.bench.scenarios.lean import Lean
from fastsocket.bench.scenarios.short import Short
from fastsocket.bench.session import Request, perform
from fastsocket.cli.demo import show

pytestmark = pytest.mark.apps

FASTSOCKET = [sys.executable, "-c", "from fastsocket.cli.main import main; main()"]
# root without any capability: what an ordinary user has, with files that root owns.
POWERLESS = ["setpriv", "--bounding-set", "-all", "--inh-caps", "-all", "--"]


def call(*words, prefix=()):
    return subprocess.run(
        [*prefix, *FASTSOCKET, *words], capture_output=True, text=True, timeout=120, check=False
    )


def leftovers():
    """Return the servers and directories of this test's benches that are still there."""
    mine = tempfile.gettempdir()
    found = [str(path) for path in Path(mine).glob("fastsocket-bench-*")]
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue
            if f"{mine}/fastsocket-bench-" in command:
                found.append(command)
    return found


@pytest.fixture(autouse=True)
def nothing_is_left(monkeypatch):
    """Give each test temporary files of its own: other benches may run on this machine."""
    with tempfile.TemporaryDirectory(prefix="fastsocket-test-") as own:
        Path(own).chmod(0o755)  # workers that gave up root read their files
        monkeypatch.setenv("TMPDIR", own)
        monkeypatch.setattr(tempfile, "tempdir", None)
        yield
        assert leftovers() == []
    monkeypatch.setattr(tempfile, "tempdir", None)


def test_two_rounds_yield_every_metric(tmp_path):
    output = tmp_path / "result.json"
    done = call(
        *("bench", "short", "--server", "nginx", "--modes", "stock,reuseport", "--runs", "2"),
        *("--seconds", "0.5", "--seed", "1", "--json", "--output", str(output)),
    )
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert json.loads(output.read_text()) == document
    jsonschema.validate(document, schema())
    assert document["rounds"] == 2
    assert set(document["modes"]) == {"stock", "reuseport"}
    for metrics in document["modes"].values():
        missing = [name for name in Short.metrics if None in metrics[name]["samples"]]
        assert missing == []
        assert metrics["errors"]["samples"] == [0, 0]
        assert metrics["cps"]["low"] > 100
        assert 9 <= metrics["segments_per_conn"]["median"] <= 11
        assert 0 <= metrics["local_percent"]["median"] <= 100
        assert 0 <= metrics["worker_cv"]["median"] <= (os.cpu_count() - 1) ** 0.5
        assert 0 < metrics["p50_us"]["median"] <= metrics["p99_us"]["median"]
        # No connection takes more CPU time than there was.
        cost = metrics["cpu_us_per_conn"]["median"] * metrics["cps"]["median"]
        assert 0 < cost <= 1.3e6 * os.cpu_count()
    if len(os.sched_getaffinity(0)) > 1:
        assert document["modes"]["stock"]["lock_contentions_per_1k"]["low"] > 0
        assert document["call_sites"]["stock"]
        if Path("/sys/kernel/tracing/events/ipi/ipi_send_cpu").exists():
            assert document["woken"]["stock"]["nginx"] > 0
    again = call("bench", "short", "--output", str(output))
    assert again.returncode == 4
    assert "--force" in again.stderr


@pytest.mark.parametrize(
    "server", ["haproxy", "lighttpd", "gunicorn", "granian", "uvicorn", "demo"]
)
def test_other_servers_answer_without_errors(server):
    done = call(
        *("bench", "short", "--server", server, "--modes", "stock", "--runs", "1"),
        *("--seconds", "0.5", "--no-call-sites", "--json"),
    )
    assert done.returncode == 0, done.stderr
    metrics = json.loads(done.stdout)["modes"]["stock"]
    assert metrics["errors"]["median"] == 0
    assert metrics["cps"]["median"] > 100


def test_requests_on_connections_that_stay():
    done = call(
        *("bench", "keepalive", "--server", "demo", "--modes", "stock", "--runs", "1"),
        *("--seconds", "0.3", "--json"),
    )
    assert done.returncode == 0, done.stderr
    metrics = json.loads(done.stdout)["modes"]["stock"]
    assert metrics["errors"]["median"] == 0
    assert metrics["rps"]["median"] > 1000
    assert 0 < metrics["p50_us"]["median"] <= metrics["p99_us"]["median"]


def test_lateness_of_lean_connections(monkeypatch):
    few = {name: BEHAVIOURS[name] for name in ("short", "greets")}
    monkeypatch.setattr(lean, "BEHAVIOURS", few)
    kept = {name: unit for name, unit in Lean.metrics.items() if name.startswith(tuple(few))}
    monkeypatch.setattr(Lean, "metrics", kept)
    result = perform(Request("lean", rounds=1, seconds=0.02), quiet=True).result
    assert set(result.modes) == {"stock", "fastsocket"}
    for metrics in result.modes.values():
        assert len(metrics) == 8
        # The kernel's shortest timer is 40 ms.
        assert all(abs(metrics[f"short_{phase}_p50_us"].median) < 30_000 for phase in lean.PHASES)
    assert not any("outlived" in note for note in result.notes)


def test_without_privileges_the_rest_is_counted():
    done = call(
        *("bench", "short", "--server", "haproxy", "--modes", "stock", "--runs", "1"),
        *("--seconds", "0.5", "--json"),
        prefix=POWERLESS,
    )
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    jsonschema.validate(document, schema())
    metrics = document["modes"]["stock"]
    for name in ("lock_contentions_per_1k", "resched_ipis_per_1k", "local_percent", "worker_cv"):
        assert metrics[name]["median"] is None
        assert "CAP_BPF" in metrics[name]["reason"]
    assert metrics["cps"]["median"] > 100
    assert metrics["cpu_us_per_conn"]["median"] > 0
    assert any("namespace" in note for note in document["notes"])


def test_a_taken_port_is_a_conflict():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = call(
            *("bench", "short", "--server", "haproxy", "--modes", "stock", "--port", port),
            prefix=POWERLESS,
        )
    assert done.returncode == 4
    assert done.stderr.count("\n") == 1
    assert f"port {port}" in done.stderr
    assert "in use" in done.stderr


def test_a_server_that_does_not_start_is_one_line():
    done = call("bench", "short", "--modes", "fastsocket", "--run-options=--no-such-option")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "nginx under 'fastsocket run' ended at once" in done.stderr


def test_bad_words_are_usage_errors():
    for scenario, *words in (
        *(["short", "--modes", "fast"], ["short", "--runs", "0"], ["short", "--server", "apache"]),
        *(["short", "--seed", "-1"], ["short", "--client", "fastsocket-kv"]),
        *(["local", "--client", "wrk"], ["local", "--server", "nginx", "--client", "pgbench"]),
    ):
        done = call("bench", scenario, *words)
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interruption_keeps_completed_rounds_and_ends_the_server(number):
    words = ["bench", "short", "--modes", "stock", "--runs", "500", "--seconds", "0.2", "--json"]
    bench = subprocess.Popen([*FASTSOCKET, *words], stdout=subprocess.PIPE, text=True)
    runs, end = set(), time.monotonic() + 60
    while len(runs) < 3:  # the server of each has a directory of its own
        for name in leftovers():
            runs.update(re.findall(r"nginx.*(fastsocket-bench-\w+)", name))
        assert time.monotonic() < end
        time.sleep(0.05)
    bench.send_signal(number)
    output, _ = bench.communicate(timeout=60)
    assert bench.returncode == 130
    document = json.loads(output)
    jsonschema.validate(document, schema())
    assert document["interrupted"]
    assert 1 <= document["rounds"] < 500
    assert len(document["modes"]["stock"]["cps"]["samples"]) == document["rounds"]


def test_a_killed_bench_takes_its_server_along():
    words = ["bench", "short", "--modes", "stock", "--runs", "5", "--seconds", "20"]
    bench = subprocess.Popen([*FASTSOCKET, *words], stdout=subprocess.DEVNULL)
    end = time.monotonic() + 20
    while not [name for name in leftovers() if "nginx" in name] and time.monotonic() < end:
        time.sleep(0.1)
    time.sleep(0.5)
    bench.kill()
    bench.wait()
    while [name for name in leftovers() if "nginx" in name] and time.monotonic() < end + 10:
        time.sleep(0.1)
    assert [name for name in leftovers() if "nginx" in name] == []
    for directory in Path(tempfile.gettempdir()).glob("fastsocket-bench-*"):
        for path in sorted(directory.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        directory.rmdir()


def test_demo_compares_three_modes_and_claims_nothing_from_one_round():
    begun = time.monotonic()
    done = call("demo", "--runs", "1", "--json")
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - begun < 120  # what its help promises
    document = json.loads(done.stdout)
    jsonschema.validate(document, schema())
    assert set(document["modes"]) == {"stock", "reuseport", "fastsocket"}
    assert "too few" in document["verdict"][0]
    assert any("ran in tier" in note for note in document["notes"])
    ours = document["modes"]["fastsocket"]
    assert [name for name in Short.metrics if None in ours[name]["samples"]] == []
    assert ours["errors"]["median"] == 0
    stock = document["modes"]["stock"]
    assert ours["local_percent"]["median"] > stock["local_percent"]["median"]
    assert ours["local_percent"]["median"] > 90
    result = msgspec.convert(
        {key: value for key, value in document.items() if key != "verdict"}, Result
    )
    said = io.StringIO()
    show(result, document["verdict"], Console(file=said, width=80))
    assert max(map(len, said.getvalue().splitlines())) <= 80
    assert "fastsocket/stock" in said.getvalue()
    assert "too few" in said.getvalue()
