# SPDX-License-Identifier: GPL-2.0-or-later
"""Probes of what the accelerated sockets themselves rest on, each by doing it on loopback."""

import contextlib
import ctypes
import errno
import os
import select
import signal
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

from fastsocket.host import bpfcall as bpf
from fastsocket.host.feature import Feature, State

__all__ = [
    "local_port_range",
    "migrate_sysctl",
    "reuseport_cbpf",
    "reuseport_cbpf_unprivileged",
    "reuseport_ebpf",
    "reuseport_migration",
]

_WAIT = 1.0  # seconds that a probe waits for what should take microseconds
_HOST = "127.0.0.1"

_SO_ATTACH_REUSEPORT_CBPF, _SO_ATTACH_REUSEPORT_EBPF = 51, 52  # asm-generic/socket.h
_IP_LOCAL_PORT_RANGE = 51  # linux/in.h
_SELECT, _SELECT_OR_MIGRATE = 39, 40  # enum bpf_attach_type
_MIGRATING_SK = 48  # offset in struct sk_reuseport_md
_SK_PASS = 1
_NOBODY = 65534
_REFUTED = 255  # exit code of a child whose probe said no; lower ones are errno values
_ROUNDS = 4  # by chance alone, hashing picks the chosen one of two listeners each time in 1 of 16


