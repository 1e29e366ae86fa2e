# SPDX-License-Identifier: GPL-2.0-or-later
"""The result document: schema, table, writing, verdict."""

import io
import json

import jsonschema
import msgspec
import pytest
from rich.console import Console

from fastsocket.bench.clients import CLIENTS
from fastsocket.bench.modes import Mode
from fastsocket.bench.result import Result, describe_host, schema, write
from fastsocket.bench.runner import Rounds, assemble, run_rounds
from fastsocket.bench.scenario import Measurement, Setup
from fastsocket.bench.scenarios.short import Short
from fastsocket.bench.stores import SERVERS
from fastsocket.bench.table import figure, print_result, span
from fastsocket.bench.trace import Trace
from fastsocket.bench.verdict import MIN_ROUNDS, verdict
from fastsocket.errors import ConflictError, FastsocketError

pytestmark = pytest.mark.unit

SPEED = {Mode.STOCK: 10_000.0, Mode.REUSEPORT: 10_500.0, Mode.FASTSOCKET: 11_000.0}


class Recorded:
    """A scenario with the metrics of `short` whose runs are made up."""

    name, metrics, servers = Short.name, Short.metrics, Short.servers

    def __init__(self, fail_at: int = -1, error: BaseException | None = None):
        self.calls, self.fail_at, self.error = [], fail_at, error

    def prepare(self, setup):
        return setup

    def measure(self, setup, mode):
        if len(self.calls) == self.fail_at:
            raise self.error
        self.calls.append(mode)
        drift = 1 + 0.1 * len(self.calls)
        taken = Measurement()
        for index, metric in enumerate(self.metrics):
            taken.put(metric, (index + 1) * SPEED[mode] * drift / 100)
        taken.put("worker_cv", None, "no BPF here")
        taken.put("errors", 0.0)
        return taken


@pytest.fixture
def setup():
    return Setup(
        server=SERVERS["nginx"],
        client=CLIENTS["wrk"],
        connections=64,
        seconds=1.0,
        warmup=0.0,
        port=8080,
        workers=2,
        probe=None,
        probe_reason="no BPF here",
        private=False,
        note=lambda text: None,
    )


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr("fastsocket.bench.runner.busy_share", lambda seconds: 0.5)


def rounds_of(setup, rounds, scenario=None, **options):
    steps = []
    done = run_rounds(
        scenario or Recorded(),
        setup,
        list(SPEED),
        rounds,
        1,
        lambda *step: steps.append(step),
        **options,
    )
    return done, steps


TRACES = {Mode.STOCK: Trace({"inet_put_port": 3.5}, {"nginx": 210.0}), Mode.FASTSOCKET: Trace()}


def result_of(setup, rounds) -> Result:
    return assemble(
        Recorded(), setup, rounds_of(setup, rounds)[0], 1, ["twice", "twice"], traces=TRACES
    )


def test_document_is_valid_and_complete(setup):
    document = result_of(setup, 3).document()
    jsonschema.Draft202012Validator.check_schema(schema())
    jsonschema.validate(document, schema())
    for metrics in document["modes"].values():
        assert list(metrics) == list(Short.metrics)
        assert all(len(metric["samples"]) == 3 for metric in metrics.values())
    assert set(document["ratios"]) == {
        "fastsocket/stock",
        "fastsocket/reuseport",
        "reuseport/stock",
    }
    assert document["modes"]["stock"]["worker_cv"]["median"] is None
    assert document["modes"]["stock"]["worker_cv"]["reason"] == "no BPF here"
    assert document["ratios"]["fastsocket/stock"]["errors"]["median"] is None
    assert document["ratios"]["fastsocket/stock"]["errors"]["pairs"] == 0
    assert document["ratios"]["fastsocket/stock"]["cps"]["pairs"] == 3
    assert document["notes"][0] == "twice"
    assert "50% of the CPUs" in document["notes"][1]
    assert len(document["notes"]) == 2
    assert msgspec.json.decode(json.dumps(document), type=Result).document() == document


@pytest.mark.parametrize("key", ["scenario", "host", "modes", "seed"])
def test_schema_refuses_a_document_without(setup, key):
    document = result_of(setup, 1).document()
    del document[key]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, schema())


def test_every_round_has_every_mode_once_in_changing_order(setup):
    scenario = Recorded()
    done, steps = rounds_of(setup, 12, scenario)
    orders = [tuple(scenario.calls[place : place + 3]) for place in range(0, 36, 3)]
    assert all(set(order) == set(SPEED) for order in orders)
    assert len(set(orders)) > 1
    assert len(done.complete) == 12
    assert [step[0] for step in steps] == list(range(36))


