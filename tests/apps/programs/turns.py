# SPDX-License-Identifier: GPL-2.0-or-later
"""An asyncio server that computes after each answer, as long as asked: turns.py PORT [LOG].

"GET /0.5" asks for half a millisecond. Connections that come at once are answered in one turn of
the loop, and closed in the next. What took time is logged.
"""

import asyncio
import os
import sys
import time

ANSWER = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 6\r\n\r\nhello\n"
LOG = os.open(sys.argv[2], os.O_WRONLY | os.O_CREAT | os.O_APPEND) if sys.argv[2:] else 0


class Server(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(ANSWER)
        milliseconds = float(data.split()[1][1:] or 0)
        end = time.monotonic() + milliseconds / 1000
        while time.monotonic() < end:
            pass
        if LOG and milliseconds:
            os.write(LOG, b"answered\n")
        self.transport.close()


async def main() -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Server, "127.0.0.1", int(sys.argv[1]))
    await server.serve_forever()


asyncio.run(main())
