# SPDX-License-Identifier: GPL-2.0-or-later
"""One call of the benchmark from the command line's choices to the result document."""

import os
import random
import resource
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from fastsocket.bench.clients import client
from fastsocket.bench.interrupt import check, interruptible
from fastsocket.bench.modes import Mode
from fastsocket.bench.netspace import Netspace
from fastsocket.bench.probe import Probe
from fastsocket.bench.process import free_port
from fastsocket.bench.result import Result
from fastsocket.bench.runner import Progress, Rounds, assemble, run_rounds
from fastsocket.bench.scenario import ADDRESS, SPARE, Scenario, Setup
from fastsocket.bench.scenarios import SCENARIOS
from fastsocket.bench.scenarios.local import Local
from fastsocket.bench.scenarios.redis import Redis
from fastsocket.bench.scenarios.scale import PER_CORE, Scale, core_counts, setups_by_cores
from fastsocket.bench.scenarios.short import Short
from fastsocket.bench.scenarios.soak import Soak
from fastsocket.bench.servers import CONNECTIONS
from fastsocket.bench.stores import server
from fastsocket.bench.trace import Trace
from fastsocket.errors import FastsocketError, MissingFeatureError, UsageError
from fastsocket.host.topology import order_physical_first, read_topology

__all__ = ["MAX_CONNECTIONS", "Outcome", "Request", "chosen_modes", "perform"]

MAX_CONNECTIONS = CONNECTIONS - SPARE
DEFAULT_CONNECTIONS = 64
PRIVATE_PORT = 8080
# Descriptors that a process of the bench may need besides one for each connection.
SPARE_FILES = 200
# Some servers make room for as many descriptors as they may have.
MOST_FILES = 65_536
DEFAULT_WARMUP = 0.3
# Scenarios that can do with another number of workers than there are CPUs.
OWN_WORKERS = ("longlived", "stall", "stall-burn", "crash", "soak")
HOST_REASON = (
    "runs share the host's network namespace, and segments include all other traffic of the host "
    "(a namespace of their own needs root)"
)


@dataclass(frozen=True)
class Request:
    """What the user asked for; empty or None means the default.

    `modes` empty takes all that the server has; `port` 0 lets the bench choose; `seed` None draws
    one, which the result names; `rate` None lets the scenario find one; `budget_seconds` ends the
    rounds early rather than exceed it, `wanted` when Fastsocket's metrics have come to that in sum.
    `connections` and `cores` are for each core and the core counts where those are varied; `cores`
    is for nothing else, and `pipeline` for stores alone. With `lean_client` Fastsocket's client is
    lean, too, and with `client_options` it runs under ``fastsocket run``. `call_sites` adds a run
    in each mode that names what remains of contentions and interrupts, where the scenario counts
    them. `workers` None is one for each CPU.
    """

    scenario: str
    server: str = ""
    client: str = "auto"
    modes: Sequence[str] = ()
    rounds: int = 10
    seconds: float = 1.0
    connections: int | None = None
    warmup: float = DEFAULT_WARMUP
    port: int = 0
    seed: int | None = None
    run_options: Sequence[str] = ()
    client_options: Sequence[str] = ()
    call_sites: bool = True
    rate: float | None = None
    cores: Sequence[int] = ()
    pipeline: int = 1
    budget_seconds: float | None = None
    lean_client: bool = False
    wanted: Sequence[tuple[str, float]] = ()
    workers: int | None = None


@dataclass(frozen=True)
class Outcome:
    """The result, the failure that ended it early, if one did, and what is missing of `wanted`."""

    result: Result
    failure: FastsocketError | None
    missing: Mapping[str, float] = field(default_factory=dict)


