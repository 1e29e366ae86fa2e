# SPDX-License-Identifier: GPL-2.0-or-later
"""`fastsocket run -- CMD`: start a server accelerated."""

import os

import click

from fastsocket.app.launcher import launch
from fastsocket.errors import UsageError

__all__ = ["command"]


@click.command(context_settings={"ignore_unknown_options": False, "allow_interspersed_args": False})
@click.option(
    "--listen-spawn",
    type=click.IntRange(0, 2),
    default=2,
    show_default=True,
    help="0 off, 1 the application pins its workers, 2 Fastsocket pins them.",
)
@click.argument("cmd", nargs=-1, type=click.UNPROCESSED)
def command(listen_spawn: int, cmd: tuple[str, ...]) -> None:
    """Start CMD accelerated; it keeps the PID, the terminal and the exit code."""
    if not cmd:
        raise UsageError("no command given", todo="try 'fastsocket run -- nginx'")
    launch(cmd, listen_spawn, sorted(os.sched_getaffinity(0)))
