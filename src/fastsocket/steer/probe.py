# SPDX-License-Identifier: GPL-2.0-or-later
"""Tries in a network namespace of its own whether a packet survives a redirect in generic XDP.

Generic XDP copies a packet that has too little headroom or is in pieces. Seen on Linux 6.18: such a
copy, redirected to another CPU, arrives with its Ethernet header in the place of the IP header
(IpInHdrErrors counts it) and is dropped.
"""

import ctypes
import fcntl
import os
import socket
import struct
import threading
from functools import cache
from pathlib import Path

from fastsocket.errors import FastsocketError
from fastsocket.steer import kernel
from fastsocket.steer.check import parse_rule
from fastsocket.steer.compile import compile_rule
from fastsocket.steer.cpus import online_cpus
from fastsocket.steer.program import SteerProgram

__all__ = ["generic_redirect_works"]

_CLONE_NEWNET = 0x40000000
_RULE = "def rule(pkt, cpus):\n    return PASS if pkt.cpu == 1 else 1\n"
_TRIES = 4


@cache
def generic_redirect_works() -> bool:
    """Return whether redirected packets arrive; takes some tens of milliseconds.

    With one CPU there is nowhere to redirect to, so nothing can be lost.
    """
    cpus = online_cpus()
    if len(cpus) == 1:
        return True
    found: list[bool] = []
    thread = threading.Thread(target=_try, args=(cpus, found))
    thread.start()
    thread.join()
    return bool(found) and found[0]


def _try(cpus: tuple[int, ...], found: list[bool]) -> None:
    """Send datagrams over a loopback device whose rule names another CPU than the sender's."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNET) != 0:
        return
    os.sched_setaffinity(0, {cpus[0]})  # of this thread alone
    compiled = compile_rule(parse_rule(_RULE, Path("probe")), len(cpus))
    try:
        with (
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver,
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
            SteerProgram(compiled, cpus, wait=False) as program,
        ):
            _bring_up(receiver)
            link = kernel.xdp_link(
                program.program.fd, socket.if_nametoindex("lo"), kernel.XDP_GENERIC
            )
            try:
                receiver.bind(("127.0.0.1", 0))
                receiver.settimeout(0.1)
                for _ in range(_TRIES):
                    sender.sendto(b"fastsocket", receiver.getsockname())
                    receiver.recv(16)
                found.append(True)
            finally:
                os.close(link)
    except (FastsocketError, OSError):
        found.append(False)


def _bring_up(handle: socket.socket) -> None:
    """Set IFF_UP on lo (SIOCSIFFLAGS)."""
    fcntl.ioctl(handle, 0x8914, struct.pack("16sh14x", b"lo", 1))
