# SPDX-License-Identifier: GPL-2.0-or-later
"""The three ways in which every server is compared."""

import sys
from collections.abc import Sequence
from enum import StrEnum

__all__ = ["Mode", "fastsocket_command"]


class Mode(StrEnum):
    """How the server listens; everything else is the same for all.

    ``stock`` is the server's usual configuration for several workers, ``reuseport`` the same with
    the server's own reuseport setting, ``fastsocket`` the stock one under ``fastsocket run``.
    """

    STOCK = "stock"
    REUSEPORT = "reuseport"
    FASTSOCKET = "fastsocket"

    @property
    def listens(self) -> "Mode":
        """The mode whose configuration file the server gets."""
        return Mode.STOCK if self is Mode.FASTSOCKET else self


def fastsocket_command(options: Sequence[str], command: Sequence[str]) -> list[str]:
    """Return `command` under this very package's ``fastsocket run`` with `options`."""
    start = "from fastsocket.cli.main import main; main()"
    return [sys.executable, "-c", start, "run", *options, "--", *command]
