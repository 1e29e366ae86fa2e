# SPDX-License-Identifier: GPL-2.0-or-later
"""What a plan is made from: the host, its network cards and their settings, as plain data.

`HostFacts` holds no open handle and can be saved as JSON and replayed on another machine.
"""

from pathlib import Path
from typing import Literal

import msgspec

from fastsocket.errors import UsageError
from fastsocket.host.cpulist import parse_list
from fastsocket.host.load import Load
from fastsocket.host.topology import Topology

__all__ = [
    "Bond",
    "Counts",
    "HostFacts",
    "Irq",
    "Irqbalance",
    "Netfilter",
    "Nic",
    "Ownership",
    "RxQueue",
    "Softnet",
    "TxQueue",
    "load_facts",
    "save_facts",
]

FORMAT = 1


class Counts(msgspec.Struct, frozen=True):
    """Numbers that ethtool tells with their maxima: channels, or ring sizes in descriptors."""

    now: dict[str, int]
    most: dict[str, int]


class Irq(msgspec.Struct, frozen=True):
    """One interrupt of the card."""

    number: int
    name: str
    kind: Literal["combined", "rx", "tx", "other"]
    """What it serves; "other" is link state, mailbox and the like."""
    queue: int
    """Number of the queue that it serves; 0 for "other"."""
    affinity: str
    """CPUs that may take it, as a list (smp_affinity_list)."""


class RxQueue(msgspec.Struct, frozen=True):
    """Receive packet steering of one queue."""

    rps_cpus: str
    """CPU list; empty = off."""
    rps_flow_cnt: int
    """Flows that RFS follows on this queue; 0 = off."""


class TxQueue(msgspec.Struct, frozen=True):
    """Transmit packet steering of one queue."""

    xps_cpus: str
    """CPU list; empty = the kernel chooses by flow hash."""


class Bond(msgspec.Struct, frozen=True):
    """What a bond adds to its members."""

    mode: str
    """As the kernel names it: balance-rr, active-backup, 802.3ad, …"""
    hash_policy: str
    """xmit_hash_policy: layer2, layer3+4, …"""


class Nic(msgspec.Struct, frozen=True):
    """One network interface. None, or an empty value: the driver has no such thing."""

    name: str
    kind: Literal["card", "virtual", "bond", "vlan", "bridge", "loopback"]
    """"card" has a device below it; "virtual" is veth, ifb, tun and the like."""
    ifindex: int = 0
    driver: str = ""
    firmware: str = ""
    model: str = ""
    """PCI vendor and device, such as 8086:10fb."""
    bus: str = ""
    node: int = -1
    """NUMA node of the card, -1 where the firmware does not tell."""
    speed: int = -1
    """Mbit/s, -1 while the link is down."""
    up: bool = True
    """Administratively up."""
    carrier: bool = True
    mtu: int = 1500
    channels: Counts | None = None
    rings: Counts | None = None
    coalesce: dict[str, int] = {}
    """Supported interrupt throttling parameters by their ethtool(8) names; times in µs."""
    offloads: dict[str, bool] = {}
    """Offloads that can be changed, by the kernel's names."""
    indirection: tuple[int, ...] = ()
    """RSS table: queue per hash bucket."""
    hash_key: str = ""
    rule_limit: int = 0
    """How many ntuple rules the card takes; 0 = none."""
    rules: dict[int, str] = {}
    """ntuple rules by location; "foreign" for one that says more than ours can."""
    irqs: tuple[Irq, ...] = ()
    rx: tuple[RxQueue, ...] = ()
    tx: tuple[TxQueue, ...] = ()
    qdisc: str = ""
    """Kind of the root queueing discipline; mq = one per transmit queue."""
    drops: int = 0
    """Packets that the card dropped for want of receive descriptors, since the driver's start."""
    lower: tuple[str, ...] = ()
    """Members of a bond or bridge, or the interface below a VLAN."""
    bond: Bond | None = None
    writable: bool = True
    """Whether this process may write the queue settings in sysfs."""