@pytest.mark.parametrize(
    ("error", "failed"), [(KeyboardInterrupt(), False), (FastsocketError("gone"), True)]
)
def test_interruption_keeps_complete_rounds(setup, error, failed):
    done, _ = rounds_of(setup, 5, Recorded(fail_at=7, error=error))
    assert len(done.complete) == 2
    assert done.interrupted
    assert (done.failure is not None) == failed
    jsonschema.validate(assemble(Recorded(), setup, done, 1, []).document(), schema())


@pytest.mark.parametrize("error", [KeyboardInterrupt(), FastsocketError("gone")])
def test_interruption_of_the_first_round_is_an_error(setup, error):
    with pytest.raises(type(error)):
        rounds_of(setup, 5, Recorded(fail_at=2, error=error))


def test_budget_ends_the_rounds_before_it_is_exceeded(setup, monkeypatch):
    scenario = Recorded()
    # Each run takes 5 s, so a round takes 15 s: a fourth would end after 60 s.
    clock = "fastsocket.bench.runner.time.monotonic"
    monkeypatch.setattr(clock, lambda: 5.0 * len(scenario.calls))
    done, _ = rounds_of(setup, 12, scenario, budget_seconds=45)
    assert len(done.complete) == 3
    assert not done.interrupted


def test_table_fits_80_columns(setup):
    console = Console(width=80, record=True, file=None, force_terminal=False, quiet=False)
    with console.capture() as captured:
        print_result(result_of(setup, 3), console)
    lines = captured.get().splitlines()
    assert max(len(line.rstrip()) for line in lines) <= 80
    text = "\n".join(lines)
    assert "connections/s" in text
    assert "inet_put_port" in text
    assert "no worker_cv: no BPF here" in text
    # A row that had been wrapped would begin with blanks instead of its label.
    assert sum(line.startswith(("connections/s", "p99 us")) for line in lines) == 4


def test_40_columns_cut_and_wrap_no_figure(setup):
    console = Console(width=40, file=io.StringIO())
    result = result_of(setup, 3)
    print_result(result, console)
    text = console.file.getvalue()
    assert max(map(len, text.splitlines())) <= 40
    assert "…" not in text
    for metric in result.modes["fastsocket"].values():
        assert span(metric) in text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0.00"),
        (0.0123, "0.012"),
        (0.999, "1.00"),
        (9.996, "10.0"),
        (99.96, "100"),
        (9999.4, "9999"),
        (9999.6, "10.0k"),
        (123_456, "123k"),
    ],
)
def test_figure(value, text):
    assert figure(value) == text


def test_write_never_overwrites_unless_told(setup, tmp_path):
    target = tmp_path / "result.json"
    result = result_of(setup, 1)
    write(result, target, force=False)
    first = target.read_text()
    with pytest.raises(ConflictError, match="--force"):
        write(result_of(setup, 2), target, force=False)
    assert target.read_text() == first
    write(result_of(setup, 2), target, force=True)
    assert json.loads(target.read_text())["rounds"] == 2
    assert list(tmp_path.iterdir()) == [target]
    with pytest.raises(FastsocketError, match="cannot be written"):
        write(result, tmp_path / "missing" / "result.json", force=False)


def test_verdict_needs_rounds_and_states_the_interval(setup):
    few = verdict(result_of(setup, MIN_ROUNDS - 1))
    assert "too few" in few[0]
    speed, cost = verdict(result_of(setup, MIN_ROUNDS))
    assert "than stock (95 % interval" in speed or "from stock (95 % interval" in speed
    assert "own reuseport" in speed
    assert "CPU time per connection" in cost
    assert "lock contentions" in cost


def test_rounds_without_a_ratio_do_not_count_for_a_claim(setup):
    result = result_of(setup, MIN_ROUNDS)
    stock = result.ratios["fastsocket/stock"]
    cps = msgspec.structs.replace(stock["cps"], pairs=MIN_ROUNDS - 1)
    ratios = {**result.ratios, "fastsocket/stock": {**stock, "cps": cps}}
    fewer = msgspec.structs.replace(result, ratios=ratios)
    assert verdict(fewer)[0].startswith(f"{MIN_ROUNDS - 1} rounds are too few")
    shown = io.StringIO()
    print_result(fewer, Console(file=shown, width=200))
    words = f"note: fastsocket/stock of {MIN_ROUNDS} rounds: cps {MIN_ROUNDS - 1}; in the others"
    assert words in shown.getvalue()


def test_host_names_this_machine():
    host = describe_host()
    assert host.cpus >= 1
    assert host.model
    assert host.commit


def test_disturbance_is_silent_on_a_quiet_machine():
    assert Rounds([Mode.STOCK], others=[0.0, 0.02, 0.9]).disturbance() == ""
