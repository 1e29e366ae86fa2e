# SPDX-License-Identifier: GPL-2.0-or-later
"""A rule as typed nodes: every value is a 64-bit signed integer of a proven range.

`wrapped` marks a value of which only the low 64 bits are right, as it may exceed them; it stands
only where those bits alone matter, below a mask.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields

from fastsocket.steer.interval import Interval
from fastsocket.steer.language import Table

__all__ = [
    "Assign", "Binary", "Both", "Break", "Compare", "Const", "Continue", "Count", "Do", "Either",
    "Expr", "FieldOf", "For", "Function", "If", "Local", "Lookup", "Member", "Not", "Return",
    "Select", "Stmt", "Store", "Unary", "cost", "walk",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Expr:
    """A value of range `range`."""

    range: Interval
    wrapped: bool


@dataclass(frozen=True, slots=True)
class Const(Expr):
    """A constant."""

    value: int


@dataclass(frozen=True, slots=True)
class Local(Expr):
    """The value of a local name."""

    name: str


@dataclass(frozen=True, slots=True)
class FieldOf(Expr):
    """A field of the packet."""

    name: str


@dataclass(frozen=True, slots=True)
class Unary(Expr):
    """`op` is one of ``- ~ abs``."""

    op: str
    operand: Expr


@dataclass(frozen=True, slots=True)
class Binary(Expr):
    """`op` is one of ``+ - * // % & | ^ << >> min max``, as Python defines them."""

    op: str
    left: Expr
    right: Expr


@dataclass(frozen=True, slots=True)
class Compare(Expr):
    """`op` is one of ``== != < <= > >=``; 0 or 1."""

    op: str
    left: Expr
    right: Expr


@dataclass(frozen=True, slots=True)
class Not(Expr):
    """1 if the operand is 0, else 0."""

    operand: Expr


@dataclass(frozen=True, slots=True)
class Both(Expr):
    """1 if both are not 0; the right one is evaluated only where the left one is not 0."""

    left: Expr
    right: Expr


@dataclass(frozen=True, slots=True)
class Either(Expr):
    """1 if one is not 0; the right one is evaluated only where the left one is 0."""

    left: Expr
    right: Expr


@dataclass(frozen=True, slots=True)
class Select(Expr):
    """`then` where `test` is not 0, else `other`; only the chosen one is evaluated."""

    test: Expr
    then: Expr
    other: Expr


@dataclass(frozen=True, slots=True)
class Member(Expr):
    """Whether the operand is in one of the ranges, which are sorted and apart."""

    operand: Expr
    ranges: tuple[Interval, ...]


@dataclass(frozen=True, slots=True)
class Lookup(Expr):
    """A read of a table: `verb` is ``get`` or ``has``, or for prefixes ``get_src``, ``get_dst``."""

    table: Table
    verb: str
    arguments: tuple[Expr, ...]


@dataclass(frozen=True, slots=True)
class Count(Expr):
    """Adds to a counter of this CPU; the value is what it was."""

    table: Table
    amount: Expr


@dataclass(frozen=True, slots=True)
class Stmt:
    """A statement."""


@dataclass(frozen=True, slots=True)
class Assign(Stmt):
    """Sets a local name."""

    name: str
    value: Expr


@dataclass(frozen=True, slots=True)
class Store(Stmt):
    """A change of a table: `verb` is ``set`` or, for arrays, ``add``."""

    table: Table
    verb: str
    arguments: tuple[Expr, ...]


@dataclass(frozen=True, slots=True)
class Do(Stmt):
    """Evaluates for the effect."""

    value: Expr


@dataclass(frozen=True, slots=True)
class If(Stmt):
    """Runs `then` where `test` is not 0, else `other`."""

    test: Expr
    then: tuple[Stmt, ...]
    other: tuple[Stmt, ...]


@dataclass(frozen=True, slots=True)
class For(Stmt):
    """Runs `body` with `name` at `start`, `start + step`, ... `trips` times."""

    name: str
    start: int
    step: int
    trips: int
    body: tuple[Stmt, ...]


@dataclass(frozen=True, slots=True)
class Break(Stmt):
    """Leaves the innermost loop."""


@dataclass(frozen=True, slots=True)
class Continue(Stmt):
    """Goes on with the innermost loop's next value."""


@dataclass(frozen=True, slots=True)
class Return(Stmt):
    """Ends the rule."""

    value: Expr


@dataclass(frozen=True, slots=True)
class Function:
    """A rule for a set of `cpus` CPUs.

    Attributes:
        body: Its statements; at their end it returns `PASS`.
        names: Local names.
        cpus: The number of CPUs that it was proven for.
        returns: Range of what it may return.
    """

    body: tuple[Stmt, ...]
    names: tuple[str, ...]
    cpus: int
    returns: Interval


def children(node: Expr | Stmt) -> Iterator[Expr | Stmt]:
    """Yield the nodes directly below `node`."""
    for description in fields(node):
        value = getattr(node, description.name)
        if isinstance(value, Expr | Stmt):
            yield value
        elif isinstance(value, tuple):
            yield from (part for part in value if isinstance(part, Expr | Stmt))


def walk(body: tuple[Stmt, ...]) -> Iterator[tuple[Expr | Stmt, int]]:
    """Yield every node and how often it runs at most."""
    waiting: list[tuple[Expr | Stmt, int]] = [(statement, 1) for statement in reversed(body)]
    while waiting:
        node, times = waiting.pop()
        yield node, times
        below = times * node.trips if isinstance(node, For) else times
        waiting += [(child, below) for child in reversed(list(children(node)))]


def cost(body: tuple[Stmt, ...]) -> tuple[int, int]:
    """Return how many operations and how many branches one evaluation takes at most."""
    steps = branches = 0
    for node, times in walk(body):
        steps += times
        if isinstance(node, If | Compare | Both | Either | Select | Lookup | Store | Count | For):
            branches += times * (node.trips if isinstance(node, For) else 1)
        elif isinstance(node, Member):
            steps += times * len(node.ranges)
            branches += times * len(node.ranges)
        elif isinstance(node, Unary | Binary) and node.op in {"//", "%", "min", "max", "abs"}:
            steps += times * 4
            branches += times
    return steps, branches
