# SPDX-License-Identifier: GPL-2.0-or-later
"""Lets `python -m fastsocket` stand for the command `fastsocket`."""

from fastsocket.cli.main import main

__all__ = ["main"]

if __name__ == "__main__":
    main()
