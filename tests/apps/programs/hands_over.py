# SPDX-License-Identifier: GPL-2.0-or-later
"""Two workers that accept and compute: hands_over.py PORT self|other.

`other`: another thread of the worker computes, and the one that accepted waits for it.
"""

import hashlib
import os
import select
import signal
import socket
import sys
from concurrent.futures import ThreadPoolExecutor

WORK = bytes(200_000)


def serve(listener: socket.socket, hands_over: bool) -> None:
    loop = select.epoll()
    loop.register(listener, select.EPOLLIN)
    with ThreadPoolExecutor(1) as pool:
        while True:
            for _ in loop.poll():
                try:
                    client, _ = listener.accept()
                except BlockingIOError:
                    continue
                with client:
                    client.setblocking(True)
                    client.recv(64)
                    work = pool.submit(hashlib.sha256, WORK) if hands_over else None
                    digest = work.result() if work else hashlib.sha256(WORK)
                    client.sendall(digest.hexdigest().encode())


def main() -> None:
    listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
    listener.setblocking(False)
    if os.fork() and os.fork():
        signal.sigwait([signal.SIGCHLD])  # the workers' parent
    else:
        serve(listener, sys.argv[2] == "other")


main()