def perform(request: Request, quiet: bool = False) -> Outcome:
    """Run a benchmark with a progress bar on stderr, unless `quiet`.

    Raises:
        UsageError: The request names what there is not.
        FastsocketError: The first round failed.
        KeyboardInterrupt: Interrupted before the first round was complete.
    """
    scenario = SCENARIOS.get(request.scenario)
    if scenario is None:
        raise UsageError(
            f"no scenario {request.scenario!r}", todo=f"choose one of {', '.join(SCENARIOS)}"
        )
    chosen = server(request.server or scenario.servers[0])
    if chosen.name not in scenario.servers:
        raise UsageError(
            f"{scenario.name} cannot be run with {chosen.name}",
            todo=f"choose one of {', '.join(scenario.servers)}",
        )
    if isinstance(scenario, Scale):
        scenario = scenario.of(chosen.name)
    asker = request.client if isinstance(scenario, Local) else ""
    whose = scenario if isinstance(scenario, Redis) else chosen
    modes = chosen_modes(request.modes, whose.modes, whose.name)
    if isinstance(scenario, Soak):
        modes = scenario.mode_of(request.modes, modes)
    _require_meant(request, scenario)

    def missing(done: Rounds[Mode]) -> dict[str, float]:
        sums = done.sums(Mode.FASTSOCKET)
        lacking = {name: amount - sums.get(name, 0.0) for name, amount in request.wanted}
        return {name: amount for name, amount in lacking.items() if amount > 0}

    open_files = _raise_file_limit(CONNECTIONS + SPARE_FILES)
    seed = random.SystemRandom().getrandbits(32) if request.seed is None else request.seed
    notes: list[str] = []
    private = _namespaces_work(notes)
    with ExitStack() as stack:
        stack.enter_context(interruptible())
        probe, reason = _open_probe(stack)
        setup = Setup(
            server=chosen,
            client=client("auto" if asker else request.client),
            connections=request.connections or DEFAULT_CONNECTIONS,
            seconds=request.seconds,
            warmup=request.warmup,
            port=request.port or (PRIVATE_PORT if private else free_port(ADDRESS)),
            workers=request.workers or len(os.sched_getaffinity(0)),
            probe=probe,
            probe_reason=reason,
            private=private,
            note=notes.append,
            run_options=request.run_options,
            client_options=request.client_options if Mode.FASTSOCKET in modes else (),
            rate=request.rate,
            lean_client=request.lean_client,
            pipeline=request.pipeline,
            asker=asker,
        )
        setup = scenario.prepare(setup)
        if setup.pipeline > 1:
            setup.note(f"pipelines of {setup.pipeline} requests; latency is that of a whole one")
        advance = stack.enter_context(_bar(f"{scenario.name} {chosen.name}", quiet))
        times = (request.rounds, seed, advance, request.budget_seconds)
        if isinstance(scenario, Scale):
            setups = _setups(setup, request, open_files)
            swept = scenario.sweep(setups, modes, *times)
            most = setups[max(setups)]
            traces = _traces(scenario.played, most, modes, request, swept, advance)
            endnotes = [*notes, *_ending(swept)]
            result = scenario.result(setups, swept, seed, endnotes, traces)
            return Outcome(result, swept.failure)
        if isinstance(scenario, Soak):
            stack.enter_context(scenario.kept(setup, modes[0], request.rounds, seed))
        done = run_rounds(
            scenario, setup, modes, *times, lambda done: bool(request.wanted) and not missing(done)
        )
        traces = _traces(scenario, setup, modes, request, done, advance)
    if isinstance(scenario, Soak):
        done.failure = done.failure or scenario.faults(done.complete)
    result = assemble(scenario, setup, done, seed, [*notes, *_ending(done)], traces=traces)
    return Outcome(result, done.failure, missing(done))


def _require_meant(request: Request, scenario: Scenario) -> None:
    """Refuse what the scenario has no use for.

    Raises:
        UsageError: It was asked for.
    """
    if request.cores and not isinstance(scenario, Scale):
        raise UsageError(f"{scenario.name} does not vary the cores", todo="leave --cores out")
    if request.lean_client and scenario.name != Short.name:
        raise UsageError("--lean-client is for 'bench short'", todo="leave it out")
    if request.client_options and not isinstance(scenario, Local):
        raise UsageError("--client-options is for 'bench local'", todo="leave it out")
    if request.workers and scenario.name not in OWN_WORKERS:
        raise UsageError(
            f"{scenario.name} has as many workers as CPUs",
            todo=f"--workers is for {', '.join(OWN_WORKERS)}",
        )
    if request.pipeline > 1 and not isinstance(scenario, (Redis, Local)):
        raise UsageError(f"{scenario.name} has no pipelines", todo="leave --pipeline out")


