# SPDX-License-Identifier: GPL-2.0-or-later
"""What mainline took over from the 2014 kernel, verified on the running one.

The 2014 system changed the kernel in places where mainline has since found its own answer. Whether
the running kernel has it is not asked of its version but of the kernel itself: by holding a lock
and seeing work go on, or by reading the very structures of a socket made for the purpose.
"""

import contextlib
import ctypes
import fcntl
import mmap
import os
import select
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

from fastsocket.host.btf import kernel_btf
from fastsocket.host.feature import Feature, State
from fastsocket.host.kmem import KernelMemory
from fastsocket.host.syscalls import syscall

__all__ = [
    "early_demux",
    "lockless_listener",
    "napi_skb_cache",
    "page_pool",
    "skb_defer",
    "vfs_fast_path",
]

_SYSCTL = Path("/proc/sys/net")
_WAIT = 1.0  # seconds that a probe waits for what should take microseconds

_SO_ATTACH_FILTER = _SO_GET_FILTER = 26  # one number, two directions (asm-generic/socket.h)
_RETURN_ALL = struct.pack("=HBBI", 0x06, 0, 0, 0xFFFFFFFF)  # classic BPF: keep the whole packet

# userfaultfd(2), ioctl_userfaultfd(2)
_UFFD_VERSION, _UFFD_MISSING = 0xAA, 1
_UFFDIO_API, _UFFDIO_REGISTER, _UFFDIO_ZEROPAGE = 0xC018AA3F, 0xC020AA00, 0xC020AA04


@contextlib.contextmanager
def _connection() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Give the two ends of a connection on loopback that has carried a byte each way."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(_WAIT)
        client = socket.create_connection(server.getsockname(), _WAIT)
        with client, server.accept()[0] as peer:
            peer.settimeout(_WAIT)
            client.send(b"?")
            peer.recv(1)
            peer.send(b"!")
            client.recv(1)
            yield client, peer


def vfs_fast_path() -> Feature:
    """Sockets stay out of the dentry cache and of the superblock's list of inodes.

    The 2014 system cut those shared locks out of every accept and close. Linux commits
    4b93688 ("fs: improve scalability of pseudo filesystems") and a209dfc7b0d9 ("vfs: dont
    chain pipe/anon/socket on superblock s_inodes list"), both in v3.1. Seen on a socket's own
    inode and dentry: neither is linked into anything, while those of a file are.
    """
    name = "vfs-fast-path"
    with KernelMemory() as memory, socket.socket() as sock, Path("/proc/self/exe").open() as file:

        def linked(fd: int) -> tuple[bool, bool]:
            found = memory.file(fd)
            inode = memory.member(found, "file", "f_inode")
            dentry = memory.member(found, "file", "f_path.dentry")
            entry = inode + memory.btf.offset("inode", "i_sb_list")
            hashed = memory.member(dentry, "dentry", "d_hash.pprev")
            return memory.word(entry) != entry, hashed != 0

        if linked(file.fileno()) != (True, True):
            return Feature(name, State.UNKNOWN, "a file's inode and dentry do not read as expected")
        listed, hashed = linked(sock.fileno())
    if not listed and not hashed:
        return Feature(name, State.ACTIVE, "a socket's inode and dentry are on no shared list")
    where = " and ".join(
        text for on, text in ((listed, "the inode list"), (hashed, "the dentry cache")) if on
    )
    return Feature(name, State.MISSING, f"sockets are on {where}", "use a kernel from mainline")


