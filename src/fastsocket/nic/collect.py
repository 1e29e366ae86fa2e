# SPDX-License-Identifier: GPL-2.0-or-later
"""Collects `HostFacts` from this host: sysfs, procfs, ethtool and route netlink. Only reads."""

import os
import platform
import resource
import socket
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Literal, TypeVar

from fastsocket.errors import ConflictError, UsageError
from fastsocket.host.cpulist import format_list, parse_list, parse_mask
from fastsocket.host.files import read_number, read_text
from fastsocket.host.limits import live_limits
from fastsocket.host.load import mean_load
from fastsocket.host.topology import read_topology
from fastsocket.nic.ethtool import Ethtool
from fastsocket.nic.facts import (
    Bond,
    Counts,
    HostFacts,
    Irq,
    Nic,
    Ownership,
    RxQueue,
    Softnet,
    TxQueue,
)
from fastsocket.nic.irqbalance import find_irqbalance
from fastsocket.nic.irqs import assign_queues
from fastsocket.nic.netfilter import read_netfilter

__all__ = ["SYSCTLS", "check_known", "collect", "collect_nic", "read_irqs"]

# What plan and doctor look at. One that a namespace or a kernel lacks is left out of the facts.
SYSCTLS = (
    "net.core.busy_poll",
    "net.core.busy_read",
    "net.core.netdev_budget",
    "net.core.netdev_budget_usecs",
    "net.core.netdev_max_backlog",
    "net.core.rps_sock_flow_entries",
    "net.core.skb_defer_max",
    "net.core.somaxconn",
    "net.ipv4.ip_early_demux",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.tcp_abort_on_overflow",
    "net.ipv4.tcp_early_demux",
    "net.ipv4.tcp_max_syn_backlog",
    "net.ipv4.tcp_syncookies",
    "net.netfilter.nf_conntrack_max",
)
T = TypeVar("T")

_IFF_UP = 1
_MAX_DEPTH = 4


def collect(target: str, root: Path = Path("/")) -> HostFacts:
    """Return the facts of this host for the interface `target`.

    Raises:
        UsageError: There is no such interface.
        ConflictError: /sys belongs to another network namespace.
    """
    check_known(target)
    _check_sysfs(target, root)
    nics: list[Nic] = []
    waiting = [target]
    while waiting and len(nics) < 1 << _MAX_DEPTH:
        nic = collect_nic(waiting.pop(0), root)
        nics.append(nic)
        waiting.extend(name for name in nic.lower if name not in {other.name for other in nics})
    return HostFacts(
        target=target,
        kernel=platform.release(),
        topology=read_topology(root),
        allowed=format_list(os.sched_getaffinity(0)),
        possible=max(parse_list(read_text(root / "sys/devices/system/cpu/possible")) or (0,)) + 1,
        nics=tuple(nics),
        sysctls=_sysctls(root),
        netfilter=read_netfilter(root),
        irqbalance=find_irqbalance(root),
        softnet=_softnet(root),
        owns=_ownership(root),
        open_files=resource.getrlimit(resource.RLIMIT_NOFILE)[1],
        quota=live_limits().quota,
        load=mean_load(root),
    )


def check_known(name: str) -> None:
    """Raise `UsageError` where this namespace has no such interface."""
    known = [other for _, other in socket.if_nameindex()]
    if name not in known:
        raise UsageError(f"there is no interface {name}", "", f"choose one of {', '.join(known)}")


def _check_sysfs(name: str, root: Path) -> None:
    if read_number(root / f"sys/class/net/{name}/ifindex", 0) != socket.if_nametoindex(name):
        raise ConflictError(
            f"/sys does not show the interface {name}",
            "it is mounted for another network namespace",
            "enter the namespace with 'ip netns exec', or mount sysfs in it",
        )


