# SPDX-License-Identifier: GPL-2.0-or-later
"""`fastsocket bench`: compare stock, reuseport and Fastsocket under load."""

import json
import shlex
import shutil
import sys
from pathlib import Path

import click
from rich.console import Console

from fastsocket.bench import losses
from fastsocket.bench.askers import NAMES
from fastsocket.bench.clients import CLIENTS
from fastsocket.bench.machine import DEFAULT_CPUS, count_in_machine, machine_counts
from fastsocket.bench.machine import SERVERS as IN_MACHINE
from fastsocket.bench.result import Result, write
from fastsocket.bench.scenarios import SCENARIOS
from fastsocket.bench.scenarios.crash import Crash
from fastsocket.bench.scenarios.scale import PER_CORE, Scale
from fastsocket.bench.session import (
    DEFAULT_CONNECTIONS,
    DEFAULT_WARMUP,
    MAX_CONNECTIONS,
    Request,
    chosen_modes,
    perform,
)
from fastsocket.bench.stores import SERVERS, server
from fastsocket.bench.suite import Suite, run_suite
from fastsocket.bench.table import print_result, span
from fastsocket.errors import ConflictError, FastsocketError, UsageError
from fastsocket.listen.layout import MAX_SLOTS

__all__ = ["command"]

INTERRUPTED = 130
MOST_PIPELINED = 256
ALL = "all"
DEFAULT_DIRECTORY = Path("bench-results")


