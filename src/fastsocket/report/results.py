# SPDX-License-Identifier: GPL-2.0-or-later
"""The result files of `fastsocket bench`: their shape, and reading them without surprises."""

from pathlib import Path

import msgspec

from fastsocket.bench.law import Verdict
from fastsocket.errors import UsageError

__all__ = ["FORMAT", "Core", "Host", "Metric", "Point", "Ratio", "Result", "load_results"]


FORMAT = 1
"""Version of the result files that are understood."""


class Host(msgspec.Struct, frozen=True):
    """The machine that the figures belong to; `commit` is the product's own."""

    kernel: str
    cpus: int
    model: str
    commit: str


class Metric(msgspec.Struct, frozen=True):
    """One figure: median of the rounds and its 95 % interval; None where it was not counted.

    Attributes:
        reason: Why it was not counted.
    """

    median: float | None
    low: float | None
    high: float | None
    unit: str
    samples: list[float | None]
    reason: str = ""


class Ratio(msgspec.Struct, frozen=True):
    """One mode over another, taken round by round: median and 95 % interval.

    Attributes:
        pairs: Rounds that have a ratio; None in files from before this was written.
    """

    median: float | None
    low: float | None
    high: float | None
    pairs: int | None = None

    def rounds(self, all_of_them: int) -> int:
        """Return how many of the rounds are behind it."""
        return all_of_them if self.pairs is None else self.pairs


Modes = dict[str, dict[str, Metric]]
Ratios = dict[str, dict[str, Ratio]]


class Core(msgspec.Struct, frozen=True):
    """How one CPU spent the run, in percent of its time: `busy` includes `softirq`."""

    cpu: int
    busy: float
    softirq: float


class Point(msgspec.Struct, frozen=True):
    """One core count of the scenario `scale`."""

    cores: int
    modes: Modes
    ratios: Ratios
    per_core: dict[str, list[Core]] = {}
    call_sites: dict[str, dict[str, float]] = {}


class Result(msgspec.Struct, frozen=True):
    """One result file. Keys that are not listed here are left alone: bench may write more.

    Attributes:
        format: Version of the file's shape.
        rounds: Complete rounds; `seconds` is the length of one run in them.
        run_options: Those of `fastsocket run`, in mode `fastsocket`.
        client_options: The same of the client, where it runs under it, too.
        call_sites: Lock contentions per 1,000 connections by mode and kernel function.
        woken: Reschedule interrupts per 1,000 connections by mode and woken task.
        kind: What the figures are no measure of; empty for a machine's own.
        points: Of `scale` only: the same figures at each core count.
        usl: Of `scale` only: the scalability law by mode.
        per_core: How each CPU spent the run, by mode.
    """

    scenario: str
    host: Host
    modes: Modes
    ratios: Ratios
    format: int = FORMAT
    server: str = ""
    client: str = ""
    date: str = ""
    rounds: int | None = None
    seconds: float | None = None
    connections: int | None = None
    run_options: list[str] = []
    client_options: list[str] = []
    interrupted: bool = False
    notes: list[str] = []
    call_sites: dict[str, dict[str, float]] = {}
    woken: dict[str, dict[str, float]] = {}
    kind: str = ""
    points: list[Point] = []
    usl: dict[str, Verdict] = {}
    per_core: dict[str, list[Core]] = {}

    def round_count(self) -> int:
        """Return the complete rounds: as the file says, else as many as a metric has samples."""
        modes = [self.modes, *(point.modes for point in self.points)]
        metrics = [metric for mode in modes for found in mode.values() for metric in found.values()]
        counted = max((len(metric.samples) for metric in metrics), default=0)
        return counted if self.rounds is None else self.rounds


def load_results(path: Path) -> list[Result]:
    """Read a result file: one result, or `{"results": [...]}` with several.

    Raises:
        UsageError: The file is missing, cut short, or not of this version; says which and where.
    """
    try:
        document = msgspec.json.decode(path.read_bytes())
    except OSError as error:
        raise UsageError(f"cannot read {path}", error.strerror or "", "check the path") from error
    except msgspec.DecodeError as error:
        raise UsageError(
            f"{path} is cut short or is not a result file",
            str(error),
            "run the bench again; an interrupted run leaves its finished rounds in its own file",
        ) from error
    several = isinstance(document, dict) and "results" in document
    try:
        results = (
            msgspec.convert(document["results"], list[Result])
            if several
            else [msgspec.convert(document, Result)]
        )
    except msgspec.ValidationError as error:
        raise UsageError(
            f"{path} is not a result file of this version",
            str(error),
            "write it again with 'fastsocket bench SCENARIO --json'",
        ) from error
    for result in results:
        if result.format != FORMAT:
            raise UsageError(
                f"{path} was written by another version of Fastsocket",
                f"its format is {result.format}, and {FORMAT} is understood",
                "use that version's 'fastsocket report', or run the bench again",
            )
        if not result.modes and not result.points:
            raise UsageError(
                f"{path} has no finished round of {result.scenario}",
                "its modes are empty, as after an interruption in the first round",
                "run the bench again",
            )
    return results
