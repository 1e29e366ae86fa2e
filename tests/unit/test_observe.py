# SPDX-License-Identifier: GPL-2.0-or-later
"""Samples, their differences, and recordings that survive being cut anywhere."""

import json
import os
import signal
import struct
import threading
import time
from pathlib import Path
from random import Random
from typing import Any, cast

import msgspec
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from fastsocket.cli.record import command as record_command
from fastsocket.cli.record import seconds
from fastsocket.cli.report import command as report_command
from fastsocket.errors import ConflictError, FastsocketError, UsageError
from fastsocket.observe.applications import Applications, listeners_of
from fastsocket.observe.host import HostSource, parse_cores
from fastsocket.observe.record import Stop, record, stop_on_signals
from fastsocket.observe.recording import MAGIC, Header, Recorder, Recording
from fastsocket.observe.sample import Core, Listener, Sample, Slot, rates

pytestmark = pytest.mark.unit

STAT = """cpu  300 0 150 1000 10 0 40 0 0 0
cpu0 100 0 50 500 5 0 15 0 7 0
cpu3 200 0 100 500 5 0 25 0 0 0
intr 123456 0 0
ctxt 99
"""
SOFTIRQS = """                    CPU0       CPU3
          HI:          1          0
      NET_TX:          4          5
      NET_RX:       1000       2500
"""
HEADER = Header("web1", "6.18.44", "Example processor", 5.0)


def slot(number: int = 0, **changes: Any) -> Slot:
    base = Slot(number, 1000 + number, number, "claimed", False, 3, 0, 100, 100, 10)
    return msgspec.structs.replace(base, **changes)


