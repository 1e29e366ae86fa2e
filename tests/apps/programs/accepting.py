# SPDX-License-Identifier: GPL-2.0-or-later
"""How servers of this folder accept that serve one connection after the other."""

import select
import socket
from collections.abc import Iterator


def connections(listener: socket.socket) -> Iterator[socket.socket]:
    """Yield what is accepted, with blocking calls; it is closed when the next one is asked for."""
    listener.setblocking(False)
    loop = select.epoll()
    loop.register(listener, select.EPOLLIN)
    while True:
        for _ in loop.poll():
            client, _ = listener.accept()
            with client:
                client.setblocking(True)
                yield client
