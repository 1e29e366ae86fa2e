# SPDX-License-Identifier: GPL-2.0-or-later
"""A connection accepted on any slot has the options that it would have had without us."""

import re
import socket
import struct
from pathlib import Path
from typing import Any

import pytest

from tests.apps.harness import python_server, who_serves

pytestmark = [pytest.mark.apps, pytest.mark.usefixtures("own_network")]

PORT = 8080
OPTIONS_C = Path(__file__).parents[2] / "native/preload/options.c"
LEVELS = {"SOL_SOCKET": 1, "IPPROTO_IP": 0, "IPPROTO_TCP": 6, "IPPROTO_IPV6": 41}


def i(value: int) -> bytes:
    """Return an int as setsockopt() takes it."""
    return struct.pack("=i", value)


def time(microseconds: int) -> bytes:
    """Return a struct timeval below one second."""
    return struct.pack("=qq", 0, microseconds)


# Each option of the table in options.c: (number, another value than the default). Numbers are
# those of include/uapi: Python's socket module lacks many. None: only read, see why.
SOCKET: dict[str, tuple[int, bytes | None]] = {
    "SO_REUSEADDR": (2, i(1)),
    "SO_KEEPALIVE": (9, i(1)),
    "SO_LINGER": (13, struct.pack("=ii", 1, 3)),
    "SO_PRIORITY": (12, i(3)),
    "SO_MARK": (36, i(7)),
    "SO_BINDTODEVICE": (25, b"lo\0"),
    "SO_RCVLOWAT": (18, i(1)),
    "SO_RCVTIMEO": (20, time(700000)),
    "SO_SNDTIMEO": (21, time(800000)),
    "SO_OOBINLINE": (10, i(1)),
    "SO_DONTROUTE": (5, i(1)),
    "SO_DEBUG": (1, i(1)),
    "SO_TIMESTAMP": (29, i(1)),
    "SO_TIMESTAMPNS": (35, None),  # ends SO_TIMESTAMP
    "SO_TIMESTAMPING": (37, i(8)),
    "SO_BUSY_POLL": (46, i(5)),
    "SO_PREFER_BUSY_POLL": (69, i(1)),
    "SO_BUSY_POLL_BUDGET": (70, i(4)),
    "SO_MAX_PACING_RATE": (47, i(123456789)),
    "SO_RXQ_OVFL": (40, i(1)),
    "SO_NOFCS": (43, i(1)),
    "SO_SELECT_ERR_QUEUE": (45, i(1)),
    "SO_ZEROCOPY": (60, i(1)),
    "SO_TXREHASH": (74, i(0)),
    "SO_RCVBUF": (8, i(50000)),
    "SO_SNDBUF": (7, i(60000)),
}
TCP: dict[str, tuple[int, bytes | None]] = {
    "TCP_NODELAY": (1, i(1)),
    "TCP_MAXSEG": (2, None),  # reads as what is in use; test_odd_servers.py asks the clients
    "TCP_CORK": (3, i(1)),
    "TCP_KEEPIDLE": (4, i(77)),
    "TCP_KEEPINTVL": (5, i(11)),
    "TCP_KEEPCNT": (6, i(4)),
    "TCP_SYNCNT": (7, i(3)),
    "TCP_LINGER2": (8, i(13)),
    "TCP_DEFER_ACCEPT": (9, i(1)),
    "TCP_WINDOW_CLAMP": (10, i(40000)),
    "TCP_QUICKACK": (12, i(0)),
    "TCP_CONGESTION": (13, b"reno"),
    "TCP_THIN_LINEAR_TIMEOUTS": (16, i(1)),
    "TCP_USER_TIMEOUT": (18, i(12345)),
    "TCP_FASTOPEN": (23, i(5)),
    "TCP_FASTOPEN_KEY": (33, bytes(range(16))),
    "TCP_FASTOPEN_NO_COOKIE": (34, i(1)),
    "TCP_NOTSENT_LOWAT": (25, i(65536)),
    "TCP_SAVE_SYN": (27, i(1)),
    "TCP_INQ": (36, i(1)),
    "TCP_TX_DELAY": (37, i(500)),
}
IP: dict[str, tuple[int, bytes | None]] = {
    "IP_TOS": (1, i(0x10)),
    "IP_TTL": (2, i(33)),
    "IP_MINTTL": (21, i(1)),
    "IP_OPTIONS": (4, b"\x01\x01\x01\x00"),
    "IP_MTU_DISCOVER": (10, i(0)),
    "IP_TRANSPARENT": (19, i(1)),
    "IP_FREEBIND": (15, i(1)),
    "IP_RECVTOS": (13, i(1)),
    "IP_RECVTTL": (12, i(1)),
    "IP_PKTINFO": (8, i(1)),
    "IP_RECVERR": (11, i(1)),
    "IP_LOCAL_PORT_RANGE": (51, struct.pack("=HH", 40000, 50000)),
}
IPV6: dict[str, tuple[int, bytes | None]] = {
    "IPV6_V6ONLY": (26, i(1)),
    "IPV6_TCLASS": (67, i(0x10)),
    "IPV6_UNICAST_HOPS": (16, i(33)),
    "IPV6_MINHOPCOUNT": (73, i(1)),
    "IPV6_MTU_DISCOVER": (23, i(0)),
    "IPV6_MTU": (24, None),  # only of a connected socket
    "IPV6_TRANSPARENT": (75, i(1)),
    "IPV6_FREEBIND": (78, i(1)),
    "IPV6_RECVPKTINFO": (49, i(1)),
    "IPV6_RECVHOPLIMIT": (51, i(1)),
    "IPV6_RECVTCLASS": (66, i(1)),
    "IPV6_RECVERR": (25, i(1)),
    "IPV6_DONTFRAG": (62, i(1)),
    "IPV6_AUTOFLOWLABEL": (70, i(0)),
    "IPV6_ADDR_PREFERENCES": (72, i(2)),
}
TABLES = {"SOL_SOCKET": SOCKET, "IPPROTO_TCP": TCP, "IPPROTO_IP": IP, "IPPROTO_IPV6": IPV6}
V4 = ("SOL_SOCKET", "IPPROTO_TCP", "IPPROTO_IP")
V6 = ("SOL_SOCKET", "IPPROTO_TCP", "IPPROTO_IPV6")


