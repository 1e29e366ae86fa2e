# SPDX-License-Identifier: GPL-2.0-or-later
"""Finding the accelerated applications of this host and asking their keepers."""

import ctypes
import fcntl
import json
import os
import socket
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from fastsocket.app.protocol import Op, Request, owner_of_socket, pack_reply, unpack_error
from fastsocket.app.requests import SO_PEERCRED_FORMAT

__all__ = ["applications", "ask", "owner_of"]

KEEPER_NAME = "fastsocket-keep"
CLONE_NEWNET = 0x40000000
LARGEST_STATUS = 16 << 20
PATIENCE_S = 5.0


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
        for name in _names("thread-self"):
            if owner_of_socket(name) == pid and answer[0] is None:
                answer[0] = _ask(pid, name)

    thread = threading.Thread(target=enter_and_ask)  # setns() changes only the calling thread
    thread.start()
    thread.join()
    return answer[0]


def _same_namespace(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/ns/net").samefile("/proc/thread-self/ns/net")
    except OSError:
        return True


def _names(process: str) -> set[str]:
    """Return the abstract names in the network namespace of `process`, an entry of /proc."""
    try:
        lines = Path(f"/proc/{process}/net/unix").read_text(errors="replace").splitlines()
    except OSError:
        return set()
    return {line.rpartition(" @")[2] for line in lines if " @" in line}


def _ask(pid: int, name: str) -> dict[str, Any] | None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
        client.settimeout(PATIENCE_S)
        try:
            client.connect("\0" + name)
            if not _is_trusted(client):
                return None
            client.send(Request(Op.STATUS).pack())
            reply, fds, _, _ = socket.recv_fds(client, len(pack_reply()), 1)
        except OSError:
            return None
    if not fds:
        return None
    with os.fdopen(fds[0], "rb") as file, suppress(OSError, ValueError):
        fcntl.fcntl(file, fcntl.F_GET_SEALS)  # fails unless it is memory: others may block
        if unpack_error(reply) == 0:
            status = json.loads(os.pread(file.fileno(), LARGEST_STATUS, 0))
            if isinstance(status, dict) and status.get("pid") == pid:
                return status
    return None


def _is_trusted(client: socket.socket) -> bool:
    """Whether root or our user answers; root asks whoever is there, as it may see everything."""
    credentials = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, SO_PEERCRED_FORMAT.size)
    _, uid, _ = SO_PEERCRED_FORMAT.unpack(credentials)
    return os.getuid() in (0, uid) or uid == 0


def applications() -> list[dict[str, Any]]:
    """Return the status of every application that runs accelerated and that we may ask."""
    found: dict[int, dict[str, Any]] = {}
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        try:
            if (process / "comm").read_text().strip() != KEEPER_NAME:
                continue
        except OSError:
            continue
        for pid in {owner_of_socket(name) for name in _names(process.name)}:
            if pid is not None and pid not in found:
                status = ask(pid, int(process.name))
                if status:
                    found[pid] = status
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
