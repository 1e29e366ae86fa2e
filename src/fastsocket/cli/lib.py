# SPDX-License-Identifier: GPL-2.0-or-later
"""`fastsocket lib`: the path to preload."""

import json

import click

from fastsocket.native import native_file

__all__ = ["command"]


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(as_json: bool) -> None:
    """Print the path of libfsocket.so, as in LD_PRELOAD=$(fastsocket lib) nginx."""
    path = str(native_file("libfsocket.so"))
    click.echo(json.dumps({"lib": path}) if as_json else path)
