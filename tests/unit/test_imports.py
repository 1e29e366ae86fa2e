# SPDX-License-Identifier: GPL-2.0-or-later
"""Imports run one way, from the command line down to the host.

cli → app, steer, nic, bench, observe, report → listen, local → bpf, host → the rest.
"""

import ast
import graphlib
import warnings
from pathlib import Path

import pytest

import fastsocket

pytestmark = pytest.mark.unit

ROOT = Path(fastsocket.__file__).parent
# A package imports from its own layer or from further down, never upwards and never in a circle.
LAYERS = [
    {"__main__"},
    {"cli"},
    {"app", "steer", "nic", "bench", "observe", "report"},
    {"listen", "local"},
    {"bpf", "host"},
    {"config", "native", "profile"},
    {"errors", ""},
]
MOST_LINES = 400
RULES = ROOT / "steer/rules"


def layer(name: str) -> int:
    """Return the number of the layer of fastsocket.<name>, 0 on top."""
    for number, names in enumerate(LAYERS):
        if name in names:
            return number
    raise AssertionError(f"fastsocket.{name} belongs to no layer: add it to LAYERS")


def owner(module: str) -> str:
    """Return the package of a dotted module: fastsocket.nic.plan gives nic."""
    return [*module.split("."), ""][1]


def imports(path: Path, module: str) -> set[str]:
    """Return the dotted names under fastsocket that a source file imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".")[: -node.level]
                base = ".".join([*parents, *([base] if base else [])])
            # "from fastsocket import nic" imports the package nic.
            names |= (
                {f"{base}.{alias.name}" for alias in node.names} if base == "fastsocket" else {base}
            )
    return {name for name in names if name.split(".")[0] == "fastsocket"}


def sources() -> list[tuple[Path, str]]:
    """Return each source file with its dotted module name; steering rules are no modules."""
    found = []
    for path in sorted(set(ROOT.rglob("*.py")) - set(RULES.glob("[!_]*.py"))):
        parts = [*path.relative_to(ROOT.parent).with_suffix("").parts]
        found.append((path, ".".join(parts)))
    return found


def package_imports() -> dict[str, set[str]]:
    """Return, for each package, the packages that its modules import."""
    graph: dict[str, set[str]] = {}
    for path, module in sources():
        here = owner(module.removesuffix(".__init__"))
        for name in imports(path, module):
            there = owner(name)
            if not (ROOT / there).is_dir() and not (ROOT / f"{there}.py").exists():
                there = ""  # a name of fastsocket/__init__.py, such as __version__
            if there != here:
                graph.setdefault(here, set()).add(there)
    return graph


def test_imports_run_one_way() -> None:
    graph = package_imports()
    upwards = [
        f"{here} imports {there}"
        for here, names in graph.items()
        for there in names
        if layer(there) < layer(here)
    ]
    assert not upwards


def test_no_packages_import_each_other() -> None:
    graphlib.TopologicalSorter(package_imports()).prepare()  # raises CycleError with the circle


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("from fastsocket.nic import plan", {"fastsocket.nic"}),
        ("from fastsocket import nic", {"fastsocket.nic"}),
        ("from . import plan", {"fastsocket.nic"}),
        ("from ..bpf import maps", {"fastsocket.bpf"}),
        ("def f():\n    import fastsocket.bpf.maps as m", {"fastsocket.bpf.maps"}),
        ("import os", set()),
    ],
)
def test_every_form_of_import_is_seen(tmp_path: Path, source: str, expected: set[str]) -> None:
    path = tmp_path / "show.py"
    path.write_text(source)
    assert imports(path, "fastsocket.nic.show") == expected


def test_every_module_says_what_it_exports() -> None:
    without = [
        module
        for path, module in sources()
        if not module.endswith("__init__") and "__all__" not in path.read_text()
    ]
    assert not without


def test_modules_stay_short() -> None:
    for path, module in sources():
        lines = len(path.read_text().splitlines())
        assert lines <= MOST_LINES * 3 // 2, f"{module} has {lines} lines: split it"
        if lines > MOST_LINES:
            warnings.warn(f"{module} has {lines} lines, more than {MOST_LINES}", stacklevel=1)
