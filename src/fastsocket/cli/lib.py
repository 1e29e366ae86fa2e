# SPDX-License-Identifier: GPL-2.0-or-later
"""`fastsocket lib`: the path to preload."""

import json

import click

from fastsocket.config import Parameters
from fastsocket.native import library_name, native_file

__all__ = ["command"]


@click.command()
@click.option(
    "--lean",
    type=click.Choice(["auto", "off"]),
    help="off: the one that leaves connections as they are.",
)
@click.option("--fast-epoll", is_flag=True, help="The one that merges epoll_ctl calls.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(lean: str | None, fast_epoll: bool, as_json: bool) -> None:
    """Print the path of libfsocket.so, as in LD_PRELOAD=$(fastsocket lib) nginx."""
    path = str(native_file(library_name(lean or Parameters.lean, fast_epoll)))
    click.echo(json.dumps({"lib": path}) if as_json else path)
