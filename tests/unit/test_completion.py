# SPDX-License-Identifier: GPL-2.0-or-later
"""Shell completion: the scripts, and what a shell asks through them."""

import os
import shutil
import subprocess
import sys

import pytest

from fastsocket.cli.group import COMMANDS

pytestmark = pytest.mark.unit

FASTSOCKET = [sys.executable, "-c", "from fastsocket.cli.main import main; main()"]


def run(*words: str, **variables: str) -> str:
    done = subprocess.run(
        [*FASTSOCKET, *words],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, **variables},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_accepts_its_script(shell: str) -> None:
    script = run("completion", shell)
    assert "_FASTSOCKET_COMPLETE" in script
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"{shell} is missing")
    subprocess.run([program, "-n"], input=script, text=True, check=True)


def test_commands_and_options_are_completed() -> None:
    words = run(_FASTSOCKET_COMPLETE="bash_complete", COMP_WORDS="fastsocket ", COMP_CWORD="1")
    assert {line.partition(",")[2] for line in words.splitlines()} == set(COMMANDS)
    typed = {"COMP_WORDS": "fastsocket bench short --se", "COMP_CWORD": "3"}
    words = run(_FASTSOCKET_COMPLETE="bash_complete", **typed)
    options = {line.partition(",")[2] for line in words.splitlines()}
    assert options == {"--server", "--seconds", "--seed"}
