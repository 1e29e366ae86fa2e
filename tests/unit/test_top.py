# SPDX-License-Identifier: GPL-2.0-or-later
"""The live view on screens of several sizes, fed with samples that are made up."""

import asyncio
import html
import json
import os
import re
from collections import defaultdict
from pathlib import Path

import pytest
from click.testing import CliRunner
from textual.pilot import Pilot

from fastsocket.cli.top import command
from fastsocket.errors import FastsocketError, UsageError
from fastsocket.observe.lines import CELL, core_grid, slot_columns, sort_slots
from fastsocket.observe.recording import Header, Recorder
from fastsocket.observe.sample import Core, CoreUse, Listener, Sample, Slot, SlotUse, rates
from fastsocket.observe.screen import LiveView

pytestmark = pytest.mark.unit

GOLDEN = Path(__file__).parents[1] / "golden" / "top"


def sample(step: int, cpus: int = 8, workers: int = 8) -> Sample:
    cores = [
        Core(cpu, 100 * step, (20 + 9 * cpu) * step, 8 * step, 900 * step) for cpu in range(cpus)
    ]
    slots = [
        Slot(
            number,
            4200 + number,
            number % cpus,
            "claimed",
            number % 3 == 0,
            40 + number,
            7 if number == 3 else 0,
            0 if number == 3 else (3000 + 10 * number) * step,
            (3000 + 10 * number) * step + 7,
            12 * step,
        )
        for number in range(workers)
    ]
    listeners = [Listener(4199, "0.0.0.0", 80, "select", 2 * step, slots)] if workers else []
    return Sample(1e9 + step, cores, listeners, {"by_port": 500 * step})


class Samples:
    """A source of a number of samples."""

    def __init__(self, count: int, **shape: int) -> None:
        self._samples = iter([sample(step, **shape) for step in range(count)])
        self.taken = 0

    def read(self) -> Sample | None:
        self.taken += 1
        return next(self._samples, None)


def lines(screen: LiveView) -> list[str]:
    """Return the text on the screen, by line, out of a screenshot."""
    rows: dict[int, dict[int, str]] = defaultdict(dict)
    pattern = r'<text class="[^"]*-r\d+" x="([\d.]+)"[^>]*-line-(\d+)\)">(.*?)</text>'
    for x, line, text in re.findall(pattern, screen.export_screenshot()):
        column = round(float(x) / 12.2)
        for offset, letter in enumerate(html.unescape(text)):
            rows[int(line)][column + offset] = " " if letter == "\xa0" else letter
    return [
        "".join(row.get(column, " ") for column in range(max(row, default=-1) + 1)).rstrip()
        for row in (rows[line] for line in range(max(rows) + 1))
    ]


def shown(source: Samples, width: int, height: int, *keys: str, samples: int = 2) -> list[str]:
    """Run the view until it took `samples`, press keys, and return its text."""

    async def drive() -> list[str]:
        # The pace is set by the test, not by the clock.
        screen = LiveView(source, 3600, "web1")
        async with screen.run_test(size=(width, height)) as pilot:
            for _ in range(samples - 1):
                screen.tick()
            await press(pilot, keys)
            return lines(screen)

    return asyncio.run(drive())


async def press(pilot: Pilot[None], keys: tuple[str, ...]) -> None:
    await pilot.pause()
    for key in keys:
        await pilot.press(key)
    await pilot.pause()


@pytest.mark.parametrize(
    ("name", "width", "height", "cpus", "workers"),
    [
        ("80x24", 80, 24, 8, 8),
        ("80x24-24-cpus", 80, 24, 24, 24),
        ("40x24", 40, 24, 4, 4),
        ("80x24-idle", 80, 24, 2, 0),
    ],
)
def test_screen_is_as_it_was_looked_at(
    name: str, width: int, height: int, cpus: int, workers: int
) -> None:
    text = shown(Samples(2, cpus=cpus, workers=workers), width, height)
    golden = GOLDEN / f"{name}.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        golden.write_text("\n".join(text) + "\n")
    assert len(text) <= height
    assert max(map(len, text)) <= width
    assert "\n".join(text) + "\n" == golden.read_text()


