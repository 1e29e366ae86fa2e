# SPDX-License-Identifier: GPL-2.0-or-later
"""The local fast path under load: no byte is wrong or missing, whatever happens on the way.

`make soak` repeats the last test until 100 GiB have arrived.
"""

import os
import random
import socket
import time
from collections.abc import Iterator

import pytest
from local_streams import Streams

from fastsocket.local.fastpath import FastPath

pytestmark = pytest.mark.netns

MIB = 1 << 20
CONNECTIONS = 64
# Of each test, over all its connections, one way.
STREAM_BYTES = 64 * MIB
# Of the last one in all: half over IPv4, half over IPv6.
SOAK_BYTES = int(float(os.environ.get("FASTSOCKET_STREAM_GIB", "0.04")) * 512) * MIB
ROUND_BYTES = 512 * MIB
SEED = int(os.environ.get("FASTSOCKET_STREAM_SEED", "1"))
PATIENCE_S = 5


@pytest.fixture(params=["127.0.0.1", "::1"])
def listener(request: pytest.FixtureRequest) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in request.param else socket.AF_INET
    with socket.create_server((request.param, 0), family=family, backlog=256) as made:
        made.settimeout(PATIENCE_S)
        yield made


def test_streams_arrive_as_they_were_sent(listener: socket.socket) -> None:
    with FastPath(listener.getsockname()[1]) as fast:
        streams = Streams(listener, CONNECTIONS, STREAM_BYTES // CONNECTIONS, seed=1)
        streams.run()
        assert streams.resets == 0
        assert fast.counters.connections == CONNECTIONS
        assert fast.counters.redirected > CONNECTIONS
        assert fast.counters.passed > CONNECTIONS, "buffers never filled: TCP was not mixed in"


def test_switched_off_on_the_way(listener: socket.socket) -> None:
    with FastPath(listener.getsockname()[1]) as fast:
        streams = Streams(listener, CONNECTIONS, STREAM_BYTES // CONNECTIONS, seed=3)
        at: list[int] = []

        def switch_off() -> None:
            fast.switch_off()
            at.append(fast.counters.redirected)

        streams.run(halfway=switch_off)
        assert at == [fast.counters.redirected]
        assert at[0] > CONNECTIONS
        with socket.create_connection(listener.getsockname()[:2], PATIENCE_S):
            listener.accept()[0].close()
        assert fast.counters.connections == CONNECTIONS


def test_resets_and_switching_off_by_chance(listener: socket.socket) -> None:
    """Up to half of the connections are reset; every other round switches off halfway."""
    chance = random.Random(SEED)
    moved = resets = redirected = rounds = 0
    begun = time.monotonic()
    while moved < SOAK_BYTES or rounds < 2:
        with FastPath(listener.getsockname()[1]) as fast:
            each = min(SOAK_BYTES, ROUND_BYTES) // CONNECTIONS
            streams = Streams(listener, CONNECTIONS, each, seed=chance.getrandbits(32))
            halfway = fast.switch_off if rounds % 2 else None
            streams.run(reset_share=chance.random() / 2, halfway=halfway)
            redirected += fast.counters.redirected
            assert fast.sockets() == 0
        moved += streams.moved
        resets += streams.resets
        rounds += 1
        speed = moved / MIB / (time.monotonic() - begun)
        print(f"{moved >> 20} of {SOAK_BYTES >> 20} MiB, {speed:.0f} MiB/s, {resets} resets")
    assert redirected > rounds * CONNECTIONS
    assert resets > 0
