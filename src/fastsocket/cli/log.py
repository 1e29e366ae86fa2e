# SPDX-License-Identifier: GPL-2.0-or-later
"""`fastsocket log`: what Fastsocket did on this host, as `dmesg` showed it in 2014."""

from datetime import datetime

import click
import msgspec

from fastsocket.host import journal
from fastsocket.host.runtime import HOST_DIR, runtime_dir

__all__ = ["command"]


@click.command()
@click.option("-n", "--lines", type=click.IntRange(min=0), help="Only the last N lines.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def command(lines: int | None, as_json: bool) -> None:
    """Print the log of the host and of this user, oldest line first."""
    folders = dict.fromkeys((HOST_DIR, runtime_dir()))
    found = [entry for folder in folders for entry in journal.entries(folder)]
    found.sort(key=lambda entry: entry.time or 0.0)
    if lines is not None:
        found = found[len(found) - min(lines, len(found)) :]
    if as_json:
        click.echo(msgspec.json.encode({"entries": found}))
        return
    for entry in found:
        when = datetime.fromtimestamp(entry.time).astimezone() if entry.time else None
        click.echo(f"{when.isoformat(' ', 'milliseconds')} {entry.text}" if when else entry.text)
