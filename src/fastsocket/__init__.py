# SPDX-License-Identifier: GPL-2.0-or-later
"""Fastsocket: per-core TCP sockets for unmodified servers on the stock Linux kernel."""

__all__ = ["__version__"]

__version__ = "2.0.0.dev0"
