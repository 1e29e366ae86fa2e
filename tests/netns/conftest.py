# SPDX-License-Identifier: GPL-2.0-or-later
"""What tests of the keeper share."""

from collections.abc import Iterator

import pytest

from tests.netns.keeper_tools import Tame, keeper_of_a_test


@pytest.fixture
def keeper() -> Iterator[Tame]:
    """A keeper without its loop, of this process's application."""
    with keeper_of_a_test() as tame:
        yield tame
