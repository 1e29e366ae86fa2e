# SPDX-License-Identifier: GPL-2.0-or-later
"""Ethernet frames to try a rule on: from a capture, or generated."""

import random
import struct
from collections.abc import Iterator
from pathlib import Path

from fastsocket.errors import UsageError

__all__ = ["SMALLEST", "generated_flows", "read_pcap"]

SMALLEST = 14
"""Bytes of the shortest frame that the kernel takes for a test run: an Ethernet header."""

_MAGIC = {
    b"\xd4\xc3\xb2\xa1": "<",
    b"\x4d\x3c\xb2\xa1": "<",
    b"\xa1\xb2\xc3\xd4": ">",
    b"\xa1\xb2\x3c\x4d": ">",
}
_ETHERNET = 1
_LARGEST = 262_144


def read_pcap(path: Path) -> Iterator[bytes]:
    """Yield the frames of a capture in pcap format, as tcpdump -w writes it.

    Frames shorter than `SMALLEST` are left out. The format: draft-ietf-opsawg-pcap.

    Raises:
        UsageError: Unreadable, another format, not Ethernet, or damaged.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path} cannot be read", error.strerror or "") from error
    order = _MAGIC.get(data[:4])
    if order is None or len(data) < 24:
        raise UsageError(
            f"{path} is no pcap file", "", "convert it with 'tcpdump -r FILE -w OUT.pcap'"
        )
    link = struct.unpack_from(f"{order}I", data, 20)[0] & 0xFFFF
    if link != _ETHERNET:
        raise UsageError(
            f"{path} has no Ethernet frames", f"its link type is {link}", "capture on a device"
        )
    at = 24
    while at < len(data):
        if at + 16 > len(data):
            raise UsageError(f"{path} is damaged", f"it ends within a header at byte {at}")
        size = struct.unpack_from(f"{order}I", data, at + 8)[0]
        at += 16
        if size > _LARGEST or at + size > len(data):
            raise UsageError(f"{path} is damaged", f"a frame of {size} bytes at byte {at}")
        if size >= SMALLEST:
            yield data[at : at + size]
        at += size


def generated_flows(count: int, seed: int = 1) -> Iterator[bytes]:
    """Yield the first packet of each of `count` flows: TCP and UDP, IPv4 and IPv6 by turns.

    The same seed gives the same flows. They go to ports of servers from ephemeral ports.
    """
    chance = random.Random(seed)
    for number in range(count):
        source = chance.randrange(32768, 61000)
        target = chance.choice((80, 443, 8080, 6379))
        proto = 6 if number % 4 < 3 else 17
        ports = struct.pack("!HH", source, target)
        if proto == 6:
            body = ports + struct.pack("!IIBBHHH", chance.getrandbits(32), 0, 0x50, 2, 65535, 0, 0)
        else:
            body = ports + struct.pack("!HH", 8, 0)
        if number % 2:
            ends = b"\x20\x01\x0d\xb8" + chance.randbytes(12) + b"\x20\x01\x0d\xb8" + bytes(11)
            head = struct.pack("!IHBB", 6 << 28, len(body), proto, 64) + ends + b"\x01"
            yield bytes(12) + b"\x86\xdd" + head + body
        else:
            head = struct.pack(
                "!BBHHHBBH", 0x45, 0, 20 + len(body), number & 0xFFFF, 0, 64, proto, 0
            )
            yield bytes(12) + b"\x08\x00" + head + chance.randbytes(4) + b"\xc0\x00\x02\x01" + body
