# SPDX-License-Identifier: GPL-2.0-or-later
"""Builds the golden hosts: machines as their drivers present them, written down by hand.

Queue limits, interrupt names, default throttling, ring sizes and RSS tables are those of the
drivers in Linux 6.1 (drivers/net/ethernet/…). Run it to write the fixtures anew:
`python -m tests.golden.nic.build`; a test holds them against this file.
"""

from collections.abc import Callable
from pathlib import Path

from fastsocket.nic.facts import (
    Bond,
    Counts,
    HostFacts,
    Nic,
    Ownership,
    RxQueue,
    TxQueue,
    save_facts,
)
from tests.golden.nic import cards
from tests.golden.nic.parts import (
    DATABASE,
    OFFLOADS,
    SYSCTLS,
    card,
    combined,
    host,
    machine,
    rings,
    spread,
)

HERE = Path(__file__).parent


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
    "ixgbe-24-cores-2-nodes": cards.ixgbe_24,
    "igb-4-cores-firewall": cards.igb_8,
    "tg3-8-cores": cards.tg3_8,
    "bnx2-8-cores-2-packages": cards.bnx2_16,
    "i40e-32-cores-2-nodes": cards.i40e_64,
    "ice-32-cores": cards.ice_64,
    "mlx5-128-cores-8-nodes": cards.mlx5_128,
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
