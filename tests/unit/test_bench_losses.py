# SPDX-License-Identifier: GPL-2.0-or-later
"""`bench crash --full` and `bench soak`: volumes, sums, and what counts as a fault."""

import os
import socket
import subprocess
from types import SimpleNamespace

import pytest

from fastsocket.bench import losses, suite
from fastsocket.bench.footprint import anonymous_kib, descriptors, library_kib, pss_kib, stuck
from fastsocket.bench.modes import Mode
from fastsocket.bench.result import FORMAT, Host, Metric, Result
from fastsocket.bench.runner import play
from fastsocket.bench.scenario import Measurement
from fastsocket.bench.scenarios.crash import MIXES, Crash
from fastsocket.bench.scenarios.soak import LIMITS, Soak, growth
from fastsocket.bench.session import Outcome
from fastsocket.bench.suite import Step, run_suite
from fastsocket.bench.trouble import ABILITIES, Amounts, Trouble
from fastsocket.errors import UsageError
from fastsocket.native import native_file

pytestmark = pytest.mark.unit

NO_PID = 2**22  # above any that Linux gives


def result(
    server: str, reason: str = "", queued: list[float] | None = None, **lost: list[float]
) -> Result:
    """Return a result with the given losses by mode, and 10 of everything else in each round."""

    def metrics(samples: list[float]) -> dict[str, Metric]:
        tens = [10.0] * len(samples)
        every = {name: Metric(10.0, 10.0, 10.0, "", tens) for name in Crash.metrics}
        none = Metric(0.0, 0.0, 0.0, "", [0.0] * len(samples))
        return every | {
            "lost": Metric(None, None, None, "", samples, reason),
            "queued_lost": Metric(None, None, None, "", queued) if queued else none,
        }

    modes = {mode: metrics(samples) for mode, samples in lost.items()}
    host = Host("6.18", 2, "CPU", "abc")
    return Result(
        FORMAT, "crash", server, "none", host, "2026-01-01T00:00:00+00:00", 2, 1.0, 1, 0, False,
        [], [], modes, {}, {},
    )  # fmt: skip


def test_the_full_volume_is_what_was_promised() -> None:
    sums: dict[str, float] = {}
    for step in losses.STEPS:
        for name, amount in step.wanted:
            sums[name] = sums.get(name, 0) + amount
    assert sums["completed"] >= 200_000
    assert sums["kills"] >= 200
    assert sums["keeper_kills"] >= 20
    for server, reloads in (("nginx", 50), ("gunicorn", 10), ("haproxy", 10)):
        assert MIXES[server].reloads >= reloads
    assert {step.server for step in losses.STEPS} == set(MIXES) == set(Crash.servers)
    assert sum(step.budget_seconds for step in losses.STEPS) <= losses.BUDGET_SECONDS * 0.95


def test_sums_and_faults() -> None:
    good = [
        result("nginx", stock=[0, 0], reuseport=[1, 2], fastsocket=[0, 0]),
        result("gunicorn", stock=[0], fastsocket=[0]),
    ]
    sums = losses.totals(good)
    assert sums["reuseport"]["lost"] == 3
    assert sums["fastsocket"]["completed"] == 30
    assert losses.faults(good) == []
    lossy = losses.faults([*good, result("demo", fastsocket=[0, 4])])
    assert lossy == ["demo lost 4 connections under Fastsocket"]
    queued = losses.faults([*good, result("demo", queued=[3, 0], fastsocket=[0, 0])])
    assert queued == ["demo lost 3 connections in a queue under Fastsocket"]
    assert "too weak" in losses.faults(good[1:])[0]
    assert "were not counted: no BPF" in losses.faults(
        [*good, result("demo", reason="no BPF", fastsocket=[0])]
    )[0]  # fmt: skip


def test_rounds_end_when_there_was_enough() -> None:
    def measure() -> Measurement:
        return Measurement({"kills": 4.0})

    done = play(
        {Mode.FASTSOCKET: measure}, 50, 0, lambda *_: None, None,
        lambda done: done.sums(Mode.FASTSOCKET)["kills"] >= 10,
    )  # fmt: skip
    assert len(done.complete) == 3


def test_a_volume_that_is_not_reached_is_a_failure(tmp_path, monkeypatch) -> None:
    step = Step("crash", "nginx", 7, (("kills", 10),))
    short = Outcome(result("nginx", fastsocket=[0]), None, {"kills": 3.0})
    monkeypatch.setattr(suite, "perform", lambda request: short)
    done = run_suite(tmp_path, rounds=1, seconds=1.0, steps=[step])
    assert "3 kills" in str(done.failures["crash-nginx"])
    assert not list(tmp_path.iterdir()), "the next call runs it again"