def collect_nic(name: str, root: Path = Path("/")) -> Nic:
    """Return the facts of one interface of this namespace."""
    base = root / f"sys/class/net/{name}"
    bus = _bus_device(base)
    with Ethtool(name) as ethtool:
        driver, firmware, address = _ask(ethtool.driver) or ("", "", "")
        table, key = _ask(ethtool.indirection) or ((), "")
        limit, rules = _ask(ethtool.rules) or (0, {})
        features = _ask(ethtool.features) or {}
        queues = base / "queues"
        return Nic(
            name=name,
            kind=_kind(base, driver),
            ifindex=read_number(base / "ifindex", 0),
            driver=driver,
            firmware=firmware,
            model=_model(bus),
            bus=address,
            node=read_number(bus / "numa_node", -1) if bus else -1,
            speed=read_number(base / "speed", -1),
            up=bool(int(read_text(base / "flags") or "0", 16) & _IFF_UP),
            carrier=read_text(base / "carrier") == "1",
            mtu=read_number(base / "mtu", 0),
            channels=_counts(ethtool.channels),
            rings=_counts(ethtool.rings),
            coalesce={} if _deaf_virtio(base, driver) else _ask(ethtool.coalesce) or {},
            offloads={word: on for word, (on, changeable) in features.items() if changeable},
            indirection=table,
            hash_key=key,
            rule_limit=limit,
            rules={where: str(rule) if rule else "foreign" for where, rule in rules.items()},
            irqs=read_irqs(name, driver, root),
            rx=tuple(_rx_queue(queues / f"rx-{number}") for number in _queues(queues, "rx")),
            tx=tuple(_tx_queue(queues / f"tx-{number}") for number in _queues(queues, "tx")),
            qdisc=_qdisc(name),
            drops=sum(
                read_number(base / f"statistics/{counter}", 0)
                for counter in ("rx_missed_errors", "rx_fifo_errors")
            ),
            lower=tuple(sorted(path.name[6:] for path in base.glob("lower_*"))),
            bond=_bond(base),
            writable=_is_ours(base / "mtu") and _first_user_namespace(root),
        )


def read_irqs(name: str, driver: str, root: Path = Path("/")) -> tuple[Irq, ...]:
    """Return the interrupts of an interface; none while it is down, with most drivers."""
    bus = _bus_device(root / f"sys/class/net/{name}")
    if bus is None:
        return ()
    numbers = [int(path.name) for path in (bus / "msi_irqs").glob("[0-9]*")]
    if not numbers and (line := read_number(bus / "irq", 0)) > 0:
        numbers = [line]
    found = []
    for number in numbers:
        # Several handlers of one line are separated by commas; a line without one is not in use.
        for action in read_text(root / f"sys/kernel/irq/{number}/actions").split(","):
            if action:
                affinity = read_text(root / f"proc/irq/{number}/smp_affinity_list")
                found.append((number, action, affinity))
    return assign_queues(found, name, driver)


def _ask(request: Callable[[], T]) -> T | None:
    """Return the answer, or None where the driver has no such thing."""
    try:
        return request()
    except OSError:
        return None


def _counts(request: Callable[[], tuple[dict[str, int], dict[str, int]]]) -> Counts | None:
    now, most = _ask(request) or ({}, {})
    names = [word for word, limit in most.items() if limit > 0 and word != "other"]
    if not names:
        return None
    return Counts({word: now[word] for word in names}, {word: most[word] for word in names})


def _kind(
    base: Path, driver: str
) -> Literal["card", "virtual", "bond", "vlan", "bridge", "loopback"]:
    uevent = read_text(base / "uevent")
    if read_number(base / "type", 0) == 772:  # ARPHRD_LOOPBACK
        return "loopback"
    if "DEVTYPE=bond" in uevent or (base / "bonding").is_dir():
        return "bond"
    if "DEVTYPE=vlan" in uevent:
        return "vlan"
    if "DEVTYPE=bridge" in uevent:
        return "bridge"
    return "card" if (base / "device").exists() and driver != "veth" else "virtual"


