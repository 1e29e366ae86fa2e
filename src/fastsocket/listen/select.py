# SPDX-License-Identifier: GPL-2.0-or-later
"""The select program: one instance per listener, attached to its reuseport group."""

import errno
import os
import select as poller
import socket
import struct
from typing import Self

from fastsocket.bpf.libbpf import BpfError, BpfObject, Map
from fastsocket.bpf.objects import map_info, program_maps, programs
from fastsocket.listen.layout import MAX_SLOTS, Tier
from fastsocket.native import native_file

__all__ = ["Selector", "migration_works"]

# include/uapi/asm-generic/socket.h
SO_ATTACH_REUSEPORT_EBPF = 52
SO_COOKIE = 57
# include/uapi/linux/bpf.h, enum bpf_map_type
BPF_MAP_TYPE_ARRAY = 2
BPF_MAP_TYPE_REUSEPORT_SOCKARRAY = 20
_PROGRAMS = {Tier.SELECT: "fs_select", Tier.MIGRATE: "fs_migrate"}


class Selector:
    """The program of one listener and the map of its slots' sockets.

    Args:
        page: The status page's map.
        listener: The listener's index in the page.
        generation: The listener's generation there; the program does nothing for another one.
        tier: SELECT, or MIGRATE for a program that also moves a closed slot's queue.

    Raises:
        BpfError: The kernel refused the program.
    """

    def __init__(self, page: Map, listener: int, generation: int, tier: Tier) -> None:
        self._object: BpfObject | None = BpfObject(native_file("select.bpf.o"))
        self._object.set_variable(0, struct.pack("=IxxxxQ", listener, generation))
        self._object.reuse_map("fs_page", page.fd)
        for other, name in _PROGRAMS.items():
            self._object.program(name).set_autoload(other == tier)
        self._object.load()
        self._sockets = self._object.map("fs_sockets")
        self._program = self._object.program(_PROGRAMS[tier]).fd

    def add(self, slot: int, member: socket.socket) -> None:
        """Let the program choose `member` as slot `slot`; `member` must listen in the group.

        Raises:
            OSError: The socket is in no reuseport group.
            BpfError: The map refused it.
        """
        member.setsockopt(socket.SOL_SOCKET, SO_ATTACH_REUSEPORT_EBPF, self._program)
        key, value = struct.pack("=I", slot), struct.pack("=Q", member.fileno())
        try:
            self._sockets.update(key, value)
        except BpfError as error:
            if error.errno != errno.EBUSY:
                raise
            self._forget(member)
            self._sockets.update(key, value)

    def _forget(self, member: socket.socket) -> None:
        """Take the socket out of the map: a worker that was killed in its claim left it there."""
        cookie = member.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8)
        for number in range(MAX_SLOTS):
            key = struct.pack("=I", number)
            if self._sockets.lookup(key) == cookie:
                self._sockets.delete(key)

    @classmethod
    def reopen(cls, page: Map, tier: Tier) -> dict[int, tuple[int, Self]]:
        """Find the programs that read `page` and that the kernel kept for their groups.

        What belongs to which listener is taken from the kernel alone, since the page can be
        written to by the application.

        Returns:
            Listener: its generation, and the selector.

        Raises:
            BpfError: No privilege.
        """
        number, found = map_info(page.fd).number, {}
        for fd, program in programs(_PROGRAMS[tier]):
            maps = program_maps(program) if number in program.maps else {}
            kinds = {map_info(each.fd).kind: each for key, each in maps.items() if key != number}
            constants = kinds.get(BPF_MAP_TYPE_ARRAY)
            if constants is None or BPF_MAP_TYPE_REUSEPORT_SOCKARRAY not in kinds:
                os.close(fd)
                continue
            listener, generation = struct.unpack_from("=IxxxxQ", constants.lookup(bytes(4)) or b"")
            selector = cls.__new__(cls)
            selector._object, selector._program = None, fd
            selector._sockets = kinds[BPF_MAP_TYPE_REUSEPORT_SOCKARRAY]
            found[listener] = (generation, selector)
            constants.close()
        return found

    def cookies(self) -> set[bytes]:
        """Return the cookies of the sockets that can be chosen."""
        values = (self._sockets.lookup(struct.pack("=I", number)) for number in range(MAX_SLOTS))
        return {value for value in values if value}

    def close(self) -> None:
        """Let go; the kernel keeps the program while the group has sockets."""
        if self._object is not None:
            self._object.close()
        else:
            os.close(self._program)
            self._sockets.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _listener(port: int) -> socket.socket:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listener.bind(("127.0.0.1", port))
    listener.listen()
    listener.setblocking(False)
    return listener


def migration_works(selector: Selector) -> str:
    """Try on loopback whether a closed listener's queue moves and wakes the one that gets it.

    Since Linux commit 54b92e841937 ("tcp: Migrate TCP_ESTABLISHED/TCP_SYN_RECV sockets in
    accept queues.") (in v5.14); without 3864c6ba1e04 the new listener is not woken
    (CVE-2026-46015).

    Args:
        selector: Of a listener whose page entry has no claimed slots, so that it chooses none
            and the kernel picks the socket.

    Returns:
        An empty string if it works, else the reason.
    """
    first = _listener(0)
    second = _listener(first.getsockname()[1])
    client = socket.socket()
    try:
        selector.add(0, first)
        selector.add(1, second)
        ready = poller.epoll()
        with client, ready:
            client.settimeout(1)
            client.connect(first.getsockname())
            holder, other = (first, second) if _readable(first) else (second, first)
            if not _readable(holder):
                return "the trial connection was not queued"
            ready.register(other.fileno(), poller.EPOLLIN)
            holder.close()
            if not ready.poll(0.2):
                return "the listener that took over was not woken"
            other.accept()[0].close()
        return ""
    except (OSError, BpfError) as error:
        return str(error)
    finally:
        first.close()
        second.close()


def _readable(listener: socket.socket) -> bool:
    return bool(poller.select([listener], [], [], 0)[0])
