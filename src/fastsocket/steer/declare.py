# SPDX-License-Identifier: GPL-2.0-or-later
"""The top level of a rule file: constants, constant sets and table declarations."""

import ast
import operator
from collections.abc import Callable, Mapping
from ipaddress import IPv4Address, ip_network
from pathlib import Path

from fastsocket.steer.interval import I64
from fastsocket.steer.language import LIMITS, SLOTS, VALUE, RuleError, Table, TableKind

__all__ = ["Declarations", "Sets", "constant", "members"]

Sets = dict[str, frozenset[int]]

_BINARY: Mapping[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.LShift: operator.lshift,
    ast.RShift: operator.rshift,
    ast.BitAnd: operator.and_,
    ast.BitOr: operator.or_,
    ast.BitXor: operator.xor,
    ast.Pow: operator.pow,
}
_SHIFTING = (ast.LShift, ast.RShift, ast.Pow)

_DECLARATIONS = {
    TableKind.TABLE: ("entries", "size", "lru"),
    TableKind.ARRAY: ("entries", "size"),
    TableKind.PREFIXES: ("entries", "size"),
    TableKind.COUNTER: (),
}


def constant(node: ast.expr, names: Mapping[str, int], path: Path) -> int:
    """Evaluate a constant integer expression.

    Raises:
        RuleError: Not constant, not an integer, or outside 64 bits.
    """

    def refuse(what: str, todo: str) -> RuleError:
        return RuleError(path, node.lineno, node.col_offset + 1, what, todo)

    match node:
        case ast.Constant(value=int(value)):
            result = int(value)
        case ast.Name(id=name) if name in names:
            result = names[name]
        case ast.UnaryOp(op=ast.USub(), operand=inner):
            result = -constant(inner, names, path)
        case ast.UnaryOp(op=ast.Invert(), operand=inner):
            result = ~constant(inner, names, path)
        case ast.BinOp(op=op, left=first, right=second) if type(op) in _BINARY:
            left, right = constant(first, names, path), constant(second, names, path)
            if isinstance(op, _SHIFTING) and not 0 <= right < 64:
                raise refuse(f"{right} is no exponent or shift", "use 0 to 63")
            if isinstance(op, ast.FloorDiv | ast.Mod) and right == 0:
                raise refuse("this divides by zero", "use another divisor")
            result = _BINARY[type(op)](left, right)
        case ast.Call(func=ast.Name(id="ip"), args=[ast.Constant(value=str(text))], keywords=[]):
            try:
                result = int(IPv4Address(text))
            except ValueError:
                raise refuse(f"{text!r} is no IPv4 address", 'write ip("192.0.2.1")') from None
        case _:
            raise refuse(
                "this is no constant integer",
                'use numbers, names set above, arithmetic on them, or ip("192.0.2.1")',
            )
    if result not in I64:
        raise refuse("this constant does not fit into 64 signed bits", f"stay within {I64.hi}")
    return result


def members(node: ast.expr, names: Mapping[str, int], path: Path) -> frozenset[int] | None:
    """Return the members of a constant set, tuple or list, or None if `node` is nothing such.

    Raises:
        RuleError: A member is not constant, or there are too many.
    """
    match node:
        case ast.Set(elts=elements) | ast.Tuple(elts=elements) | ast.List(elts=elements):
            pass
        case ast.Call(
            func=ast.Name(id="frozenset" | "set"),
            args=[ast.Set(elts=elements) | ast.Tuple(elts=elements) | ast.List(elts=elements)],
            keywords=[],
        ):
            pass
        case _:
            return None
    if len(elements) > LIMITS.set_size:
        raise RuleError(
            path,
            node.lineno,
            node.col_offset + 1,
            f"this set has {len(elements)} members, more than {LIMITS.set_size}",
            "keep them in a table: SEEN = table({80: 1}) and `x in SEEN`",
        )
    return frozenset(constant(element, names, path) for element in elements)


