# SPDX-License-Identifier: GPL-2.0-or-later
"""A network namespace of its own for each run, so that runs leave each other nothing.

TIME_WAIT sockets, route caches and port cursors of one mode would otherwise meet the next. The
namespace has no name and no mount: it ends with its last process, however the bench ends.
"""

import ctypes
import fcntl
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from fastsocket.errors import FastsocketError

__all__ = ["Netspace"]

CLONE_NEWNET = 0x40000000
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 0x1
PORT_RANGE = "1024 65535"
IPV4 = Path("/proc/sys/net/ipv4")

_libc = ctypes.CDLL(None, use_errno=True)


class Netspace:
    """One network namespace, entered by the calling thread only for the length of a block.

    Use :meth:`make` for a fresh one with loopback up and all unprivileged ports for clients, or
    :meth:`host` for the caller's own.
    """

    def __init__(self, fd: int, private: bool) -> None:
        self._fd, self.private = fd, private

    @classmethod
    def host(cls) -> Self:
        """Return the namespace that the caller is in."""
        return cls(os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC), False)

    @classmethod
    def make(cls) -> Self:
        """Create a namespace.

        Raises:
            FastsocketError: The kernel refused.
        """
        outside = cls.host()
        try:
            if _libc.unshare(CLONE_NEWNET) != 0:
                number = ctypes.get_errno()
                raise FastsocketError("no network namespace can be made", os.strerror(number))
            try:
                made = cls(os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC), True)
                _loopback_up()
                (IPV4 / "ip_local_port_range").write_text(PORT_RANGE, encoding="ascii")
            finally:
                outside.join()
        finally:
            outside.close()
        return made

    @property
    def inode(self) -> int:
        """The number by which the kernel and /proc name the namespace."""
        return os.fstat(self._fd).st_ino

    @property
    def path(self) -> str:
        """A file name by which other programs find the namespace while this process lives."""
        return f"/proc/{os.getpid()}/fd/{self._fd}"

    def join(self) -> None:
        """Move the calling thread into this namespace.

        Raises:
            FastsocketError: The kernel refused.
        """
        if _libc.setns(self._fd, CLONE_NEWNET) != 0:
            number = ctypes.get_errno()
            raise FastsocketError("the network namespace is lost", os.strerror(number))

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Be in this namespace for a block; what is started or opened there stays in it."""
        if not self.private:
            yield
            return
        outside = Netspace.host()
        self.join()
        try:
            yield
        finally:
            outside.join()
            outside.close()

    def reserve(self, port: int) -> None:
        """Keep a server's port from clients, in a namespace of our own.

        A client that asks whether the server is there yet, and is given that very port, connects to
        itself (RFC 9293, simultaneous open) and leaves a TIME_WAIT socket that refuses the server
        its port for a minute.
        """
        if self.private:
            with self.entered():
                file = IPV4 / "ip_local_reserved_ports"
                before = file.read_text(encoding="ascii").strip()
                file.write_text(f"{before},{port}" if before else str(port), encoding="ascii")

    def processes(self) -> list[int]:
        """Return the processes in this namespace; for the host's, none are told apart."""
        if not self.private:
            return []
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    inside = (entry / "ns/net").stat().st_ino == self.inode
                except OSError:  # it ended meanwhile, or is a zombie
                    continue
                if inside:
                    found.append(int(entry.name))
        return found

    def close(self) -> None:
        """Let go of the namespace."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _loopback_up() -> None:
    """Set IFF_UP on lo in the thread's namespace (netdevice(7))."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as handle:
        request = struct.pack("16sh14x", b"lo", 0)
        (flags,) = struct.unpack_from("16xh", fcntl.ioctl(handle, SIOCGIFFLAGS, request))
        fcntl.ioctl(handle, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", flags | IFF_UP))
