# SPDX-License-Identifier: GPL-2.0-or-later
"""`bench all`: what is run, what is kept, what is not mixed."""

import ctypes
import signal
import sys

import msgspec
import pytest

from fastsocket.bench import suite
from fastsocket.bench.interrupt import interruptible
from fastsocket.bench.result import FORMAT, Result, describe_host
from fastsocket.bench.scenarios import SCENARIOS
from fastsocket.bench.session import Outcome
from fastsocket.bench.stores import SERVERS
from fastsocket.bench.suite import BUDGET_SECONDS, STEPS, run_suite
from fastsocket.errors import ConflictError, FastsocketError

pytestmark = pytest.mark.unit


def result(request, interrupted=False):
    return Result(
        format=FORMAT,
        scenario=request.scenario,
        server=request.server,
        client="none",
        host=describe_host(),
        date="2026-01-01T00:00:00+00:00",
        rounds=1,
        seconds=request.seconds,
        connections=1,
        seed=0,
        interrupted=interrupted,
        run_options=list(request.run_options),
        notes=[],
        modes={},
        ratios={},
        call_sites={},
    )


@pytest.fixture
def calls(monkeypatch):
    """Let every step succeed at once; return the names of those that were run."""
    made = []

    def perform(request):
        made.append(f"{request.scenario}-{request.server}")
        return Outcome(result(request), None)

    monkeypatch.setattr(suite, "perform", perform)
    return made


def run(directory, **options):
    return run_suite(directory, **{"rounds": 1, "seconds": 0.5, **options})


def test_steps_exist_and_leave_time():
    for step in STEPS:
        assert step.server in SCENARIOS[step.scenario].servers
        assert step.server in SERVERS
    assert sum(step.budget_seconds for step in STEPS) <= BUDGET_SECONDS * 5 / 6


def test_what_has_its_file_is_not_run_again(tmp_path, calls):
    names = [step.name for step in STEPS]
    assert list(run(tmp_path / "new").results) == names
    assert calls == names
    (tmp_path / "new" / f"{names[2]}.json").unlink()
    assert set(run(tmp_path / "new").results) == set(names)
    assert calls == [*names, names[2]]
    run(tmp_path / "new", force=True)
    assert len(calls) == 2 * len(names) + 1


def test_an_interruption_keeps_the_complete_steps(tmp_path, calls, monkeypatch):
    names = [step.name for step in STEPS]
    succeed = suite.perform

    def interrupted(request):
        if len(calls) < 2:
            return succeed(request)
        if request.scenario == "short":
            return Outcome(result(request, interrupted=True), None)
        raise KeyboardInterrupt

    monkeypatch.setattr(suite, "perform", interrupted)
    got = run(tmp_path)
    assert got.interrupted
    assert list(got.results) == names[:2]
    assert sorted(path.stem for path in tmp_path.iterdir()) == sorted(names[:2])
    got = run(tmp_path, steps=STEPS[3:])
    assert got.interrupted
    assert got.results == {}
    monkeypatch.setattr(suite, "perform", succeed)
    assert not run(tmp_path).interrupted
    assert sorted(calls) == sorted(names)


def test_a_failed_step_does_not_stop_the_others(tmp_path, calls, monkeypatch):
    names = [step.name for step in STEPS]
    succeed, said = suite.perform, []

    def fail(request):
        if request.server == "haproxy" and request.scenario == "short":
            raise FastsocketError("haproxy is not installed")
        if request.scenario == "redis":
            return Outcome(result(request, interrupted=True), FastsocketError("it died"))
        return succeed(request)

    monkeypatch.setattr(suite, "perform", fail)
    got = run(tmp_path, tell=said.append)
    assert set(got.failures) == {"short-haproxy", "redis-redis"}
    assert len(got.results) == len(names) - 2
    assert not (tmp_path / "redis-redis.json").exists()
    assert any("haproxy is not installed" in line for line in said)


def test_other_files_are_a_conflict(tmp_path, calls):
    run(tmp_path, steps=STEPS[:1])
    for options in ({"seconds": 1.0}, {"run_options": ["--listen-spawn", "0"]}):
        with pytest.raises(ConflictError, match=r"short-nginx\.json is of another"):
            run(tmp_path, **options)
    path = tmp_path / f"{STEPS[0].name}.json"
    whole = path.read_bytes()
    document = msgspec.json.decode(whole)
    document["host"]["kernel"] = "2.6.32"
    path.write_bytes(msgspec.json.encode(document))
    with pytest.raises(ConflictError, match="another host"):
        run(tmp_path)
    path.write_bytes(whole[:100])
    with pytest.raises(ConflictError, match="cannot be read"):
        run(tmp_path)
    assert path.read_bytes() == whole[:100]
    assert calls == ["short-nginx"]


def test_a_directory_that_cannot_be(tmp_path, calls):
    (tmp_path / "file").write_text("")
    with pytest.raises(FastsocketError, match="cannot be made"):
        run(tmp_path / "file")
    assert calls == []


def test_a_signal_that_a_callback_dropped_is_not_lost(tmp_path, calls, monkeypatch):
    """As libbpf's messages do, ctypes drops what is raised within a callback."""
    succeed = suite.perform
    callback = ctypes.CFUNCTYPE(None)(lambda: signal.raise_signal(signal.SIGINT))

    def deaf(request):
        with interruptible():
            callback()
        return succeed(request)

    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: None)
    monkeypatch.setattr(suite, "perform", deaf)
    before = signal.getsignal(signal.SIGINT)
    got = run(tmp_path)
    assert got.interrupted
    assert calls == ["short-nginx"]
    assert signal.getsignal(signal.SIGINT) is before
    monkeypatch.setattr(suite, "perform", succeed)
    assert not run(tmp_path).interrupted
