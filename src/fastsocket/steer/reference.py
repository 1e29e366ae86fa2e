# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs a rule in Python: what it means, and a way to try it without privileges."""

import ast
from collections.abc import Mapping
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_network
from types import CodeType, SimpleNamespace
from typing import Any

from fastsocket.steer.check import Rule
from fastsocket.steer.language import FIELDS, PASS, Table, TableKind

__all__ = ["Counter", "IntegerTable", "Prefixes", "Reference"]


class Reference:
    """A rule as a Python function, with tables of its own.

    Args:
        rule: A rule that was checked; its text is executed.
        cpus: Number of CPUs in the set.

    Attributes:
        tables: What the rule's names for tables and counters stand for.
    """

    def __init__(self, rule: Rule, cpus: int) -> None:
        self.rule, self.cpus = rule, cpus
        self.tables = {name: _make(table) for name, table in rule.tables.items()}
        namespace: dict[str, Any] = {
            "__builtins__": {},
            "min": min, "max": max, "abs": abs, "range": range,
            **rule.constants, **rule.sets, **self.tables,
        }  # fmt: skip
        exec(_code(rule), namespace)
        self._function = namespace["rule"]

    def __call__(self, fields: Mapping[str, int | IPv6Address]) -> int:
        """Return the rule's result for a packet with `fields` (others are 0); PASS for None.

        ``src`` and ``dst`` are IPv6 addresses, IPv4-mapped for IPv4.
        """
        packet = SimpleNamespace(**{**dict.fromkeys(FIELDS, 0), **fields})
        result = self._function(packet, self.cpus)
        return PASS if result is None else int(result)


def _code(rule: Rule) -> CodeType:
    module = ast.Module(body=[rule.function], type_ignores=[])
    return compile(module, str(rule.path), "exec")


class IntegerTable:
    """table() and array(): integers to integers of 32 bits."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self.values: dict[int, int] = {int(key): value for key, value in table.entries}

    def __contains__(self, key: int) -> bool:
        """Whether `key` has an entry."""
        return key in self.values

    def get(self, key: int, default: int) -> int:
        """Return the entry of `key`, or `default`."""
        if self.table.kind == TableKind.ARRAY and 0 <= key < self.table.size:
            return self.values.get(key, 0)
        return self.values.get(key, default)

    def set(self, key: int, value: int) -> None:
        """Set the entry of `key`; indices outside an array are ignored."""
        if self.table.kind == TableKind.TABLE or 0 <= key < self.table.size:
            self.values[key] = int(value)

    def add(self, key: int, value: int) -> None:
        """Add with the wrap of 32 signed bits, as the kernel does."""
        total = self.get(key, 0) + value
        self.set(key, (total + 2**31) % 2**32 - 2**31)


class Prefixes:
    """prefixes(): the longest prefix of an address decides."""

    def __init__(self, table: Table) -> None:
        self.values: dict[IPv6Network, int] = {
            _mapped(str(prefix)): value for prefix, value in table.entries
        }

    def get(self, address: IPv6Address, default: int) -> int:
        """Return the entry of the longest prefix of `address`, or `default`."""
        hits = [prefix for prefix in self.values if address in prefix]
        if not hits:
            return default
        return self.values[max(hits, key=lambda prefix: prefix.prefixlen)]


class Counter:
    """counter(): returns what it was."""

    def __init__(self) -> None:
        self.value = 0

    def add(self, amount: int) -> int:
        """Add and return what it was."""
        before = self.value & (2**62 - 1)
        self.value = (self.value + amount) % 2**64
        return before


def _make(table: Table) -> IntegerTable | Prefixes | Counter:
    if table.kind == TableKind.COUNTER:
        return Counter()
    return Prefixes(table) if table.kind == TableKind.PREFIXES else IntegerTable(table)


def _mapped(prefix: str) -> IPv6Network:
    network = ip_network(prefix)
    if isinstance(network, IPv4Network):
        return IPv6Network(f"::ffff:{network.network_address}/{network.prefixlen + 96}")
    return network
