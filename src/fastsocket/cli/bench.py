# SPDX-License-Identifier: GPL-2.0-or-later
"""`fastsocket bench`: compare stock, reuseport and Fastsocket under load."""

import json
import shlex
import sys
from pathlib import Path

import click
from rich.console import Console

from fastsocket.bench.clients import CLIENTS
from fastsocket.bench.result import write
from fastsocket.bench.scenarios import SCENARIOS
from fastsocket.bench.servers import SERVERS
from fastsocket.bench.session import DEFAULT_WARMUP, MAX_CONNECTIONS, Request, perform
from fastsocket.bench.table import print_result
from fastsocket.errors import ConflictError

__all__ = ["command"]

INTERRUPTED = 130


@click.command("bench")
@click.argument("scenario", type=click.Choice(list(SCENARIOS)))
@click.option("--server", type=click.Choice(list(SERVERS)), help="Server under test.")
@click.option("--modes", default="", help="Comma list of stock, reuseport, fastsocket.")
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
    default=64,
    show_default=True,
    help="Concurrent connections.",
)
@click.option("--client", type=click.Choice(["auto", *CLIENTS]), default="auto", show_default=True)
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="Listen here; 0 chooses.")
@click.option("--seed", type=click.IntRange(0), help="Of the order of runs and the intervals.")
@click.option("--run-options", default="", help="Options for 'fastsocket run', in one string.")
@click.option(
    "--rate", type=click.FloatRange(1, 10_000_000), help="Connections/s (stall); else found."
)
@click.option("--call-sites", is_flag=True, help="Name the functions that contend for locks.")
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), help="Write JSON here.")
@click.option("--force", is_flag=True, help="Let --output overwrite.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def command(
    scenario: str,
    server: str | None,
    modes: str,
    runs: int,
    seconds: float,
    warmup: float,
    connections: int,
    client: str,
    port: int,
    seed: int | None,
    run_options: str,
    rate: float | None,
    call_sites: bool,
    output: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Compare the modes of a server in interleaved rounds.

    Everything runs in network namespaces of its own, which need root; without root it runs on the
    host's loopback, and what cannot be counted is null with its reason. Ctrl-C keeps the completed
    rounds.
    """
    if output and output.exists() and not force:
        raise ConflictError(f"{output} exists", "results are not overwritten", "add --force")
    outcome = perform(
        Request(
            scenario=scenario,
            server=server or "",
            client=client,
            modes=[word.strip() for word in modes.split(",") if word.strip()],
            rounds=runs,
            seconds=seconds,
            connections=connections,
            warmup=warmup,
            port=port,
            seed=seed,
            run_options=shlex.split(run_options),
            rate=rate,
            call_sites=call_sites,
        )
    )
    if output:
        write(outcome.result, output, force)
    if as_json:
        click.echo(json.dumps(outcome.result.document()))
    else:
        print_result(outcome.result, Console())
    if outcome.failure:
        raise outcome.failure
    if outcome.result.interrupted:
        sys.exit(INTERRUPTED)
