# SPDX-License-Identifier: GPL-2.0-or-later
"""Several benchmarks in one go with a result file for each: `bench all`, `bench crash --full`.

A step that has its file is not run again, so an interrupted evaluation goes on where it was. Files
of another host, commit, or length of run are not mixed in.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from fastsocket.bench.interrupt import check, interruptible
from fastsocket.bench.result import Result, describe_host, write
from fastsocket.bench.session import DEFAULT_WARMUP, Request, perform
from fastsocket.errors import ConflictError, FastsocketError

__all__ = ["BUDGET_SECONDS", "STEPS", "Step", "Suite", "run_suite"]

BUDGET_SECONDS = 1200
"""What `bench all` may take."""
MOST_ROUNDS = 1000


@dataclass(frozen=True)
class Step:
    """One benchmark, and the seconds after which it begins no other round.

    With `wanted`, (metric, amount) pairs, its rounds end as soon as Fastsocket's metrics have come
    to so much in sum, and it has failed if they never do. It has the time, too, that such steps
    before it left.
    """

    scenario: str
    server: str
    budget_seconds: float
    wanted: tuple[tuple[str, float], ...] = ()

    @property
    def name(self) -> str:
        """The name of its result file."""
        return f"{self.scenario}-{self.server}"


# The sum leaves a sixth of the whole for starts, ends and a last round that took longer.
STEPS = (
    Step("short", "nginx", 90),
    Step("short", "haproxy", 60),
    Step("short", "lighttpd", 60),
    Step("scale", "nginx", 270),
    Step("scale", "haproxy", 240),
    Step("scale", "redis", 120),
    Step("redis", "redis", 80),
    Step("proxy", "haproxy", 80),
)


@dataclass
class Suite:
    """What came of it: results and failures by step, and whether the user ended it."""

    results: dict[str, Result] = field(default_factory=dict)
    failures: dict[str, FastsocketError] = field(default_factory=dict)
    interrupted: bool = False


def run_suite(
    directory: Path,
    *,
    rounds: int,
    seconds: float,
    warmup: float = DEFAULT_WARMUP,
    seed: int | None = None,
    run_options: Sequence[str] = (),
    force: bool = False,
    steps: Sequence[Step] = STEPS,
    tell: Callable[[str], None] = lambda text: None,
) -> Suite:
    """Run the steps that `directory` has no result of; a failed one does not stop the others.

    Args:
        directory: Of the result files; is made.
        rounds: In each step without `wanted`, at most: fewer where its time would not do.
        seconds: Measured in each run.
        warmup: Seconds of load before that.
        seed: Of the order of runs; None draws one a step.
        run_options: For ``fastsocket run``.
        force: Run all steps anew.
        steps: What to run.
        tell: Is told what is being done.

    Raises:
        ConflictError: A file in the directory is of another host, commit or length of run.
        FastsocketError: The directory cannot be written.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FastsocketError(f"{directory} cannot be made", error.strerror or "") from error
    suite, left = Suite(), 0.0
    files = {step: directory / f"{step.name}.json" for step in steps}
    if not force:
        for step, file in files.items():
            if file.exists():
                suite.results[step.name] = _finished(file, seconds, run_options)
    with interruptible():
        for number, (step, file) in enumerate(files.items(), start=1):
            place = f"{number}/{len(steps)} {step.name}"
            if step.name in suite.results:
                tell(f"{place}: {file} has it")
                continue
            seconds_left = step.budget_seconds + left * bool(step.wanted)
            end, left = time.monotonic() + seconds_left, 0.0
            tell(f"{place}: at most {seconds_left:.0f} s")
            request = Request(
                scenario=step.scenario,
                server=step.server,
                rounds=MOST_ROUNDS if step.wanted else rounds,
                seconds=seconds,
                warmup=warmup,
                seed=seed,
                run_options=run_options,
                budget_seconds=seconds_left,
                wanted=step.wanted,
            )
            try:
                check()
                outcome = perform(request)
            except KeyboardInterrupt:
                suite.interrupted = True
                break
            except FastsocketError as failure:
                suite.failures[step.name] = failure
                tell(f"{place}: {failure}")
                continue
            if outcome.failure:
                suite.failures[step.name] = outcome.failure
                tell(f"{place}: {outcome.failure}")
            elif outcome.result.interrupted:
                suite.interrupted = True
                break
            elif outcome.missing:
                missing = ", ".join(
                    f"{count:.0f} {name}" for name, count in outcome.missing.items()
                )
                suite.failures[step.name] = FastsocketError(
                    f"{seconds_left:.0f} s were not enough",
                    f"{outcome.result.rounds} rounds; missing are {missing}",
                )
                tell(f"{place}: {suite.failures[step.name]}")
            else:
                write(outcome.result, file, force=True)
                suite.results[step.name] = outcome.result
                left = max(end - time.monotonic(), 0.0)
    return suite


def _finished(file: Path, seconds: float, run_options: Sequence[str]) -> Result:
    """Read the result of an earlier call.

    Raises:
        ConflictError: It does not belong to this evaluation.
    """
    remedy = "choose another --output, or run all anew with --force"
    try:
        result = msgspec.json.decode(file.read_bytes(), type=Result)
    except (OSError, msgspec.DecodeError) as error:
        raise ConflictError(f"{file} cannot be read as a result", str(error), remedy) from error
    here = describe_host()
    for what, then, now in (
        ("host", result.host, here),
        ("length of run", result.seconds, seconds),
        ("options of 'fastsocket run'", result.run_options, list(run_options)),
    ):
        if then != now:
            raise ConflictError(f"{file} is of another {what}", f"{then}, not {now}", remedy)
    return result
