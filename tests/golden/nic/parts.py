# SPDX-License-Identifier: GPL-2.0-or-later
"""What golden hosts are put together from: CPUs, cards, queues, loads."""

from collections.abc import Callable
from typing import Any

from fastsocket.host.cpulist import format_list
from fastsocket.host.load import Load
from fastsocket.host.topology import Cpu, Topology
from fastsocket.nic.facts import (
    Counts,
    HostFacts,
    Nic,
    RxQueue,
    TxQueue,
)
from fastsocket.nic.irqs import assign_queues

SYSCTLS = {
    "net.core.busy_poll": "0",
    "net.core.busy_read": "0",
    "net.core.netdev_budget": "300",
    "net.core.netdev_budget_usecs": "8000",
    "net.core.netdev_max_backlog": "1000",
    "net.core.rps_sock_flow_entries": "0",
    "net.core.skb_defer_max": "64",
    "net.core.somaxconn": "4096",
    "net.ipv4.ip_early_demux": "1",
    "net.ipv4.ip_local_port_range": "32768 60999",
    "net.ipv4.tcp_abort_on_overflow": "0",
    "net.ipv4.tcp_early_demux": "1",
    "net.ipv4.tcp_max_syn_backlog": "4096",
    "net.ipv4.tcp_syncookies": "1",
}
# As guides for routers have it.
ROUTER = {
    **SYSCTLS,
    "net.core.skb_defer_max": "0",
    "net.ipv4.ip_early_demux": "0",
    "net.ipv4.tcp_early_demux": "0",
}
# Means of 30 days: many short connections, few long ones, a database, a machine in reserve.
WEB = Load(2592000.0, 0.46, 0.27, 0.33, 8200.0, 11.4)
STREAMS = Load(2592000.0, 0.38, 0.31, 0.24, 41.0, 5120.0)
DATABASE = Load(2592000.0, 0.64, 0.04, 0.11, 190.0, 27.0)
RESERVE = Load(2592000.0, 0.02, 0.03, 0.21, 0.3, 14.0)
OFFLOADS = {"rx-checksum": True, "rx-gro": True, "tx-tcp-segmentation": True}


def machine(
    nodes: list[list[int]],
    *,
    threads: int = 1,
    nodes_per_package: int = 1,
    cache: int = 0,
    far: int = 21,
    near: int = 12,
    offline: tuple[int, ...] = (),
    isolated: tuple[int, ...] = (),
) -> Topology:
    """Return a machine from the CPUs of its nodes, first threads first; `cache` cores share one."""
    cpus = []
    for node, members in enumerate(nodes):
        cores = len(members) // threads
        groups = [
            [members[core + cores * thread] for thread in range(threads)] for core in range(cores)
        ]
        shared = cache or cores
        for core, group in enumerate(groups):
            neighbours = [
                cpu for other in groups[core // shared * shared :][:shared] for cpu in other
            ]
            for cpu in group:
                if cpu in offline:
                    cpus.append(Cpu(cpu, online=False))
                    continue
                cpus.append(
                    Cpu(
                        id=cpu,
                        core=core + cores * (node % nodes_per_package),
                        package=node // nodes_per_package,
                        node=node,
                        llc=min(set(neighbours) - set(offline)),
                        siblings=tuple(sorted(set(group) - set(offline))),
                        isolated=cpu in isolated,
                    )
                )
    count = len(nodes)
    distances = {
        one: tuple(
            10
            if one == other
            else near
            if one // nodes_per_package == other // nodes_per_package
            else far
            for other in range(count)
        )
        for one in range(count)
    }
    return Topology(tuple(sorted(cpus, key=lambda cpu: cpu.id)), distances)


def card(
    name: str,
    driver: str,
    names: list[str],
    *,
    rx: int,
    tx: int,
    affinity: Callable[[int], str],
    first_irq: int = 64,
    xps: Callable[[int], str] = lambda _: "",
    **more: Any,
) -> Nic:
    """Return a card with interrupts of these names and `affinity` of the place in that list."""
    found = [(first_irq + index, irq, affinity(index)) for index, irq in enumerate(names)]
    defaults: dict[str, Any] = {
        "kind": "card",
        "ifindex": 2,
        "driver": driver,
        "speed": 10000,
        "offloads": OFFLOADS,
        "qdisc": "mq",
    }
    return Nic(
        name=name,
        irqs=assign_queues(found, name, driver),
        rx=tuple(RxQueue("", 0) for _ in range(rx)),
        tx=tuple(TxQueue(xps(queue)) for queue in range(tx)),
        **{**defaults, **more},
    )


def host(topology: Topology, *nics: Nic, target: str = "eth0", **more: Any) -> HostFacts:
    """Return the facts of a machine with these interfaces."""
    defaults: dict[str, Any] = {
        "kernel": "6.1.0-28-amd64",
        "allowed": format_list(topology.online),
        "possible": len(topology.cpus),
        "sysctls": SYSCTLS,
        "open_files": 1048576,
        "load": WEB,
    }
    return HostFacts(target=target, topology=topology, nics=nics, **{**defaults, **more})


def combined(now: int, most: int) -> Counts:
    return Counts({"combined": now}, {"combined": most})


def rings(rx: int, tx: int, rx_most: int, tx_most: int) -> Counts:
    return Counts({"rx": rx, "tx": tx}, {"rx": rx_most, "tx": tx_most})


def spread(entries: int, queues: int) -> tuple[int, ...]:
    return tuple(index % queues for index in range(entries))
