# SPDX-License-Identifier: GPL-2.0-or-later
"""The built-in rules, and how a rule is named on the command line."""

from pathlib import Path

from fastsocket.errors import UsageError
from fastsocket.steer.check import Rule, read_rule

__all__ = ["BUILT_IN", "built_in_rules", "find_rule", "is_built_in"]

BUILT_IN = Path(__file__).parent / "rules"


def built_in_rules() -> list[Rule]:
    """Return the rules that come with Fastsocket, sorted by name."""
    return [read_rule(path) for path in sorted(BUILT_IN.glob("*.py"))]


def find_rule(name: str) -> Rule:
    """Return the built-in rule `name`, or the rule in the file `name`.

    Raises:
        UsageError: There is neither.
        RuleError: The file is refused.
    """
    path = Path(name)
    if path.suffix == ".py" or path.exists():
        return read_rule(path)
    if (BUILT_IN / f"{name}.py").exists():
        return read_rule(BUILT_IN / f"{name}.py")
    names = ", ".join(path.stem for path in sorted(BUILT_IN.glob("*.py")))
    raise UsageError(f"there is no rule {name}", "", f"give a file RULE.py, or one of {names}")


def is_built_in(rule: Rule, name: str) -> bool:
    """Return whether `rule` is the built-in rule `name`, not a file that is called like it."""
    return rule.path == BUILT_IN / f"{name}.py"
