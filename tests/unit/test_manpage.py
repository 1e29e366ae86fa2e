# SPDX-License-Identifier: GPL-2.0-or-later
"""The manual page is that of the commands, reads well in groff, and goes into the wheel."""

import shutil
import subprocess
import tomllib
from pathlib import Path

import click
import pytest

from fastsocket.cli.group import COMMANDS, cli
from tools.manpage import MANPAGE, manpage

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[2]


def test_the_page_is_current() -> None:
    assert MANPAGE.read_text() == manpage(), "run 'make man'"


def test_every_command_and_every_option_stand_in_it() -> None:
    page = MANPAGE.read_text()
    context = click.Context(cli, info_name="fastsocket")
    for name in COMMANDS:
        assert f".SS fastsocket {name}" in page
        command = cli.get_command(context, name)
        assert command is not None
        for option in command.params:
            for word in option.opts:
                if word.startswith("--"):
                    assert word.replace("-", "\\-") in page


def test_groff_has_nothing_to_say() -> None:
    groff = shutil.which("groff")
    if groff is None:
        pytest.skip("groff is missing")
    # A long option cannot be broken on a narrow line, and need not be.
    command = [groff, "-man", "-Tutf8", "-ww", "-Wbreak", "-z", MANPAGE]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr == ""


def test_the_wheel_installs_it_where_man_looks() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    shared = project["tool"]["hatch"]["build"]["targets"]["wheel"]["shared-data"]
    assert shared == {"docs/fastsocket.1": "share/man/man1/fastsocket.1"}
