# SPDX-License-Identifier: GPL-2.0-or-later
"""Turns a rule into typed nodes, proving on the way that every value fits into 64 signed bits.

It walks the rule with ranges in place of values, each loop until nothing changes or its bound is
reached. So a rule means exactly what Python says: there is no overflow, no division by zero and no
unset name that could make a difference between the two.
"""

import ast
from dataclasses import dataclass, field

from fastsocket.steer import ir
from fastsocket.steer.check import Rule
from fastsocket.steer.expression import Expressions
from fastsocket.steer.interval import Interval
from fastsocket.steer.language import LIMITS, PASS
from fastsocket.steer.scope import Scope, assume, join

__all__ = ["lower"]


@dataclass
class _Loop:
    """Where the statements of a loop lead, other than to the end of its body."""

    leaving: list[Scope | None] = field(default_factory=list)
    continuing: list[Scope | None] = field(default_factory=list)


def lower(rule: Rule, cpus: int) -> ir.Function:
    """Return `rule` in typed form, for a set of `cpus` CPUs.

    Raises:
        RuleError: A value may not fit, a divisor be zero, a name have no value, a loop have no
            constant bound, the rule take too long, or name only CPUs outside the set.
    """
    return _Statements(rule, cpus).function()


class _Statements(Expressions):
    """Lowers statements; `scope` is what is known before the statement at hand."""

    def __init__(self, rule: Rule, cpus: int) -> None:
        super().__init__(rule, cpus)
        self.loops: list[_Loop] = []
        self.names: dict[str, None] = {}
        self.returns: list[Interval] = []

    def function(self) -> ir.Function:
        """Lower the whole rule."""
        body = self.block(self.rule.function.body)
        if self.scope is not None:
            self.returns.append(Interval.of(PASS))
        steps, _ = ir.cost(body)
        if steps > LIMITS.steps:
            raise self.refuse(
                self.rule.function,
                f"this rule may take {steps} operations for one packet, more than {LIMITS.steps}",
                "shorten its loops, or look the answer up in a table()",
            )
        returns = self.returns[0]
        for other in self.returns[1:]:
            returns = returns.join(other)
        return ir.Function(body, tuple(self.names), self.cpus, returns)

    def block(self, statements: list[ast.stmt]) -> tuple[ir.Stmt, ...]:
        """Lower statements in order; those that are never reached are left out."""
        result: list[ir.Stmt] = []
        for statement in statements:
            if self.scope is None:
                break
            self.step(statement)
            result += self.statement(statement)
        return tuple(result)

    def statement(self, node: ast.stmt) -> list[ir.Stmt]:
        """Lower one statement."""
        match node:
            case ast.Assign(targets=[ast.Name(id=name) as target], value=value):
                return [self._assign(target, name, self.value(value))]
            case ast.AugAssign(target=ast.Name(id=name) as target, op=op, value=value):
                read = ast.copy_location(ast.Name(id=name, ctx=ast.Load()), target)
                whole = ast.copy_location(ast.BinOp(left=read, op=op, right=value), node)
                return [self._assign(target, name, self.value(whole))]
            case ast.If():
                return self._if(node)
            case ast.For():
                return self._for(node)
            case ast.Return(value=value):
                return [self._return(node, value)]
            case ast.Expr(value=ast.Constant(value=str())) | ast.Pass():
                return []
            case ast.Expr(value=ast.Call() as call):
                return [self.effect(call)]
            case ast.Break():
                self.loops[-1].leaving.append(self.scope)
                self.scope = None
                return [ir.Break()]
            case ast.Continue():
                self.loops[-1].continuing.append(self.scope)
                self.scope = None
                return [ir.Continue()]
            case ast.Assign() | ast.AugAssign():
                raise self.refuse(node, "only one plain name can be set", "write `name = value`")
            case _:
                raise self.refuse(node, "this has no effect", "leave it out")

    def _assign(self, target: ast.expr, name: str, value: ir.Expr) -> ir.Stmt:
        self._own(target, name)
        assert self.scope is not None
        self.scope = {**self.scope, name: value.range}
        return ir.Assign(name, value)

    def _own(self, target: ast.expr, name: str) -> None:
        """Make `name` a local name."""
        if name in self.reserved:
            raise self.refuse(
                target, f"{name} has a meaning of its own here", "choose another name"
            )
        self.names[name] = None
        if len(self.names) > LIMITS.names:
            raise self.refuse(
                target, f"a rule has at most {LIMITS.names} local names", "use some again"
            )

    def _if(self, node: ast.If) -> list[ir.Stmt]:
        test = self.value(node.test)
        before = self.scope
        self.scope = assume(test, before, True)
        then, after_then = self.block(node.body), self.scope
        self.scope = assume(test, before, False)
        other, after_other = self.block(node.orelse), self.scope
        self.scope = join([after_then, after_other])
        return [ir.If(test, then, other)]

    def _return(self, node: ast.Return, value: ast.expr | None) -> ir.Stmt:
        if value is None or (isinstance(value, ast.Constant) and value.value is None):
            result: ir.Expr = ir.Const(Interval.of(PASS), False, PASS)
        else:
            result = self.value(value)
        if result.range.lo >= self.cpus:
            raise self.refuse(
                value or node,
                f"this names CPU {result.range.lo}, the set has 0 to {self.cpus - 1}",
                "return a number below cpus, such as pkt.hash % cpus",
            )
        self.returns.append(result.range)
        self.scope = None
        return ir.Return(result)

    def _for(self, node: ast.For) -> list[ir.Stmt]:
        if not isinstance(node.target, ast.Name):
            raise self.refuse(node.target, "a loop sets one plain name", "write `for i in ...`")
        if node.orelse:
            raise self.refuse(node.orelse[0], "for has no else here", "use a name to remember")
        steps = self._range(node.iter)
        name = node.target.id
        self._own(node.target, name)
        if not steps:
            return []
        every = Interval(min(steps[0], steps[-1]), max(steps[0], steps[-1]))
        head, end = self.scope, self.scope
        body: tuple[ir.Stmt, ...] = ()
        loop = _Loop()
        for trip in range(len(steps)):
            loop = _Loop()
            self.loops.append(loop)
            self.scope = {**(head or {}), name: every}
            body = self.block(node.body)
            end = join([self.scope, *loop.continuing])
            self.loops.pop()
            following = head if end is None else join([head, end])
            if following == head:
                break
            # The last pass must know every trip's beginning, and there is none after the last.
            if trip + 1 < len(steps):
                head = following
        self.scope = join([end, *loop.leaving])
        return [ir.For(name, steps[0], steps.step, len(steps), body)]

    def _range(self, node: ast.expr) -> range:
        """Evaluate the range of a loop."""
        match node:
            case ast.Call(func=ast.Name(id="range"), args=arguments, keywords=[]) if (
                1 <= len(arguments) <= 3
            ):
                bounds = []
                for argument in arguments:
                    bound = self.value(argument).range.single
                    if bound is None:
                        raise self.refuse(
                            argument,
                            "the bound of this loop is not constant",
                            "give the largest number, and `break` where it is reached",
                        )
                    bounds.append(bound)
                if len(bounds) == 3 and bounds[2] == 0:
                    raise self.refuse(arguments[2], "a step of 0 never ends", "use another step")
                result = range(*bounds)
                if result and len(range(*bounds)[: LIMITS.steps + 1]) > LIMITS.steps:
                    raise self.refuse(
                        node, f"this loop runs more than {LIMITS.steps} times", "use less"
                    )
                return result
            case _:
                raise self.refuse(node, "a loop goes over a range", "write `for i in range(16):`")
