# SPDX-License-Identifier: GPL-2.0-or-later
"""The Python side of steer.h against the BTF of what was built; the fields against the bitcode."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import llvmlite.binding as llvm
import pytest

from fastsocket.host import slices
from fastsocket.native import native_file
from fastsocket.steer.language import FIELDS, LIMITS, SLOTS
from fastsocket.steer.layout import MAX_CPUS, Exit, Queue, Settings, State

pytestmark = pytest.mark.unit

if not shutil.which("bpftool"):
    pytest.skip("needs bpftool", allow_module_level=True)


@pytest.fixture(scope="module")
def types() -> list[dict[str, object]]:
    path = native_file("steer-c-least_loaded.bpf.o")
    words = ["bpftool", "-j", "btf", "dump", "file", str(path)]
    found: list[dict[str, object]] = json.loads(subprocess.check_output(words))["types"]
    return found


def named(types: list[dict[str, object]], kind: str, name: str) -> dict[str, object]:
    return next(t for t in types if t["kind"] == kind and t["name"] == name)


@pytest.mark.parametrize(
    ("structure", "name"),
    [(Settings, "steer_settings"), (State, "steer_state"), (Queue, "steer_queue")],
)
def test_structures(types: list[dict[str, object]], structure: type, name: str) -> None:
    found = named(types, "STRUCT", name)
    expected = {label: getattr(structure, label).offset * 8 for label, *_ in structure._fields_}
    assert {m["name"]: m["bits_offset"] for m in found["members"]} == expected


def test_exits_and_limits() -> None:
    header = (Path(__file__).parents[2] / "native/include/steer.h").read_text()
    names = re.search(r"enum steer_exit \{(.*?)\};", header, re.DOTALL)
    assert names is not None
    expected = [f"STEER_{way.name}" for way in sorted(Exit)]
    assert re.findall(r"^\t(STEER_\w+)", names[1], re.MULTILINE) == [*expected, "STEER_EXITS"]
    numbers = dict(re.findall(r"#define STEER_(\w+)\s+(\d+)", header))
    assert numbers == {
        "MAX_CPUS": str(MAX_CPUS),
        "TABLES": str(SLOTS),
        "COUNTERS": str(LIMITS.counters),
    }


def test_fields_tables_and_counters_are_those_of_the_dispatcher() -> None:
    llvm.initialize_all_targets()
    module = llvm.parse_bitcode(native_file("steer.bc").read_bytes())
    functions = {function.name for function in module.functions}
    assert {name[6:] for name in functions if name.startswith("field_")} == set(FIELDS)
    for kind, verb in (("table", "get"), ("array", "get"), ("prefixes", "get_src")):
        slots = {name for name in functions if re.fullmatch(rf"{kind}_\d+_{verb}", name)}
        assert len(slots) == SLOTS
    assert slices.BLOCKS * slices.BLOCK == 65536
