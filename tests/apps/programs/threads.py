# SPDX-License-Identifier: GPL-2.0-or-later
"""A server whose threads poll one listener, each with an epoll instance of its own.

Arguments are port and number of threads. Each answers with its thread id; after a request "leave"
it serves nobody for a moment, and then ends.
"""

import select
import socket
import sys
import threading
import time

LEAVING_S = 1.0


def serve(listener: socket.socket) -> None:
    poller = select.epoll()
    poller.register(listener.fileno(), select.EPOLLIN)
    while True:
        poller.poll()
        try:
            connection, _ = listener.accept()
        except BlockingIOError:
            continue
        with connection:
            connection.setblocking(True)
            request = connection.recv(64)
            connection.sendall(str(threading.get_native_id()).encode())
        if request == b"leave":
            time.sleep(LEAVING_S)
            return


def main() -> None:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", int(sys.argv[1])))
        listener.listen(64)
        listener.setblocking(False)
        for _ in range(int(sys.argv[2])):
            threading.Thread(target=serve, args=(listener,), daemon=True).start()
        while True:
            time.sleep(3600)


main()
