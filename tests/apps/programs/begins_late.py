# SPDX-License-Identifier: GPL-2.0-or-later
"""A worker whose threads answer with the CPUs that they may use, and one that begins to poll when
the other is about to start its first: begins_late.py PORT."""

import os
import select
import signal
import socket
import sys
from threading import Thread


def answer(client: socket.socket) -> None:
    with client:
        client.sendall(" ".join(map(str, sorted(os.sched_getaffinity(0)))).encode())


def accept(listener: socket.socket, loop: select.epoll) -> socket.socket:
    while True:
        loop.poll()
        try:
            client, _ = listener.accept()
        except BlockingIOError:
            continue
        return client


def main() -> None:
    listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
    listener.setblocking(False)
    begun, begins = os.pipe()
    if os.fork():
        if os.fork():
            signal.sigwait([signal.SIGCHLD])  # the workers' parent
            return
        os.read(begun, 1)
    with select.epoll() as loop:
        loop.register(listener, select.EPOLLIN)
        while True:
            client = accept(listener, loop)
            os.write(begins, b"x")
            Thread(target=answer, args=[client]).start()


main()
