# SPDX-License-Identifier: GPL-2.0-or-later
"""Writes a rule's typed nodes as LLVM instructions: the function ``rule`` of the dispatcher."""

from typing import Any

from llvmlite import ir as llvm

from fastsocket.steer import ir
from fastsocket.steer.language import PASS, TableKind

__all__ = ["emit"]

_I64, _I1, _PTR, _VOID = llvm.IntType(64), llvm.IntType(1), llvm.PointerType(), llvm.VoidType()
_PLAIN = {"+": "add", "-": "sub", "*": "mul", "&": "and_", "|": "or_", "^": "xor", "<<": "shl"}


def emit(function: ir.Function, careful: bool) -> str:
    """Return the LLVM module, as text, that defines ``rule`` for the dispatcher.

    `careful` hides known numbers from the verifier, which else follows each by itself and gives up
    on rules with many branches; it costs some nanoseconds for each packet.
    """
    return str(_Emitter(function, careful).module)


class _Emitter:
    """Emits one function; `builder` stands where the next instruction goes."""

    def __init__(self, function: ir.Function, careful: bool) -> None:
        self.module = llvm.Module("rule")
        self.module.triple = "bpfel"
        self.functions: dict[str, llvm.Function] = {}
        self.loops: list[tuple[llvm.Block, llvm.Block]] = []
        self.rule = llvm.Function(self.module, llvm.FunctionType(_I64, [_PTR]), "rule")
        self.rule.attributes.add("alwaysinline")
        self.builder = llvm.IRBuilder(self.rule.append_basic_block())
        self.scratch = self._scratch() if careful else None
        self.names = {name: self._slot() for name in function.names}
        self.block(function.body)
        if not self.builder.block.is_terminated:
            self.builder.ret(_I64(PASS))

    def block(self, statements: tuple[ir.Stmt, ...]) -> None:
        """Emit statements in order."""
        for statement in statements:
            self.statement(statement)

    def statement(self, node: ir.Stmt) -> None:
        """Emit one statement."""
        match node:
            case ir.Assign(name=name, value=value):
                self.builder.store(self.value(value), self.names[name])
            case ir.Do(value=value):
                self.value(value)
            case ir.Store(table=table, verb=verb, arguments=arguments):
                key, number = map(self.value, arguments)
                self._call(f"{table.map_name}_{verb}", self._hidden(key), number, result=_VOID)
            case ir.Return(value=value):
                self.builder.ret(self._hidden(self.value(value)))
            case ir.If(test=test, then=then, other=other):
                self._if(test, then, other)
            case ir.For():
                self._for(node)
            case ir.Break():
                self.builder.branch(self.loops[-1][0])
            case ir.Continue():
                self.builder.branch(self.loops[-1][1])

    def _if(self, test: ir.Expr, then: tuple[ir.Stmt, ...], other: tuple[ir.Stmt, ...]) -> None:
        yes, no, after = (self.rule.append_basic_block() for _ in range(3))
        self.builder.cbranch(self.test(test), yes, no)
        ends = 0
        for block, statements in ((yes, then), (no, other)):
            self.builder.position_at_end(block)
            self.block(statements)
            if not self.builder.block.is_terminated:
                self.builder.branch(after)
                ends += 1
        self.builder.position_at_end(after)
        if not ends:
            self.builder.unreachable()

    def _for(self, node: ir.For) -> None:
        head, body, step, after = (self.rule.append_basic_block() for _ in range(4))
        trip = self._slot()
        self.builder.store(_I64(0), trip)
        self.builder.branch(head)
        self.builder.position_at_end(head)
        count = self.builder.load(trip, typ=_I64)
        bound = self.builder.icmp_unsigned("<", count, _I64(node.trips))
        self.builder.cbranch(bound, body, after)
        self.builder.position_at_end(body)
        offset = self.builder.mul(self.builder.load(trip, typ=_I64), _I64(node.step))
        self.builder.store(self.builder.add(offset, _I64(node.start)), self.names[node.name])
        self.loops.append((after, step))
        self.block(node.body)
        self.loops.pop()
        if not self.builder.block.is_terminated:
            self.builder.branch(step)
        self.builder.position_at_end(step)
        self.builder.store(self.builder.add(self.builder.load(trip, typ=_I64), _I64(1)), trip)
        self.builder.branch(head)
        self.builder.position_at_end(after)

    def value(self, node: ir.Expr) -> llvm.Value:
        """Emit `node` as a 64-bit value."""
        match node:
            case ir.Const(value=number):
                return _I64(number)
            case ir.Local(name=name):
                return self.builder.load(self.names[name], typ=_I64)
            case ir.FieldOf(name=name):
                return self._call(f"field_{name}", self.rule.args[0])
            case ir.Unary(op=op, operand=operand):
                return self._unary(op, self.value(operand))
            case ir.Binary():
                return self._binary(node)
            case ir.Select(test=test, then=then, other=other):
                return self._choose(self.test(test), then, other)
            case ir.Lookup(table=table, verb=verb, arguments=arguments):
                values = [self.value(argument) for argument in arguments]
                if table.kind == TableKind.PREFIXES:
                    values.insert(0, self.rule.args[0])
                else:
                    values[0] = self._hidden(values[0])
                return self._call(f"{table.map_name}_{verb}", *values)
            case ir.Count(table=table, amount=amount):
                return self._call("counter_add", _I64(table.slot), self.value(amount))
            case _:
                return self.builder.zext(self.test(node), _I64)

    def test(self, node: ir.Expr) -> llvm.Value:
        """Emit `node` as a truth value."""
        match node:
            case ir.Compare(op=op, left=left, right=right):
                first = self._hidden(self.value(left))
                return self.builder.icmp_signed(op, first, self.value(right))
            case ir.Not(operand=operand):
                return self.builder.not_(self.test(operand))
            case ir.Both(left=left, right=right):
                return self._short(self.test(left), right, False)
            case ir.Either(left=left, right=right):
                return self._short(self.test(left), right, True)
            case ir.Member(operand=operand, ranges=ranges):
                return self._member(self._hidden(self.value(operand)), ranges)
            case _:
                value = self._hidden(self.value(node))
                return self.builder.icmp_signed("!=", value, _I64(0))

    def _short(self, first: llvm.Value, right: ir.Expr, decided: bool) -> llvm.Value:
        """Emit `and` or `or`: `right` runs only where `first` is not `decided`."""
        begin, more, after = (
            self.builder.block,
            self.rule.append_basic_block(),
            self.rule.append_basic_block(),
        )
        ways = (after, more) if decided else (more, after)
        self.builder.cbranch(first, *ways)
        self.builder.position_at_end(more)
        second = self.test(right)
        end = self.builder.block
        self.builder.branch(after)
        self.builder.position_at_end(after)
        result = self.builder.phi(_I1)
        result.add_incoming(_I1(decided), begin)
        result.add_incoming(second, end)
        return result

    def _choose(self, test: llvm.Value, then: ir.Expr, other: ir.Expr) -> llvm.Value:
        yes, no, after = (self.rule.append_basic_block() for _ in range(3))
        self.builder.cbranch(test, yes, no)
        incoming = []
        for block, node in ((yes, then), (no, other)):
            self.builder.position_at_end(block)
            incoming.append((self.value(node), self.builder.block))
            self.builder.branch(after)
        self.builder.position_at_end(after)
        result = self.builder.phi(_I64)
        for value, block in incoming:
            result.add_incoming(value, block)
        return result

    def _member(self, value: llvm.Value, ranges: tuple[Any, ...]) -> llvm.Value:
        result: llvm.Value = _I1(0)
        for part in ranges:
            offset = self.builder.sub(value, _I64(part.lo))
            inside = self.builder.icmp_unsigned("<=", offset, _I64(part.hi - part.lo))
            result = self.builder.or_(result, inside)
        return result

    def _unary(self, op: str, value: llvm.Value) -> llvm.Value:
        match op:
            case "-":
                return self.builder.neg(value)
            case "~":
                return self.builder.not_(value)
            case _:
                return self._absolute(value)

    def _absolute(self, value: llvm.Value) -> llvm.Value:
        negative = self.builder.icmp_signed("<", self._hidden(value), _I64(0))
        return self.builder.select(negative, self.builder.neg(value), value)

    def _binary(self, node: ir.Binary) -> llvm.Value:
        left, right = self.value(node.left), self.value(node.right)
        if node.op in _PLAIN:
            return getattr(self.builder, _PLAIN[node.op])(left, right)
        if node.op == ">>":
            return self.builder.ashr(left, right)
        if node.op in {"min", "max"}:
            comparison = "<" if node.op == "min" else ">"
            chosen = self.builder.icmp_signed(comparison, self._hidden(left), right)
            return self.builder.select(chosen, left, right)
        divisor = node.right.range.single
        if divisor and divisor > 0 and not divisor & (divisor - 1):
            if node.op == "%":
                return self.builder.and_(left, _I64(divisor - 1))
            return self.builder.ashr(left, _I64(divisor.bit_length() - 1))
        if node.left.range.lo >= 0 and node.right.range.lo >= 0:
            divide = self.builder.udiv if node.op == "//" else self.builder.urem
            return divide(left, right)
        return self._divide(node.op, left, right)

    def _divide(self, op: str, left: llvm.Value, right: llvm.Value) -> llvm.Value:
        """Round towards minus infinity, as Python does; BPF (v3) divides only unsigned."""
        builder, zero = self.builder, _I64(0)
        dividend, divisor = self._absolute(left), self._absolute(right)
        rest = builder.urem(dividend, divisor)
        exact = builder.icmp_signed("==", self._hidden(rest), zero)
        differ = builder.icmp_signed("<", self._hidden(builder.xor(left, right)), zero)
        if op == "//":
            quotient = builder.udiv(dividend, divisor)
            below = builder.neg(builder.add(quotient, builder.select(exact, zero, _I64(1))))
            return builder.select(differ, below, quotient)
        size = builder.select(differ, builder.sub(divisor, rest), rest)
        negative = builder.icmp_signed("<", self._hidden(right), zero)
        return builder.select(exact, zero, builder.select(negative, builder.neg(size), size))

    def _hidden(self, value: llvm.Value) -> llvm.Value:
        """The value, hidden from the verifier in careful mode (see steer_opaque)."""
        if self.scratch is None:
            return value
        return self._call("steer_opaque", self.scratch, value)

    def _scratch(self) -> llvm.Value:
        """Get the memory for hiding; the rule passes in the impossible case that there is none."""
        place = self._call("steer_scratch", result=_PTR)
        go_on = self.rule.append_basic_block()
        without = self.rule.append_basic_block()
        self.builder.cbranch(self.builder.icmp_unsigned("!=", place, _PTR(None)), go_on, without)
        self.builder.position_at_end(without)
        self.builder.ret(_I64(PASS))
        self.builder.position_at_end(go_on)
        return place

    def _slot(self) -> llvm.Value:
        """A place for a local variable, made in the entry block."""
        with self.builder.goto_entry_block():
            return self.builder.alloca(_I64)

    def _call(self, name: str, *arguments: llvm.Value, result: llvm.Type = _I64) -> llvm.Value:
        """Call a function of the dispatcher."""
        if name not in self.functions:
            kinds = [argument.type for argument in arguments]
            self.functions[name] = llvm.Function(
                self.module, llvm.FunctionType(result, kinds), name
            )
        return self.builder.call(self.functions[name], arguments)
