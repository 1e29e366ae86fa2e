# SPDX-License-Identifier: GPL-2.0-or-later
"""A loop that answers many connections in one turn and closes them in the next.

Its answers do not wait for the end of the turn, and those of a short one leave with their FIN.
"""

import selectors
import socket
import sys
import time
from statistics import median

import pytest

from tests.apps.harness import PATIENCE_S, PROGRAMS, Application, wait_until
from tests.apps.lean_tools import PORT, REQUEST, get, lean_state, learn, segments

pytestmark = [pytest.mark.apps, pytest.mark.usefixtures("own_network")]

AT_ONCE = 40
TURNS = 12
EACH_MS = 0.5  # an answer may wait for 1 ms


def turns(milliseconds: float) -> Application:
    return Application([sys.executable, PROGRAMS / "turns.py", str(PORT), str(milliseconds)], PORT)


def answered(count: int) -> list[float]:
    """Send that many requests at once; return after how many seconds each was answered."""
    with selectors.DefaultSelector() as waiting:
        for _ in range(count):
            client = socket.create_connection(("127.0.0.1", PORT), PATIENCE_S)
            waiting.register(client, selectors.EVENT_READ)
        clients = [key.fileobj for key in waiting.get_map().values()]
        begun = time.monotonic()
        for client in clients:
            assert isinstance(client, socket.socket)
            client.sendall(REQUEST)
        after = []
        while waiting.get_map():
            for key, _ in waiting.select(PATIENCE_S):
                client = key.fileobj
                assert isinstance(client, socket.socket)
                after.append(time.monotonic() - begun)
                with client:
                    waiting.unregister(client)
                    assert client.recv(256).endswith(b"hello\n")
    return after


def test_long_turn() -> None:
    with turns(EACH_MS) as app:
        wait_until(lambda: b"200 OK" in get(), "the first answer")
        learn(app, get, ("hold", "ack"))
        shares = [median(after) / after[-1] for after in (answered(AT_ONCE) for _ in range(TURNS))]
        assert lean_state(app)["hold"]["drops"] == 0
        assert segments(get, AT_ONCE) <= 7.05
    assert median(shares) < 0.7  # 1, if all were sent when the turn ended
