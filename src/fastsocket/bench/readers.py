# SPDX-License-Identifier: GPL-2.0-or-later
"""A reader that moves between CPUs, and how many packets find it where it is.

The reader is this process, in one network namespace; what it reads, a small process in another
sends, over a veth pair. The kernel's way is receive flow steering (RFS), ours the rule receive_cpu.
"""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from fastsocket.bench.arrivals import kernel_follows, rule_follows
from fastsocket.bench.netspace import Netspace
from fastsocket.bench.probe import READS, Probe
from fastsocket.bench.process import spawn
from fastsocket.bench.wires import finish_checksums, wire
from fastsocket.errors import FastsocketError

__all__ = ["local_reads"]

_ADDRESSES = ("192.0.2.2", "192.0.2.1")
_PORT = 8080
_DEVICE = "reader"
_SETTLE_SECONDS = 0.01
_PATIENCE = 10
_SENDER = """
import socket, sys, time
connection = socket.create_connection((sys.argv[1], int(sys.argv[2])), 10)
connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
try:
    while True:
        connection.send(b"x" * 64)
        time.sleep(0.0005)
except OSError:
    pass
"""


def local_reads(probe: Probe, cpus: Sequence[int], seconds: float, by_rule: bool) -> float | None:
    """Return the percent of reads, from 10 ms after each move on, that find data of their CPU.

    Args:
        probe: The counters.
        cpus: The reader goes from one to the next.
        seconds: How long it stays on each.
        by_rule: By our rule, else by RFS.

    Raises:
        FastsocketError: Namespaces, wire or sender cannot be had.
    """
    here = os.sched_getaffinity(0)
    with Netspace.make() as mine, Netspace.make() as theirs:
        near, far = (f"{address}/24" for address in _ADDRESSES)
        wire(theirs, mine, ("sender", _DEVICE), ([near], far))
        finish_checksums(theirs, "sender")
        with mine.entered():
            server = socket.create_server((_ADDRESSES[1], _PORT))
        server.settimeout(_PATIENCE)
        follows = rule_follows if by_rule else kernel_follows
        with server, follows(mine, _DEVICE, cpus), _sending(theirs):
            connection, _ = server.accept()
            connection.settimeout(_PATIENCE)
            probe.watch(mine.inode, _PORT)
            try:
                with connection, probe.attached(*READS):
                    return _watched(connection, probe, cpus, seconds)
            finally:
                os.sched_setaffinity(0, here)


def _watched(
    connection: socket.socket, probe: Probe, cpus: Sequence[int], seconds: float
) -> float | None:
    reads = local = 0
    for cpu in cpus:
        os.sched_setaffinity(0, {cpu})
        _read(connection, _SETTLE_SECONDS)
        before = probe.events()
        _read(connection, seconds)
        after = probe.events()
        reads += after.reads - before.reads
        local += after.local_reads - before.local_reads
    return 100 * local / reads if reads else None


def _read(connection: socket.socket, seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not connection.recv(1 << 16):
            raise FastsocketError("the sender ended")


@contextmanager
def _sending(netspace: Netspace) -> Iterator[None]:
    command = [sys.executable, "-c", _SENDER, _ADDRESSES[1], str(_PORT)]
    process = spawn(command, netspace, subprocess.DEVNULL)
    try:
        yield
    finally:
        process.kill()
        process.wait()
