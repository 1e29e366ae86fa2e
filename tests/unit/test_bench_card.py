# SPDX-License-Identifier: GPL-2.0-or-later
"""Flow rules of the benchmark's card: hashes by which RPS finds the CPU of a slice."""

import pytest

from fastsocket.bench.card import queue_hash

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("queues", [1, 2, 3, 24, 1024])
def test_each_queue_has_a_hash_that_chooses_it(queues: int) -> None:
    hashes = [queue_hash(position, queues) for position in range(queues)]
    assert all(0 < value < 2**32 for value in hashes)
    assert [value * queues >> 32 for value in hashes] == list(range(queues))
