# SPDX-License-Identifier: GPL-2.0-or-later
"""The README's figures are those of docs/evaluation.md, and nobody typed them."""

import shlex
from pathlib import Path

import pytest

from fastsocket.cli.bench import command
from tools import figures, measure

pytestmark = pytest.mark.unit

README = f"# Name\n\n{figures.BEGIN}\nold\n{figures.END}\n\nrest\n"


def test_the_readme_has_the_figures_of_the_evaluation() -> None:
    measured = figures.EVALUATION.read_text() if figures.EVALUATION.exists() else None
    readme = figures.README.read_text()
    assert readme == figures.filled(readme, measured), "run 'python tools/figures.py'"


def test_the_section_is_replaced_and_the_rest_stays() -> None:
    made = figures.filled(README, "# Evaluation\n\n## Short\n\n| a |\n")
    assert made == f"# Name\n\n{figures.BEGIN}\n### Short\n\n| a |\n{figures.END}\n\nrest\n"
    assert figures.filled(made, "# E\n\n## Short\n\n| a |\n") == made


def test_the_first_result_and_its_host_stand_in_the_readme() -> None:
    made = figures.filled(README, "# E\n\n## Short\n\na\n\n## Other\n\nb\n\n## Host\n\n- c\n")
    assert f"{figures.BEGIN}\n### Short\n\na\n\n### Host\n\n- c\n{figures.END}" in made
    assert "Other" not in made


def test_throughput_by_cores_stands_before_them_with_the_host_that_it_is_of() -> None:
    table = f"{figures.THROUGHPUT}\n\n| 1 |\n"
    scale = f"## Cores\n\n{table}\nContentions\n\n| 2 |\n\n- Processor: d\n\n"
    made = figures.filled(README, f"# E\n\n## Short\n\na\n\n{scale}## Host\n\n- c\n")
    wanted = f"### Cores\n\n{table}\n- Processor: d\n\n### Short\n\na\n\n### Host"
    assert f"{figures.BEGIN}\n{wanted}" in made
    assert "Contentions" not in made


def test_no_evaluation_says_how_to_get_one() -> None:
    assert figures.NONE in figures.filled(README, None)


def test_a_readme_without_the_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="once each"):
        figures.filled("# Name\n", None)


def test_documents_show_results_in_the_order_of_measurement() -> None:
    files = [Path(name) for name in ("scale-vm24.json", "steer.json", "short-nginx.json")]
    assert [file.stem for file in measure.order(files)] == ["short-nginx", "steer", "scale-vm24"]


@pytest.mark.parametrize("words", measure.MEASURED.values())
def test_what_is_measured_can_be_called(words: str) -> None:
    command.make_context("bench", [*shlex.split(words), "--output", "x.json"])