def test_keys_pause_sort_and_change_the_pace() -> None:
    async def drive() -> None:
        source = Samples(9)
        screen = LiveView(source, 1, "web1")
        async with screen.run_test(size=(80, 24)) as pilot:
            screen.tick()
            await press(pilot, ("p",))
            taken = source.taken
            screen.tick()
            assert source.taken == taken
            assert "paused" in lines(screen)[0]
            await press(pilot, ("s",))
            text = lines(screen)
            assert "sorted by accepts" in text[0]
            rows = [line for line in text if "0.0.0.0:80" in line]
            assert " 4207 " in rows[0]
            assert " 4203 " in rows[-1]
            await press(pilot, ("+", "+"))
            assert "every 0.25 s" in lines(screen)[0]
            await press(pilot, ("+", "-"))
            assert "every 0.5 s" in lines(screen)[0]
            await press(pilot, ("p",))
            screen.tick()
            assert source.taken > taken
            await press(pilot, ("q",))
        assert screen.return_code == 0

    asyncio.run(drive())


def test_the_end_of_a_recording_keeps_the_last_picture() -> None:
    text = shown(Samples(2), 80, 24, samples=4)
    assert "end of the recording" in text[0]
    assert any("4201" in line for line in text)


def test_grid_uses_the_width_there_is() -> None:
    cores = [CoreUse(cpu, 50.0, 25.0, 0.0) for cpu in range(10)]
    for width in (20, 40, 80, 200):
        text = core_grid(cores, width).plain.splitlines()[1:]
        assert max(map(len, text)) <= width
        assert len(text) == -(-10 // min(10, width // CELL))
    # Half of the bar is filled, and a quarter of it is softirq, told apart without colour.
    assert "▓▓██···  50% 25" in core_grid(cores[:1], 20).plain


@pytest.mark.parametrize("width", [40, 79, 80, 200])
def test_worker_table_fits_its_screen(width: int) -> None:
    # A cell has a column of room on each side.
    assert sum(size + 2 for _, _, size in slot_columns(width)) <= width


def test_sorting_puts_the_greatest_first() -> None:
    slots = rates(sample(0), sample(1)).slots

    def pids(uses: list[SlotUse]) -> list[int]:
        return [use.slot.pid for use in uses]

    assert pids(sort_slots(slots, "waiting"))[0] == 4203
    assert pids(sort_slots(slots, "live"))[0] == 4207
    assert pids(sort_slots(slots, "slot")) == list(range(4200, 4208))


def test_json_prints_one_interval_of_a_recording(tmp_path: Path) -> None:
    path = tmp_path / "day.fsr"
    recorder = Recorder(path, Header("web1", "6.18", "cpu", 1.0))
    for step in range(3):
        recorder.add(sample(step))
    recorder.close()
    result = CliRunner().invoke(command, ["--replay", str(path), "--json"])
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert [core["busy"] for core in document["cores"]] == [20 + 9 * cpu for cpu in range(8)]
    assert document["slots"][1]["accepts"] == 3010
    assert document["slots"][3]["stalled"] is True
    assert document["steering"] == {"by_port": 500}
    assert document["local_percent"] == pytest.approx(99.6, abs=0.1)


def test_without_a_terminal_it_says_what_to_do() -> None:
    result = CliRunner().invoke(command, [])
    assert isinstance(result.exception, UsageError)
    assert "top --json" in str(result.exception)


def test_one_sample_makes_no_rates(tmp_path: Path) -> None:
    path = tmp_path / "day.fsr"
    recorder = Recorder(path, Header("web1", "6.18", "cpu", 1.0))
    recorder.add(sample(0))
    recorder.close()
    result = CliRunner().invoke(command, ["--replay", str(path), "--json"])
    assert isinstance(result.exception, FastsocketError)
