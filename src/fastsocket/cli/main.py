# SPDX-License-Identifier: GPL-2.0-or-later
"""The entry point: finds the command's module, and turns errors into exit codes in one place."""

import importlib
import sys
from typing import Any

import click

from fastsocket import __version__
from fastsocket.errors import FastsocketError

__all__ = ["COMMANDS", "main"]

# Name of each command, its module in this package, and its line in --help. Modules are imported
# only when their command is called, so that `run` starts within milliseconds.
COMMANDS: dict[str, tuple[str, str]] = {
    "run": ("run", "Start a server accelerated."),
    "lib": ("lib", "Print the path of libfsocket.so."),
    "nic": ("nic", "Show, plan, apply and undo the network card's settings."),
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


def main(argv: list[str] | None = None) -> Any:
    """Run the command line and exit: 0, 1, or 2 usage, 3 missing feature, 4 conflict."""
    verbose = any(word in ("-v", "--verbose") for word in (argv or sys.argv[1:])[:1])
    try:
        return cli.main(args=argv, prog_name="fastsocket", standalone_mode=False)
    except FastsocketError as error:
        if verbose:
            raise
        print(f"fastsocket: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except click.exceptions.Abort:
        sys.exit(130)
    except click.ClickException as error:
        print(f"fastsocket: {error.format_message()}; see 'fastsocket --help'", file=sys.stderr)
        sys.exit(error.exit_code)
