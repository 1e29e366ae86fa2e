# SPDX-License-Identifier: GPL-2.0-or-later
"""Put the tables of docs/evaluation.md into the marked section of README.md.

`make bench` measures, lets `fastsocket report --markdown` write docs/evaluation.md, and calls this.
Nobody types a figure: a test holds README.md to what this makes of docs/evaluation.md.
"""

import re
import sys
from pathlib import Path

__all__ = ["BEGIN", "END", "NONE", "filled", "main"]

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
EVALUATION = ROOT / "docs/evaluation.md"
BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"
THROUGHPUT = "Connections per second by cores"
NONE = "No figures yet: run `make bench`."


def filled(readme: str, evaluation: str | None) -> str:
    """Return the README with the evaluation's first result between its marks.

    Before it stands how throughput grew with the cores, if that was measured on real ones. Hosts go
    along, further results are in the evaluation; None stands for no evaluation yet. Headings move
    down one level, below "## Figures".

    Raises:
        ValueError: The README has not exactly one marked section.
    """
    if readme.count(BEGIN) != 1 or readme.count(END) != 1:
        raise ValueError(f"README.md must have {BEGIN} and {END} once each")
    before, rest = readme.split(BEGIN)
    after = rest.split(END)[1]
    text = NONE
    if evaluation is not None:
        first, *others = re.split(r"^(?=## )", re.sub(r"\A# .*\n+", "", evaluation), flags=re.M)[1:]
        host = [section for section in others if section.startswith("## Host\n")]
        grown = [_excerpt(section) for section in others if THROUGHPUT in section][:1]
        text = re.sub(r"^(#+ )", r"#\1", "".join([*grown, first, *host]), flags=re.M).strip()
    return f"{before}{BEGIN}\n{text}\n{END}{after}"


def _excerpt(section: str) -> str:
    """Return a result's section with the first of its tables, and its host."""
    facts = [line for line in section.splitlines() if line.startswith("- ")]
    return "\n".join([section.partition("|\n\n")[0] + "|\n", *facts, "\n"])


def main() -> int:
    """Rewrite README.md."""
    evaluation = EVALUATION.read_text() if EVALUATION.exists() else None
    README.write_text(filled(README.read_text(), evaluation))
    return 0


if __name__ == "__main__":
    sys.exit(main())
