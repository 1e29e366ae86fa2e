# SPDX-License-Identifier: GPL-2.0-or-later
"""The commands, and how each is found; imported only where words have to be parsed."""

import importlib
import sys
from collections.abc import Sequence
from typing import Any

import click

from fastsocket import __version__

__all__ = ["COMMANDS", "command_line"]

# Name of each command, its module in this package, and its line in --help. Modules are imported
# only when their command is called, so that `run` starts within milliseconds.
COMMANDS: dict[str, tuple[str, str]] = {
    "run": ("run", "Start a server accelerated."),
    "lib": ("lib", "Print the path of libfsocket.so."),
    "nic": ("nic", "Show, plan, apply and undo the network card's settings."),
    "attach": ("attach", "Steer a running server by CPU, without a restart."),
    "detach": ("detach", "Put back what attach did."),
    "status": ("status", "Show what is active, what is missing and why."),
    "steer": ("steer", "Send packets to CPUs by rules written in Python."),
    "demo": ("demo", "The two-minute tour: stock, reuseport and Fastsocket side by side."),
    "bench": ("bench", "Compare the modes of a server under load."),
    "load": ("load", "Make parameters the host's defaults."),
    "unload": ("unload", "Take back what load did."),
    "log": ("log", "Print what Fastsocket did on this host."),
    "doctor": ("doctor", "Say whether Fastsocket would help here."),
    "top": ("top", "Watch CPUs, workers and decisions live."),
    "record": ("record", "Record hours of samples to a small file."),
    "export": ("export", "Serve the same figures to Prometheus."),
    "report": ("report", "Turn results and recordings into one page, or into Markdown."),
    "completion": ("completion", "Print the completion script of a shell."),
}


class LazyGroup(click.Group):
    """A click group that imports the module of a command when that command is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the command names in the order of the documentation."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """Import the command's module; its attribute `command` is the click command."""
        if name not in COMMANDS:
            return None
        module = importlib.import_module(f"fastsocket.cli.{COMMANDS[name][0]}")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing their modules."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="fastsocket")
@click.option("-v", "--verbose", is_flag=True, help="Add the traceback to errors.")
@click.pass_context
def cli(ctx: click.Context, verbose: bool) -> None:
    """Per-core TCP sockets for unmodified servers on the stock Linux kernel."""
    ctx.obj = {"verbose": verbose}


def command_line(words: Sequence[str]) -> Any:
    """Run the command that `words` name.

    Raises:
        FastsocketError: What the command raises.
        SystemExit: Wrong usage, or interrupted.
    """
    try:
        return cli.main(args=list(words), prog_name="fastsocket", standalone_mode=False)
    except click.exceptions.Abort:
        sys.exit(130)
    except click.ClickException as error:
        print(f"fastsocket: {error.format_message()}; see 'fastsocket --help'", file=sys.stderr)
        sys.exit(error.exit_code)
