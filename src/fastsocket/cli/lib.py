# SPDX-License-Identifier: GPL-2.0-or-later
"""`fastsocket lib`: the path of the preloaded library, for LD_PRELOAD=$(fastsocket lib) nginx."""

import json

import click

from fastsocket.native import native_file

__all__ = ["command"]


@click.command("lib")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def command(as_json: bool) -> None:
    """Print the path of libfsocket.so, to be set as LD_PRELOAD."""
    path = str(native_file("libfsocket.so"))
    click.echo(json.dumps({"library": path}) if as_json else path)
