# SPDX-License-Identifier: GPL-2.0-or-later
"""Probes of the BPF features that steering and the local fast path rest on."""

import fcntl
import os
import select
import socket
import struct
import termios

from fastsocket.host import bpfcall as bpf
from fastsocket.host.feature import Feature, State

__all__ = ["cpumap", "raw_tracepoint", "sockmap", "xdp"]

_WAIT = 1.0  # seconds that a probe waits for what should take microseconds
_XDP_PASS = 2
_FRAME = bytes(64)  # the shortest Ethernet frame


def xdp() -> Feature:
    """An XDP program loads and runs (BPF_PROG_TEST_RUN); on which cards natively, `nic` says."""
    program = bpf.prog_load(bpf.ProgType.XDP, [bpf.set_(0, _XDP_PASS), bpf.exit_()])
    try:
        verdict = bpf.test_run(program, _FRAME)
    finally:
        os.close(program)
    if verdict == _XDP_PASS:
        return Feature("xdp", State.ACTIVE, "a program was loaded and passed a packet")
    return Feature("xdp", State.MISSING, f"a program that passes a packet returned {verdict}")


def cpumap() -> Feature:
    """A CPU can be made the target of a redirect, with a kernel thread of its own.

    Linux commit 6710e1126934 ("bpf: introduce new bpf cpu map type BPF_MAP_TYPE_CPUMAP"), v4.15.
    """
    cpu = min(os.sched_getaffinity(0))
    cpus = bpf.map_create(bpf.MapType.CPUMAP, 4, 4, cpu + 1)
    try:
        bpf.map_update(cpus, cpu, struct.pack("=I", 64))
    finally:
        os.close(cpus)
    return Feature("cpumap", State.ACTIVE, f"CPU {cpu} was made a target, with a queue of 64")


def sockmap() -> Feature:
    """A connection in a sockmap behaves as before.

    Since Linux commit 929e30f93125, without a verdict program FIONREAD answered 0 for it, which
    stalled servers, until 04af4efde58a: so the bytes that wait are counted.
    """
    name = "sockmap"
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname(), _WAIT) as client,
        server.accept()[0] as peer,
        os.fdopen(bpf.map_create(bpf.MapType.SOCKMAP, 4, 4, 1), "rb", buffering=0) as sockets,
    ):
        bpf.map_update(sockets.fileno(), 0, struct.pack("=I", peer.fileno()))
        client.send(_FRAME)
        if not select.select([peer], [], [], _WAIT)[0]:
            return Feature(name, State.MISSING, "data stays away from its reader")
        count = struct.unpack("=i", fcntl.ioctl(peer, termios.FIONREAD, bytes(4)))[0]
    if count == len(_FRAME):
        return Feature(name, State.ACTIVE, "a connection in a map keeps its data and FIONREAD")
    why = f"FIONREAD says {count} of {len(_FRAME)} bytes unless a verdict program is attached"
    return Feature(name, State.MISSING, why, "update the kernel to one with commit 04af4efde58a")


def raw_tracepoint() -> Feature:
    """A program on a raw tracepoint sees an event: what counters and observers rest on.

    Linux commit c4f6699dfcb8 ("bpf: introduce BPF_RAW_TRACEPOINT"), in v4.17.
    """
    name = "raw-tracepoint"
    seen = bpf.map_create(bpf.MapType.ARRAY, 4, 8, 1)
    code = [
        bpf.store32(10, -4, 0),
        bpf.map_fd(1, seen),
        bpf.move(2, 10),
        bpf.add(2, -4),
        bpf.call(bpf.Helper.MAP_LOOKUP_ELEM),
        bpf.jump_if_zero(0, 2),
        bpf.set_(1, 1),
        bpf.store64(0, 1, 0),
        bpf.set_(0, 0),
        bpf.exit_(),
    ]
    fds = [seen]
    try:
        fds.append(bpf.prog_load(bpf.ProgType.RAW_TRACEPOINT, code))
        fds.append(bpf.raw_tracepoint_open("inet_sock_set_state", fds[-1]))
        with socket.create_server(("127.0.0.1", 0)):
            pass
        count = struct.unpack("=Q", bpf.map_lookup(seen, 0, 8))[0]
    finally:
        for fd in reversed(fds):
            os.close(fd)
    if count:
        return Feature(name, State.ACTIVE, "a program saw a socket change its state")
    return Feature(name, State.MISSING, "a program was attached but saw nothing")
