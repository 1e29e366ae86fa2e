# SPDX-License-Identifier: GPL-2.0-or-later
"""`fastsocket detach`: put back what `fastsocket attach` did."""

import json
from contextlib import ExitStack

import click

from fastsocket.app.attach import detach, groups_of

__all__ = ["command"]


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
@click.argument("pid", type=click.IntRange(1))
def command(as_json: bool, dry_run: bool, pid: int) -> None:
    """Let the kernel choose among the sockets of PID's server again."""
    with ExitStack() as stack:
        groups = detach(groups_of(pid, stack), f"process {pid}", dry_run)
        if as_json:
            described = [group.to_json() for group in groups]
            click.echo(json.dumps({"pid": pid, "dry_run": dry_run, "groups": described}))
            return
        for group in groups:
            verb = "would be" if dry_run else "is"
            click.echo(f"{group.name}: {verb} left to the kernel's hash again")
