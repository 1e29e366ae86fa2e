# SPDX-License-Identifier: GPL-2.0-or-later
"""How odd servers answer the load generator: what `odd_server` of demo_tools takes."""

import asyncio

from demo_tools import Handler, Odd, reset

__all__ = [
    "NO_LENGTH",
    "OK",
    "answering",
    "keep_alive",
    "never",
    "read_request",
    "reset_after_request",
    "reset_at_once",
    "reset_within_answer",
]

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello"
NO_LENGTH = b"HTTP/1.1 200 OK\r\n\r\nhello"


async def read_request(seen: Odd, reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    seen.requests += 1
    seen.heads.append(head)
    return head


def answering(*parts: bytes, delay_s: float = 0.0) -> Handler:
    """Answer a request with ``parts``, each after a pause, and close."""

    async def handler(
        seen: Odd, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        await read_request(seen, reader)
        for part in parts:
            await asyncio.sleep(delay_s)
            writer.write(part)
            await writer.drain()

    return handler


async def reset_after_request(
    seen: Odd, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    await read_request(seen, reader)
    reset(writer)


async def reset_at_once(
    seen: Odd, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    reset(writer)


async def reset_within_answer(
    seen: Odd, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    await read_request(seen, reader)
    writer.write(OK[:-2])
    await asyncio.sleep(0.05)
    reset(writer)


async def never(seen: Odd, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()


async def keep_alive(seen: Odd, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer until a request wants the end, in the manner of a server with keep-alive."""
    wanted = True
    while wanted:
        head = await read_request(seen, reader)
        wanted = b"keep-alive" in head
        writer.write(OK.replace(b"close", b"keep-alive" if wanted else b"close"))
