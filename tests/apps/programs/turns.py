# SPDX-License-Identifier: GPL-2.0-or-later
"""An asyncio server that computes after each answer: turns.py PORT MILLISECONDS.

Connections that come at once are answered in one turn of the loop, and closed in the next.
"""

import asyncio
import sys
import time

ANSWER = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 6\r\n\r\nhello\n"


class Server(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(ANSWER)
        end = time.monotonic() + float(sys.argv[2]) / 1000
        while time.monotonic() < end:
            pass
        self.transport.close()


async def main() -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Server, "127.0.0.1", int(sys.argv[1]))
    await server.serve_forever()


asyncio.run(main())