def _traces(
    scenario: Scenario,
    setup: Setup,
    modes: Sequence[Mode],
    request: Request,
    done: Rounds[Any],
    advance: Progress,
) -> dict[Mode, Trace]:
    """Run each mode once more to name what remains, after rounds that all went well.

    The rounds are there by then: neither a failure nor Ctrl-C, which is noted there, loses them.
    """
    traces: dict[Mode, Trace] = {}
    if not (isinstance(scenario, Short) and request.call_sites and setup.probe):
        return traces
    if done.interrupted:
        return traces
    runs = len(done.complete) * len(done.keys)
    try:
        for mode in modes:
            advance(runs, runs, f"traced apart, {mode}")
            traces[mode] = scenario.trace(setup, mode, setup.probe)
    except KeyboardInterrupt:
        done.interrupted = True
    except FastsocketError as failure:
        setup.note(f"what remains was not traced in every mode: {failure}")
    return traces


def _setups(setup: Setup, request: Request, open_files: int) -> dict[int, Setup]:
    """Return the setup of each core count: whole cores before their second threads."""
    allowed = os.sched_getaffinity(0)
    order = order_physical_first(read_topology(), allowed) or sorted(allowed)
    counts = request.cores or core_counts(len(order))
    return setups_by_cores(setup, counts, order, request.connections or PER_CORE, open_files)


def _ending(done: Rounds[Any]) -> list[str]:
    """Return a note on the failure that ended the rounds early, if one did."""
    return [f"stopped in round {len(done.complete) + 1}: {done.failure}"] if done.failure else []


def chosen_modes(wanted: Sequence[str], has: Sequence[Mode], name: str) -> list[Mode]:
    """Return the modes asked for, or all that the server has.

    Raises:
        UsageError: There is no such mode, or the server does not have it.
    """
    if not wanted:
        return list(has)
    for word in wanted:
        if word not in tuple(Mode):
            raise UsageError(f"no mode {word!r}", todo=f"choose of {', '.join(Mode)}")
        if Mode(word) not in has:
            raise UsageError(f"{name} has no mode {word!r}", todo=f"choose of {', '.join(has)}")
    return [mode for mode in Mode if mode in wanted]


def _namespaces_work(notes: list[str]) -> bool:
    """Try to make a network namespace; where that fails, note what it means for the figures."""
    try:
        Netspace.make().close()
    except FastsocketError as error:
        notes.append(f"{HOST_REASON}: {error}")
        return False
    return True


def _open_probe(stack: ExitStack) -> tuple[Probe | None, str]:
    """Load the BPF counters, or say why that cannot be."""
    try:
        return stack.enter_context(Probe()), ""
    except MissingFeatureError as error:
        return None, str(error)


def _raise_file_limit(needed: int) -> int:
    """Let this process and its children open as many files as the hard limit has, and return that.

    Raises:
        FastsocketError: The hard limit is lower.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise FastsocketError(
            f"{needed} open files are needed", f"the hard limit is {hard}", "raise it: ulimit -Hn"
        )
    most = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if soft == resource.RLIM_INFINITY or soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    return most


@contextmanager
def _bar(title: str, quiet: bool) -> Iterator[Callable[[int, int, str], None]]:
    """Show progress on stderr for a block, if that is a terminal; an interrupt ends it there."""
    console = Console(stderr=True)
    with Bars(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=quiet or not sys.stderr.isatty(),
    ) as progress:
        task = progress.add_task(title, total=None)

        def advance(done: int, total: int, text: str) -> None:
            check()
            progress.update(task, completed=done, total=total, description=f"{title}: {text}")

        yield advance
