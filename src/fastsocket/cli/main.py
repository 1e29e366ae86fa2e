# SPDX-License-Identifier: GPL-2.0-or-later
"""The entry point, which turns errors into exit codes in one place.

``fastsocket run -- CMD`` without options goes straight to the launcher: parsing the words would
take as long as all the rest, and a server's restart waits for it.
"""

import sys
from collections.abc import Sequence
from typing import Any

from fastsocket.errors import FastsocketError

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> Any:
    """Run the command line and exit: 0, 1, or 2 usage, 3 missing feature, 4 conflict."""
    words = list(sys.argv[1:] if argv is None else argv)
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


def _run(command: Sequence[str]) -> None:
    from fastsocket.app.launcher import launch
    from fastsocket.host.params import host_parameters

    launch(command, host_parameters())
