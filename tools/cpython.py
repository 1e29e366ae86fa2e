# SPDX-License-Identifier: GPL-2.0-or-later
"""Run CPython's own network tests with and without libfsocket.so, and compare test by test.

A difference is a bug of ours. Both sides run at the same time, each in a network namespace of its
own where we are root, so that they cannot take each other's ports. Timing-dependent tests fail now
and then on a busy machine whatever is preloaded: a test whose results differ runs again several
times on both sides, and only then is it judged, by the rule of :func:`judge`.

    python tools/cpython.py            all modules, LD_PRELOAD
    python tools/cpython.py --launch test_httplib    the same under `fastsocket run`
"""

import argparse
import collections
import dataclasses
import functools
import os
import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import fastsocket
from fastsocket.native import library_name, native_file

__all__ = [
    "DESELECTED",
    "EPOLL",
    "MODULES",
    "Comparison",
    "Side",
    "compare",
    "judge",
    "read",
    "sides",
]

MODULES = (
    "test_socket",
    "test_epoll",
    "test_select",
    "test_selectors",
    "test_asyncio",
    "test_socketserver",
    "test_ssl",
    "test_httplib",
    "test_subprocess",
)
# Not run on either side: regrtest's pattern, and why.
DESELECTED = {
    "*VSOCK*": "connects through the hypervisor; hangs in machines without a vsock loopback",
    "*NetworkedTests*": "asks hosts on the Internet",
    "*NetworkConnection*": "asks hosts on the Internet",
}
# A module that takes longer has hung; the whole of the slowest takes about a third of it.
MODULE_SECONDS = 150
RERUNS = 4
# More differences than this are no flakiness, and rerunning them all would take too long.
MOST_RERUN = 60
EPOLL = library_name("off", fast_epoll=True)
SOURCES = Path(fastsocket.__file__).parents[1]
WHOLE = " (the module did not finish)"
# regrtest's progress line, "[ 3/37] test_select passed", and the ends that leave results.
ENDED = re.compile(r"\[ *\d+/\d+(?:/\d+)?\] (\S+) (.*)")
# unittest's heading, "FAIL: test_x (test.test_ssl.Class.test_x) (name='y')".
FAILED = re.compile(r"^(?:FAIL|ERROR): \S+ \((test\.[\w.]+)\)", re.MULTILINE)
ORDERLY = ("passed", "failed", "skipped", "run no tests", "ran no tests")


