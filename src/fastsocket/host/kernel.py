# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel features that Fastsocket uses or that took over a part of the 2014 system.

Each is verified by doing, in milliseconds, on sockets and programs made for the purpose and gone
afterwards. No version number is asked: distributions carry features back, and take bugs along.
"""

import errno
import os
import time
from collections.abc import Callable, Iterable

from fastsocket.errors import UsageError
from fastsocket.host import probe_bpf, probe_mainline, probe_socket
from fastsocket.host.feature import Feature, State

__all__ = ["PROBES", "verify"]

# In the order in which a connection meets them.
PROBES: dict[str, Callable[[], Feature]] = {
    "xdp": probe_bpf.xdp,
    "cpumap": probe_bpf.cpumap,
    "napi-skb-cache": probe_mainline.napi_skb_cache,
    "page-pool": probe_mainline.page_pool,
    "skb-defer": probe_mainline.skb_defer,
    "early-demux": probe_mainline.early_demux,
    "lockless-listener": probe_mainline.lockless_listener,
    "reuseport-cbpf": probe_socket.reuseport_cbpf,
    "reuseport-cbpf-unprivileged": probe_socket.reuseport_cbpf_unprivileged,
    "reuseport-ebpf": probe_socket.reuseport_ebpf,
    "reuseport-migration": probe_socket.reuseport_migration,
    "tcp-migrate-req": probe_socket.migrate_sysctl,
    "vfs-fast-path": probe_mainline.vfs_fast_path,
    "local-port-range": probe_socket.local_port_range,
    "sockmap": probe_bpf.sockmap,
    "raw-tracepoint": probe_bpf.raw_tracepoint,
}

_PAUSE_S = 0.1
_NO_RIGHTS = frozenset((errno.EPERM, errno.EACCES))
_NO_NETWORK = frozenset((errno.ENETUNREACH, errno.EADDRNOTAVAIL))
# What bpf(2) and setsockopt(2) say to a type, command or option that they do not know.
_NO_SUCH = frozenset((errno.EINVAL, errno.ENOPROTOOPT, errno.ENOSYS, errno.EOPNOTSUPP))


def verify(names: Iterable[str] | None = None) -> list[Feature]:
    """Probe features of the running kernel.

    Args:
        names: Keys of PROBES, by default all of them.

    Raises:
        UsageError: There is no such feature.
    """
    wanted = list(PROBES if names is None else names)
    for name in wanted:
        if name not in PROBES:
            raise UsageError(f"unknown feature {name!r}", "", f"known are {', '.join(PROBES)}")
    return [_probe(name, PROBES[name]) for name in wanted]


def _patiently(probe: Callable[[], Feature]) -> Feature:
    """Run one probe, again at EAGAIN, as bpf(2) says it when a signal is pending."""
    for _ in range(3):
        try:
            return probe()
        except BlockingIOError:
            time.sleep(_PAUSE_S)
    return probe()


def _probe(name: str, probe: Callable[[], Feature]) -> Feature:
    """Run one probe; what keeps it from an answer becomes the reason."""
    try:
        return _patiently(probe)
    except OSError as error:
        text = error.strerror or str(error)
        if error.errno in _NO_RIGHTS:
            todo = "run it as root" if os.geteuid() else "allow bpf(2) in this container"
            return Feature(name, State.UNKNOWN, f"not allowed to try: {text}", todo)
        if error.errno in _NO_NETWORK:
            return Feature(name, State.UNKNOWN, "loopback is down", "ip link set lo up")
        if error.errno in _NO_SUCH:
            return Feature(name, State.MISSING, f"the kernel refuses it: {text}")
        return Feature(name, State.UNKNOWN, f"could not be tried: {text}")
    except KeyError as error:  # this kernel names a structure's member differently
        return Feature(name, State.UNKNOWN, f"not readable on this kernel: {error.args[0]}")
