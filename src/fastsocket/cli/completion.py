# SPDX-License-Identifier: GPL-2.0-or-later
"""`fastsocket completion`: what a shell needs to complete commands and options."""

import json

import click
from click.shell_completion import get_completion_class

__all__ = ["command"]

PROGRAM, VARIABLE = "fastsocket", "_FASTSOCKET_COMPLETE"
SHELLS = ("bash", "zsh", "fish")


@click.command("completion")
@click.argument("shell", type=click.Choice(SHELLS))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def command(ctx: click.Context, shell: str, as_json: bool) -> None:
    """Print the completion script of a shell, as in eval "$(fastsocket completion bash)"."""
    kind = get_completion_class(shell)
    assert kind is not None  # click has all three
    complete = kind(ctx.find_root().command, {}, PROGRAM, VARIABLE)
    script = complete.source_template % complete.source_vars()
    click.echo(json.dumps({"shell": shell, "script": script}) if as_json else script)