class Declarations:
    """Reads the statements above the rule into constants, sets and tables.

    Args:
        path: The rule's file, for errors.
        constants: Names that exist already.
    """

    def __init__(self, path: Path, constants: Mapping[str, int]) -> None:
        self.path = path
        self.constants: dict[str, int] = dict(constants)
        self.sets: Sets = {}
        self.tables: dict[str, Table] = {}

    def read(self, name: str, node: ast.expr) -> None:
        """Take ``name = node``.

        Raises:
            RuleError: Neither a constant nor a set nor a table; or a name set twice.
        """
        if name in self.constants or name in self.sets or name in self.tables:
            raise self._refuse(node, f"{name} is set twice", "choose another name")
        match node:
            case ast.Call(func=ast.Name(id=kind)) if kind in _DECLARATIONS:
                self.tables[name] = self._table(name, kind, node)
                return
        found = members(node, self.constants, self.path)
        if found is not None:
            self.sets[name] = found
        else:
            self.constants[name] = constant(node, self.constants, self.path)

    def _table(self, name: str, kind: str, call: ast.Call) -> Table:
        slot = sum(table.kind == kind for table in self.tables.values())
        slots = LIMITS.counters if kind == TableKind.COUNTER else SLOTS
        if slot >= slots:
            raise self._refuse(call, f"a rule has at most {slots} of {kind}()", "use fewer")
        parameters = _DECLARATIONS[kind]
        given: dict[str, ast.expr] = {}
        for position, argument in enumerate(call.args):
            if position >= len(parameters):
                raise self._refuse(argument, f"{kind}() takes no such argument", "leave it out")
            given[parameters[position]] = argument
        for keyword in call.keywords:
            if keyword.arg not in parameters or keyword.arg in given:
                raise self._refuse(
                    keyword.value,
                    f"{kind}() takes no {keyword.arg} here",
                    f"it takes {', '.join(parameters) or 'nothing'}",
                )
            given[keyword.arg] = keyword.value
        if kind == TableKind.COUNTER:
            return Table(name, kind, slot)
        entries = self._entries(name, kind, given.get("entries"))
        size = constant(given["size"], self.constants, self.path) if "size" in given else 1024
        if not 1 <= size <= LIMITS.entries:
            raise self._refuse(
                given["size"], f"{size} is no size of a table", f"use 1 to {LIMITS.entries}"
            )
        if len(entries) > size:
            raise self._refuse(
                call, f"{name} starts with {len(entries)} entries, its size is {size}", "enlarge it"
            )
        table = Table(name, kind, slot, size, self._flag(given.get("lru")), entries)
        for key, _ in entries:
            if kind == TableKind.ARRAY and int(key) >= size:
                raise self._refuse(
                    call, f"{name} has the indices 0 to {size - 1}, not {key}", "enlarge its size"
                )
        return table

    def _entries(
        self, name: str, kind: str, node: ast.expr | None
    ) -> tuple[tuple[int | str, int], ...]:
        """Read the dictionary that a table starts with."""
        if node is None:
            return ()
        if not isinstance(node, ast.Dict):
            raise self._refuse(node, f"{name} must start with a dictionary", "write {key: value}")
        found: dict[int | str, int] = {}
        for key, value in zip(node.keys, node.values, strict=True):
            if key is None:
                raise self._refuse(value, "** is not understood here", "list the entries")
            number = constant(value, self.constants, self.path)
            if number not in VALUE:
                raise self._refuse(value, "values of tables have 32 bits", f"at most {VALUE.hi}")
            if kind == TableKind.PREFIXES:
                found[self._prefix(key)] = number
            else:
                index = constant(key, self.constants, self.path)
                if kind == TableKind.ARRAY and index < 0:
                    raise self._refuse(key, "arrays start at 0", "use table() for other keys")
                found[index] = number
        return tuple(found.items())

    def _prefix(self, node: ast.expr) -> str:
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            try:
                return str(ip_network(node.value))
            except ValueError as error:
                raise self._refuse(
                    node, f"{node.value!r} is no prefix: {error}", 'write "10.0.0.0/8"'
                ) from None
        raise self._refuse(node, "this is no prefix", 'write "10.0.0.0/8" or "2001:db8::/32"')

    def _flag(self, node: ast.expr | None) -> bool:
        if node is None:
            return False
        if isinstance(node, ast.Constant) and isinstance(node.value, bool):
            return node.value
        raise self._refuse(node, "lru is True or False", "write lru=True")

    def _refuse(self, node: ast.AST, what: str, todo: str) -> RuleError:
        line, column = getattr(node, "lineno", 1), getattr(node, "col_offset", 0)
        return RuleError(self.path, line, column + 1, what, todo)
