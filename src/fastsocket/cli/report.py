# SPDX-License-Identifier: GPL-2.0-or-later
"""`fastsocket report`: result files and recordings as one page, or as Markdown."""

import json
from collections.abc import Sequence
from pathlib import Path

import click

from fastsocket.errors import MissingFeatureError, UsageError
from fastsocket.observe.recording import is_recording
from fastsocket.report.cores import recordings_section
from fastsocket.report.document import check_writable, render_markdown, write_aside
from fastsocket.report.page import render
from fastsocket.report.results import load_results
from fastsocket.report.sections import Section, result_sections

__all__ = ["command"]


@click.command()
@click.argument("files", nargs=-1, type=click.Path(path_type=Path), metavar="RESULT…")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="File to write.")
@click.option(
    "--markdown", is_flag=True, help="Write the tables as Markdown; without -o to stdout."
)
@click.option("--title", default="Fastsocket: measured", show_default=True, help="Heading.")
@click.option("--with-2014", is_flag=True, help="Add the figure of the 2014 system and its law.")
@click.option("--json", "as_json", is_flag=True, help="Say in JSON what was written.")
def command(
    files: tuple[Path, ...],
    output: Path | None,
    *,
    markdown: bool,
    title: str,
    with_2014: bool,
    as_json: bool,
) -> None:
    """Show result files of `bench` and recordings of `record` as one self-contained page.

    Every file is read and checked before anything is written.
    """
    if not files and not with_2014:
        raise UsageError(
            "no result file was named", "", "try 'fastsocket report RESULT.json -o OUT.html'"
        )
    if output is None and (as_json or not markdown):
        raise UsageError("no output was named", "a page is a file", "add -o OUT.html")
    if output is not None:
        check_writable(output)
    sections = _sections(files, with_2014)
    text = render_markdown(title, sections) if markdown else render(title, sections)
    if output is None:
        click.echo(text, nl=False)
        return
    write_aside(output, text)
    if as_json:
        written = {"output": str(output), "sections": [section.title for section in sections]}
        click.echo(json.dumps(written, ensure_ascii=False))
    else:
        click.echo(f"{output}: {len(sections)} sections from {len(files)} files", err=True)


def _sections(files: Sequence[Path], with_2014: bool) -> list[Section]:
    recordings = [path for path in files if is_recording(path)]
    results = [one for path in files if path not in recordings for one in load_results(path)]
    sections = result_sections(results)
    if recordings:
        sections.append(recordings_section(recordings))
    if with_2014:
        try:
            from fastsocket.report.history import history_sections
        except ImportError as error:
            raise MissingFeatureError(
                "the curves of 2014 cannot be fitted", str(error), "pip install 'fastsocket[bench]'"
            ) from error
        sections += history_sections()
    return sections
