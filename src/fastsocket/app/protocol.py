# SPDX-License-Identifier: GPL-2.0-or-later
"""Requests and replies of the keeper as native/include/keeper.h lays them out."""

import os
import re
import struct
from enum import IntEnum, IntFlag
from typing import NamedTuple

__all__ = [
    "LARGEST_REQUEST",
    "MAGIC",
    "Join",
    "Op",
    "Request",
    "new_socket_name",
    "owner_of_socket",
    "pack_reply",
    "unpack_error",
]

MAGIC = 0x46534B31
_REQUEST = struct.Struct("=IIIIII")
_REPLY = struct.Struct("=IiII")
LARGEST_REQUEST = 64  # bytes that are read; a longer one is cut, and so is none
_NAME = re.compile(r"fastsocket/(\d+)/[0-9a-f]{16}")


class Op(IntEnum):
    """enum fs_op."""

    JOIN = 1
    ADD = 2
    WORKER = 3
    STATUS = 4


class Join(IntFlag):
    """FS_JOIN_...: what a joining socket was before."""

    LATE = 1
    INHERITED = 2


class Request(NamedTuple):
    """struct fs_request without its magic number."""

    op: Op
    listener: int = 0
    slot: int = 0
    worker: int = 0
    flags: int = 0

    @classmethod
    def unpack(cls, data: bytes) -> "Request | None":
        """Return the request in `data`, or None if it is not one."""
        if len(data) != _REQUEST.size:
            return None
        magic, op, listener, slot, worker, flags = _REQUEST.unpack(data)
        if magic != MAGIC or op not in list(Op):
            return None
        return cls(Op(op), listener, slot, worker, flags)

    def pack(self) -> bytes:
        """Return the request as it is sent."""
        return _REQUEST.pack(MAGIC, self.op, self.listener, self.slot, self.worker, self.flags)


def pack_reply(error: int = 0, listener: int = 0, tier: int = 0) -> bytes:
    """Return struct fs_reply; `error` is an errno or 0."""
    return _REPLY.pack(MAGIC, error, listener, tier)


def unpack_error(data: bytes) -> int | None:
    """Return the errno, or 0, in a struct fs_reply; None if `data` is not one."""
    if len(data) != _REPLY.size:
        return None
    magic, error, _, _ = _REPLY.unpack(data)
    return int(error) if magic == MAGIC else None


def new_socket_name(pid: int) -> str:
    """Return an abstract socket name, without its leading zero, for the application of `pid`.

    It is random, so that nobody can take it before the keeper does.
    """
    return f"fastsocket/{pid}/{os.urandom(8).hex()}"


def owner_of_socket(name: str) -> int | None:
    """Return the pid of the application with a keeper's socket of that name, None for others."""
    match = _NAME.fullmatch(name)
    return int(match[1]) if match else None
