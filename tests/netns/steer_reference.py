# SPDX-License-Identifier: GPL-2.0-or-later
"""A second implementation, in Python, of what the steer program does with a frame."""

import random
import struct
from dataclasses import dataclass, field
from ipaddress import IPv6Address
from itertools import pairwise
from typing import Any

from fastsocket.steer.layout import Exit

M64 = 2**64 - 1


@dataclass
class Parsed:
    """What parsing a frame gave: the fields for a rule, or the way out."""

    way: Exit | None = None
    fields: dict[str, Any] = field(default_factory=dict)


class _Leave(Exception):
    def __init__(self, way: Exit) -> None:
        self.way = way


class _Reader:
    def __init__(self, frame: bytes) -> None:
        self.frame, self.at = frame, 0

    def header(self, size: int, used: int | None = None) -> bytes:
        """Return `size` bytes, all of which must be there, and step over `used` of them."""
        if self.at + size > len(self.frame):
            raise _Leave(Exit.TRUNCATED)
        found = self.frame[self.at : self.at + size]
        self.at += size if used is None else used
        return found


def parse(frame: bytes) -> Parsed:
    """Parse an Ethernet frame as native/bpf/packet.h does."""
    fields: dict[str, Any] = dict.fromkeys(
        ("sport", "dport", "tcp_flags", "vlan", "inner_vlan", "dscp", "fragment"), 0
    )
    fields["length"] = len(frame)
    try:
        _ethernet(_Reader(frame), fields)
    except _Leave as leave:
        return Parsed(leave.way)
    for end, word in (("src", "saddr"), ("dst", "daddr")):
        words = struct.unpack("!4I", fields[end].packed)
        for index in range(3):
            fields[f"{word}{index}"] = words[index]
        fields[word] = words[3]
    flow = flow_key(fields)
    fields |= {"flow": flow, "hash": flow >> 31, "symmetric_hash": symmetric_key(fields) >> 31}
    return Parsed(fields=fields)


def _ethernet(reader: _Reader, fields: dict[str, Any]) -> None:
    kind = struct.unpack("!12xH", reader.header(14))[0]
    for name in ("vlan", "inner_vlan"):
        if kind not in (0x8100, 0x88A8):
            break
        tag, kind = struct.unpack("!HH", reader.header(4))
        fields[name] = tag & 0xFFF
    if kind == 0x0800:
        _ipv4(reader, fields)
    elif kind == 0x86DD:
        _ipv6(reader, fields)
    else:
        raise _Leave(Exit.DEEP_VLAN if kind in (0x8100, 0x88A8) else Exit.NOT_IP)


def _ipv4(reader: _Reader, fields: dict[str, Any]) -> None:
    header = reader.header(20, 0)
    if header[0] >> 4 != 4 or header[0] & 15 < 5:
        raise _Leave(Exit.MALFORMED)
    reader.at += (header[0] & 15) * 4
    fields["version"], fields["dscp"] = 4, header[1] >> 2
    fields["fragment"] = int(struct.unpack("!H", header[6:8])[0] & 0x3FFF != 0)
    fields["proto"] = header[9]
    fields["src"] = IPv6Address(bytes(10) + b"\xff\xff" + header[12:16])
    fields["dst"] = IPv6Address(bytes(10) + b"\xff\xff" + header[16:20])
    _ports(reader, fields)


def _ipv6(reader: _Reader, fields: dict[str, Any]) -> None:
    header = reader.header(40)
    if header[0] >> 4 != 6:
        raise _Leave(Exit.MALFORMED)
    fields["version"] = 6
    fields["dscp"] = (header[0] & 15) << 2 | header[1] >> 6
    fields["src"], fields["dst"] = IPv6Address(header[8:24]), IPv6Address(header[24:40])
    following = header[6]
    for _ in range(6):
        if following in (0, 43, 60):
            following, length = reader.header(2, 0)
            reader.at += (length + 1) * 8
        elif following == 51:
            following, length = reader.header(2, 0)
            reader.at += (length + 2) * 4
        elif following == 44:
            fields["proto"], fields["fragment"] = reader.header(8)[0], 1
            return
        else:
            fields["proto"] = following
            _ports(reader, fields)
            return
    raise _Leave(Exit.DEEP_OPTIONS)


