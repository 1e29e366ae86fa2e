# SPDX-License-Identifier: GPL-2.0-or-later
"""A server that answers each connection with its listener's TCP_FASTOPEN: opens.py PORT OWN.

OWN is what it sets itself before it listens; 0: it leaves the option alone.
"""

import select
import socket
import sys

port, own = map(int, sys.argv[1:])
listener = socket.socket()
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.bind(("127.0.0.1", port))
if own:
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_FASTOPEN, own)
listener.listen()
listener.setblocking(False)
loop = select.epoll()
loop.register(listener, select.EPOLLIN)
while True:
    for _ in loop.poll():
        client, _ = listener.accept()
        with client:
            client.setblocking(True)
            client.recv(1024)
            length = listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_FASTOPEN)
            client.sendall(str(length).encode())
