# SPDX-License-Identifier: GPL-2.0-or-later
"""Result files and recordings, shown: tables, charts, one self-contained page, Markdown."""
