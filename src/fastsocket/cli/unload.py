# SPDX-License-Identifier: GPL-2.0-or-later
"""`fastsocket unload`: take back what `fastsocket load` did, and leave nothing."""

import click
import msgspec

from fastsocket.host import params

__all__ = ["command"]


@click.command()
@click.option("--dry-run", is_flag=True, help="Say what would change, and change nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def command(dry_run: bool, as_json: bool) -> None:
    """Remove the host's parameters and log; applications that run are not disturbed."""
    changes = params.unload(dry_run=dry_run)
    if as_json:
        document = {
            "changes": [msgspec.to_builtins(change) for change in changes],
            "dry_run": dry_run,
        }
        click.echo(msgspec.json.encode(document))
        return
    for change in changes:
        click.echo(f"{'would ' if dry_run else ''}{change.action} {change.path}: {change.why}")
    if not changes:
        click.echo("nothing was loaded")
