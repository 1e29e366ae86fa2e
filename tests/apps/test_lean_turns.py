# SPDX-License-Identifier: GPL-2.0-or-later
"""A loop that answers many connections in one turn and closes them in the next.

Its answers do not wait for the end of the turn, and those of a short one leave with their FIN.
"""

import os
import selectors
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import pytest

from tests.apps.harness import PATIENCE_S, PROGRAMS, Application, say, wait_until
from tests.apps.lean_tools import PORT, REQUEST, get, lean_state, learn, segments

pytestmark = [pytest.mark.apps, pytest.mark.usefixtures("own_network")]

AT_ONCE = 60
TURNS = 12
EACH_MS = 0.2  # an answer may wait for 1 ms
SLOW_MS = 5
WAITED_MS = 0.7
QUICK_MS = 0.01
SLOW_ANSWERS = 100


def turns(*log: Path) -> Application:
    return Application([sys.executable, PROGRAMS / "turns.py", str(PORT), *log], PORT)


def request(milliseconds: float) -> bytes:
    return REQUEST.replace(b"GET /", b"GET /%g" % milliseconds)


def answered(count: int) -> list[float]:
    """Send that many requests at once; return after how many seconds each was answered."""
    after = []
    with selectors.DefaultSelector() as waiting:
        clients = [socket.create_connection(("127.0.0.1", PORT), PATIENCE_S) for _ in range(count)]
        begun = time.monotonic()
        for client in clients:
            waiting.register(client, selectors.EVENT_READ, client)
            client.sendall(request(EACH_MS))
        while waiting.get_map():
            for key, _ in waiting.select(PATIENCE_S):
                after.append(time.monotonic() - begun)
                with key.data as client:
                    waiting.unregister(client)
                    assert client.recv(256).endswith(b"hello\n")
    return after


def test_long_turn() -> None:
    with turns() as app:
        wait_until(lambda: b"200 OK" in get(), "the first answer")
        learn(app, get, ("hold", "ack"))
        shares = [median(after) / after[-1] for after in (answered(AT_ONCE) for _ in range(TURNS))]
        assert lean_state(app)["hold"]["drops"] == 0, lean_state(app)
        assert segments(get, AT_ONCE) <= 7.05
    assert median(shares) < 0.7  # 1, if all were sent when the turn ended


@pytest.mark.parametrize(("make", "milliseconds"), [(Path.touch, SLOW_MS), (os.mkfifo, WAITED_MS)])
def test_log_is_no_excuse(
    tmp_path: Path, make: Callable[[Path], None], milliseconds: float
) -> None:
    """The line sends the answer, which was slow, or may have waited for the pipe's reader."""
    log = tmp_path / "log"
    make(log)
    with log.open("r+b", buffering=0), turns(log) as app:
        wait_until(lambda: b"200 OK" in get(), "the first answer")
        learn(app, get, ("hold", "ack"))
        for _ in range(SLOW_ANSWERS):
            say(PORT, request(milliseconds))
        assert lean_state(app)["hold"]["drops"] == 1


def test_log_after_a_quick_answer(tmp_path: Path) -> None:
    with turns(tmp_path / "log") as app:
        wait_until(lambda: b"200 OK" in get(), "the first answer")
        learn(app, lambda: say(PORT, request(QUICK_MS)), ("hold", "ack"))
        assert segments(lambda: say(PORT, request(QUICK_MS)), AT_ONCE) <= 7.05