def _ports(reader: _Reader, fields: dict[str, Any]) -> None:
    if fields["fragment"]:
        return
    if fields["proto"] == 6:
        header = reader.header(20)
        fields["tcp_flags"] = header[13]
    elif fields["proto"] in (17, 136, 132):
        header = reader.header(8)
    else:
        return
    fields["sport"], fields["dport"] = struct.unpack("!HH", header[:4])


def _mix(x: int) -> int:
    x ^= x >> 33
    x = x * 0xFF51AFD7ED558CCD & M64
    x ^= x >> 33
    x = x * 0xC4CEB9FE1A85EC53 & M64
    return x ^ x >> 33


def _end(address: IPv6Address, port: int) -> int:
    high, low = struct.unpack("!QQ", address.packed)
    return _mix((high * 0x9E3779B97F4A7C15 + low + (port << 40)) & M64)


def flow_key(fields: dict[str, Any]) -> int:
    """Compute flow_key() of native/include/flow.h."""
    source = _end(fields["src"], fields["sport"])
    target = _end(fields["dst"], fields["dport"])
    return _mix((source * 3 + target + fields["proto"]) & M64) >> 1


def symmetric_key(fields: dict[str, Any]) -> int:
    """Compute flow_key_symmetric() of native/include/flow.h."""
    source = _end(fields["src"], fields["sport"])
    target = _end(fields["dst"], fields["dport"])
    return _mix((source + target + fields["proto"]) & M64) >> 1


def random_frame(chance: random.Random) -> bytes:
    """Return a frame that is right more often than not: tags, options, fragments, cuts."""
    kind = chance.choice((0x0800, 0x0800, 0x86DD, 0x86DD, 0x0806))
    proto = chance.choice((6, 6, 17, 17, 132, 136, 1, 58, chance.randrange(256)))
    transport = chance.randbytes(chance.choice((20, 20, 40, 8, 4, 0)))
    network = (_random_ipv4 if kind == 0x0800 else _random_ipv6)(chance, proto)
    frame = chance.randbytes(12)
    for _ in range(chance.choice((0, 0, 0, 1, 2, 3))):
        frame += chance.choice((b"\x81\x00", b"\x88\xa8")) + chance.randbytes(2)
    frame += struct.pack("!H", kind) + network + transport
    if chance.random() < 0.2:
        frame = frame[: chance.randrange(14, max(len(frame), 15))]
    if chance.random() < 0.1:
        damaged = bytearray(frame)
        damaged[chance.randrange(12, len(frame))] = chance.randrange(256)
        frame = bytes(damaged)
    return frame + bytes(max(0, 14 - len(frame)))


def _random_ipv4(chance: random.Random, proto: int) -> bytes:
    options = chance.choice((0, 0, 0, 1, 10))
    offset = chance.choice((0, 0, 0, 0x4000, 0x2000, 5))
    return struct.pack(
        "!BBHHHBBH4s4s", 0x45 + options, chance.randrange(256), 40, 1, offset, 64, proto, 0,
        chance.randbytes(4), chance.randbytes(4),
    ) + chance.randbytes(4 * options)  # fmt: skip


def _random_ipv6(chance: random.Random, proto: int) -> bytes:
    kinds = [chance.choice((0, 43, 60, 51, 44)) for _ in range(chance.choice((0, 0, 0, 1, 2, 7)))]
    kinds.append(proto)
    header = struct.pack("!IHBB", 6 << 28 | chance.getrandbits(28), 0, kinds[0], 64)
    header += chance.randbytes(32)
    for kind, following in pairwise(kinds):
        length = chance.choice((0, 1, 2))
        if kind == 44:
            header += bytes([following]) + chance.randbytes(7)
        elif kind == 51:
            header += bytes([following, length]) + chance.randbytes((length + 2) * 4 - 2)
        else:
            header += bytes([following, length]) + chance.randbytes((length + 1) * 8 - 2)
    return header