class Netfilter(msgspec.Struct, frozen=True):
    """What of netfilter every packet of this namespace passes."""

    conntrack: bool = False
    """Connections are being tracked: their number is not zero."""
    connections: int = 0
    tables: tuple[str, ...] = ()
    """nftables and legacy iptables tables that are loaded, such as "inet filter"."""
    notrack_ports: tuple[int, ...] = ()
    """TCP ports that our own table exempts from tracking."""
    can_notrack: bool = False
    """The nft command is there."""
    visible: bool = True
    """nft listed its tables; without root or without nft there may be others than `tables`."""


class Irqbalance(msgspec.Struct, frozen=True):
    """The irqbalance daemon, where it runs."""

    pid: int = 0
    socket: str = ""
    """Path of its control socket; empty: it cannot be told anything."""
    banned: tuple[int, ...] = ()
    """Interrupts that it leaves alone at somebody's request."""
    refused: bool = False
    """It has a control socket, which only root may use."""


class Softnet(msgspec.Struct, frozen=True):
    """Sums over CPUs of /proc/net/softnet_stat."""

    dropped: int = 0
    """Packets dropped because a CPU's backlog was full (netdev_max_backlog)."""
    squeezed: int = 0
    """Polls that ended with work left (netdev_budget, netdev_budget_usecs)."""


class Ownership(msgspec.Struct, frozen=True):
    """What this process may change; in a container the rest belongs to the host."""

    irqs: bool = True
    sysctls: bool = True
    host_namespace: bool = True
    """The network namespace is the host's own: system-wide sysctls are visible in it."""


class HostFacts(msgspec.Struct, frozen=True):
    """All facts about one host for a plan for the interface `target`."""

    target: str
    kernel: str
    topology: Topology
    allowed: str
    """CPU list of the cpuset that this process is in."""
    possible: int
    """Number of possible CPUs, which is the width of the kernel's masks."""
    nics: tuple[Nic, ...]
    """`target` first, then what lies below it."""
    sysctls: dict[str, str] = {}
    """By their names with dots; those that this namespace has."""
    netfilter: Netfilter = Netfilter()
    irqbalance: Irqbalance = Irqbalance()
    softnet: Softnet = Softnet()
    owns: Ownership = Ownership()
    open_files: int = 0
    """Hard limit of open files of this process."""
    quota: float | None = None
    """CPU time that the control groups leave, as a number of CPUs."""
    load: Load = Load()
    """The mean since the host was started."""
    format: int = FORMAT

    def nic(self, name: str) -> Nic:
        """Return the facts of one interface.

        Raises:
            KeyError: It is not among the facts.
        """
        for nic in self.nics:
            if nic.name == name:
                return nic
        raise KeyError(name)

    @property
    def cards(self) -> tuple[Nic, ...]:
        """The interfaces that hold queues: the target itself, or what a bond or VLAN stands on."""
        return tuple(nic for nic in self.nics if not nic.lower)

    @property
    def one_at_a_time(self) -> bool:
        """Whether the cards are those of a bond that uses only one of them at a time."""
        return any(nic.bond and nic.bond.mode == "active-backup" for nic in self.nics)


def save_facts(facts: HostFacts, path: Path) -> None:
    """Write facts as JSON."""
    path.write_bytes(msgspec.json.format(msgspec.json.encode(facts), indent=1) + b"\n")


def load_facts(path: Path) -> HostFacts:
    """Read facts that `save_facts` wrote.

    Raises:
        UsageError: The file is missing or holds no facts of this format.
    """
    try:
        facts = msgspec.json.decode(path.read_bytes(), type=HostFacts)
        parse_list(facts.allowed)
    except (OSError, ValueError, msgspec.MsgspecError) as error:
        raise UsageError(
            f"{path} holds no host facts", str(error), "write it with 'fastsocket nic show --save'"
        ) from error
    if facts.format != FORMAT:
        raise UsageError(
            f"{path} has format {facts.format}", f"this version reads {FORMAT}", "save it again"
        )
    return facts
