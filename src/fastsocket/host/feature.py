# SPDX-License-Identifier: GPL-2.0-or-later
"""What a probe of the kernel finds."""

from dataclasses import dataclass
from enum import StrEnum

__all__ = ["Feature", "State"]


class State(StrEnum):
    """Whether a feature works here.

    ACTIVE was seen to work. MISSING was tried and does not, or is switched off. UNKNOWN could not
    be tried: the reason says what was in the way.
    """

    ACTIVE = "active"
    MISSING = "missing"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Feature:
    """One kernel feature: its state, what was seen, and what the user can do about it."""

    name: str
    state: State
    why: str
    todo: str = ""
