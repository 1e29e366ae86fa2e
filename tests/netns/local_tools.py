# SPDX-License-Identifier: GPL-2.0-or-later
"""A connection, and talk on it, for the tests of the local fast path."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["PATIENCE_S", "exchange", "pair"]

PATIENCE_S = 5


@contextmanager
def pair(listener: socket.socket) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Both ends of a connection to a listener."""
    with socket.create_connection(listener.getsockname()[:2], PATIENCE_S) as client:
        server, _ = listener.accept()
        with server:
            server.settimeout(PATIENCE_S)
            yield client, server


def exchange(client: socket.socket, server: socket.socket, rounds: int = 10) -> None:
    """A question and an answer, again and again."""
    for number in range(rounds):
        question, answer = b"q%d" % number, b"a%d" % number
        client.sendall(question)
        assert server.recv(64) == question
        server.sendall(answer)
        assert client.recv(64) == answer
