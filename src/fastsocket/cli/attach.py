# SPDX-License-Identifier: GPL-2.0-or-later
"""`fastsocket attach`: steer a running server's reuseport groups by CPU, without a restart."""

import json
from contextlib import ExitStack

import click

from fastsocket.app.attach import Group, attach, groups_of
from fastsocket.app.client import applications, owner_of
from fastsocket.errors import ConflictError

__all__ = ["command"]


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
@click.argument("pid", type=click.IntRange(1))
def command(as_json: bool, dry_run: bool, pid: int) -> None:
    """Steer the server of PID by CPU while it runs; undo it with 'fastsocket detach PID'."""
    if owner_of(pid, applications()) is not None:
        raise ConflictError(f"process {pid} runs under Fastsocket already")
    with ExitStack() as stack:
        groups = attach(groups_of(pid, stack), f"process {pid}", dry_run)
        if as_json:
            described = [group.to_json() for group in groups]
            click.echo(json.dumps({"pid": pid, "dry_run": dry_run, "groups": described}))
            return
        for group in groups:
            _show(group, dry_run)
    if not dry_run:
        click.echo(f"Undo it: fastsocket detach {pid}")


def _show(group: Group, dry_run: bool) -> None:
    click.echo(f"{group.name}: {'would choose' if dry_run else 'chooses'} by CPU")
    for member in sorted(group.members, key=lambda each: each.cpu):
        click.echo(f"  CPU {member.cpu}: process {member.pid}")
    if not all(member.pinned for member in group.members):
        click.echo("  not all workers are pinned to a CPU: pin them, else their work moves about")