@click.command("bench")
@click.argument("scenario", type=click.Choice([*SCENARIOS, ALL]))
@click.option("--server", "name", type=click.Choice(list(SERVERS)), help="Server under test.")
@click.option("--modes", default="", help="Comma list of stock, reuseport, fastsocket; see docs.")
@click.option("--runs", type=click.IntRange(1, 1000), default=10, show_default=True)
@click.option(
    "--seconds",
    type=click.FloatRange(0.2, 600),
    default=1.0,
    show_default=True,
    help="Measured in each run.",
)
@click.option(
    "--warmup",
    type=click.FloatRange(0, 60),
    default=DEFAULT_WARMUP,
    show_default=True,
    help="Seconds of load before that.",
)
@click.option(
    "--connections",
    type=click.IntRange(1, MAX_CONNECTIONS),
    help=f"At once [default: {DEFAULT_CONNECTIONS}]; of scale on each core [{PER_CORE}].",
)
@click.option(
    "--workers",
    type=click.IntRange(1, MAX_SLOTS),
    help="Of the server (longlived, stall, crash, soak) [default: one for each CPU].",
)
@click.option("--cores", default="", help="Comma list of core counts (scale).")
@click.option(
    "--vm",
    type=click.IntRange(1),
    is_flag=False,
    flag_value=DEFAULT_CPUS,
    help=f"Count in a virtual machine of so many CPUs (scale) [{DEFAULT_CPUS}]; never speed.",
)
@click.option(
    "--client",
    type=click.Choice(["auto", *CLIENTS, *NAMES]),
    default="auto",
    show_default=True,
    help=f"{', '.join(NAMES)} are for local.",
)
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="Listen here; 0 chooses.")
@click.option("--seed", type=click.IntRange(0), help="Of the order of runs and the intervals.")
@click.option("--run-options", default="", help="Options for 'fastsocket run', in one string.")
@click.option(
    "--client-options", default="", help="local: the client runs under 'fastsocket run' with these."
)
@click.option(
    "--rate", type=click.FloatRange(1, 10_000_000), help="Connections/s (stall); else found."
)
@click.option(
    "--lean-client",
    is_flag=True,
    help="short: Fastsocket's client saves an ACK, too.",
)
@click.option(
    "--pipeline",
    type=click.IntRange(1, MOST_PIPELINED),
    default=1,
    show_default=True,
    help="Requests of a connection at once (redis, redis-veth, kernel, local).",
)
@click.option("--full", is_flag=True, help="crash: all servers, until enough has happened.")
@click.option(
    "--call-sites/--no-call-sites",
    default=True,
    show_default=True,
    help="Name what contends for locks, and whom interrupts wake, in a further run a mode.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    help=f"Write JSON here; for all and --full, a directory [{DEFAULT_DIRECTORY}].",
)
@click.option("--force", is_flag=True, help="Let --output overwrite.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def command(
    scenario: str,
    name: str | None,
    modes: str,
    runs: int,
    seconds: float,
    warmup: float,
    connections: int | None,
    workers: int | None,
    cores: str,
    vm: int | None,
    client: str,
    port: int,
    seed: int | None,
    run_options: str,
    client_options: str,
    rate: float | None,
    lean_client: bool,
    pipeline: int,
    full: bool,
    call_sites: bool,
    output: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Compare the modes of a server in interleaved rounds.

    Everything runs in network namespaces of its own, which need root; without root it runs on the
    host's loopback, and what cannot be counted is null with its reason. Ctrl-C keeps the completed
    rounds. The scenario "all" is the whole evaluation in at most 20 minutes, into the directory
    --output; called again, it goes on where it was interrupted. "crash --full" kills and reloads
    all servers until 200,000 connections were served meanwhile, in at most 15 minutes, likewise.
    """
    if full and scenario != Crash.name:
        raise UsageError("--full is for 'bench crash'", todo="leave it out")
    if scenario == ALL or full:
        given = (name, modes, connections, workers, cores, vm, port, rate, lean_client)
        if any(given) or client_options or pipeline > 1 or not call_sites or client != "auto":
            raise UsageError(
                "'bench all' and 'bench crash --full' choose servers, modes, clients and loads",
                todo="run one scenario for that",
            )
        options = shlex.split(run_options)
        directory = output or DEFAULT_DIRECTORY
        if full:
            _run_full(directory, seed, options, force, as_json)
        else:
            _run_all(directory, runs, seconds, warmup, seed, options, force, as_json)
        return
    if output and output.exists() and not force:
        raise ConflictError(f"{output} exists", "results are not overwritten", "add --force")
    words = [word.strip() for word in modes.split(",") if word.strip()]
    if vm is not None:
        if scenario != Scale.name:
            raise UsageError("--vm belongs to scale", todo="fastsocket bench scale --vm")
        counts = _counts(cores)
        _show(_count_in_machine(vm, name, words, counts, connections, output, force), as_json)
        return
    outcome = perform(
        Request(
            scenario=scenario,
            server=name or "",
            client=client,
            modes=words,
            rounds=runs,
            seconds=seconds,
            connections=connections,
            warmup=warmup,
            port=port,
            seed=seed,
            run_options=shlex.split(run_options),
            client_options=shlex.split(client_options),
            rate=rate,
            cores=_counts(cores),
            pipeline=pipeline,
            call_sites=call_sites,
            lean_client=lean_client,
            workers=workers,
        )
    )
    if output:
        write(outcome.result, output, force)
    _show(outcome.result, as_json)
    if outcome.failure:
        raise outcome.failure
    if outcome.result.interrupted:
        sys.exit(INTERRUPTED)


def _show(result: Result, as_json: bool) -> None:
    """Print a result for programs or for people."""
    if as_json:
        click.echo(json.dumps(result.document()))
    else:
        print_result(result, Console())


def _count_in_machine(
    cpus: int,
    name: str | None,
    words: list[str],
    counts: list[int],
    connections: int | None,
    output: Path | None,
    force: bool,
) -> Result:
    """Count in a virtual machine; beside `output`, complete core counts outlive an interruption."""
    chosen = server(name or Scale.servers[0])
    if chosen.name not in IN_MACHINE:
        raise UsageError(
            f"scale --vm cannot be run with {chosen.name}",
            todo=f"choose one of {', '.join(IN_MACHINE)}",
        )
    parts = output.with_name(f"{output.name}.parts") if output else None
    result = count_in_machine(
        cpus,
        server=chosen.name,
        modes=chosen_modes(words, chosen.modes, chosen.name),
        counts=counts or machine_counts(cpus),
        connections=connections,
        parts=parts,
        force=force,
        tell=lambda text: click.echo(text, err=True),
    )
    if output and parts:
        write(result, output, force)
        shutil.rmtree(parts)
    return result


def _counts(text: str) -> list[int]:
    """Return the core counts of a comma list.

    Raises:
        UsageError: One is not a number of cores.
    """
    words = [word.strip() for word in text.split(",") if word.strip()]
    for word in words:
        if not word.isascii() or not word.isdigit() or int(word) < 1:
            raise UsageError(f"--cores {word!r} is no number of cores", todo="such as 1,2,4")
    return [int(word) for word in words]


def _run_all(
    directory: Path,
    runs: int,
    seconds: float,
    warmup: float,
    seed: int | None,
    run_options: list[str],
    force: bool,
    as_json: bool,
) -> None:
    """Run the evaluation and say what came of it.

    Raises:
        FastsocketError: A step failed; the others' results are written.
    """
    suite = run_suite(
        directory,
        rounds=runs,
        seconds=seconds,
        warmup=warmup,
        seed=seed,
        run_options=run_options,
        force=force,
        tell=lambda text: click.echo(text, err=True),
    )
    if as_json:
        click.echo(json.dumps({"results": [one.document() for one in suite.results.values()]}))
    elif suite.results:
        for name, result in suite.results.items():
            ratios = result.ratios["fastsocket/stock"]
            metric = next(iter(ratios))
            click.echo(f"{name}: {metric}, fastsocket/stock {span(ratios[metric])}")
        click.echo(f"next: fastsocket report {directory}/*.json -o evaluation.html")
    _end(suite)


def _run_full(
    directory: Path, seed: int | None, run_options: list[str], force: bool, as_json: bool
) -> None:
    """Run `crash` to its full volume and say what was lost.

    Raises:
        FastsocketError: A server failed, something was lost, or the control lost nothing.
    """
    suite = run_suite(
        directory,
        rounds=0,
        seconds=losses.SECONDS,
        seed=seed,
        run_options=run_options,
        force=force,
        steps=losses.STEPS,
        tell=lambda text: click.echo(text, err=True),
    )
    results = list(suite.results.values())
    if as_json:
        documents = [one.document() for one in results]
        click.echo(json.dumps({"results": documents, "totals": losses.totals(results)}))
    else:
        Console().print(losses.table(results))
    _end(suite)
    if found := losses.faults(results):
        raise FastsocketError("connections may be lost", "; ".join(found))


def _end(suite: Suite) -> None:
    """End as a suite did that was interrupted or has failures.

    Raises:
        FastsocketError: A step failed.
    """
    if suite.interrupted:
        click.echo("interrupted: the same command goes on from here", err=True)
        sys.exit(INTERRUPTED)
    if suite.failures:
        raise FastsocketError(
            f"{len(suite.failures)} of the steps failed",
            "; ".join(f"{name}: {failure}" for name, failure in suite.failures.items()),
            "the same command runs only those again",
        )
