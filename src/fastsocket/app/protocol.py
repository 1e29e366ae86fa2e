# SPDX-License-Identifier: GPL-2.0-or-later
"""Requests and replies of the keeper as native/include/keeper.h lays them out."""

import struct
from enum import IntEnum, IntFlag
from typing import NamedTuple

__all__ = ["MAGIC", "Join", "Op", "Request", "pack_reply", "socket_name"]

MAGIC = 0x46534B31
_REQUEST = struct.Struct("=IIIIII")
_REPLY = struct.Struct("=IiII")


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


def socket_name(pid: int) -> str:
    """Return the abstract socket name, without its leading zero, of the application of `pid`."""
    return f"fastsocket/{pid}"
