# SPDX-License-Identifier: GPL-2.0-or-later
"""Samples of a running host: taken, recorded, shown live, exported."""
