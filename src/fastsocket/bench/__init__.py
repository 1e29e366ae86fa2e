# SPDX-License-Identifier: GPL-2.0-or-later
"""Benchmarks: scenarios, servers, load, counters and statistics, in one place."""
