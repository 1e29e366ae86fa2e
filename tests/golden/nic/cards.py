# SPDX-License-Identifier: GPL-2.0-or-later
"""Golden hosts with a card of their own, by driver."""

from fastsocket.host.load import Load
from fastsocket.nic.facts import (
    Counts,
    HostFacts,
    Irqbalance,
    Netfilter,
    Softnet,
)
from tests.golden.nic.parts import (
    OFFLOADS,
    RESERVE,
    ROUTER,
    STREAMS,
    card,
    combined,
    host,
    machine,
    rings,
    spread,
)


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
