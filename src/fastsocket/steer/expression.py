# SPDX-License-Identifier: GPL-2.0-or-later
"""Lowers the expressions of a rule; see ``lower``."""

import ast

from fastsocket.steer import ir
from fastsocket.steer.check import Rule
from fastsocket.steer.declare import members
from fastsocket.steer.interval import BOOL, I64, Interval
from fastsocket.steer.language import ADDRESSES, FIELDS, LIMITS, VALUE, RuleError, TableKind
from fastsocket.steer.scope import Scope, assume

__all__ = ["Expressions"]

_OPERATORS: dict[type[ast.operator], str] = {
    ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.FloorDiv: "//", ast.Mod: "%",
    ast.BitAnd: "&", ast.BitOr: "|", ast.BitXor: "^", ast.LShift: "<<", ast.RShift: ">>",
}  # fmt: skip
_COMPARISONS: dict[type[ast.cmpop], str] = {
    ast.Eq: "==", ast.NotEq: "!=", ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=",
}  # fmt: skip

# The low 64 bits of these depend only on the low 64 bits of their operands.
_RING = frozenset({"+", "-", "*", "|", "^", "&", "<<"})

COUNTED = Interval(0, 2**62 - 1)
"""Range of a counter's value."""


class Expressions:
    """Lowers expressions under what `scope` knows.

    Args:
        rule: The rule, for its names.
        cpus: The number of CPUs in the set.
    """

    def __init__(self, rule: Rule, cpus: int) -> None:
        self.rule, self.cpus = rule, cpus
        self.scope: Scope | None = {}
        self.steps = 0
        self.reserved = {
            rule.packet, rule.cpus, *rule.constants, *rule.sets, *rule.tables,
            "min", "max", "abs", "range", "ip", "True", "False",
        }  # fmt: skip

    def refuse(self, node: ast.AST, what: str, todo: str) -> RuleError:
        """Make the error for `node`."""
        line, column = getattr(node, "lineno", 1), getattr(node, "col_offset", 0)
        return RuleError(self.rule.path, line, column + 1, what, todo)

    def step(self, node: ast.AST) -> None:
        """Count a visit; as each pass over a loop stands for a real one, this bounds them."""
        self.steps += 1
        if self.steps > 4 * LIMITS.steps:
            raise self.refuse(
                node,
                f"this rule may take more than {LIMITS.steps} operations for one packet",
                "shorten its loops, or look the answer up in a table()",
            )

    def value(self, node: ast.expr) -> ir.Expr:
        """Lower `node` to a value that fits into 64 bits."""
        result = self.expression(node)
        if result.wrapped:
            raise self.refuse(
                node,
                "this may not fit into 64 signed bits",
                "keep its low bits with `(...) & 0xffffffff`, or mask the operands",
            )
        return result

    def expression(self, node: ast.expr) -> ir.Expr:
        """Lower `node`; the result may be wrapped."""
        self.step(node)
        match node:
            case ast.Constant(value=int(number)):
                if int(number) not in I64:
                    raise self.refuse(node, "this constant has more than 63 bits", "use fewer")
                return ir.Const(Interval.of(int(number)), False, int(number))
            case ast.Name(id=name):
                return self._name(node, name)
            case ast.Attribute(value=ast.Name(id=owner), attr=name) if owner == self.rule.packet:
                return self._field(node, name)
            case ast.BinOp(left=left, op=op, right=right):
                return self._binary(node, _OPERATORS[type(op)], left, right)
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                return ir.Not(BOOL, False, self.value(operand))
            case ast.UnaryOp(op=op, operand=operand):
                return self._unary(op, operand)
            case ast.BoolOp(op=op, values=values):
                return self._logic(isinstance(op, ast.And), values)
            case ast.Compare():
                return self._comparison(node)
            case ast.IfExp(test=test, body=body, orelse=orelse):
                return self._select(self.value(test), body, orelse)
            case ast.Call():
                return self._call(node)
            case ast.Constant(value=None):
                raise self.refuse(node, "None is only for return", "write PASS, or a number")
            case ast.Constant():
                raise self.refuse(node, "rules have only integers", "write a number")
            case ast.Set() | ast.Tuple() | ast.List():
                raise self.refuse(node, "a set stands only after `in`", "write `x in {1, 2}`")
            case _:
                raise self.refuse(node, "this is not in the language", "see docs/rules.md")

    def effect(self, call: ast.Call) -> ir.Stmt:
        """Lower a call that stands as a statement."""
        match call:
            case ast.Call(
                func=ast.Attribute(value=ast.Name(id=name), attr=verb), args=args, keywords=[]
            ) if name in self.rule.tables:
                table = self.rule.tables[name]
                verbs = {TableKind.TABLE: ("set",), TableKind.ARRAY: ("set", "add")}
                if verb in verbs.get(table.kind, ()) and len(args) == 2:
                    key, number = self.value(args[0]), self.value(args[1])
                    if not number.range.within(VALUE):
                        raise self.refuse(
                            args[1],
                            "values of tables have 32 signed bits",
                            "keep its low bits with `(...) & 0x7fffffff`",
                        )
                    return ir.Store(table, verb, (key, number))
        return ir.Do(self.value(call))

    def _name(self, node: ast.Name, name: str) -> ir.Expr:
        if name == self.rule.cpus:
            return ir.Const(Interval.of(self.cpus), False, self.cpus)
        if name in self.rule.constants:
            number = self.rule.constants[name]
            return ir.Const(Interval.of(number), False, number)
        if self.scope is not None and name in self.scope:
            return ir.Local(self.scope[name], False, name)
        if name == self.rule.packet:
            raise self.refuse(node, f"{name} is no integer", f"write {name}.sport, for example")
        if name in self.rule.sets:
            raise self.refuse(node, "a set stands only after `in`", f"write `x in {name}`")
        if name in self.rule.tables:
            raise self.refuse(node, f"{name} is a table", f"write {name}.get(key, default)")
        raise self.refuse(
            node, f"{name} may have no value here", "set it on every way that leads here"
        )

    def _field(self, node: ast.expr, name: str) -> ir.Expr:
        if name in ADDRESSES:
            raise self.refuse(
                node, f"{name} is a whole address", "use saddr or daddr, or prefixes.get"
            )
        if name not in FIELDS:
            raise self.refuse(node, f"packets have no field {name}", f"use {', '.join(FIELDS)}")
        known = Interval(-1, self.cpus - 1) if name == "cpu" else FIELDS[name].range
        return ir.FieldOf((self.scope or {}).get(f"pkt.{name}", known), False, name)

    def _binary(self, node: ast.BinOp, op: str, first: ast.expr, second: ast.expr) -> ir.Expr:
        left, right = self.expression(first), self.expression(second)
        if op == "&" and not (left.wrapped and right.wrapped):
            # A mask that is not negative keeps low bits only, so the other side may be wrapped.
            mask, other = (right, left) if left.wrapped else (left, right)
            if other.wrapped and mask.range.lo >= 0:
                return ir.Binary(Interval(0, mask.range.hi), False, op, left, right)
        if op == "%" and left.wrapped:
            divisor = right.range.single
            if divisor and divisor > 0 and not divisor & (divisor - 1):
                low = ir.Const(Interval.of(divisor - 1), False, divisor - 1)
                return ir.Binary(Interval(0, divisor - 1), False, "&", left, low)
        if op not in _RING or (op == "<<" and right.wrapped):
            for side, lowered in ((first, left), (second, right)):
                if lowered.wrapped:
                    self.value(side)
        self._check_operands(node, op, right)
        if left.wrapped or right.wrapped:
            return ir.Binary(I64, True, op, left, right)
        result = self._result(op, left.range, right.range)
        if result.within(I64):
            return ir.Binary(result, False, op, left, right)
        return ir.Binary(I64, True, op, left, right)

    def _check_operands(self, node: ast.BinOp, op: str, right: ir.Expr) -> None:
        if op in {"//", "%"} and 0 in right.range:
            raise self.refuse(
                node.right,
                "this may divide by zero",
                "test it first, as in `if n > 0:`, or write max(n, 1)",
            )
        if op in {"<<", ">>"} and not right.range.within(Interval(0, 63)):
            raise self.refuse(
                node.right,
                f"this may shift by {right.range.hi if right.range.hi > 63 else right.range.lo}",
                "shift by 0 to 63: write `(...) & 63`",
            )

    @staticmethod
    def _result(op: str, left: Interval, right: Interval) -> Interval:
        match op:
            case "+":
                return left + right
            case "-":
                return left - right
            case "*":
                return left * right
            case "//":
                return left // right
            case "%":
                return left % right
            case "&":
                return left & right
            case "|":
                return left | right
            case "^":
                return left ^ right
            case "<<":
                return left << right
            case _:
                return left >> right

    def _unary(self, op: ast.unaryop, node: ast.expr) -> ir.Expr:
        operand = self.expression(node)
        if isinstance(op, ast.UAdd):
            return operand
        sign = "-" if isinstance(op, ast.USub) else "~"
        result = -operand.range if sign == "-" else ~operand.range
        if operand.wrapped or not result.within(I64):
            return ir.Unary(I64, True, sign, operand)
        if isinstance(operand, ir.Const):
            return ir.Const(result, False, result.lo)
        return ir.Unary(result, False, sign, operand)

    def _logic(self, both: bool, values: list[ast.expr]) -> ir.Expr:
        """Lower `and` and `or`; both give 0 or 1, so the operands must."""
        scope = self.scope
        result: ir.Expr | None = None
        for node in values:
            if self.scope is None:  # decided before: Python would not evaluate it
                break
            operand = self.value(node)
            if not operand.range.within(BOOL):
                raise self.refuse(
                    node, "`and` and `or` combine conditions", "compare: write `... != 0`"
                )
            if result is None:
                result = operand
            elif both:
                result = ir.Both(BOOL, False, result, operand)
            else:
                result = ir.Either(BOOL, False, result, operand)
            self.scope = assume(operand, self.scope, both)
        self.scope = scope
        assert result is not None
        return result

    def _comparison(self, node: ast.Compare) -> ir.Expr:
        if len(node.ops) > 1:
            # Python evaluates the middle once; so must this, and twice is the same unless it
            # counts or may change in between.
            if any(
                isinstance(part, ast.Call)
                for item in node.comparators[:-1]
                for part in ast.walk(item)
            ):
                raise self.refuse(node, "a call in the middle of a chain", "set a name to it first")
            operands = [node.left, *node.comparators]
            pairs: list[ast.expr] = [
                ast.copy_location(ast.Compare(left=left, ops=[op], comparators=[right]), left)
                for left, op, right in zip(operands, node.ops, operands[1:], strict=False)
            ]
            return self._logic(True, pairs)
        operator, second = node.ops[0], node.comparators[0]
        if isinstance(operator, ast.In | ast.NotIn):
            found = self._membership(node.left, second)
            return ir.Not(BOOL, False, found) if isinstance(operator, ast.NotIn) else found
        left, right = self.value(node.left), self.value(second)
        return ir.Compare(BOOL, False, _COMPARISONS[type(operator)], left, right)

    def _membership(self, first: ast.expr, second: ast.expr) -> ir.Expr:
        if isinstance(second, ast.Name) and second.id in self.rule.tables:
            table = self.rule.tables[second.id]
            if table.kind != TableKind.TABLE:
                raise self.refuse(second, f"`in` is for table(), not {table.kind}()", "use get")
            return ir.Lookup(BOOL, False, table, "has", (self.value(first),))
        if isinstance(second, ast.Name) and second.id in self.rule.sets:
            found: frozenset[int] | None = self.rule.sets[second.id]
        else:
            names = {**self.rule.constants, self.rule.cpus: self.cpus}
            found = members(second, names, self.rule.path)
        if found is None:
            raise self.refuse(
                second, "`in` needs a constant set or a table", "write {80, 443}, or use < and <="
            )
        operand = self.value(first)
        ranges: list[Interval] = []
        for number in sorted(found):
            if ranges and ranges[-1].hi == number - 1:
                ranges[-1] = Interval(ranges[-1].lo, number)
            else:
                ranges.append(Interval.of(number))
        return ir.Member(BOOL, False, operand, tuple(ranges))

    def _select(self, test: ir.Expr, body: ast.expr, orelse: ast.expr) -> ir.Expr:
        scope = self.scope
        chosen: list[ir.Expr | None] = []
        for node, holds in ((body, True), (orelse, False)):
            self.scope = assume(test, scope, holds)
            chosen.append(None if self.scope is None else self.value(node))
        self.scope = scope
        then, other = chosen
        if then is None or other is None:
            # One side is never taken; the test may still count something, so it stays.
            only = then or other
            assert only is not None
            return ir.Select(only.range, False, test, only, only)
        return ir.Select(then.range.join(other.range), False, test, then, other)

    def _call(self, node: ast.Call) -> ir.Expr:
        match node:
            case ast.Call(func=ast.Name(id="min" | "max" as name), args=args, keywords=[]) if (
                len(args) >= 2
            ):
                result = self.value(args[0])
                for argument in args[1:]:
                    other = self.value(argument)
                    pick = Interval.minimum if name == "min" else Interval.maximum
                    result = ir.Binary(pick(result.range, other.range), False, name, result, other)
                return result
            case ast.Call(func=ast.Name(id="abs"), args=[argument], keywords=[]):
                operand = self.value(argument)
                absolute = operand.range.absolute()
                if not absolute.within(I64):
                    raise self.refuse(node, "this may not fit into 64 signed bits", "mask it")
                return ir.Unary(absolute, False, "abs", operand)
            case ast.Call(
                func=ast.Attribute(value=ast.Name(id=name), attr=verb), args=args, keywords=[]
            ) if name in self.rule.tables:
                return self._table_call(node, name, verb, args)
            case ast.Call(func=ast.Name(id="ip")):
                raise self.refuse(node, "ip() is for constants", "set a name above the rule to it")
            case _:
                raise self.refuse(
                    node, "rules call only min, max, abs, range and tables", "write it out"
                )

    def _table_call(self, node: ast.Call, name: str, verb: str, args: list[ast.expr]) -> ir.Expr:
        table = self.rule.tables[name]
        match (table.kind, verb, args):
            case (TableKind.COUNTER, "add", [amount]):
                value = self.value(amount)
                if not value.range.within(Interval(0, 2**31)):
                    raise self.refuse(amount, "counters count upwards", "add 0 to 2**31")
                return ir.Count(COUNTED, False, table, value)
            case (TableKind.PREFIXES, "get", [address, default]):
                match address:
                    case ast.Attribute(value=ast.Name(id=owner), attr="src" | "dst" as end) if (
                        owner == self.rule.packet
                    ):
                        otherwise = self.value(default)
                        return ir.Lookup(
                            VALUE.join(otherwise.range), False, table, f"get_{end}", (otherwise,)
                        )
                raise self.refuse(
                    address, f"{name} holds prefixes", f"look up {self.rule.packet}.src or .dst"
                )
            case (TableKind.TABLE | TableKind.ARRAY, "get", [key, default]):
                index, otherwise = self.value(key), self.value(default)
                return ir.Lookup(
                    VALUE.join(otherwise.range), False, table, "get", (index, otherwise)
                )
        usage = {
            TableKind.TABLE: "get(key, default), set(key, value) as a statement, or `key in NAME`",
            TableKind.ARRAY: "get(index, default), and as statements set and add(index, value)",
            TableKind.PREFIXES: "get(pkt.src, default)",
            TableKind.COUNTER: "add(1)",
        }
        raise self.refuse(node, f"{name} has no such call", f"it has {usage[table.kind]}")
