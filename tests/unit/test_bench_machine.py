# SPDX-License-Identifier: GPL-2.0-or-later
"""`bench scale --vm` but for the machine: what is kept, resumed, refused and written."""

import io
import subprocess
from pathlib import Path

import jsonschema
import msgspec
import pytest
from rich.console import Console

from fastsocket.bench import machine as module
from fastsocket.bench.guest import METRICS, Counted, Order, comm_of, deviation, part_file
from fastsocket.bench.machine import KIND, Machine, count_in_machine, machine_counts
from fastsocket.bench.modes import Mode
from fastsocket.bench.result import schema, write
from fastsocket.bench.table import print_result
from fastsocket.errors import ConflictError, FastsocketError, MissingFeatureError, UsageError
from fastsocket.report.metrics import metric_text
from fastsocket.report.results import load_results
from fastsocket.report.sections import result_sections

pytestmark = pytest.mark.unit

MODES = (Mode.STOCK, Mode.FASTSOCKET)


class Fake(Machine):
    """Boots nothing: writes the parts of the first `complete` core counts, and ends or hangs."""

    complete, hangs, booted = 99, False, 0

    def boot(self, directory, command, log):
        Fake.booted += 1
        log.write_bytes(b"booting\n\n")
        order = msgspec.json.decode((directory / "order.json").read_bytes(), type=Order)
        for cores in order.counts[: self.complete]:
            counts = dict.fromkeys(METRICS, 2.0) | {"lock_contentions_per_1k": float(cores)}
            values = dict.fromkeys(order.modes, counts)
            sites = {mode: {"inet_put_port": 1.0} for mode in order.modes}
            part = Counted(order, "6.1.0", cores, values, sites, ["a note"])
            part_file(directory, cores).write_bytes(msgspec.json.encode(part))
        words = ["sleep", "60"] if self.hangs else ["true"]
        return subprocess.Popen(words, start_new_session=True)


@pytest.fixture(autouse=True)
def fake(monkeypatch):
    monkeypatch.setattr(
        module.Machine, "find", lambda cpus: Fake(cpus, Path("/boot/vmlinuz"), Path("/bin/vng"))
    )
    monkeypatch.setattr(Fake, "complete", 99)
    monkeypatch.setattr(Fake, "hangs", False)
    monkeypatch.setattr(Fake, "booted", 0)


@pytest.mark.parametrize(
    ("command", "name"),
    [
        (["/usr/sbin/haproxy", "-db"], "haproxy"),
        (["/opt/fastsocket-demonstration", "-w", "2"], "fastsocket-demo"),
    ],
)
def test_tasks_are_named_as_the_kernel_does(command, name):
    assert comm_of(command) == name


def counted(parts, **changes):
    words = {"server": "nginx", "modes": MODES, "counts": [2, 4, 8], "parts": parts, **changes}
    return count_in_machine(8, **words)


def test_core_counts_are_powers_of_two_and_all():
    assert machine_counts(24) == [2, 4, 8, 16, 24]
    assert machine_counts(4) == [2, 4]


def test_deviation_is_of_the_farthest_core():
    assert deviation([100, 100, 106, 94], 4) == pytest.approx(6)
    assert deviation([100], 2) == 100
    assert deviation([], 2) is None


def test_a_result_says_what_it_is_no_measure_of(tmp_path):
    document = counted(tmp_path).document()
    jsonschema.validate(document, schema())
    assert document["kind"] == KIND
    assert (document["host"]["kernel"], document["host"]["cpus"]) == ("6.1.0", 8)
    assert [point["cores"] for point in document["points"]] == [2, 4, 8]
    assert document["points"][0]["call_sites"]["stock"] == {"inet_put_port": 1.0}
    assert document["ratios"]["fastsocket/stock"]["resched_ipis_per_1k"]["median"] == 1
    assert document["notes"].count("a note") == 1


def test_report_and_table_show_counts_by_cores_and_no_speed(tmp_path):
    result = counted(tmp_path / "parts")
    write(result, tmp_path / "vm.json", force=False)
    (section, _) = result_sections(load_results(tmp_path / "vm.json"))
    assert section.title == f"Counts by cores ({KIND}): nginx"
    captions = [table.caption for table in section.tables]
    assert captions[: len(METRICS)] == [f"{metric_text(name).label} by cores" for name in METRICS]
    assert captions[-1].endswith("by call site, 8 cores")
    grown = "from 2 cores to 8: stock from 2 to 8 (4.00×); fastsocket from 2 to 8 (4.00×)."
    assert section.text[-1].endswith(grown)
    console = Console(width=80, file=io.StringIO())
    print_result(result, console)
    text = console.file.getvalue()
    assert KIND in text.splitlines()[0]
    assert "connections/s" not in text.lower()


def test_complete_core_counts_are_not_run_again(tmp_path):
    Fake.complete = 2
    with pytest.raises(FastsocketError, match="ended early; booting"):
        counted(tmp_path)
    Fake.complete = 99
    kept = part_file(tmp_path, 2).stat().st_mtime_ns
    assert [point.cores for point in counted(tmp_path).points] == [2, 4, 8]
    assert part_file(tmp_path, 2).stat().st_mtime_ns == kept
    counted(tmp_path)
    assert Fake.booted == 2


def test_time_over_keeps_what_is_complete(tmp_path):
    Fake.complete, Fake.hangs = 1, True
    with pytest.raises(FastsocketError, match="2 core counts were not complete in time"):
        counted(tmp_path, budget_seconds=0.5)
    assert part_file(tmp_path, 2).exists()


def test_parts_of_another_run_are_refused_but_for_force(tmp_path):
    counted(tmp_path)
    with pytest.raises(ConflictError, match="--force"):
        counted(tmp_path, connections=7)
    counted(tmp_path, connections=7, force=True)
    part_file(tmp_path, 4).write_bytes(b"{")
    with pytest.raises(ConflictError, match="cannot be read"):
        counted(tmp_path, connections=7)


@pytest.mark.parametrize("counts", [[1], [2, 16]])
def test_core_counts_that_the_machine_has_not(tmp_path, counts):
    with pytest.raises(UsageError, match="the machine has 8 CPUs"):
        counted(tmp_path, counts=counts)


def test_what_is_missing_is_named(monkeypatch, tmp_path):
    monkeypatch.undo()
    with pytest.raises(UsageError, match="1 virtual CPUs"):
        Machine.find(1)
    monkeypatch.setattr(module.sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(MissingFeatureError, match="virtme-ng"):
        Machine.find(4)
