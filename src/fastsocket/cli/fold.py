# SPDX-License-Identifier: GPL-2.0-or-later
"""Folds long lines for the terminal."""

import re
import shutil
import textwrap

__all__ = ["fold"]

_LEAST = 40
# What a continuation stands below: a word with a colon at the start, or a column.
_GAP = re.compile(r"^ *[\w-]+: +| {2,}")


def fold(text: str) -> str:
    """Return `text` with lines that fit the terminal; as it is where there is none.

    ``COLUMNS`` counts as a terminal, as with other commands.
    """
    width = shutil.get_terminal_size((0, 0)).columns
    if not width:
        return text
    return "\n".join(_fold(line, max(width, _LEAST)) for line in text.split("\n"))


def _fold(line: str, width: int) -> str:
    if len(line) <= width:
        return line
    columns = [gap.end() for gap in _GAP.finditer(line[: width // 2])]
    blanks = len(line) - len(line.lstrip())
    # Below the last column, and a little to the right where there is none.
    indent = columns[-1] if columns and columns[-1] > blanks else blanks + 2
    return "\n".join(
        textwrap.wrap(
            line,
            width,
            subsequent_indent=" " * indent,
            break_long_words=False,
            break_on_hyphens=False,
        )
    )
