# SPDX-License-Identifier: GPL-2.0-or-later
"""Core counts, the setups made of them, the result by cores, and the use of each CPU."""

import json
import os

import jsonschema
import pytest

from fastsocket.bench import wires
from fastsocket.bench.clients import CLIENTS
from fastsocket.bench.counters import core_use, parse_cores
from fastsocket.bench.modes import Mode
from fastsocket.bench.process import confined
from fastsocket.bench.result import schema
from fastsocket.bench.scenario import Measurement, Setup
from fastsocket.bench.scenarios.scale import (
    Scale,
    bounded,
    core_counts,
    setups_by_cores,
    verdict_of,
)
from fastsocket.bench.scenarios.short import Short
from fastsocket.bench.servers import HTTP_SERVERS, Site, cpu_mask
from fastsocket.bench.session import Request, perform
from fastsocket.errors import FastsocketError, UsageError
from fastsocket.report.results import load_results

pytestmark = pytest.mark.unit


@pytest.fixture
def notes():
    return []


@pytest.fixture
def setup(notes):
    return Setup(
        server=HTTP_SERVERS["nginx"],
        client=CLIENTS["wrk"],
        connections=64,
        seconds=1.0,
        warmup=0.0,
        port=8080,
        workers=8,
        probe=None,
        probe_reason="no BPF here",
        private=False,
        note=notes.append,
    )


class Modelled(Scale):
    """Throughput of the scalability law itself, a little more under Fastsocket."""

    def measure(self, setup, mode):
        n = len(setup.cpus)
        taken = Measurement(cores=dict.fromkeys(setup.cpus, (90.0 + n, 10.0)))
        for metric in self.metrics:
            taken.put(metric, 1.0)
        contention = 0.01 if mode is Mode.FASTSOCKET else 0.1
        taken.put("cps", 10_000 * n / (1 + contention * (n - 1) + 0.001 * n * (n - 1)))
        return taken


@pytest.mark.parametrize(
    ("usable", "counts"),
    [
        (1, [1]),
        (2, [1, 2]),
        (4, [1, 2, 3, 4]),
        (6, [1, 2, 3, 4, 6]),
        (8, [1, 2, 3, 4, 6, 8]),
        (24, [1, 2, 3, 4, 6, 8, 12, 16, 24]),
    ],
)
def test_core_counts_grow_to_all(usable, counts):
    assert core_counts(usable) == counts


def test_connections_are_bounded_by_open_files():
    assert bounded(4, 500, 20_000) == 2000
    assert bounded(24, 500, 20_000) == 9700
    with pytest.raises(UsageError, match="open files"):
        bounded(8, 500, 600)


def test_setups_take_the_first_cpus_of_the_order(setup, notes):
    made = setups_by_cores(setup, [4, 1, 2], [0, 2, 4, 1], 500, 2000)
    assert [each.cpus for each in made.values()] == [(0,), (0, 2), (0, 1, 2, 4)]
    assert [each.workers for each in made.values()] == [1, 2, 4]
    assert [each.connections for each in made.values()] == [500, 700, 700]
    assert len(notes) == 2
    assert "2000 files" in notes[0]
    with pytest.raises(UsageError, match="5 cores were asked for"):
        setups_by_cores(setup, [5], [0, 1], 500, 20_000)


def test_result_by_cores_is_valid_and_judged(setup, tmp_path, monkeypatch):
    monkeypatch.setattr("fastsocket.bench.runner.busy_share", lambda seconds: 0.0)
    scale, order, steps = Modelled(), list(range(8)), []
    setups = setups_by_cores(setup, core_counts(8), order, 10, 20_000)
    done = scale.sweep(
        setups, [Mode.STOCK, Mode.FASTSOCKET], 2, 1, lambda *step: steps.append(step)
    )
    assert [step[0] for step in steps] == list(range(2 * 6 * 2))
    assert len({step[2] for step in steps}) == len(steps)
    document = scale.result(setups, done, 1, []).document()
    jsonschema.validate(document, schema())
    assert [point["cores"] for point in document["points"]] == [1, 2, 3, 4, 6, 8]
    last = document["points"][-1]
    assert document["modes"] == last["modes"]
    assert document["per_core"]["stock"][7] == {"cpu": 7, "busy": 98.0, "softirq": 10.0}
    assert len(document["points"][0]["per_core"]["stock"]) == 1
    assert last["ratios"]["fastsocket/stock"]["cps"]["median"] > 1.5
    assert document["connections"] == 80
    laws = document["usl"]
    assert {law["verdict"] for law in laws.values()} == {"holds"}
    assert laws["stock"]["fit"]["contention"]["value"] == pytest.approx(0.1, rel=0.01)
    assert laws["fastsocket"]["fit"]["contention"]["value"] == pytest.approx(0.01, rel=0.01)
    path = tmp_path / "scale.json"
    path.write_text(json.dumps(document))
    (read,) = load_results(path)
    assert [point.cores for point in read.points] == [1, 2, 3, 4, 6, 8]
    assert read.usl["stock"].verdict == "holds"


