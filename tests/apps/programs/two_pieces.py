# SPDX-License-Identifier: GPL-2.0-or-later
"""A server that answers in two pieces, and does not close: two_pieces.py PORT.

The second piece waits for the client's ACK of the first (Nagle's algorithm).
"""

import socket
import sys

listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
while True:
    client, _ = listener.accept()
    with client:
        client.recv(1024)
        client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n")
        client.sendall(b"body")
        client.recv(1024)
