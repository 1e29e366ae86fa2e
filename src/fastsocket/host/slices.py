# SPDX-License-Identifier: GPL-2.0-or-later
"""Slices of local ports: which CPU's connections take which, and back.

With receive flow deliver, a connection that a CPU opens takes its local port from that CPU's slice,
so that whoever sees the port of an answer knows the CPU: the steer program, or a network card. A
slice is contiguous, since connect() favours even ports and low bits would decode wrongly; its size
is a power of two and its start a multiple of that, so that one mask in a card's filter matches it.

The slices follow from the online CPUs and the range of local ports alone. Whoever needs them cuts
them anew and finds the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fastsocket.errors import FastsocketError, UsageError
from fastsocket.host.cpulist import format_list, online_cpus, parse_list

__all__ = ["BLOCK", "BLOCKS", "PortRange", "Slice", "SlicePlan", "local_slices", "plan_slices",
           "read_ports"]  # fmt: skip

BLOCK = 64
"""Ports that the steer program tells apart: slices begin and end at multiples of it."""
BLOCKS = 65536 // BLOCK
"""Entries of the rule rfd's table."""

_PRIVILEGED = 1024
_SYSCTL = Path("/proc/sys/net/ipv4")


@dataclass(frozen=True, slots=True)
class PortRange:
    """The ports that connections may take: `first` to `last`, but for `reserved`.

    Attributes:
        first: net.ipv4.ip_local_port_range, first number.
        last: Its second number, included.
        reserved: net.ipv4.ip_local_reserved_ports.
    """

    first: int
    last: int
    reserved: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Slice:
    """The ports `first` to `last`, both included, of one CPU."""

    cpu: int
    first: int
    last: int

    @property
    def size(self) -> int:
        """How many ports."""
        return self.last - self.first + 1

    @property
    def mask(self) -> int:
        """A port is of the slice if it equals `first` under this mask."""
        return 0x10000 - self.size


@dataclass(frozen=True, slots=True)
class SlicePlan:
    """All slices, of one size and one after the other, by ascending number of their CPU.

    Attributes:
        slices: The slices.
        reserved: Ports that are not to be given although they may lie within.
    """

    slices: tuple[Slice, ...]
    reserved: frozenset[int] = frozenset()

    def owner(self, port: int) -> int | None:
        """Return the CPU that `port` belongs to, or None."""
        for part in self.slices:
            if part.first <= port <= part.last:
                return part.cpu
        return None

    def table(self, cpus: Sequence[int]) -> dict[int, int]:
        """Return the entries of the rule rfd's table: block of ports to position in `cpus` plus 1.

        Slices of other CPUs have none.
        """
        return {
            block: cpus.index(part.cpu) + 1
            for part in self.slices
            if part.cpu in cpus
            for block in range(part.first // BLOCK, part.last // BLOCK + 1)
        }

    @property
    def text(self) -> str:
        """The plan as ``FIRST:SIZE:CPUS``, for libfsocket.so."""
        begin = self.slices[0]
        return f"{begin.first}:{begin.size}:{format_list(part.cpu for part in self.slices)}"


def plan_slices(ports: PortRange, cpus: Sequence[int]) -> SlicePlan:
    """Cut `ports` into one slice for each of `cpus`, as large as alignment allows.

    What lies outside the slices, at most three quarters of the range, is taken once a slice is
    used up.

    Raises:
        UsageError: Not a range, or too few ports for so many CPUs.
    """
    if not 0 < ports.first <= ports.last < 65536 or not cpus:
        raise UsageError(f"{ports.first} to {ports.last} is no range of ports for {len(cpus)} CPUs")
    first = -(-max(ports.first, _PRIVILEGED) // BLOCK)
    last = (ports.last + 1) // BLOCK
    power = 1 << (max(last - first, 0) // len(cpus)).bit_length()
    begin = last
    while power > 1 and begin + power * len(cpus) > last:
        power >>= 1
        begin = -(-first // power) * power
    if begin + power * len(cpus) > last:
        raise UsageError(
            f"the ports {ports.first} to {ports.last} are too few for {len(cpus)} CPUs",
            f"each takes at least {BLOCK}, from a multiple of {BLOCK} on",
            "widen net.ipv4.ip_local_port_range",
        )
    size = power * BLOCK
    slices = [
        Slice(cpu, begin * BLOCK + index * size, begin * BLOCK + (index + 1) * size - 1)
        for index, cpu in enumerate(sorted(cpus))
    ]
    for part in slices:
        if ports.reserved.issuperset(range(part.first, part.last + 1)):
            raise UsageError(
                f"all ports of the slice of CPU {part.cpu} are reserved",
                "net.ipv4.ip_local_reserved_ports",
                "reserve fewer, or widen net.ipv4.ip_local_port_range",
            )
    return SlicePlan(tuple(slices), ports.reserved)


def read_ports(sysctl: Path = _SYSCTL) -> PortRange:
    """Read the ports of this network namespace.

    Raises:
        FastsocketError: /proc is not there.
    """
    try:
        first, last = map(int, (sysctl / "ip_local_port_range").read_text().split())
        reserved = parse_list((sysctl / "ip_local_reserved_ports").read_text())
    except (OSError, ValueError) as error:
        raise FastsocketError("the range of local ports cannot be read", str(error)) from error
    return PortRange(first, last, frozenset(reserved))


def local_slices() -> SlicePlan:
    """Return the slices of this host's online CPUs in this network namespace.

    Raises:
        UsageError: There are too few ports.
        FastsocketError: They cannot be read.
    """
    return plan_slices(read_ports(), online_cpus())
