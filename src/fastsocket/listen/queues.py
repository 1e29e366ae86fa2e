# SPDX-License-Identifier: GPL-2.0-or-later
"""Accept queues as the kernel counts them, of all listening TCP sockets of a namespace."""

import os
import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

__all__ = ["Queue", "listen_overflows", "queues"]

NETLINK_SOCK_DIAG = 4
SOCK_DIAG_BY_FAMILY = 20
NLM_F_REQUEST_DUMP = 0x301
NLMSG_ERROR, NLMSG_DONE = 2, 3
TCP_LISTEN = 10
# linux/inet_diag.h: the attribute with the socket's memory, and in it (sock_diag.h) the drops.
INET_DIAG_SKMEMINFO = 7
SK_MEMINFO_DROPS = 8
_HEADER = struct.Struct("=IHHII")
_REQUEST = struct.Struct("=BBBxI48x")  # struct inet_diag_req_v2
_MESSAGE = struct.Struct("=4B40xIIIIIII")  # struct inet_diag_msg; the cookie's halves come first
_ATTRIBUTE = struct.Struct("=HH")
LARGEST = 1 << 16
PATIENCE_S = 1.0


class Queue(NamedTuple):
    """One listening socket: connections that wait, as many as may, and connections dropped."""

    depth: int
    limit: int
    drops: int


def queues() -> dict[int, Queue]:
    """Return the queues by socket cookie; empty where the kernel does not tell."""
    found: dict[int, Queue] = {}
    with suppress(OSError):
        for family in (socket.AF_INET, socket.AF_INET6):
            found.update(_dump(family))
    return found


def _dump(family: int) -> Iterator[tuple[int, Queue]]:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_SOCK_DIAG) as netlink:
        netlink.settimeout(PATIENCE_S)
        request = _REQUEST.pack(
            family, socket.IPPROTO_TCP, 1 << (INET_DIAG_SKMEMINFO - 1), 1 << TCP_LISTEN
        )
        size = _HEADER.size + len(request)
        netlink.send(_HEADER.pack(size, SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST_DUMP, 0, 0) + request)
        while True:
            data, at = netlink.recv(LARGEST), 0
            while at + _HEADER.size <= len(data):
                length, kind, *_ = _HEADER.unpack_from(data, at)
                if kind in (NLMSG_DONE, NLMSG_ERROR) or length < _HEADER.size:
                    return
                yield _parse(data[at + _HEADER.size : at + length])
                at += -(-length // 4) * 4


def _parse(message: bytes) -> tuple[int, Queue]:
    fields = _MESSAGE.unpack_from(message)
    low, high, _, depth, limit, _, _ = fields[4:]
    drops, at = 0, _MESSAGE.size
    while at + _ATTRIBUTE.size <= len(message):
        length, kind = _ATTRIBUTE.unpack_from(message, at)
        if kind == INET_DIAG_SKMEMINFO:
            (drops,) = struct.unpack_from("=I", message, at + 4 + 4 * SK_MEMINFO_DROPS)
        at += max(-(-length // 4) * 4, _ATTRIBUTE.size)
    return low | high << 32, Queue(depth, limit, drops)


def listen_overflows(pid: int | None = None) -> int | None:
    """Return how often a queue of the network namespace was full (TcpExtListenOverflows)."""
    path = Path(f"/proc/{pid or os.getpid()}/net/netstat")
    try:
        lines = [line.split() for line in path.read_text().splitlines()]
    except OSError:
        return None
    for names, values in zip(lines[::2], lines[1::2], strict=False):
        if "ListenOverflows" in names:
            return int(values[names.index("ListenOverflows")])
    return None
