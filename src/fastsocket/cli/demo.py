# SPDX-License-Identifier: GPL-2.0-or-later
"""`fastsocket demo`: the two-minute tour on this machine."""

import json
import sys
from collections.abc import Sequence

import click
from rich.console import Console

from fastsocket.bench.result import Result
from fastsocket.bench.session import Request, perform
from fastsocket.bench.table import print_result
from fastsocket.bench.verdict import verdict

__all__ = ["command", "show"]

# The promise is 120 s; start of Python, the last round and the intervals stay within the rest.
BUDGET_SECONDS = 105.0
ROUNDS = 12
SECONDS = 1.0
INTERRUPTED = 130


@click.command("demo")
@click.option(
    "--runs", type=click.IntRange(1, 100), default=ROUNDS, show_default=True, help="At most."
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def command(runs: int, as_json: bool) -> None:
    """Compare stock nginx, nginx's own reuseport and Fastsocket, side by side, within 120 s."""
    outcome = perform(
        Request(
            scenario="short",
            server="nginx",
            rounds=runs,
            seconds=SECONDS,
            budget_seconds=BUDGET_SECONDS,
            call_sites=False,
        )
    )
    sentences = verdict(outcome.result)
    if as_json:
        click.echo(json.dumps(outcome.result.document() | {"verdict": sentences}))
    else:
        show(outcome.result, sentences, Console())
    if outcome.failure:
        raise outcome.failure
    if outcome.result.interrupted:
        sys.exit(INTERRUPTED)


def show(result: Result, sentences: Sequence[str], console: Console) -> None:
    """Print the table, and below it what may be said of it."""
    print_result(result, console)
    text = click.wrap_text(" ".join(sentences), width=79)
    console.print(f"\n{text}", markup=False, highlight=False, soft_wrap=True)
