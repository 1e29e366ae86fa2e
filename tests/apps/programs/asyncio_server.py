# SPDX-License-Identifier: GPL-2.0-or-later
"""An asyncio server that answers with the number of epoll_ctl calls so far, and closes.

With a second word it has another thread, too.
"""

import asyncio
import ctypes
import sys

libc = ctypes.CDLL(None)


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(1)
    writer.write(str(libc.epoll_ctl_calls()).encode())
    writer.close()


async def main() -> None:
    server = await asyncio.start_server(serve, "127.0.0.1", int(sys.argv[1]))
    if sys.argv[2:]:
        await asyncio.get_running_loop().run_in_executor(None, int)
    await server.serve_forever()


asyncio.run(main())
