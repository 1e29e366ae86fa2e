# SPDX-License-Identifier: GPL-2.0-or-later
"""A server that answers each connection with its listener's TCP_FASTOPEN: opens.py PORT OWN.

OWN is what it sets itself before it listens; 0: it leaves the option alone.
"""

import socket
import sys

from accepting import connections

port, own = map(int, sys.argv[1:])
listener = socket.socket()
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.bind(("127.0.0.1", port))
if own:
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_FASTOPEN, own)
listener.listen()
for client in connections(listener):
    client.recv(1024)
    length = listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_FASTOPEN)
    client.sendall(str(length).encode())
