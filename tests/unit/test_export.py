# SPDX-License-Identifier: GPL-2.0-or-later
"""The Prometheus endpoint, the dashboard that uses it, and the page that documents it."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from click.testing import CliRunner
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from fastsocket.cli.export import address, command
from fastsocket.errors import ConflictError, UsageError
from fastsocket.observe.dashboard import PANELS, dashboard
from fastsocket.observe.prometheus import METRICS, SampleCollector
from fastsocket.observe.sample import Core, Listener, Sample, Slot

pytestmark = pytest.mark.unit

PROJECT = Path(__file__).parents[2]


class One:
    """A source of one sample, over and over."""

    taken = 0

    def read(self) -> Sample:
        self.taken += 1
        slots = [
            Slot(0, 77, 2, "claimed", True, 4, 3, 90, 95, 5),
            Slot(1, 78, -1, *"x", False, 0, 0, 1, 1, 0),
        ]
        cores = [Core(2, 4000, 3000, 1000, 55)]
        return Sample(1.0, cores, [Listener(76, "::", 443, "select", 6, slots)], {'od"d\n': 8})


def exported(source: One) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    registry = CollectorRegistry()
    registry.register(SampleCollector(source))
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(generate_latest(registry).decode())
        for sample in family.samples
    }


def test_every_counter_of_a_sample_is_exported() -> None:
    found = exported(One())
    slot = (("app", "76"), ("cpu", "2"), ("listener", ":::443"), ("slot", "0"))
    tick = os.sysconf("SC_CLK_TCK")
    assert found["fastsocket_cpu_busy_seconds_total", (("cpu", "2"),)] == 3000 / tick
    assert found["fastsocket_cpu_softirq_seconds_total", (("cpu", "2"),)] == 1000 / tick
    assert found["fastsocket_cpu_net_rx_softirqs_total", (("cpu", "2"),)] == 55
    assert found["fastsocket_accepted_total", slot] == 90
    assert found["fastsocket_assigned_total", slot] == 95
    assert found["fastsocket_spilled_total", slot] == 5
    assert found["fastsocket_live_connections", slot] == 4
    assert found["fastsocket_waiting_connections", slot] == 3
    assert found["fastsocket_worker_busy", slot] == 1
    assert found["fastsocket_passed_total", (("app", "76"), ("listener", ":::443"))] == 6
    assert found["fastsocket_steering_total", (("counter", 'od"d\n'),)] == 8
    without_cpu = (("app", "76"), ("cpu", ""), ("listener", ":::443"), ("slot", "1"))
    assert found["fastsocket_worker_busy", without_cpu] == 0
    assert {name for name, _ in found} == {row.name + "_total" * row.counter for row in METRICS}


def test_registering_takes_no_sample() -> None:
    source = One()
    CollectorRegistry().register(SampleCollector(source))
    assert source.taken == 0


def test_dashboard_asks_only_for_what_is_exported_and_shows_all_of_it() -> None:
    names = {row.name + "_total" * row.counter for row in METRICS}
    asked = {name for panel in PANELS for name in re.findall(r"fastsocket_\w+", panel.query)}
    assert asked == names
    labels = {row.name + "_total" * row.counter: row.labels for row in METRICS}
    for panel in PANELS:
        for label in re.findall(r"{{(\w+)}}", panel.legend):
            metrics = re.findall(r"fastsocket_\w+", panel.query)
            assert all(label in labels[metric] for metric in metrics)


def test_dashboard_is_printed_for_import_and_panels_do_not_overlap() -> None:
    result = CliRunner().invoke(command, ["--dashboard"])
    assert result.exit_code == 0
    document = json.loads(result.stdout)
    assert document == dashboard()
    places = {(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in document["panels"]}
    assert len(places) == len(PANELS) == len({panel["id"] for panel in document["panels"]})


def test_every_metric_is_documented() -> None:
    page = (PROJECT / "docs" / "export.md").read_text()
    documented = set(re.findall(r"^\| `(fastsocket_\w+)`", page, re.MULTILINE))
    assert documented == {row.name + "_total" * row.counter for row in METRICS}


def test_once_and_json_agree_in_names() -> None:
    once = CliRunner().invoke(command, ["--once"])
    as_json = CliRunner().invoke(command, ["--json"])
    assert once.exit_code == as_json.exit_code == 0
    assert "fastsocket_cpu_busy_seconds_total{cpu=" in once.stdout
    assert "fastsocket_cpu_busy_seconds_total" in {
        one["name"] for one in json.loads(as_json.stdout)
    }


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_endpoint_serves_until_it_is_stopped() -> None:
    port = free_port()
    program = "from fastsocket.cli.main import main; main()"
    words = [sys.executable, "-c", program, "export", "--listen", f"127.0.0.1:{port}"]
    with subprocess.Popen(words, stderr=subprocess.PIPE) as server:
        try:
            text = fetch(f"http://127.0.0.1:{port}/metrics")
            assert "fastsocket_cpu_busy_seconds_total" in text
            taken = CliRunner().invoke(command, ["--listen", f"127.0.0.1:{port}"])
            assert isinstance(taken.exception, ConflictError)
            assert "--listen" in str(taken.exception)
        finally:
            server.send_signal(signal.SIGTERM)
        assert server.wait(timeout=10) == 0


def fetch(url: str) -> str:
    """Ask until the server is up."""
    deadline = time.monotonic() + 15
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                return str(answer.read().decode())
        except urllib.error.URLError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


@pytest.mark.parametrize("text", ["", "9464", ":9464", "host:", "host:0", "host:70000", "host:x"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is no address"):
        address(text)


def test_addresses() -> None:
    assert address("127.0.0.1:9464") == ("127.0.0.1", 9464)
    assert address("[::1]:80") == ("::1", 80)
