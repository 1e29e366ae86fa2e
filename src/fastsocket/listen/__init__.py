# SPDX-License-Identifier: GPL-2.0-or-later
"""The status page and the program that selects sockets by it."""
