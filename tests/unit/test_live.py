# SPDX-License-Identifier: GPL-2.0-or-later
"""What `doctor --measure` may connect to."""

import pytest

from fastsocket.bench.live import find_target
from fastsocket.errors import ConflictError, UsageError

pytestmark = pytest.mark.unit

ELSEWHERE = "192.0.2.1"  # RFC 5737: no host has it


def test_a_foreign_host_is_not_loaded() -> None:
    """Not even where a server of this host listens on the same port."""
    with pytest.raises(ConflictError, match=f"{ELSEWHERE} is no address of this host"):
        find_target(f"http://{ELSEWHERE}:80/")


def test_a_host_without_an_address() -> None:
    with pytest.raises(UsageError, match="has no IPv4 address"):
        find_target("http://nowhere.invalid:80/")
