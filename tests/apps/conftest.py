# SPDX-License-Identifier: GPL-2.0-or-later
"""What tests of real servers share."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.apps.harness import namespace


@pytest.fixture
def own_network() -> Iterator[None]:
    """A network namespace for this test alone, and with it all ports."""
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    with namespace():
        yield


@pytest.fixture
def cpus() -> list[int]:
    """The CPUs that the test may use; locality needs two."""
    allowed = sorted(os.sched_getaffinity(0))
    if len(allowed) < 2:
        pytest.skip("locality needs two CPUs")
    return allowed


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Where a demo server writes its messages."""
    return tmp_path / "log"
