# SPDX-License-Identifier: GPL-2.0-or-later
"""Finding the accelerated applications of this host and asking their keepers."""

import ctypes
import json
import re
import socket
import threading
from pathlib import Path
from typing import Any

from fastsocket.app.protocol import Op, Request

__all__ = ["applications", "ask", "owner_of"]

KEEPER_NAME = "fastsocket-keep"
_ABSTRACT = re.compile(r"@fastsocket/(\d+)$")
CLONE_NEWNET = 0x40000000
LARGEST_STATUS = 4 << 20


def ask(pid: int, keeper: int | None = None) -> dict[str, Any] | None:
    """Return the status of the application of `pid`, or None if it has no keeper (any more).

    Abstract socket names belong to a network namespace: with the pid of its `keeper` the
    question is asked from within the keeper's.
    """
    answer: list[dict[str, Any] | None] = [None]

    def enter_and_ask() -> None:
        if keeper and not _same_namespace(keeper):
            with Path(f"/proc/{keeper}/ns/net").open() as namespace:
                if ctypes.CDLL(None).setns(namespace.fileno(), CLONE_NEWNET) < 0:
                    return
        answer[0] = _ask(pid)

    thread = threading.Thread(target=enter_and_ask)  # setns() changes only the calling thread
    thread.start()
    thread.join()
    return answer[0]


def _same_namespace(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/ns/net").samefile("/proc/self/ns/net")
    except OSError:
        return True


def _ask(pid: int) -> dict[str, Any] | None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
        client.settimeout(2)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, LARGEST_STATUS)
        try:
            client.connect(f"\0fastsocket/{pid}")
            client.send(Request(Op.STATUS).pack())
            status: dict[str, Any] = json.loads(client.recv(LARGEST_STATUS))
        except (OSError, ValueError):
            return None
        return status


def applications() -> list[dict[str, Any]]:
    """Return the status of every application that runs accelerated and that we may ask."""
    found: dict[int, dict[str, Any]] = {}
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        try:
            if (process / "comm").read_text().strip() != KEEPER_NAME:
                continue
            names = (process / "net/unix").read_text().splitlines()
        except OSError:
            continue
        for line in names:
            match = _ABSTRACT.search(line)
            if match and int(match[1]) not in found:
                status = ask(int(match[1]), int(process.name))
                if status:
                    found[int(match[1])] = status
    return [found[pid] for pid in sorted(found)]


def owner_of(pid: int, among: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the application to which `pid` belongs: as first process, worker or descendant."""
    while pid > 1:
        for status in among:
            if pid == status["pid"] or pid in status["processes"]:
                return status
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
        except OSError:
            return None
        pid = int(stat.rpartition(")")[2].split()[1])
    return None