def sample(at: float, ticks: int = 0, slots: list[Slot] | None = None, passed: int = 0) -> Sample:
    cores = [Core(cpu, ticks, ticks * (cpu + 1) // 4, ticks // 8, 10 * ticks) for cpu in (0, 1)]
    listeners = [Listener(999, "0.0.0.0", 80, "select", passed, slots or [])]
    return Sample(at, cores, listeners, {"by_port": ticks})


def record_hours(path: Path, hours: int, cpus: int) -> None:
    recorder = Recorder(path, HEADER)
    for index in range(hours * 12):
        cores = [
            Core(cpu, index * 500, index * 50 * (1 + cpu), index * 20, 0) for cpu in range(cpus)
        ]
        recorder.add(Sample(1e9 + index * 300, cores, [], {}))
    recorder.close()


def test_proc_files_of_a_host_with_cpus_missing_in_between() -> None:
    assert parse_cores(STAT, SOFTIRQS) == [
        Core(0, 670, 165, 15, 1000),
        Core(3, 830, 325, 25, 2500),
    ]


def test_this_host_can_be_sampled_and_time_passes() -> None:
    source = HostSource(listeners=list)
    first = source.read()
    time.sleep(0.05)
    found = rates(first, source.read())
    assert found.seconds >= 0.05
    assert len(found.cores) == len(first.cores) >= 1
    assert all(0 <= core.softirq <= core.busy <= 100 for core in found.cores)


def test_rates_are_differences_over_time() -> None:
    before = sample(10.0, 0, [slot(accepted=100, assigned=100, spilled=10)], passed=5)
    after = sample(12.0, 200, [slot(accepted=300, assigned=310, spilled=20)], passed=9)
    found = rates(before, after)
    assert [core.busy for core in found.cores] == [25.0, 50.0]
    assert [core.softirq for core in found.cores] == [12.5, 12.5]
    assert found.cores[0].net_rx == 1000
    assert found.slots[0].accepts == 100
    assert (found.local, found.spilled, found.passed) == (100, 5, 2)
    assert found.local_percent == pytest.approx(100 * 100 / 107)
    assert found.steering == {"by_port": 100}


def test_nothing_chosen_is_not_zero_percent_local() -> None:
    assert rates(sample(1, 0), sample(2, 10)).local_percent is None


def test_a_restarted_worker_counts_from_zero() -> None:
    found = rates(
        sample(1, 0, [slot(accepted=900, assigned=900, spilled=90)]),
        sample(2, 10, [slot(accepted=40, assigned=50, spilled=5)]),
    )
    assert found.slots[0].accepts == 40
    assert found.local == 45


@pytest.mark.parametrize(
    ("changes", "stalled"),
    [
        ({"waiting": 4, "busy": True}, True),
        ({"waiting": 4, "busy": False}, False),
        ({"waiting": 0, "busy": True}, False),
        ({"waiting": 4, "busy": True, "accepted": 101}, False),
    ],
)
def test_a_stall_is_waiting_connections_and_no_progress(
    changes: dict[str, Any], stalled: bool
) -> None:
    found = rates(sample(1, 0, [slot()]), sample(2, 10, [slot(**changes)]))
    assert found.slots[0].stalled is stalled


def test_recording_gives_back_every_sample(tmp_path: Path) -> None:
    taken = [sample(float(at), at, [slot(accepted=at)]) for at in range(130)]
    recorder = Recorder(tmp_path / "day.fsr", HEADER)
    for one in taken:
        recorder.add(one)
    recorder.close()
    recording = Recording(tmp_path / "day.fsr")
    assert recording.header == HEADER
    assert list(recording) == taken
    assert not recording.cut_short


@given(st.data())
def test_a_recording_cut_anywhere_keeps_its_whole_blocks(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("cut") / "day.fsr"
    recorder = Recorder(path, HEADER)
    for at in range(150):
        recorder.add(sample(float(at), at))
    recorder.close()
    whole = path.read_bytes()
    kept = data.draw(st.integers(0, len(whole) - 1))
    path.write_bytes(whole[:kept])
    try:
        recording = Recording(path)
    except UsageError as error:
        assert "cut short" in str(error) or "not a recording" in str(error)
        return
    samples = list(recording)
    assert len(samples) in (0, 60, 120)
    assert [one.time for one in samples] == [float(at) for at in range(len(samples))]


def test_a_damaged_block_ends_the_recording(tmp_path: Path) -> None:
    path = tmp_path / "day.fsr"
    record_hours(path, 10, 2)
    damaged = bytearray(path.read_bytes())
    damaged[-10] ^= 0xFF
    path.write_bytes(damaged)
    recording = Recording(path)
    assert len(list(recording)) == 60
    assert recording.cut_short


def test_a_day_of_24_cpus_and_24_workers_is_small(tmp_path: Path) -> None:
    random = Random(1)
    path = tmp_path / "day.fsr"
    recorder = Recorder(path, HEADER)
    ticks = [0] * 24
    taken = [0] * 24
    count = 720  # an hour at the default interval of five seconds
    for index in range(count):
        ticks = [tick + random.randrange(100, 400) for tick in ticks]
        taken = [have + random.randrange(50_000, 60_000) for have in taken]
        cores = [
            Core(cpu, index * 500, ticks[cpu], ticks[cpu] // 3, taken[cpu]) for cpu in range(24)
        ]
        slots = [slot(cpu, accepted=taken[cpu], assigned=taken[cpu] + 3) for cpu in range(24)]
        recorder.add(
            Sample(1e9 + 5 * index, cores, [Listener(9, "::", 80, "select", 0, slots)], {})
        )
    recorder.close()
    assert path.stat().st_size * 24 < 16 << 20


def test_a_sample_costs_less_than_half_a_percent_of_a_core(tmp_path: Path) -> None:
    columns = " ".join(str(10**6 + column) for column in range(10))
    proc = tmp_path / "proc"
    proc.mkdir()
    (proc / "stat").write_text("".join(f"cpu{cpu} {columns}\n" for cpu in range(64)))
    counts = " ".join("123456" for _ in range(64))
    names = " ".join(f"CPU{cpu}" for cpu in range(64))
    (proc / "softirqs").write_text(f"{names}\nNET_RX: {counts}\n")
    listeners = [Listener(9, "::", 80, "select", 0, [slot(number) for number in range(64)])]
    source = HostSource(listeners=lambda: listeners, proc=proc)
    recorder = Recorder(tmp_path / "day.fsr", HEADER)
    start = time.process_time()
    for _ in range(120):
        recorder.add(source.read())
    used = (time.process_time() - start) / 120
    recorder.close()
    assert used < 0.005 * seconds("5s")


def test_command_records_and_report_draws_it(tmp_path: Path) -> None:
    path, page = tmp_path / "now.fsr", tmp_path / "now.html"
    words = [str(path), "--interval", "0.05", "--duration", "0.3", "--json"]
    result = CliRunner().invoke(record_command, words)
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    assert 2 <= said["samples"] <= 7
    assert said["bytes"] == path.stat().st_size
    result = CliRunner().invoke(report_command, [str(path), "-o", str(page)])
    assert result.exit_code == 0, result.output
    assert "CPU use per core, now" in page.read_text()
    result = CliRunner().invoke(record_command, [str(path)])
    assert isinstance(result.exception, ConflictError)


def test_a_day_becomes_one_chart_with_a_line_for_each_cpu(tmp_path: Path) -> None:
    path = tmp_path / "day.fsr"
    record_hours(path, 24, 8)
    result = CliRunner().invoke(report_command, [str(path), "--markdown"])
    assert result.exit_code == 0, result.output
    # CPU 2 was given 150 busy ticks in each 500.
    assert "| 2 | 30.0 % | 4.0 % | 0 |" in result.stdout
    assert "| 7 | 80.0 % |" in result.stdout
    page = tmp_path / "day.html"
    assert CliRunner().invoke(report_command, [str(path), "-o", str(page)]).exit_code == 0
    assert page.read_text().count("<polyline") == 8
    assert "8 CPUs over 23.9 hours" in page.read_text()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (MAGIC[:-2] + b"2\n", "not a recording of this version"),
        (MAGIC, "cut short"),
        (MAGIC + struct.pack("<II", 9, 9) + b"short", "cut short"),
    ],
)
def test_bad_recordings_get_one_clear_line(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "bad.fsr"
    path.write_bytes(content)
    result = CliRunner().invoke(report_command, [str(path), "--markdown"])
    assert isinstance(result.exception, FastsocketError)
    assert said in str(result.exception)


@pytest.mark.parametrize(
    ("text", "value"), [("90", 90), ("1.5s", 1.5), ("30m", 1800), ("24h", 86400), ("7d", 604800)]
)
def test_durations(text: str, value: float) -> None:
    assert seconds(text) == value


@pytest.mark.parametrize("text", ["", "0", "-3", "1y", "h", "1e3"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is no duration"):
        seconds(text)


class Clock:
    """A clock that stands still until somebody waits, and an event that is never set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)

    def wait(self, seconds: float) -> None:
        self.now += max(0, seconds)

    def is_set(self) -> bool:
        return False


def test_pace_is_kept_and_late_samples_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    taken: list[float] = []

    class Slow:
        def read(self) -> Sample | None:
            if len(taken) == 1:
                clock.wait(2.5)
            return sample(clock.now)

    record(Slow(), lambda one: taken.append(one.time), 1, 5, cast(Stop, clock))
    # The second sample took longer than two steps: one is left out, not made up for.
    assert taken == [0, 3.5, 3.5, 4, 5]


STATUS: dict[str, Any] = {
    "pid": 5,
    "keeper": 6,
    "listeners": [
        {
            "listener": 0,
            "address": "0.0.0.0",
            "port": 80,
            "tier": "select",
            "passed": 2,
            "unslotted": 0,
            "slots": [
                {
                    "slot": 4,
                    "pid": 77,
                    "tid": 77,
                    "cpu": None,
                    "pinned": True,
                    "state": "claimed",
                    "accepted": 10,
                    "assigned": 12,
                    "spilled": 1,
                    "live": 2,
                    "waiting": 2,
                    "busy": True,
                }
            ],
        }
    ],
}


def test_status_documents_become_listeners() -> None:
    (listener,) = listeners_of(STATUS)
    assert (listener.app, listener.port, listener.passed) == (5, 80, 2)
    assert listener.slots == [Slot(4, 77, -1, "claimed", True, 2, 2, 10, 12, 1)]
    with pytest.raises(msgspec.ValidationError):
        listeners_of({"pid": 5, "listeners": [{"address": "x"}]})


def test_known_applications_are_asked_again_and_new_ones_looked_for_rarely(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock(monkeypatch)
    searches: list[float] = []
    asked: list[tuple[int, int]] = []
    alive = True

    def find() -> list[dict[str, Any]]:
        searches.append(clock.now)
        return [STATUS]

    def again(pid: int, keeper: int) -> dict[str, Any] | None:
        asked.append((pid, keeper))
        return STATUS if alive else None

    applications = Applications(2, find, again)
    assert len(applications.read()) == 1
    assert len(applications.read()) == 1
    alive = False
    assert applications.read() == []
    assert applications.read() == []
    # One that is gone is not asked a second time, but found when the search is due.
    assert asked == [(5, 6), (5, 6)]
    assert len(searches) == 1
    clock.wait(2)
    assert len(applications.read()) == 1
    assert len(searches) == 2


def test_a_signal_ends_each_wait() -> None:
    """At whatever place of the wait it comes."""
    for delay in range(1, 100):
        stop = Stop()
        with stop_on_signals(stop):
            threading.Timer(delay / 1e5, os.kill, (os.getpid(), signal.SIGINT)).start()
            stop.wait()
            stop.wait()
        assert stop.is_set()
