# SPDX-License-Identifier: GPL-2.0-or-later
"""Builds the golden hosts: machines as their drivers present them, written down by hand.

Queue limits, interrupt names, default throttling, ring sizes and RSS tables are those of the
drivers in Linux 6.1 (drivers/net/ethernet/…). Run it to write the fixtures anew:
`python tests/golden/nic/build.py`; a test holds them against this file.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastsocket.host.cpulist import format_list
from fastsocket.host.load import Load
from fastsocket.host.topology import Cpu, Topology
from fastsocket.nic.facts import (
    Bond,
    Counts,
    HostFacts,
    Irqbalance,
    Netfilter,
    Nic,
    Ownership,
    RxQueue,
    Softnet,
    TxQueue,
    save_facts,
)
from fastsocket.nic.irqs import assign_queues

HERE = Path(__file__).parent
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


def ixgbe_24() -> HostFacts:
    """The machine of 2014: two 12-core Xeon E5-2697 v2 and an 82599, irqbalance at work."""
    names = [f"eth0-TxRx-{queue}" for queue in range(24)] + ["eth0"]
    nic = card(
        "eth0",
        "ixgbe",
        names,
        rx=24,
        tx=24,
        # irqbalance has put them on the node of the card, two queues on each core.
        affinity=lambda index: str(index % 12),
        xps=str,
        model="8086:10fb",
        bus="0000:04:00.0",
        firmware="0x61bd0001",
        node=0,
        channels=combined(24, 63),
        rings=rings(512, 512, 4096, 4096),
        coalesce={"rx-usecs": 1, "tx-usecs": 0},
        offloads={**OFFLOADS, "rx-ntuple-filter": False},
        indirection=spread(128, 16),
        rule_limit=2046,
        drops=18234,
    )
    return host(
        machine([list(range(12)), list(range(12, 24))]),
        nic,
        irqbalance=Irqbalance(811, "/run/irqbalance/irqbalance811.sock", ()),
        softnet=Softnet(dropped=0, squeezed=52110),
        load=Load(2592000.0, 0.71, 0.44, 0.31, 39500.0, 21.8),
    )


def igb_8() -> HostFacts:
    """A small server: four cores with hyper-threads, an I350, a firewall, few files."""
    nic = card(
        "eno1",
        "igb",
        ["eno1", *(f"eno1-TxRx-{queue}" for queue in range(8))],
        rx=8,
        tx=8,
        affinity=lambda _: "0-7",
        model="8086:1521",
        bus="0000:02:00.0",
        node=-1,
        speed=1000,
        channels=combined(8, 8),
        rings=rings(256, 256, 4096, 4096),
        coalesce={"rx-usecs": 3, "tx-usecs": 0},
        offloads={**OFFLOADS, "rx-ntuple-filter": False},
        indirection=spread(128, 8),
        rule_limit=16,
    )
    return host(
        machine([list(range(8))], threads=2),
        nic,
        target="eno1",
        netfilter=Netfilter(
            conntrack=True,
            connections=48211,
            tables=("inet filter", "ip nat (legacy)"),
            can_notrack=True,
        ),
        open_files=4096,
    )


def tg3_8() -> HostFacts:
    """A BCM5720, which receives on four queues and sends on one unless told otherwise."""
    nic = card(
        "eth0",
        "tg3",
        ["eth0-tx-0", *(f"eth0-rx-{vector}" for vector in range(1, 5))],
        rx=4,
        tx=1,
        affinity=lambda _: "0-7",
        model="14e4:165f",
        bus="0000:03:00.0",
        node=0,
        speed=1000,
        channels=Counts({"rx": 4, "tx": 1}, {"rx": 4, "tx": 4}),
        rings=rings(200, 511, 2047, 511),
        coalesce={
            "rx-usecs": 20,
            "rx-frames": 5,
            "rx-usecs-irq": 0,
            "rx-frames-irq": 5,
            "tx-usecs": 72,
            "tx-frames": 53,
            "tx-usecs-irq": 0,
            "tx-frames-irq": 5,
            "stats-block-usecs": 0,
        },
        indirection=spread(128, 4),
    )
    return host(machine([list(range(8))]), nic)


def bnx2_16() -> HostFacts:
    """Two four-core Westmere Xeons with hyper-threads, numbered alternately, and a BCM5709.

    Set up as a router once, and in reserve.
    """
    nic = card(
        "eth0",
        "bnx2",
        [f"eth0-{vector}" for vector in range(8)],
        rx=8,
        tx=8,
        affinity=lambda _: "0-15",
        model="14e4:1639",
        bus="0000:01:00.0",
        node=0,
        speed=1000,
        channels=Counts({"rx": 8, "tx": 8}, {"rx": 8, "tx": 8}),
        rings=rings(255, 255, 2040, 255),
        coalesce={
            "rx-usecs": 18,
            "rx-frames": 12,
            "rx-usecs-irq": 18,
            "rx-frames-irq": 2,
            "tx-usecs": 80,
            "tx-frames": 20,
            "tx-usecs-irq": 18,
            "tx-frames-irq": 2,
            "stats-block-usecs": 999936,
        },
    )
    topology = machine([list(range(0, 16, 2)), list(range(1, 16, 2))], threads=2)
    return host(topology, nic, sysctls=ROUTER, load=RESERVE)


def i40e_64() -> HostFacts:
    """Two 16-core Xeons with hyper-threads; the XL710 is on the second."""
    first = [*range(16), *range(32, 48)]
    second = [*range(16, 32), *range(48, 64)]
    nic = card(
        "ens2f0",
        "i40e",
        ["i40e-0000:d8:00.0:misc", *(f"i40e-ens2f0-TxRx-{queue}" for queue in range(64))],
        rx=64,
        tx=64,
        affinity=lambda index: str((index - 1) % 64) if index else "0-63",
        xps=str,
        model="8086:1583",
        bus="0000:d8:00.0",
        node=1,
        speed=40000,
        channels=combined(64, 64),
        rings=rings(512, 512, 4096, 4096),
        coalesce={
            "rx-usecs": 50,
            "tx-usecs": 50,
            "tx-frames-irq": 256,
            "adaptive-rx": 1,
            "adaptive-tx": 1,
            "rx-usecs-high": 0,
        },
        offloads={**OFFLOADS, "rx-ntuple-filter": True},
        indirection=spread(512, 64),
        rule_limit=7680,
    )
    return host(machine([first, second], threads=2), nic, target="ens2f0")


def ice_64() -> HostFacts:
    """A 32-core EPYC with hyper-threads, caches of four cores, an E810 left at 32 queues."""
    nic = card(
        "ens1",
        "ice",
        ["ice-0000:41:00.0:misc", *(f"ice-ens1-TxRx-{queue}" for queue in range(32))],
        rx=32,
        tx=32,
        affinity=lambda index: str(index - 1) if index else "0-63",
        xps=str,
        model="8086:1592",
        bus="0000:41:00.0",
        node=0,
        speed=100000,
        channels=Counts({"rx": 0, "tx": 0, "combined": 32}, {"rx": 64, "tx": 64, "combined": 64}),
        rings=rings(2048, 256, 8160, 8160),
        coalesce={
            "rx-usecs": 50,
            "tx-usecs": 50,
            "adaptive-rx": 1,
            "adaptive-tx": 1,
            "rx-usecs-high": 0,
        },
        offloads={**OFFLOADS, "rx-ntuple-filter": True},
        indirection=spread(2048, 32),
        rule_limit=6144,
    )
    topology = machine([list(range(64))], threads=2, cache=4)
    return host(topology, nic, target="ens1", load=STREAMS)


def mlx5_128() -> HostFacts:
    """Two 64-core EPYC without hyper-threads in four nodes each, and a ConnectX-5."""
    nic = card(
        "enp129s0",
        "mlx5_core",
        [
            "mlx5_async0@pci:0000:81:00.0",
            *(f"mlx5_comp{queue}@pci:0000:81:00.0" for queue in range(63)),
        ],
        rx=63,
        tx=63,
        affinity=lambda index: (
            str(80 + index - 1 if index <= 48 else index - 49) if index else "0-127"
        ),
        first_irq=200,
        model="15b3:1017",
        bus="0000:81:00.0",
        node=5,
        speed=100000,
        channels=combined(63, 63),
        rings=rings(1024, 1024, 8192, 8192),
        coalesce={
            "rx-usecs": 8,
            "rx-frames": 128,
            "tx-usecs": 16,
            "tx-frames": 32,
            "adaptive-rx": 1,
            "adaptive-tx": 1,
        },
        offloads={**OFFLOADS, "rx-ntuple-filter": False},
        indirection=spread(256, 63),
        rule_limit=1024,
    )
    nodes = [list(range(16 * node, 16 * node + 16)) for node in range(8)]
    topology = machine(nodes, nodes_per_package=4, cache=8, far=32)
    return host(
        topology,
        nic,
        target="enp129s0",
        softnet=Softnet(dropped=77, squeezed=390021),
        load=Load(2592000.0, 0.58, 0.41, 0.29, 164000.0, 10.6, 3.2),
    )


def ena_16() -> HostFacts:
    """A cloud machine: eight cores with hyper-threads, an ENA with eight queues."""
    nic = card(
        "eth0",
        "ena",
        [
            "ena-mgmnt@pci:0000:00:05.0",
            *(f"eth0-Tx-Rx-{queue}" for queue in range(8)),
        ],
        rx=8,
        tx=8,
        affinity=lambda index: str(index - 1) if index else "0-15",
        model="1d0f:ec20",
        bus="0000:00:05.0",
        node=0,
        speed=-1,
        mtu=9001,
        channels=combined(8, 8),
        rings=rings(1024, 1024, 16384, 1024),
        coalesce={"rx-usecs": 0, "tx-usecs": 64, "adaptive-rx": 0},
        indirection=spread(128, 8),
    )
    return host(machine([list(range(16))], threads=2), nic, load=DATABASE)


def gve_16() -> HostFacts:
    """A cloud machine: eight cores with hyper-threads, a gVNIC with separate interrupts."""
    nic = card(
        "ens4",
        "gve",
        [
            *(f"gve-ntfy-blk{block}@pci:0000:00:04.0" for block in range(32)),
            "gve-mgmnt@pci:0000:00:04.0",
        ],
        rx=16,
        tx=16,
        affinity=lambda _: "0-15",
        model="1ae0:0042",
        bus="0000:00:04.0",
        node=0,
        speed=-1,
        mtu=1460,
        channels=Counts({"rx": 16, "tx": 16}, {"rx": 16, "tx": 16}),
        rings=rings(1024, 1024, 1024, 1024),
    )
    return host(machine([list(range(16))], threads=2), nic, target="ens4")


def _virtio(name: str, queues: int, cpus: int, *, spread_by_driver: bool) -> Nic:
    names = ["virtio1-config"]
    for queue in range(queues):
        names += [f"virtio1-input.{queue}", f"virtio1-output.{queue}"]
    return card(
        name,
        "virtio_net",
        names,
        rx=queues,
        tx=queues,
        # virtio_net places its queues itself where there is one for each CPU.
        affinity=lambda index: (
            str((index - 1) // 2) if index and spread_by_driver else f"0-{cpus - 1}"
        ),
        xps=lambda queue: str(queue) if spread_by_driver else "",
        first_irq=24,
        model="1af4:1041",
        bus="0000:00:03.0",
        speed=-1,
        channels=combined(queues, queues),
        rings=rings(256, 256, 256, 256),
        qdisc="mq" if queues > 1 else "fq_codel",
    )


def virtio_1() -> HostFacts:
    """A virtual machine with eight CPUs and one queue."""
    nic = _virtio("eth0", 1, 8, spread_by_driver=False)
    return host(machine([list(range(8))]), nic)


def virtio_8() -> HostFacts:
    """A virtual machine with eight CPUs and as many queues, placed by the driver."""
    nic = _virtio("eth0", 8, 8, spread_by_driver=True)
    return host(machine([list(range(8))]), nic)


def _x550(name: str, port: int) -> Nic:
    return card(
        name,
        "ixgbe",
        [*(f"{name}-TxRx-{queue}" for queue in range(32)), name],
        rx=32,
        tx=32,
        affinity=lambda _: "0-31",
        xps=str,
        first_irq=64 + 40 * port,
        ifindex=2 + port,
        model="8086:1563",
        bus=f"0000:3b:00.{port}",
        node=0,
        channels=combined(32, 63),
        rings=rings(512, 512, 4096, 4096),
        coalesce={"rx-usecs": 1, "tx-usecs": 0},
        offloads={**OFFLOADS, "rx-ntuple-filter": False},
        indirection=spread(512, 32),
        rule_limit=2046,
    )


def bond_32() -> HostFacts:
    """Two ports of an X550 as one 802.3ad bond, on two 16-core packages."""
    bond = Nic(
        name="bond0",
        kind="bond",
        ifindex=5,
        driver="bonding",
        speed=20000,
        rx=tuple(RxQueue("", 0) for _ in range(16)),
        tx=tuple(TxQueue("") for _ in range(16)),
        qdisc="noqueue",
        lower=("eth0", "eth1"),
        bond=Bond("802.3ad", "layer2"),
    )
    topology = machine([list(range(16)), list(range(16, 32))])
    return host(topology, bond, _x550("eth0", 0), _x550("eth1", 1), target="bond0")


def _i350(name: str, port: int) -> Nic:
    return card(
        name,
        "igb",
        [name, *(f"{name}-TxRx-{queue}" for queue in range(8))],
        rx=8,
        tx=8,
        affinity=lambda _: "0-15",
        first_irq=64 + 16 * port,
        ifindex=2 + port,
        model="8086:1521",
        bus=f"0000:02:00.{port}",
        node=0,
        speed=1000,
        channels=combined(8, 8),
        rings=rings(256, 256, 4096, 4096),
        coalesce={"rx-usecs": 3, "tx-usecs": 0},
        indirection=spread(128, 8),
    )


def vlan_16() -> HostFacts:
    """A VLAN on a bond of which one port is active at a time."""
    vlan = Nic(
        name="bond0.100",
        kind="vlan",
        ifindex=6,
        driver="802.1Q VLAN Support",
        rx=(RxQueue("", 0),),
        tx=(TxQueue(""),),
        qdisc="noqueue",
        lower=("bond0",),
    )
    bond = Nic(
        name="bond0",
        kind="bond",
        ifindex=5,
        driver="bonding",
        rx=tuple(RxQueue("", 0) for _ in range(16)),
        tx=tuple(TxQueue("") for _ in range(16)),
        qdisc="noqueue",
        lower=("eno1", "eno2"),
        bond=Bond("active-backup", "layer2"),
    )
    topology = machine([list(range(16))])
    return host(topology, vlan, bond, _i350("eno1", 0), _i350("eno2", 1), target="bond0.100")


def isolated_16() -> HostFacts:
    """Eight cores with hyper-threads: two cores isolated, CPU 5 offline, more queues than CPUs."""
    nic = card(
        "eth0",
        "ice",
        ["ice-0000:17:00.0:misc", *(f"ice-eth0-TxRx-{queue}" for queue in range(16))],
        rx=16,
        tx=16,
        affinity=lambda index: str(index - 1) if index not in (0, 6) else "0-15",
        xps=str,
        model="8086:159b",
        bus="0000:17:00.0",
        node=0,
        speed=25000,
        channels=Counts({"rx": 0, "tx": 0, "combined": 16}, {"rx": 16, "tx": 16, "combined": 16}),
        rings=rings(2048, 256, 8160, 8160),
        coalesce={"rx-usecs": 50, "tx-usecs": 50, "adaptive-rx": 1, "adaptive-tx": 1},
        offloads={**OFFLOADS, "rx-ntuple-filter": True},
        indirection=spread(2048, 16),
        rule_limit=6144,
        qdisc="fq_codel",
    )
    topology = machine([list(range(16))], threads=2, offline=(5,), isolated=(2, 3, 10, 11))
    return host(topology, nic, possible=16)


def container_8() -> HostFacts:
    """A container with a veth of its own, read-only /sys and /proc/sys, and two of eight CPUs."""
    nic = Nic(
        name="eth0",
        kind="virtual",
        ifindex=12,
        driver="veth",
        speed=10000,
        channels=Counts({"rx": 1, "tx": 1}, {"rx": 8, "tx": 8}),
        offloads=OFFLOADS,
        rx=(RxQueue("", 0),),
        tx=(TxQueue(""),),
        qdisc="noqueue",
        writable=False,
    )
    own = {name: value for name, value in SYSCTLS.items() if "netdev" not in name}
    del own["net.core.rps_sock_flow_entries"]
    return host(
        machine([list(range(8))]),
        nic,
        allowed="2-3",
        sysctls=own,
        quota=1.5,
        owns=Ownership(irqs=False, sysctls=False, host_namespace=False),
    )


HOSTS: dict[str, Callable[[], HostFacts]] = {
    "ixgbe-24-cores-2-nodes": ixgbe_24,
    "igb-4-cores-firewall": igb_8,
    "tg3-8-cores": tg3_8,
    "bnx2-8-cores-2-packages": bnx2_16,
    "i40e-32-cores-2-nodes": i40e_64,
    "ice-32-cores": ice_64,
    "mlx5-128-cores-8-nodes": mlx5_128,
    "ena-8-cores": ena_16,
    "gve-8-cores": gve_16,
    "virtio-1-queue": virtio_1,
    "virtio-8-queues": virtio_8,
    "bond-of-2": bond_32,
    "vlan-on-active-backup": vlan_16,
    "isolated-and-offline": isolated_16,
    "container-veth": container_8,
}

if __name__ == "__main__":
    for label, build in HOSTS.items():
        save_facts(build(), HERE / f"{label}.json")
