# SPDX-License-Identifier: GPL-2.0-or-later
"""A server whose child closes its copy of a connection that is answered further: forks.py PORT HOW.

It answers and closes. Once it was asked for /fork, it answers, makes a child by clone or _Fork
which closes the connection and ends, and then sends the rest.
"""

import ctypes
import os
import signal
import socket
import sys
import time

from accepting import connections

HOW = sys.argv[2]
STACK = 1 << 20
libc = ctypes.CDLL(None)


def close_and_end(fd: int) -> int:
    """What the child does."""
    os.close(fd)
    os._exit(0)


# Made before, as that reads files, and an answer is not held over that.
start = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int)(close_and_end)
stack = ctypes.create_string_buffer(STACK)
top = ctypes.c_void_p(ctypes.addressof(stack) + STACK & ~15)


def make_child(fd: int) -> None:
    """Make it, and go on when it has ended."""
    if HOW == "_Fork":
        child = libc._Fork()
        if not child:
            close_and_end(fd)
    else:
        child = libc.clone(start, top, signal.SIGCHLD, ctypes.c_void_p(fd))
    ended, end = (0, 0), time.monotonic() + 5
    while not ended[0]:
        ended = os.waitpid(child, os.WNOHANG)
        assert time.monotonic() < end
    assert ended == (child, 0)


for client in connections(socket.create_server(("127.0.0.1", int(sys.argv[1])))):
    request = client.recv(1024)
    client.send(b"HTTP/1.1 200 OK\r\n\r\n")
    if b"/fork" in request:
        make_child(client.fileno())
        client.send(b"rest")