@contextlib.contextmanager
def _pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Give two listeners in one reuseport group; the first is index 0 for classic BPF."""
    with socket.socket() as first, socket.socket() as second:
        port = 0
        for sock in (first, second):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            sock.bind((_HOST, port))
            sock.listen()
            sock.settimeout(_WAIT)
            port = sock.getsockname()[1]
        yield first, second


def _connect(server: socket.socket) -> socket.socket:
    """Connect to a listener.

    Not by socket.create_connection: that imports the codec for host names when it is first called,
    which a child that has given up its user may no longer be able to read.
    """
    client = socket.socket()
    client.settimeout(_WAIT)
    try:
        client.connect(server.getsockname())
    except OSError:
        client.close()
        raise
    return client


def _all_reach(chosen: socket.socket) -> bool:
    """Say whether all of several connections land on one listener of its group."""
    for _ in range(_ROUNDS):
        with _connect(chosen):
            if not select.select([chosen], [], [], _WAIT)[0]:
                return False
            chosen.accept()[0].close()
    return True


def _attach_cbpf(sock: socket.socket, index: int) -> None:
    """Let classic BPF choose a fixed index of the group."""
    code = ctypes.create_string_buffer(struct.pack("=HBBI", 0x06, 0, 0, index), 8)
    program = struct.pack("@HP", 1, ctypes.addressof(code))
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_REUSEPORT_CBPF, program)


def _cbpf_chooses() -> bool:
    with _pair() as (first, second):
        for index, sock in enumerate((first, second)):
            _attach_cbpf(first, index)
            if not _all_reach(sock):
                return False
    return True


def reuseport_cbpf() -> Feature:
    """Classic BPF chooses the listener of a group (socket(7), SO_ATTACH_REUSEPORT_CBPF).

    Linux commit c125e80b8868 ("soreuseport: fast reuseport TCP socket selection"), in v4.6.
    """
    name = "reuseport-cbpf"
    if _cbpf_chooses():
        return Feature(name, State.ACTIVE, "classic BPF chose the listener each time")
    return Feature(name, State.MISSING, "connections went to another listener than the chosen one")


def reuseport_cbpf_unprivileged() -> Feature:
    """The same for a process without any privilege: the tier that needs nothing."""
    name = "reuseport-cbpf-unprivileged"
    if _cbpf_chooses() if os.geteuid() != 0 else _as_nobody(_cbpf_chooses):
        return Feature(name, State.ACTIVE, "classic BPF chose the listener without privileges")
    return Feature(name, State.MISSING, "a process without privileges could not choose")


def _as_nobody(probe: Callable[[], bool]) -> bool:
    """Run a probe in a child that has given up its user and with it its capabilities.

    Raises:
        OSError: What kept the probe from an answer, sent home as the exit code.
        ChildProcessError: The child was killed, and by which signal.
    """
    child = os.fork()
    if child == 0:
        code = errno.ECHILD
        try:
            os.setgroups([])
            os.setresgid(_NOBODY, _NOBODY, _NOBODY)
            os.setresuid(_NOBODY, _NOBODY, _NOBODY)
            code = 0 if probe() else _REFUTED
        except OSError as error:
            code = error.errno or code
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code < 0:
        why = f"the process that tried was ended by {signal.Signals(-code).name}"
        raise ChildProcessError(errno.ECHILD, why)
    if code not in (0, _REFUTED):
        raise OSError(code, os.strerror(code))
    return code == 0


@contextlib.contextmanager
def _selecting(first: socket.socket, second: socket.socket, migrate: bool) -> Iterator[None]:
    """Attach a program that chooses the second listener: always, or only for migration."""
    with contextlib.ExitStack() as stack:
        sockets = bpf.map_create(bpf.MapType.REUSEPORT_SOCKARRAY, 4, 8, 2)
        stack.callback(os.close, sockets)
        for index, sock in enumerate((first, second)):
            bpf.map_update(sockets, index, struct.pack("=Q", sock.fileno()))
        head = [bpf.move(6, 1), bpf.store32(10, -4, 0 if migrate else 1)]
        if migrate:
            head += [
                bpf.load64(7, 1, _MIGRATING_SK),
                bpf.jump_if_zero(7, 1),
                bpf.store32(10, -4, 1),
            ]
        choose = [
            bpf.move(1, 6),
            bpf.map_fd(2, sockets),
            bpf.move(3, 10),
            bpf.add(3, -4),
            bpf.set_(4, 0),
            bpf.call(bpf.Helper.SK_SELECT_REUSEPORT),
            bpf.set_(0, _SK_PASS),
            bpf.exit_(),
        ]
        attach = _SELECT_OR_MIGRATE if migrate else _SELECT
        program = bpf.prog_load(bpf.ProgType.SK_REUSEPORT, [*head, *choose], attach)
        stack.callback(os.close, program)
        first.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_REUSEPORT_EBPF, program)
        yield


def reuseport_ebpf() -> Feature:
    """A sk_reuseport program chooses the listener from a map: the select program's ground.

    Linux commit 2dbb9b9e6df6 ("bpf: Introduce BPF_PROG_TYPE_SK_REUSEPORT"), in v4.19.
    """
    name = "reuseport-ebpf"
    with _pair() as (first, second), _selecting(first, second, migrate=False):
        if _all_reach(second):
            return Feature(name, State.ACTIVE, "a sk_reuseport program chose the listener")
    return Feature(name, State.MISSING, "connections went to another listener than the chosen one")


def reuseport_migration() -> Feature:
    """A connection queued on a listener that closes goes to another one, which is woken.

    Linux commit d5e4ddaeb6ab ("bpf: Support socket migration by eBPF."), in v5.14. Until
    3864c6ba1e04 the target's epoll was not woken, with a use after free possible
    (CVE-2026-46015): so what counts is that epoll_wait(2) returns.
    """
    name = "reuseport-migration"
    with (
        _pair() as (first, second),
        _selecting(first, second, migrate=True),
        select.epoll() as epoll,
        _connect(second),
    ):
        if not select.select([first], [], [], _WAIT)[0]:
            return Feature(name, State.MISSING, "the program did not choose the listener")
        epoll.register(second, select.EPOLLIN)
        first.close()
        if epoll.poll(_WAIT):
            second.accept()[0].close()
            return Feature(name, State.ACTIVE, "a queued connection moved and woke its target")
        second.setblocking(False)
        try:
            second.accept()[0].close()
        except BlockingIOError:
            return Feature(name, State.MISSING, "a queued connection was lost, not moved")
    why = "a queued connection moved, but its target was not woken (CVE-2026-46015)"
    return Feature(name, State.MISSING, why, "update the kernel to one with commit 3864c6ba1e04")


def migrate_sysctl() -> Feature:
    """Whether the kernel migrates for groups without a program (ip-sysctl: tcp_migrate_req).

    Linux commit f9ac779f881c ("net: Introduce net.ipv4.tcp_migrate_req."), in v5.14.
    """
    name = "tcp-migrate-req"
    try:
        value = Path("/proc/sys/net/ipv4/tcp_migrate_req").read_text().strip()
    except FileNotFoundError:
        return Feature(name, State.MISSING, "the kernel has no net.ipv4.tcp_migrate_req")
    if value == "0":
        why = "net.ipv4.tcp_migrate_req is 0, which the select program does not need"
        return Feature(name, State.MISSING, why, "sysctl -w net.ipv4.tcp_migrate_req=1")
    return Feature(name, State.ACTIVE, "net.ipv4.tcp_migrate_req is 1")


def local_port_range() -> Feature:
    """A socket takes its local port from a range of its own: receive flow deliver's ground.

    Linux commit 91d0b78c5177 ("inet: Add IP_LOCAL_PORT_RANGE socket option"), in v6.3.
    """
    name = "local-port-range"
    text = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text()
    low, high = (int(word) for word in text.split())
    # A slice in the upper half that is narrow enough that chance does not find it.
    start = (low + high) // 2
    stop = min(high, start + 63)
    with socket.create_server((_HOST, 0)) as server, socket.socket() as client:
        try:
            value = struct.pack("=I", stop << 16 | start)  # beyond what Python takes as an int
            client.setsockopt(socket.IPPROTO_IP, _IP_LOCAL_PORT_RANGE, value)
        except OSError as error:
            why = f"setsockopt: {error.strerror}"
            return Feature(name, State.MISSING, why, "Linux 6.3 brought it")
        client.settimeout(_WAIT)
        client.connect(server.getsockname())
        port = client.getsockname()[1]
    if start <= port <= stop:
        return Feature(name, State.ACTIVE, f"port {port} came from the slice {start}-{stop}")
    return Feature(name, State.MISSING, f"port {port} came from outside the slice {start}-{stop}")
