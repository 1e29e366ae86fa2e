# SPDX-License-Identifier: GPL-2.0-or-later
"""Scenarios, load, counters and statistics: how every figure of this project is measured."""