@dataclasses.dataclass(frozen=True)
class Side:
    """One way of running the tests: the words before the command and the variables added.

    Unless `watched` is false, each module has a thread that ends it when it takes too long.
    """

    name: str
    prefix: tuple[str, ...] = ()
    variables: Mapping[str, str] = dataclasses.field(default_factory=dict)
    watched: bool = True


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What came out: all results of stock, the proven differences, the unstable tests."""

    stock: dict[str, str]
    different: dict[str, str]
    unstable: dict[str, str]

    @property
    def failed(self) -> list[str]:
        """Return what failed on stock: the machine's limits, or CPython's own bugs."""
        return sorted(name for name, outcome in self.stock.items() if outcome == "failed")

    def text(self) -> str:
        """Return the report, one line a test."""
        counts = collections.Counter(self.stock.values())
        lines = [", ".join(f"{number} {name}" for name, number in sorted(counts.items()))]
        lines += [f"DIFFERENT {name}: {what}" for name, what in sorted(self.different.items())]
        lines += [f"unstable {name}: {what}" for name, what in sorted(self.unstable.items())]
        same = set(self.failed) - set(self.different) - set(self.unstable)
        lines += [f"failed on both sides {name}" for name in sorted(same)]
        lines += [f"not run {pattern}: {why}" for pattern, why in DESELECTED.items()]
        return "\n".join(lines)


def sides(launch: bool = False, library: str = "libfsocket.so") -> tuple[Side, Side]:
    """Return stock and accelerated: by LD_PRELOAD, or under `fastsocket run` if launch is set."""
    if launch:
        # Not -m: the tests run in another folder, and PYTHONPATH would change what they test.
        find = f"import sys; sys.path.insert(0, {str(SOURCES)!r})"
        code = f"{find}; from fastsocket.cli.main import main; main()"
        command = (sys.executable, "-c", code, "run", "--")
        return Side("stock"), Side("run", prefix=command)
    # Fast epoll is for processes without threads.
    watched = "-epoll" not in library
    prefix = () if watched else ("timeout", f"{2 * MODULE_SECONDS}")
    preload = {"LD_PRELOAD": str(native_file(library))}
    return Side("stock", prefix, {}, watched), Side("preload", prefix, preload, watched)


@functools.cache
def interpreter() -> str:
    """Return a Python that has its test modules: Debian's, else the one this runs on.

    Raises:
        FileNotFoundError: Neither has them; the message names the Debian package.
    """
    probe = "import test.test_socket, test.libregrtest"
    for path in ("/usr/bin/python3.11", f"{sys.base_prefix}/bin/python3"):
        if Path(path).exists():
            done = subprocess.run([path, "-c", probe], capture_output=True, check=False)
            if done.returncode == 0:
                return path
    raise FileNotFoundError("no Python here has its test modules: install libpython3.11-testsuite")


def read(document: str, output: str = "") -> dict[str, str]:
    """Return the outcome (passed, failed, skipped) of each test.

    Args:
        document: regrtest's JUnit file.
        output: What regrtest printed: of a test that failed in a subtest the file has no name.
    """
    outcomes = dict.fromkeys(FAILED.findall(output), "failed")
    for case in ET.fromstring(document).iter("testcase"):
        if "name" in case.attrib:
            tags = {child.tag for child in case}
            outcome = "failed" if tags & {"failure", "error"} else "passed"
            outcomes[case.attrib["name"]] = "skipped" if "skipped" in tags else outcome
    return outcomes


def judge(stock: Sequence[str], ours: Sequence[str]) -> bool:
    """Tell whether the outcomes of one test, over all its runs on both sides, differ for real.

    They do if the most frequent outcomes differ, or if a test that always passed on stock failed
    more than once on ours: a bug that shows now and then is a bug. One stray failure is no proof.
    """
    usual, other = (collections.Counter(side).most_common(1)[0][0] for side in (stock, ours))
    return usual != other or (set(stock) == {usual} and sum(one != usual for one in ours) > 1)


def compare(modules: Sequence[str], pair: tuple[Side, Side]) -> Comparison:
    """Run the modules on both sides at once, then rerun what differs; return the verdicts."""
    modules = _expanded(modules)
    first = [_finish(run) for run in [_start(side, modules) for side in pair]]
    suspects = _differing(*first)
    seen = [{name: [side.get(name, "absent")] for name in suspects} for side in first]
    if suspects and len(suspects) <= MOST_RERUN:
        for _ in range(RERUNS):
            runs = [_start(side, _modules_of(suspects), suspects) for side in pair]
            for again, outcomes in zip([_finish(run) for run in runs], seen, strict=True):
                for name in suspects:
                    outcomes[name].append(again.get(name, "absent"))
    told = {name: _told(pair, seen[0][name], seen[1][name]) for name in suspects}
    real = {name for name in suspects if judge(seen[0][name], seen[1][name])}
    return Comparison(
        first[0],
        {name: text for name, text in told.items() if name in real},
        {name: text for name, text in told.items() if name not in real},
    )


def _expanded(modules: Iterable[str]) -> list[str]:
    """Replace a package, such as test_asyncio, by its modules: the time limit is for each."""
    code = "import importlib, sys; print(importlib.import_module('test.' + sys.argv[1]).__file__)"
    names: list[str] = []
    for module in modules:
        found = subprocess.run(
            [interpreter(), "-c", code, module], capture_output=True, text=True, check=False
        )
        path = Path(found.stdout.strip())
        if path.name == "__init__.py":
            names += [f"{module}.{part.stem}" for part in sorted(path.parent.glob("test_*.py"))]
        else:
            names.append(module)
    return names


def _differing(stock: Mapping[str, str], ours: Mapping[str, str]) -> list[str]:
    """Return the tests that differ; a module that did not finish on one side is one difference."""
    names = set(stock) | set(ours)
    lost = tuple(f"{name.removesuffix(WHOLE)}." for name in names if name.endswith(WHOLE))
    different = {name for name in names if stock.get(name, "absent") != ours.get(name, "absent")}
    return sorted(name for name in different if not name.startswith(lost))


def _told(pair: tuple[Side, Side], stock: Sequence[str], ours: Sequence[str]) -> str:
    return ", ".join(
        f"{side.name} {'/'.join(f'{n} {what}' for what, n in collections.Counter(seen).items())}"
        for side, seen in zip(pair, (stock, ours), strict=True)
    )


@dataclasses.dataclass
class _Run:
    name: str
    process: subprocess.Popen[str]
    folder: tempfile.TemporaryDirectory[str]


def _start(side: Side, modules: Iterable[str], only: Sequence[str] = ()) -> _Run:
    folder = tempfile.TemporaryDirectory(prefix="fastsocket-cpython-")
    # A module that did not finish is rerun whole, and the others with it.
    exact = not any(name.endswith(WHOLE) for name in only)
    selection = [word for name in only for word in ("-m", name)] if exact else []
    command = [
        *side.prefix,
        interpreter(),
        "-m",
        "test",
        "-W",
        "-j2",
    ]
    if side.watched:
        command.append(f"--timeout={MODULE_SECONDS}")
    # test_socketserver asks for the resource "network", though it stays on the loopback.
    command += ["-u", "network", "--tempdir", folder.name]
    command += ["--junit-xml", f"{folder.name}/results.xml", *selection]
    command += [word for pattern in DESELECTED for word in ("-i", pattern)]
    if os.geteuid() == 0:
        inside = 'ip link set lo up && exec "$@"'
        command = ["unshare", "--net", "sh", "-c", inside, "sh", *command]
    process = subprocess.Popen(
        [*command, *modules],
        cwd=folder.name,
        env=os.environ | side.variables,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    return _Run(side.name, process, folder)


def _finish(run: _Run) -> dict[str, str]:
    """Wait; a module that crashed or hung has no results, and stands for itself as failed.

    Raises:
        RuntimeError: No test module ran at all; the message has the end of the output.
    """
    with run.folder:
        output = run.process.communicate()[0]
        path = Path(run.folder.name, "results.xml")
        outcomes = read(path.read_text(), output) if path.exists() else {}
    ends = dict(ENDED.findall(output))
    lost = {name for name, end in ends.items() if not end.startswith(ORDERLY)}
    if not ends:
        raise RuntimeError(f"{run.name} ran no tests: {output[-500:]}")
    for module in lost:
        outcomes[f"test.{module}{WHOLE}"] = "failed"
    return outcomes


def _modules_of(names: Iterable[str]) -> list[str]:
    """Return the modules, as regrtest takes them, of dotted test names."""
    found = set()
    for name in names:
        parts = name.removesuffix(WHOLE).split(".")[1:]
        # test.test_ssl.Class.method, but test.test_asyncio.test_ssl.Class.method
        nested = len(parts) > 1 and parts[1].startswith("test_")
        found.add(".".join(parts[:2] if nested else parts[:1]))
    return sorted(found)


def main() -> int:
    """Compare, print the report, return 1 where something differs."""
    parser = argparse.ArgumentParser(description="CPython's tests with and without Fastsocket.")
    parser.add_argument("--launch", action="store_true", help="under fastsocket run")
    parser.add_argument("--library", default="libfsocket.so", help="the one that is preloaded")
    parser.add_argument("modules", nargs="*", default=MODULES)
    chosen = parser.parse_args()
    result = compare(chosen.modules, sides(chosen.launch, chosen.library))
    print(result.text())
    return bool(result.different)


if __name__ == "__main__":
    sys.exit(main())
