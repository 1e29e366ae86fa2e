# SPDX-License-Identifier: GPL-2.0-or-later
"""What is known about names and fields at one point of a rule."""

from collections.abc import Iterable

from fastsocket.steer import ir
from fastsocket.steer.interval import Interval

__all__ = ["Scope", "assume", "join"]

Scope = dict[str, Interval]
"""Range of each local name that has a value here, and of fields (``pkt.NAME``) once tested."""

# Two reads may differ, so a test of one says nothing about the next.
_CHANGING = frozenset({"now", "listening"})

_OPPOSITE = {"==": "!=", "!=": "==", "<": ">=", ">=": "<", ">": "<=", "<=": ">"}
_MIRRORED = {"==": "==", "!=": "!=", "<": ">", ">": "<", "<=": ">=", ">=": "<="}


def join(scopes: Iterable[Scope | None]) -> Scope | None:
    """What holds wherever one comes from; None stands for a way that is never taken."""
    known = [scope for scope in scopes if scope is not None]
    if not known:
        return None
    result = dict(known[0])
    for scope in known[1:]:
        result = {
            name: range_.join(scope[name]) for name, range_ in result.items() if name in scope
        }
    return result


def assume(test: ir.Expr, scope: Scope | None, holds: bool) -> Scope | None:
    """What is known where `test` is true (`holds`) or false; None if it can never be so."""
    if scope is None:
        return None
    match test:
        case ir.Not(operand=operand):
            return assume(operand, scope, not holds)
        case ir.Both(left=left, right=right) | ir.Either(left=left, right=right):
            if isinstance(test, ir.Both) == holds:
                return assume(right, assume(left, scope, holds), holds)
            second = assume(right, assume(left, scope, not holds), holds)
            return join([assume(left, scope, holds), second])
        case ir.Compare(op=op, left=left, right=right):
            op = op if holds else _OPPOSITE[op]
            narrowed = _narrow(left, op, right.range, scope)
            return _narrow(right, _MIRRORED[op], left.range, narrowed)
        case ir.Member(operand=operand, ranges=ranges) if holds and ranges:
            known = operand.range.meet(ranges[0].lo, ranges[-1].hi)
            return _learn(operand, known, scope)
        case _:
            if not test.wrapped and not holds:
                return _learn(test, test.range.meet(0, 0), scope)
            return _learn(test, test.range.without(0), scope)


def _narrow(node: ir.Expr, op: str, other: Interval, scope: Scope | None) -> Scope | None:
    """Use that `node` compares to some value in `other` by `op`."""
    if scope is None:
        return None
    known: Interval | None = node.range
    match op:
        case "==":
            known = node.range.meet(other.lo, other.hi)
        case "!=" if other.single is not None:
            known = node.range.without(other.single)
        case "<":
            known = node.range.meet(hi=other.hi - 1)
        case "<=":
            known = node.range.meet(hi=other.hi)
        case ">":
            known = node.range.meet(lo=other.lo + 1)
        case ">=":
            known = node.range.meet(lo=other.lo)
    return _learn(node, known, scope)


def _learn(node: ir.Expr, known: Interval | None, scope: Scope) -> Scope | None:
    if known is None:
        return None
    match node:
        case ir.Local(name=name):
            return {**scope, name: known}
        case ir.FieldOf(name=name) if name not in _CHANGING:
            return {**scope, f"pkt.{name}": known}
        case _:
            return scope
