# SPDX-License-Identifier: GPL-2.0-or-later
"""The load generator's pace: latencies, a fixed rate, time, and connections at once."""

import asyncio
import itertools
import time

import pytest
from demo_tools import Odd, load, odd_server
from load_answers import OK, answering, never

pytestmark = pytest.mark.apps


def test_percentiles_of_known_delays() -> None:
    # Of every 100 connections 89 take 10 ms, 10 take 400 ms, one takes 1500 ms.
    delays = itertools.cycle([1.5] + 10 * [0.4] + 89 * [0.01])

    async def delayed(
        seen: Odd, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        await answering(OK, delay_s=next(delays))(seen, reader, writer)

    with odd_server(delayed) as server:
        result = load("-n", "200", "-c", "20", server.target)

    def longer(limit_us: float) -> int:
        return sum(count for upper, count in result["histogram"] if upper >= limit_us)

    latency = result["latency_us"]
    # A busy machine delays, by up to a few hundred ms the 20 in progress, but never hurries.
    assert 10_000 <= latency["p50"] < 300_000
    assert 400_000 <= latency["p90"] <= latency["p99"] < 1_500_000
    assert 1_500_000 <= latency["p999"] <= latency["max"] < 2_500_000
    assert longer(1_500_000) == 2
    assert 22 <= longer(400_000) <= 62
    assert longer(10_000) == 200
    assert 63_900 <= latency["mean"] <= 150_000


def test_fixed_rate_holds_and_spares_no_stall() -> None:
    stalled = False

    async def one_stall(
        seen: Odd, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        nonlocal stalled
        if seen.connections > 200 and not stalled:
            stalled = True
            time.sleep(0.5)  # the whole server, as a blocking call would
        await answering(OK)(seen, reader, writer)

    with odd_server(one_stall) as server:
        result = load("-t", "2", "-r", "300", server.target)
    assert result["started"] == result["completed"] == 600
    assert result["seconds"] == pytest.approx(2.0)
    # 150 connections were due within the 500 ms: those of its first half waited 250 ms or more.
    # A closed loop with as many connections would have sent none of them.
    waited = sum(count for upper, count in result["histogram"] if upper >= 250_000)
    assert 60 <= waited <= 400
    assert result["latency_us"]["max"] >= 450_000


def test_fixed_rate_ends_although_nobody_answers() -> None:
    """Those whose turn comes after their patience has ended count as timed out, untried."""
    with odd_server(never) as server:
        begin = time.monotonic()
        result = load("-t", "1", "-r", "100", "-c", "4", "--timeout", "300", server.target)
        seconds = time.monotonic() - begin
    assert result["started"] == result["errors"]["timeout"] == 100
    assert 4 <= server.connections <= 40
    assert seconds < 15


def test_time_and_warm_up() -> None:
    with odd_server(answering(OK)) as server:
        begin = time.monotonic()
        result = load("-t", "0.5", "-W", "0.5", "-r", "200", server.target)
        seconds = time.monotonic() - begin
    assert result["seconds"] == pytest.approx(0.5)
    assert result["started"] == result["completed"] == 100
    assert server.connections == 200
    assert 1.0 <= seconds < 15


def test_connections_at_once() -> None:
    with odd_server(answering(OK, delay_s=0.1)) as server:
        result = load("-n", "40", "-c", "8", "-p", "2", server.target)
    assert result["processes"] == 2
    assert result["seconds"] >= 0.5  # five rounds of eight
