# SPDX-License-Identifier: GPL-2.0-or-later
"""The ways in which servers are compared: three of every server, more of stores."""

import json
import sys
from collections.abc import Sequence
from enum import StrEnum

__all__ = ["Mode", "fastsocket_command", "parse_tier", "tier_command"]

_FASTSOCKET = (sys.executable, "-c", "from fastsocket.cli.main import main; main()")


class Mode(StrEnum):
    """How the server listens, and how packets come to it; everything else is the same for all.

    ``stock`` is the server's usual configuration for several workers, ``reuseport`` the same with
    the server's own reuseport setting, ``fastsocket`` the stock one under ``fastsocket run``.

    Of stores only, and with the stock configuration: ``rps`` and ``rfs`` are the kernel's own
    steering, ``local`` is ``fastsocket run`` with the local fast path where ``fastsocket`` is
    something else, and ``no-early-demux`` and ``no-skb-defer`` are stock with that switched off.
    """

    STOCK = "stock"
    REUSEPORT = "reuseport"
    RPS = "rps"
    RFS = "rfs"
    NO_EARLY_DEMUX = "no-early-demux"
    NO_SKB_DEFER = "no-skb-defer"
    LOCAL = "local"
    FASTSOCKET = "fastsocket"

    @property
    def listens(self) -> "Mode":
        """The mode whose configuration file the server gets."""
        return self if self is Mode.REUSEPORT else Mode.STOCK


def fastsocket_command(options: Sequence[str], command: Sequence[str] = ()) -> list[str]:
    """Return `command` under this very package's ``fastsocket run`` with `options`."""
    return [*_FASTSOCKET, "run", *options, "--", *command]


def tier_command(pid: int) -> list[str]:
    """Return the command that tells of the accelerated process `pid` as JSON."""
    return [*_FASTSOCKET, "status", "--json", str(pid)]


def parse_tier(output: str) -> str:
    """Say in one line how an application was accelerated, from what :func:`tier_command` printed.

    Whoever reads a result must know when it is not of the full product.
    """
    try:
        (status,) = json.loads(output)["applications"]
        missing = [f"{feature}: {reason}" for feature, reason in status["reasons"].items()]
        return "; ".join([f"Fastsocket ran in tier {status['tier']}", *missing])
    except (ValueError, KeyError, TypeError, AttributeError):
        return "Fastsocket's tier is unknown: its status could not be read"