def test_every_option_of_the_shim_is_tried_here() -> None:
    table = set(re.findall(r"\{(\w+), ((?:SO|TCP|IP|IPV6)_\w+)\}", OPTIONS_C.read_text()))
    here = {(level, name) for level, options in TABLES.items() for name in options}
    assert here - table == {("SOL_SOCKET", "SO_RCVBUF"), ("SOL_SOCKET", "SO_SNDBUF")}
    assert table <= here


def settable(host: str, levels: tuple[str, ...], when: str) -> list[tuple[int, int, str]]:
    """Return the options, with their values, that can be set before or after listen() here."""
    found = []
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for level in levels:
        for number, value in TABLES[level].values():
            with socket.socket(family, socket.SOCK_STREAM) as trial:
                if when == "after":
                    trial.bind((host, 0))
                    trial.listen()
                try:
                    if value is not None:
                        trial.setsockopt(LEVELS[level], number, value)
                        found.append((LEVELS[level], number, value.hex()))
                except OSError:
                    continue
    return found


def answers(plan: dict[str, Any], cpus: list[int], host: str, accelerated: bool) -> set[tuple]:
    """Return the options of accepted connections, one entry for each that differs."""
    with python_server(plan, PORT, accelerated=accelerated) as app:
        if accelerated:
            app.wait_for_slots(2)
        said = [row for rows in who_serves(PORT, cpus[:2], host=host).values() for row in rows]
        if accelerated:
            assert len({row["pid"] for row in said}) == 2
        assert app.stop() == 0
        return {tuple(row["options"]) for row in said}


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(("host", "levels"), [("127.0.0.1", V4), ("::1", V6)])
def test_options_are_handed_down(
    cpus: list[int], when: str, host: str, levels: tuple[str, ...]
) -> None:
    options = settable(host, levels, when)
    assert len(options) > 40, "most of them can be set"
    read = [
        (LEVELS[level], number, 256) for level in levels for number, _ in TABLES[level].values()
    ]
    plan = {"listen": [[host, PORT]], when: options, "read": read}
    stock = answers(plan, cpus, host, accelerated=False)
    plain = answers({"listen": [[host, PORT]], "read": read}, cpus, host, accelerated=False)
    assert len(stock) == 1, "the same for each connection"
    changed = sum(a != b for a, b in zip(*stock, *plain, strict=True))
    assert changed > 15, "the listener hands options down"
    assert answers(plan, cpus, host, accelerated=True) == stock