def test_time_that_was_left_is_the_next_steps(tmp_path, monkeypatch) -> None:
    budgets = []

    def perform(request):
        budgets.append(request.budget_seconds)
        return Outcome(result(request.server, fastsocket=[0]), None)

    monkeypatch.setattr(suite, "perform", perform)
    some = (("kills", 1),)
    steps = [Step("crash", "nginx", 70, some), Step("crash", "demo", 10, some)]
    run_suite(tmp_path, rounds=1, seconds=1.0, steps=[*steps, Step("short", "nginx", 5)])
    assert budgets[0] == 70
    assert 60 < budgets[1] <= 80
    assert budgets[2] == 5


class Playground(Trouble):
    """Events that only count."""

    def __init__(self, server: str, mode: Mode) -> None:
        setup = SimpleNamespace(server=SimpleNamespace(name=server), workers=2)
        super().__init__(SimpleNamespace(setup=setup), mode)  # type: ignore[arg-type]

    def kill_worker(self) -> None:
        self._count(kills=1)

    def reload(self) -> None:
        self._count(reloads=1)

    def kill_keeper(self) -> None:
        self._count(keeper_kills=1)


@pytest.mark.parametrize("server", sorted(MIXES))
def test_events_come_in_the_proportion_of_their_mix(server: str) -> None:
    mix = MIXES[server]
    for mode, keepers in ((Mode.FASTSOCKET, mix.keeper_kills), (Mode.STOCK, 0)):
        trouble = Playground(server, mode)
        for _ in range(mix.kills + mix.reloads + keepers):
            trouble.next_of(mix)()
        assert trouble.done == Amounts(mix.kills, mix.reloads, keepers)
    assert not mix.kills or ABILITIES[server].replaces
    assert not mix.reloads or ABILITIES[server].reload


def rounds_of(**series: list[float]) -> list[dict[Mode, Measurement]]:
    length = len(next(iter(series.values())))
    return [
        {Mode.FASTSOCKET: Measurement({name: values[i] for name, values in series.items()})}
        for i in range(length)
    ]


def test_a_soak_finds_growth_losses_and_stuck_slots() -> None:
    soak, limit = Soak(), LIMITS["keeper_fds"]
    assert soak.faults(rounds_of(lost=[0.0] * 8, keeper_fds=[9.0] * 8)) is None
    # The first quarter, in which keepers are killed, and one sample alone say nothing.
    assert soak.faults(rounds_of(keeper_fds=[1, 1, 50, 9, 9, 9, 50, 9])) is None
    assert "keeper_fds grew" in str(soak.faults(rounds_of(keeper_fds=list(range(0, 40, 4)))))
    assert "2 connections lost" in str(soak.faults(rounds_of(lost=[0.0, 2.0])))
    assert "3 connections lost in a queue" in str(soak.faults(rounds_of(queued_lost=[3.0, 0.0])))
    assert "1 slots stuck" in str(soak.faults(rounds_of(stuck_slots=[1.0, 0.0])))
    assert growth([5, 5 + limit]) == limit
    assert growth([]) == 0


def test_a_soak_runs_one_mode() -> None:
    assert Soak.mode_of([], list(Mode)) == [Mode.FASTSOCKET]
    assert Soak.mode_of(["stock"], [Mode.STOCK]) == [Mode.STOCK]
    with pytest.raises(UsageError, match="one mode"):
        Soak.mode_of(["stock", "fastsocket"], [Mode.STOCK, Mode.FASTSOCKET])


@pytest.mark.parametrize(
    ("slot", "is_stuck"),
    [
        ({"state": "claimed", "pid": 7, "waiting": 0}, False),
        ({"state": "claimed", "pid": 8, "waiting": 0}, True),
        ({"state": "paused", "pid": 8, "waiting": 0}, True),
        ({"state": "claimed", "pid": 7, "waiting": 1}, True),
        ({"state": "orphan", "pid": 0, "waiting": 0}, False),
        ({"state": "orphan", "pid": 0, "waiting": 1}, True),
    ],
)
def test_which_slots_are_stuck(slot: dict[str, object], is_stuck: bool) -> None:
    assert stuck({"listeners": [{"slots": [slot]}]}, [7]) == is_stuck


def test_what_this_process_takes() -> None:
    before = descriptors(os.getpid())
    with socket.socket():
        assert descriptors(os.getpid()) == before + 1
    assert 1000 < anonymous_kib(os.getpid()) < pss_kib(os.getpid())
    assert descriptors(NO_PID) is pss_kib(NO_PID) is library_kib(NO_PID) is None


@pytest.mark.parametrize("preloaded", [False, True])
def test_what_the_library_takes(preloaded: bool) -> None:
    more = {"LD_PRELOAD": str(native_file("libfsocket.so"))} if preloaded else {}
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=more) as cat:
        assert cat.stdin
        assert cat.stdout
        cat.stdin.write(b"x")
        cat.stdin.flush()
        cat.stdout.read(1)  # it runs
        took = library_kib(cat.pid)
        cat.stdin.close()
    assert (took is not None) == preloaded
    assert not preloaded or 4 < took < 4096
