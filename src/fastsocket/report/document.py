# SPDX-License-Identifier: GPL-2.0-or-later
"""A report's Markdown twin, and writing either without harming a file that is not ours."""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from fastsocket.errors import ConflictError, UsageError
from fastsocket.report.page import MARKER
from fastsocket.report.sections import Section
from fastsocket.report.tables import markdown

__all__ = ["MARKDOWN_MARKER", "check_writable", "render_markdown", "write_aside"]

MARKDOWN_MARKER = "<!-- fastsocket report -->"
"""How every Markdown report ends; it begins with its title, as a document does."""


def render_markdown(title: str, sections: Sequence[Section]) -> str:
    """Return the same tables, headlines and hosts as the page has, for documentation."""
    parts = [f"# {title}\n"]
    for section in sections:
        parts.append(f"## {section.title}\n")
        parts += [f"{text}\n" for text in section.text]
        parts += [f"**{figure}** {note}\n" for _, figure, note in section.cards]
        for table in section.tables:
            parts += [f"{table.caption}\n", markdown(table)]
        if section.facts:
            parts.append("".join(f"- {name}: {value}\n" for name, value in section.facts))
    return "\n".join([*parts, f"{MARKDOWN_MARKER}\n"])


def check_writable(path: Path) -> None:
    """Refuse a path that holds something other than a report, before any work is done.

    Raises:
        ConflictError: There is a file that `fastsocket report` did not write.
        UsageError: Its folder does not exist, or it is a folder or a device.
    """
    if not path.parent.is_dir():
        raise UsageError(
            f"cannot write {path}", f"there is no folder {path.parent}", "make it first"
        )
    if path.exists() and not path.is_file():
        # A page is renamed into its place: a device such as /dev/null would be gone.
        raise UsageError(f"cannot write {path}", "it is no regular file", "name a file with -o")
    if path.exists():
        content = path.read_bytes().strip()
        page = content.startswith(MARKER.encode())
        if content and not page and not content.endswith(MARKDOWN_MARKER.encode()):
            raise ConflictError(
                f"{path} is left as it is", "it is not a report", "choose another name with -o"
            )


def write_aside(path: Path, text: str) -> None:
    """Write a file under another name, then rename it: a reader sees the old one or the new one.

    Raises:
        UsageError: The folder cannot be written to.
    """
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except OSError as error:
        raise UsageError(
            f"cannot write {path}", error.strerror or "", "choose another place with -o"
        ) from error
