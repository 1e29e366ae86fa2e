# SPDX-License-Identifier: GPL-2.0-or-later
"""The network card: its facts, a plan made from them, and applying and undoing that plan."""
