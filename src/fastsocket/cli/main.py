# SPDX-License-Identifier: GPL-2.0-or-later
"""The entry point, which turns errors into exit codes in one place.

``fastsocket run -- CMD`` without options goes straight to the launcher: parsing the words would
take as long as all the rest, and a server's restart waits for it.
"""

import os
import sys
from collections.abc import Sequence
from typing import Any

from fastsocket.errors import FastsocketError

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> Any:
    """Run the command line and exit: 0, 1, or 2 usage, 3 missing feature, 4 conflict."""
    words = list(sys.argv[1:] if argv is None else argv)
    _leave_the_application()
    try:
        if words[:2] == ["run", "--"] and len(words) > 2:
            _run(words[2:])
        from fastsocket.cli.group import command_line

        return command_line(words)
    except FastsocketError as error:
        if words[:1] in (["-v"], ["--verbose"]):
            raise
        print(f"fastsocket: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def _leave_the_application() -> None:
    """Start again without the library where it was loaded into this process, too.

    In a shell under ``fastsocket run`` it would take our own sockets, those of a probe say, for
    the application's.
    """
    libraries = os.environ.get("LD_PRELOAD", "").split(":")
    others = [each for each in libraries if not each.rpartition("/")[2].startswith("libfsocket")]
    if others == libraries:
        return
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("FASTSOCKET_")
    }
    os.execve(sys.executable, sys.orig_argv, environment | {"LD_PRELOAD": ":".join(others)})


def _run(command: Sequence[str]) -> None:
    from fastsocket.app.launcher import launch
    from fastsocket.host.params import host_parameters

    launch(command, host_parameters())
