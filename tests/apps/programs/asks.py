# SPDX-License-Identifier: GPL-2.0-or-later
"""A client that blocks, or waits for events: asks.py PORT COUNT blocks|events [HOW]...

It makes COUNT requests. Then, for each HOW, it connects once more and says nothing: it reads
(read), waits for events (wait), lets a child wait (hand over), or becomes another program (become).
There must be a connection then.
"""

import os
import re
import select
import socket
import sys
from contextlib import suppress

ENDPOINT = ("127.0.0.1", int(sys.argv[1]))
REQUEST = b"GET / HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n"
OTHER = "import socket; socket.socket(fileno={}).getpeername()"


def ask(blocks: bool) -> None:
    """Make one request."""
    with socket.create_connection(ENDPOINT) as client:
        client.setblocking(blocks)
        client.sendall(REQUEST)
        answer, left = b"", 1
        while left and (blocks or select.select([client], [], [])):
            piece = client.recv(65536)
            answer += piece
            head, _, body = answer.partition(b"\r\n\r\n")
            length = re.search(rb"(?i)content-length: (\d+)", head)
            left = int(length[1]) - len(body) if length else len(piece)
    assert b"200" in answer


def stay_silent(how: str) -> None:
    """Connect, and wait in that way for what never comes."""
    client = socket.create_connection(ENDPOINT)
    if how == "read":
        client.setblocking(False)
        with suppress(BlockingIOError):
            client.recv(1)
        select.select([], [client], [])
    elif how == "wait":
        select.select([client], [], [], 0.1)
    elif how == "hand over":
        if child := os.fork():
            assert os.waitpid(child, 0)[1] == 0
            return
        select.select([client], [], [], 0.1)
        client.getpeername()
        os._exit(0)
    else:
        client.set_inheritable(True)
        os.execv(sys.executable, [sys.executable, "-c", OTHER.format(client.fileno())])
    client.getpeername()


for _ in range(int(sys.argv[2])):
    ask(sys.argv[3] == "blocks")
for way in sys.argv[4:]:
    stay_silent(way)
