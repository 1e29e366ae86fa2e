# SPDX-License-Identifier: GPL-2.0-or-later
"""Ctrl-C and SIGTERM in a benchmark."""

import signal

import pytest

from fastsocket.bench.interrupt import check, interruptible

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_is_ended_is_not_interrupted(number: signal.Signals) -> None:
    ended = False
    with pytest.raises(KeyboardInterrupt), interruptible():
        try:
            signal.raise_signal(number)
        finally:
            signal.raise_signal(number)
            ended = True
    assert ended


def test_a_later_one_interrupts_again(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    with interruptible():
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        now += 3.5
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)


def test_it_is_remembered_for_the_outermost_block_alone() -> None:
    with interruptible():
        with pytest.raises(KeyboardInterrupt), interruptible():
            signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            check()
    check()
    with interruptible():
        check()
