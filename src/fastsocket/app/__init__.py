# SPDX-License-Identifier: GPL-2.0-or-later
"""The launcher and the keeper of an accelerated application."""
