# SPDX-License-Identifier: GPL-2.0-or-later
"""Stall, crash and longlived against controls whose outcome is known."""

import json
import subprocess
import sys

import jsonschema
import pytest

from fastsocket.bench.result import schema

pytestmark = pytest.mark.apps

FASTSOCKET = [sys.executable, "-c", "from fastsocket.cli.main import main; main()"]


def bench(*words):
    done = subprocess.run(
        [*FASTSOCKET, "bench", *words, "--runs", "1", "--json"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    jsonschema.validate(document, schema())
    return {
        mode: {name: metric["median"] for name, metric in metrics.items()}
        for mode, metrics in document["modes"].items()
    }


def test_crash_of_a_reuseport_server_loses_what_was_queued():
    """A stock listener outlives its workers; one of the worker's own takes its queue along."""
    modes = bench("crash", "--server", "demo", "--modes", "stock,reuseport", "--seconds", "4")
    stock, own = modes["stock"], modes["reuseport"]
    assert stock["kills"] >= 5
    assert own["kills"] >= 5
    assert stock["completed"] > 1000
    assert stock["queued_lost"] == 0
    # A handshake that ends while the listener closes is reset without having been queued.
    assert stock["lost"] <= 2
    assert stock["accepted_lost"] > 0
    assert own["queued_lost"] > 0
    assert own["lost"] > 0


def test_crash_reloads_nginx():
    stock = bench("crash", "--server", "nginx", "--modes", "stock", "--seconds", "4")["stock"]
    assert stock["kills"] >= 3
    assert stock["reloads"] >= 1
    assert stock["queued_lost"] == 0


@pytest.mark.parametrize("server", ["nginx", "demo"])
def test_a_stall_shows_in_the_tail_of_reuseport(server):
    """Who is hashed to the stalled worker waits up to 100 ms; every tenth is."""
    words = ["--modes", "reuseport", "--seconds", "2", "--rate", "500"]
    got = bench("stall", "--server", server, *words)["reuseport"]
    assert got["errors"] == 0
    assert 400 <= got["cps"] <= 600
    assert got["p50_us"] < 50_000
    assert 60_000 < got["p99_us"] <= got["p999_us"]


@pytest.mark.parametrize("server", ["nginx", "demo"])
def test_longlived_counts_every_connection(server):
    got = bench("longlived", "--server", server, "--modes", "reuseport")["reuseport"]
    assert got["live"] == 2000
    # A hash spreads 2,000 over two workers with a deviation of 1 %, over n with sqrt(n - 1) / 45.
    assert got["worker_cv"] < 0.4
    assert got["worker_cv_renewed"] < 0.4
