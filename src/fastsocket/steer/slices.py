# SPDX-License-Identifier: GPL-2.0-or-later
"""Slices of local ports: which CPU's connections take which, and back.

With receive flow deliver, a connection that a CPU opens takes its local port from that CPU's slice,
so that whoever sees the port of an answer knows the CPU. A slice is contiguous, since connect()
favours even ports and low bits would decode wrongly; and, where the range is large enough, its size
is a power of two and its start a multiple of that, so that one mask in a network card's filter
matches it.
"""

from dataclasses import dataclass
from pathlib import Path

from fastsocket.errors import FastsocketError, UsageError
from fastsocket.steer.cpus import parse_cpus

__all__ = ["BLOCK", "BLOCKS", "PortRange", "Slice", "SlicePlan", "plan_slices", "read_ports"]

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
    """The ports `first` to `last`, both included, of one CPU.

    Attributes:
        index: Position of the CPU in the set.
        first: First port.
        last: Last port.
        usable: How many of them are not reserved.
    """

    index: int
    first: int
    last: int
    usable: int

    @property
    def aligned(self) -> bool:
        """Whether one mask matches the slice and nothing else."""
        size = self.last - self.first + 1
        return not size & (size - 1) and not self.first % size


@dataclass(frozen=True, slots=True)
class SlicePlan:
    """All slices, in the order of the CPU set.

    Attributes:
        slices: One for each CPU.
        ports: What they were cut from.
    """

    slices: tuple[Slice, ...]
    ports: PortRange

    def owner(self, port: int) -> int | None:
        """Return the position in the set of the CPU that `port` belongs to, or None."""
        for part in self.slices:
            if part.first <= port <= part.last:
                return part.index
        return None

    def borrow_order(self, index: int) -> tuple[int, ...]:
        """Return whose slices to try when that of `index` is used up, the nearest first.

        Each CPU has an order of its own, so that those who borrow do not all fall on one.
        """
        count = len(self.slices)
        return tuple((index + step) % count for step in range(1, count))

    def table(self) -> dict[int, int]:
        """Return the entries of the rule rfd's table: block of ports to CPU position plus 1."""
        return {
            block: part.index + 1
            for part in self.slices
            for block in range(part.first // BLOCK, part.last // BLOCK + 1)
        }


def plan_slices(ports: PortRange, cpus: int) -> SlicePlan:
    """Cut `ports` into one slice for each of `cpus` CPUs, all of one size.

    Sizes that are powers of two are taken where the aligned slices fit, as long as they use at
    least half of what plain slices would.

    Raises:
        UsageError: Not a range, or too few ports for so many CPUs.
    """
    if not 0 < ports.first <= ports.last < 65536 or cpus < 1:
        raise UsageError(f"{ports.first} to {ports.last} is no range of ports for {cpus} CPUs")
    first = -(-max(ports.first, _PRIVILEGED) // BLOCK)
    last = (ports.last + 1) // BLOCK
    plain = max(last - first, 0) // cpus
    if plain == 0:
        raise UsageError(
            f"the ports {ports.first} to {ports.last} are too few for {cpus} CPUs",
            f"each takes at least {BLOCK}, from a multiple of {BLOCK} on",
            "widen net.ipv4.ip_local_port_range",
        )
    size, begin = plain, first
    power = 1 << (plain.bit_length() - 1)
    while power:
        aligned = -(-first // power) * power
        if aligned + power * cpus <= last:
            if 2 * power >= plain:
                size, begin = power, aligned
            break
        power >>= 1
    slices = []
    for index in range(cpus):
        low = (begin + index * size) * BLOCK
        high = low + size * BLOCK - 1
        usable = size * BLOCK - sum(low <= port <= high for port in ports.reserved)
        slices.append(Slice(index, low, high, usable))
    empty = [part.index for part in slices if not part.usable]
    if empty:
        raise UsageError(
            f"all ports of the slice of CPU {empty[0]} are reserved",
            "net.ipv4.ip_local_reserved_ports",
            "reserve fewer, or widen net.ipv4.ip_local_port_range",
        )
    return SlicePlan(tuple(slices), ports)


def read_ports(sysctl: Path = _SYSCTL) -> PortRange:
    """Read the ports of this network namespace.

    Raises:
        FastsocketError: /proc is not there.
    """
    try:
        first, last = map(int, (sysctl / "ip_local_port_range").read_text().split())
        text = (sysctl / "ip_local_reserved_ports").read_text().strip()
    except (OSError, ValueError) as error:
        raise FastsocketError("the range of local ports cannot be read", str(error)) from error
    return PortRange(first, last, frozenset(parse_cpus(text) if text else ()))