def _bus_device(base: Path) -> Path | None:
    """Return the device that has the interrupts: for virtio it is the parent on the PCI bus."""
    device = base / "device"
    if not device.exists():
        return None
    path = device.resolve()
    for candidate in (path, *list(path.parents)[:2]):
        if (candidate / "msi_irqs").is_dir() or (candidate / "irq").is_file():
            return candidate
    return path


def _model(bus: Path | None) -> str:
    if bus is None or not (vendor := read_text(bus / "vendor")):
        return ""
    return f"{vendor.removeprefix('0x')}:{read_text(bus / 'device').removeprefix('0x')}"


def _deaf_virtio(base: Path, driver: str) -> bool:
    """Whether this is a virtio card whose host offers no interrupt throttling.

    virtio_net declares the parameters for every card, and refuses them at the attempt.
    """
    # VIRTIO_NET_F_VQ_NOTF_COAL is bit 52 and VIRTIO_NET_F_NOTF_COAL bit 53; the file is a string
    # of bits that starts with bit 0.
    return driver == "virtio_net" and "1" not in read_text(base / "device/features")[52:54]


def _queues(folder: Path, kind: str) -> list[int]:
    return sorted(int(path.name.partition("-")[2]) for path in folder.glob(f"{kind}-*"))


def _rx_queue(folder: Path) -> RxQueue:
    cpus = format_list(parse_mask(read_text(folder / "rps_cpus") or "0"))
    return RxQueue(cpus, read_number(folder / "rps_flow_cnt", 0))


def _tx_queue(folder: Path) -> TxQueue:
    # Reading fails where the interface has one queue, or while its classes are being changed.
    return TxQueue(format_list(parse_mask(read_text(folder / "xps_cpus") or "0")))


def _qdisc(name: str) -> str:
    # Imported here because it takes longer than all the rest of a plan from recorded facts.
    from pyroute2 import IPRoute  # type: ignore[import-untyped]

    with IPRoute() as route:
        link = route.link("get", ifname=name)[0]
        return str(link.get("qdisc") or "")


def _bond(base: Path) -> Bond | None:
    mode = read_text(base / "bonding/mode").split()
    if not mode:
        return None
    policy = read_text(base / "bonding/xmit_hash_policy").split()
    return Bond(mode[0], policy[0] if policy else "")


def _sysctls(root: Path) -> dict[str, str]:
    found = {}
    for name in SYSCTLS:
        if text := read_text(root / "proc/sys" / name.replace(".", "/")):
            found[name] = " ".join(text.split())
    return found


def _softnet(root: Path) -> Softnet:
    rows = [line.split() for line in read_text(root / "proc/net/softnet_stat").splitlines()]
    return Softnet(
        dropped=sum(int(row[1], 16) for row in rows), squeezed=sum(int(row[2], 16) for row in rows)
    )


def _ownership(root: Path) -> Ownership:
    return Ownership(
        irqs=_is_ours(root / "proc/irq/default_smp_affinity"),
        sysctls=_is_ours(root / "proc/sys/net/core/somaxconn"),
        # net_core_table of the kernel's net/core/sysctl_net_core.c exists in the first namespace
        # only, netns_core_table in each.
        host_namespace=(root / "proc/sys/net/core/netdev_max_backlog").exists(),
    )


def _first_user_namespace(root: Path) -> bool:
    """Whether root here is root of the host.

    store_rps_map() and xps_cpus_store() of the kernel want CAP_NET_ADMIN there, whoever owns the
    network namespace.
    """
    return read_text(root / "proc/self/uid_map").split() == ["0", "0", str(2**32 - 1)]


def _is_ours(path: Path) -> bool:
    """Whether root, as this process's namespaces know it, may write the file."""
    try:
        if os.statvfs(path).f_flag & os.ST_RDONLY:
            return False
        found = path.stat()
    except OSError:
        return False
    # A file of the host's root shows the overflow user in a container with its own users.
    return found.st_uid == 0 and bool(found.st_mode & stat.S_IWUSR)
