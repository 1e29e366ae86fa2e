# SPDX-License-Identifier: GPL-2.0-or-later
"""The result document of a benchmark: what `--json` prints and `--output` writes.

`result.schema.json` beside this module is its JSON schema; a test holds both together.
"""

import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import msgspec

from fastsocket import __version__
from fastsocket.bench.law import Verdict
from fastsocket.errors import ConflictError, FastsocketError

__all__ = [
    "FORMAT",
    "Core",
    "Host",
    "Interval",
    "Metric",
    "Point",
    "Ratio",
    "Result",
    "describe_host",
    "schema",
    "write",
]

FORMAT = 1


class Interval(msgspec.Struct, frozen=True):
    """A median and its 95 % bootstrap interval; all None where nothing could be measured."""

    median: float | None
    low: float | None
    high: float | None


class Ratio(Interval, frozen=True):
    """The median of the rounds' ratios, and of how many rounds.

    A round without both values, or with nothing to divide by, has no ratio. `pairs` is None in
    files from before it was written.
    """

    pairs: int | None = None


class Metric(msgspec.Struct, frozen=True, omit_defaults=True):
    """One metric of one mode: interval, unit, and one sample a round (None: not measured)."""

    median: float | None
    low: float | None
    high: float | None
    unit: str
    samples: list[float | None]
    reason: str = ""


class Host(msgspec.Struct, frozen=True):
    """Where it was measured: kernel release, CPUs usable, CPU model, commit of Fastsocket."""

    kernel: str
    cpus: int
    model: str
    commit: str


class Core(msgspec.Struct, frozen=True):
    """How one CPU spent the runs, in percent of its time; `busy` includes `softirq`."""

    cpu: int
    busy: float
    softirq: float


class Point(msgspec.Struct, frozen=True, omit_defaults=True):
    """The figures of one number of cores: those of :class:`Result`."""

    cores: int
    modes: dict[str, dict[str, Metric]]
    ratios: dict[str, dict[str, Ratio]]
    per_core: dict[str, list[Core]]
    call_sites: dict[str, dict[str, float]] = {}


class Result(msgspec.Struct, frozen=True, omit_defaults=True):
    """A whole benchmark run.

    `call_sites` is contentions per 1,000 connections by mode and kernel function, `woken`
    reschedule interrupts by mode and woken task; both come from a run beside the rounds. `kind`
    names a run that is no measure of speed.
    `per_core` is the use of each CPU by mode. `points` are the figures by number of cores and `usl`
    the scalability law by mode: those two only where more than one number was run.
    """

    format: int
    scenario: str
    server: str
    client: str
    host: Host
    date: str
    rounds: int
    seconds: float
    connections: int
    seed: int
    interrupted: bool
    run_options: list[str]
    notes: list[str]
    modes: dict[str, dict[str, Metric]]
    ratios: dict[str, dict[str, Ratio]]
    call_sites: dict[str, dict[str, float]]
    client_options: list[str] = []
    woken: dict[str, dict[str, float]] = {}
    kind: str = ""
    per_core: dict[str, list[Core]] = {}
    points: list[Point] = []
    usl: dict[str, Verdict] = {}

    def document(self) -> dict[str, Any]:
        """Return plain dictionaries and lists, ready for JSON."""
        plain: dict[str, Any] = msgspec.to_builtins(self)
        return plain


def schema() -> dict[str, Any]:
    """Return the JSON schema of :class:`Result`."""
    text = Path(__file__).with_name("result.schema.json").read_text(encoding="utf-8")
    loaded: dict[str, Any] = json.loads(text)
    return loaded


def describe_host() -> Host:
    """Return this machine's facts."""
    return Host(
        kernel=platform.release(),
        cpus=len(os.sched_getaffinity(0)),
        model=_model(Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")),
        commit=_commit(),
    )


def write(result: Result, path: Path, force: bool) -> None:
    """Write the document to `path` in one step: a reader never sees half of it.

    Raises:
        ConflictError: The file exists and `force` is off.
        FastsocketError: It cannot be written.
    """
    if path.exists() and not force:
        raise ConflictError(f"{path} exists", "results are not overwritten", "add --force")
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(json.dumps(result.document(), indent=1) + "\n", encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise FastsocketError(f"{path} cannot be written", error.strerror or "") from error


def _model(cpuinfo: str) -> str:
    """Return the CPU's model name; ARM's cpuinfo has none, so its machine name stands in."""
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return platform.machine()


def _commit() -> str:
    """Return the checkout's commit, with + when files differ, or the version of a package."""
    here = Path(__file__).parent
    command = ["git", "-C", str(here), "describe", "--always", "--dirty=+", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except OSError:
        return __version__
    tracked = done.returncode == 0 and "site-packages" not in here.parts
    return done.stdout.strip() if tracked else __version__
