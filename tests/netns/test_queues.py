# SPDX-License-Identifier: GPL-2.0-or-later
"""Accept queues as the kernel tells them, and what status makes of them."""

import socket
import time
from contextlib import ExitStack

import pytest

from fastsocket.listen.queues import listen_overflows, queues

pytestmark = pytest.mark.netns

SO_COOKIE = 57
BACKLOG = 3


def cookie(of: socket.socket) -> int:
    return int.from_bytes(of.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8), "little")


@pytest.mark.parametrize(
    ("family", "host"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")]
)
def test_depth_limit_and_drops(family: socket.AddressFamily, host: str) -> None:
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket(family))
        listener.bind((host, 0))
        listener.listen(BACKLOG)
        before = listen_overflows()
        assert before is not None
        assert queues()[cookie(listener)] == (0, BACKLOG, 0)
        for _ in range(BACKLOG + 1):  # the kernel lets one more wait
            stack.enter_context(socket.create_connection(listener.getsockname()[:2], timeout=2))
        assert queues()[cookie(listener)].depth == BACKLOG + 1
        late = stack.enter_context(socket.socket(family))
        late.setblocking(False)
        late.connect_ex(listener.getsockname())
        end = time.monotonic() + 5
        while not queues()[cookie(listener)].drops and time.monotonic() < end:
            time.sleep(0.01)
        assert queues()[cookie(listener)].drops >= 1
        assert (listen_overflows() or 0) > before
        number = cookie(listener)
    assert number not in queues()
