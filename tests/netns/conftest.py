# SPDX-License-Identifier: GPL-2.0-or-later
"""What tests of the keeper share."""

import os
from collections.abc import Iterator

import pytest

from tests.netns.keeper_tools import Tame, keeper_of_a_test


@pytest.fixture
def keeper() -> Iterator[Tame]:
    """A keeper without its loop, of this process's application."""
    with keeper_of_a_test() as tame:
        yield tame


@pytest.fixture
def one_cpu() -> Iterator[None]:
    """Stay on one CPU: each counts for itself, and "here" is another answer than "there"."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    yield
    os.sched_setaffinity(0, before)
