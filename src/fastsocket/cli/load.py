# SPDX-License-Identifier: GPL-2.0-or-later
"""`fastsocket load`: make parameters the defaults of the host, as `modprobe` did."""

from pathlib import Path

import click
import msgspec

from fastsocket.config import checked, load_config
from fastsocket.host import params

__all__ = ["command"]


@click.command()
@click.argument("assignments", metavar="[PARAMETER=VALUE]...", nargs=-1)
@click.option("--config", type=click.Path(path_type=Path), help="Instead of /etc/fastsocket.toml.")
@click.option("--dry-run", is_flag=True, help="Say what would change, and change nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def command(
    assignments: tuple[str, ...], config: Path | None, dry_run: bool, as_json: bool
) -> None:
    """Make parameters the defaults of all applications started from now on.

    Parameters are written as for the 2014 module: fastsocket load enable_listen_spawn=2
    """
    given = {}
    for word in assignments:
        key, equals, value = word.partition("=")
        if not equals:
            raise click.UsageError(f"{word!r} is not PARAMETER=VALUE")
        given[key] = int(value) if value.lstrip("-").isdigit() else value
    parameters = checked(given, "the command line", load_config(config))
    changes = params.load(parameters, dry_run=dry_run)
    if as_json:
        document = {
            "parameters": msgspec.to_builtins(parameters),
            "changes": [msgspec.to_builtins(change) for change in changes],
            "dry_run": dry_run,
        }
        click.echo(msgspec.json.encode(document))
        return
    for change in changes:
        click.echo(f"{'would ' if dry_run else ''}{change.action} {change.path}: {change.why}")
    if not changes:
        click.echo("these parameters are loaded already")
    if not dry_run:
        click.echo("next: 'fastsocket run -- CMD' uses them, 'fastsocket unload' takes them back")