def test_few_core_counts_get_no_verdict():
    runs = [Measurement(values={"cps": 100.0})]
    assert verdict_of({1: runs, 2: runs}).verdict == "refused"


def test_cores_are_for_scale_alone():
    with pytest.raises(UsageError, match="does not vary"):
        perform(Request("short", cores=[1]), quiet=True)


STAT = """\
cpu  30 0 30 240 0 0 0 0 0 0
cpu0 10 0 10 80 0 0 0 0 0 0
cpu1 20 0 20 160 0 0 0 0 5 0
intr 1
"""
LATER = """\
cpu  130 0 130 340 0 0 50 0 0 0
cpu0 40 0 20 120 0 0 20 0 0 0
cpu1 20 0 20 150 0 0 0 20 5 0
intr 1
"""


def test_use_of_each_cpu():
    before = parse_cores(STAT)
    assert before == {0: (100, 20, 0), 1: (200, 40, 0)}
    use = core_use(before, parse_cores(LATER))
    # CPU 0: 30 user, 10 system, 20 softirq of 100. CPU 1: only stolen time, and idle went back.
    assert use == {0: (60.0, 20.0), 1: (0.0, 0.0)}
    assert core_use(before, before) == {}


def test_masks():
    assert cpu_mask(()) == ""
    assert cpu_mask((0, 2)) == " 101"
    assert wires.cpu_mask([0, 1]) == "00000003"
    assert wires.cpu_mask([0, 33]) == "00000002,00000001"


def test_servers_are_kept_to_their_cpus(tmp_path):
    site = Site("127.0.0.1", 8080, 2, tmp_path, cpus=(0, 2), capacity=9000)
    command = HTTP_SERVERS["nginx"].command(Mode.STOCK, site)
    text = (tmp_path / "nginx.conf").read_text()
    assert str(tmp_path / "nginx.conf") in command
    assert "worker_cpu_affinity auto 101;" in text
    assert "worker_connections 9000;" in text
    # The demo server pins to neighbours, which these are not.
    assert "-c" not in HTTP_SERVERS["demo"].command(Mode.STOCK, site)
    near = Site("127.0.0.1", 8080, 2, tmp_path, cpus=(4, 5))
    assert HTTP_SERVERS["demo"].command(Mode.STOCK, near)[3:5] == ["-c", "4"]


def test_confinement_ends_with_its_block():
    before = os.sched_getaffinity(0)
    with pytest.raises(FastsocketError), confined([min(before)]):
        assert os.sched_getaffinity(0) == {min(before)}
        raise FastsocketError("gone")
    assert os.sched_getaffinity(0) == before
    with confined([]):
        assert os.sched_getaffinity(0) == before


def test_scale_plays_each_server_as_its_users_do():
    """nginx answers itself, HAProxy has a backend, a store has an instance on each core."""
    assert Scale.of("nginx").metrics == Short.metrics
    assert "active_local_percent" in Scale.of("haproxy").metrics
    assert "rps" in Scale.of("redis").metrics
    assert not [name for name in Scale.of("redis").metrics if name.endswith("_1")]
    for server in Scale.servers:
        assert server in Scale.of(server).played.servers


def test_stores_are_judged_by_their_requests():
    runs = {n: [Measurement(values={"rps": 1000.0 * n})] for n in (1, 2, 3, 4, 6, 8)}
    assert verdict_of(runs).verdict == "holds"
