# SPDX-License-Identifier: GPL-2.0-or-later
"""What rules are made of: packet fields, constants, tables, limits, and the error of a bad rule."""

from dataclasses import dataclass, field
from ipaddress import ip_network
from pathlib import Path

from fastsocket.errors import UsageError
from fastsocket.steer.interval import Interval

__all__ = [
    "ADDRESSES",
    "CONSTANTS",
    "FIELDS",
    "LIMITS",
    "PASS",
    "SLOTS",
    "VALUE",
    "Field",
    "Limits",
    "RuleError",
    "Table",
    "TableKind",
]

PASS = -1
"""What a rule returns to leave the packet where it is; None and no return mean the same."""


@dataclass(frozen=True, slots=True)
class Field:
    """An integer field of a packet: its range, and what it holds."""

    range: Interval
    text: str


_U8, _U16, _U32 = Interval(0, 0xFF), Interval(0, 0xFFFF), Interval(0, 0xFFFF_FFFF)

# The dispatcher (native/bpf/steer.bpf.c) has a function field_NAME for each, within this range.
# `cpu` is narrowed further to the CPUs of the set, when they are known.
FIELDS: dict[str, Field] = {
    "version": Field(Interval(4, 6), "IP version, 4 or 6"),
    "proto": Field(_U8, "IP protocol, behind IPv6 extension headers: TCP, UDP, ..."),
    "saddr": Field(_U32, "source IPv4 address, or the last 32 bits of the IPv6 address"),
    "saddr0": Field(_U32, "first 32 bits of the IPv6 source address (IPv4: 0)"),
    "saddr1": Field(_U32, "second 32 bits of the IPv6 source address (IPv4: 0)"),
    "saddr2": Field(_U32, "third 32 bits of the IPv6 source address (IPv4: 0xffff)"),
    "daddr": Field(_U32, "destination IPv4 address, or the last 32 bits of the IPv6 address"),
    "daddr0": Field(_U32, "first 32 bits of the IPv6 destination address (IPv4: 0)"),
    "daddr1": Field(_U32, "second 32 bits of the IPv6 destination address (IPv4: 0)"),
    "daddr2": Field(_U32, "third 32 bits of the IPv6 destination address (IPv4: 0xffff)"),
    "sport": Field(_U16, "source port; 0 in fragments and without TCP, UDP, UDP-Lite, SCTP"),
    "dport": Field(_U16, "destination port; 0 like sport"),
    "tcp_flags": Field(_U8, "TCP flags: 1 FIN, 2 SYN, 4 RST, 8 PSH, 16 ACK; 0 without TCP"),
    "vlan": Field(Interval(0, 4095), "outer VLAN in the packet, 0 if untagged"),
    "inner_vlan": Field(Interval(0, 4095), "inner VLAN of QinQ, 0 if there is none"),
    "dscp": Field(Interval(0, 63), "differentiated services code point"),
    "fragment": Field(Interval(0, 1), "1 for every fragment, the first one included"),
    "length": Field(Interval(0, 0xFFFFF), "bytes of the frame, from the Ethernet header on"),
    "queue": Field(_U16, "receive queue of the device"),
    "cpu": Field(Interval(-1, 1023), "position in the CPU set of the CPU at work, -1 if outside"),
    "hash": Field(_U32, "hash of addresses, ports and protocol"),
    "symmetric_hash": Field(_U32, "the same for both directions of a connection"),
    "flow": Field(Interval(0, 2**63 - 1), "key of the flow, for tables: practically unique"),
    "listening": Field(Interval(0, 1), "1 if this host listens on the destination (a lookup)"),
    "now": Field(Interval(0, 2**45), "milliseconds since the host started"),
}

ADDRESSES: dict[str, str] = {
    "src": "source address, only for prefixes.get",
    "dst": "destination address, only for prefixes.get",
}

CONSTANTS: dict[str, int] = {"PASS": PASS, "ICMP": 1, "TCP": 6, "UDP": 17, "ICMPV6": 58}

VALUE = Interval(-(2**31), 2**31 - 1)
"""Range of the values in tables, as they are kept in 32 bits."""

SLOTS = 8
"""Tables of each kind that one rule may declare (STEER_TABLES in native/include/steer.h)."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on a rule, so that whatever is accepted also passes the kernel's verifier."""

    source_bytes: int = 65536
    """Size of a rule file."""
    depth: int = 80
    """Nesting of expressions and statements."""
    names: int = 24
    """Local names: each may take 8 of the 512 bytes of BPF stack."""
    steps: int = 32_768
    """Operations of one evaluation, each loop counted at its longest."""
    set_size: int = 256
    """Members of a constant set."""
    entries: int = 1 << 20
    """Entries of a table."""
    counters: int = 32
    """Counters (STEER_COUNTERS in native/include/steer.h)."""


LIMITS = Limits()


class RuleError(UsageError):
    """A rule that is refused, with the place in its file.

    Args:
        path: The rule's file.
        line: Line, from 1.
        column: Column, from 1.
        what: What is wrong there.
        todo: What to write instead.
    """

    def __init__(self, path: Path | str, line: int, column: int, what: str, todo: str) -> None:
        self.path, self.line, self.column = str(path), line, column
        super().__init__(f"{path}:{line}:{column}: {what}", "", todo)


class TableKind:
    """The kinds of tables: what a rule file calls to declare one."""

    TABLE = "table"
    ARRAY = "array"
    PREFIXES = "prefixes"
    COUNTER = "counter"


@dataclass(frozen=True, slots=True)
class Table:
    """A table that a rule file declares; user space may change it while the rule runs.

    Attributes:
        name: Its name in the rule file.
        kind: One of `TableKind`.
        slot: Which of the dispatcher's maps of this kind it uses, or the counter's number.
        size: Entries at most.
        lru: Drop the entry that was not used for longest when full, instead of refusing new ones.
        entries: What it holds at first: key or prefix to value.
    """

    name: str
    kind: str
    slot: int
    size: int = 0
    lru: bool = False
    entries: tuple[tuple[int | str, int], ...] = field(default=())

    @property
    def map_name(self) -> str:
        """Name of its BPF map in the compiled object."""
        return "counters" if self.kind == TableKind.COUNTER else f"{self.kind}_{self.slot}"

    def key_bytes(self, key: int | str) -> bytes:
        """Return `key` as the BPF map has it.

        Raises:
            UsageError: Not a key of this kind of table.
        """
        try:
            if self.kind == TableKind.PREFIXES:
                network = ip_network(str(key), strict=False)
                packed, bits = network.network_address.packed, network.prefixlen
                if network.version == 4:
                    packed, bits = bytes(10) + b"\xff\xff" + packed, bits + 96
                return bits.to_bytes(4, "little") + packed
            if self.kind == TableKind.TABLE:
                return int(key).to_bytes(8, "little", signed=True)
            index = int(key)
            if not 0 <= index < self.size:
                raise ValueError(f"it has the indices 0 to {self.size - 1}")
            return index.to_bytes(4, "little")
        except (ValueError, OverflowError) as error:
            todo = (
                "give a prefix such as 10.0.0.0/8 or 2001:db8::/32"
                if self.kind == TableKind.PREFIXES
                else "give an integer"
            )
            raise UsageError(f"{key!r} is no key of {self.name}", str(error), todo) from None