def lockless_listener() -> Feature:
    """A handshake completes while somebody holds the listening socket's lock.

    Before v4.4 (Linux commit e994b2f0fb92, "tcp: do not lock listener to process SYN packets")
    every SYN took that lock: the contention that the 2014 local listen table removed. Here the
    lock is held by a getsockopt(2) that copies its answer to a page which userfaultfd(2) keeps
    absent; that it is held shows in an accept(2) that blocks although a connection waits.
    """
    name = "lockless-listener"
    try:
        handle = syscall("userfaultfd", os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        return Feature(
            name, State.UNKNOWN, f"no userfaultfd to hold the lock with: {error.strerror}"
        )
    with (
        os.fdopen(handle, "rb", buffering=0) as faults,
        mmap.mmap(-1, mmap.PAGESIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as page,
        socket.create_server(("127.0.0.1", 0)) as server,
    ):
        address = server.getsockname()  # later it would wait for the lock, as accept shall
        server.settimeout(_WAIT)
        anchor = ctypes.c_char.from_buffer(page)
        start = ctypes.addressof(anchor)
        fcntl.ioctl(faults, _UFFDIO_API, bytearray(struct.pack("=QQQ", _UFFD_VERSION, 0, 0)))
        region = bytearray(struct.pack("=QQQQ", start, mmap.PAGESIZE, _UFFD_MISSING, 0))
        fcntl.ioctl(faults, _UFFDIO_REGISTER, region)
        code = ctypes.create_string_buffer(_RETURN_ALL, len(_RETURN_ALL))
        program = struct.pack("@HP", 1, ctypes.addressof(code))
        server.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)
        holder = threading.Thread(target=_get_filter, args=(server.fileno(), start), daemon=True)
        acceptor = threading.Thread(target=_accept, args=(server,), daemon=True)
        try:
            holder.start()
            if not select.select([faults], [], [], _WAIT)[0]:
                return Feature(name, State.UNKNOWN, "getsockopt did not stop at the absent page")
            try:
                client = socket.create_connection(address, _WAIT)
            except TimeoutError:
                why = "a SYN waits while another call holds the listener"
                return Feature(name, State.MISSING, why, "use a kernel from mainline")
            with client:
                acceptor.start()
                acceptor.join(_WAIT / 50)
                held = acceptor.is_alive()
        finally:
            fill = bytearray(struct.pack("=QQQq", start, mmap.PAGESIZE, 0, 0))
            with contextlib.suppress(FileExistsError):  # nobody ever asked for the page
                fcntl.ioctl(faults, _UFFDIO_ZEROPAGE, fill)
            holder.join()
            if acceptor.ident:
                acceptor.join()
            del anchor
    if not held:
        return Feature(name, State.UNKNOWN, "the listener's lock was not held during the test")
    return Feature(name, State.ACTIVE, "a handshake completed while the listener was locked")


def _accept(server: socket.socket) -> None:
    """Take one connection and drop it."""
    server.accept()[0].close()


def _get_filter(fd: int, address: int) -> None:
    """Ask for a socket's filter, which sk_get_filter() copies out with the socket locked.

    Through ctypes, because Python's getsockopt keeps the interpreter's lock.
    """
    length = ctypes.c_uint32(1)
    ctypes.CDLL(None).getsockopt(
        fd, socket.SOL_SOCKET, _SO_GET_FILTER, ctypes.c_void_p(address), ctypes.byref(length)
    )


def early_demux() -> Feature:
    """A packet of an established connection finds its socket first and takes the route from it.

    The 2014 Direct-TCP. Linux commit 41063e9dd119 ("ipv4: Early TCP socket demux."), in v3.6. On
    when both sysctls are; that connections keep a route to give is read from a live one.
    """
    name = "early-demux"
    for sysctl in ("ip_early_demux", "tcp_early_demux"):
        try:
            value = (_SYSCTL / "ipv4" / sysctl).read_text().strip()
        except FileNotFoundError:
            return Feature(name, State.MISSING, f"the kernel has no net.ipv4.{sysctl}")
        if value == "0":
            todo = f"sysctl -w net.ipv4.{sysctl}=1"
            return Feature(name, State.MISSING, f"net.ipv4.{sysctl} is 0", todo)
    with KernelMemory() as memory, _connection() as (_, peer):
        if memory.member(memory.sock(peer.fileno()), "sock", "sk_rx_dst"):
            return Feature(name, State.ACTIVE, "switched on, and a live connection keeps its route")
    return Feature(name, State.MISSING, "switched on, but a live connection keeps no route")


def napi_skb_cache() -> Feature:
    """Packet buffers come from a per-CPU cache without a lock: half of the 2014 Skb-Pool.

    Linux commit f450d539c05a ("skbuff: introduce {,__}napi_build_skb() which reuses NAPI cache
    heads"), in v5.12. Read from the cache of each CPU after traffic; where the kernel keeps the
    variable's address to itself, the structure's type says that it is built in.
    """
    name = "napi-skb-cache"
    try:
        kernel_btf().offset("napi_alloc_cache", "skb_cache")
    except KeyError:
        return Feature(name, State.MISSING, "the kernel has no such cache", "Linux 5.12 brought it")
    try:
        with KernelMemory() as memory, _connection():
            cpus = sorted(os.sched_getaffinity(0))
            caches = [memory.per_cpu("napi_alloc_cache", cpu) for cpu in cpus]
            words = [memory.member(cache, "napi_alloc_cache", "skb_count") for cache in caches]
    except (KeyError, OSError):
        return Feature(name, State.ACTIVE, "built in; its counters cannot be read here")
    cached = sum(word & 0xFFFFFFFF for word in words)
    return Feature(name, State.ACTIVE, f"{cached} buffers cached on {len(words)} CPUs")


def skb_defer() -> Feature:
    """Buffers that another CPU has read go back to the CPU that made them: the other half.

    Linux commit 68822bdf76f1 ("net: generalize skb freeing deferral to per-cpu lists"), in v5.19;
    ``net.core.skb_defer_max`` (39564c3fdc66) of 0 switches it off.
    """
    name = "skb-defer"
    try:
        value = int((_SYSCTL / "core/skb_defer_max").read_text())
    except FileNotFoundError:
        has = kernel_btf().has_struct("skb_defer_node")
        if has:
            return Feature(name, State.ACTIVE, "built in; its sysctl is not visible here")
        # The sysctl exists only in the first network namespace: its absence alone proves nothing.
        return Feature(name, State.UNKNOWN, "net.core.skb_defer_max is not visible here")
    if value == 0:
        todo = "sysctl -w net.core.skb_defer_max=64"
        return Feature(name, State.MISSING, "net.core.skb_defer_max is 0", todo)
    return Feature(name, State.ACTIVE, f"up to {value} buffers a CPU (net.core.skb_defer_max)")


def page_pool() -> Feature:
    """Network drivers recycle receive pages per queue: Linux commit ff7d6b27f894, in v4.18.

    Whether the driver of a network card uses it is the driver's choice, and not seen from here.
    """
    if kernel_btf().has_struct("page_pool"):
        return Feature("page-pool", State.ACTIVE, "built in; each driver decides to use it")
    return Feature("page-pool", State.MISSING, "the kernel has none", "Linux 4.18 brought it")
