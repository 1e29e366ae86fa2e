# SPDX-License-Identifier: GPL-2.0-or-later
"""Reads a rule file and refuses, with place and remedy, whatever the language does not have.

This is about form only; ``lower`` decides about values.
"""

import ast
import warnings
from dataclasses import dataclass, field
from pathlib import Path

from fastsocket.errors import UsageError
from fastsocket.steer.declare import Declarations, Sets
from fastsocket.steer.language import CONSTANTS, LIMITS, RuleError, Table

__all__ = ["Rule", "parse_rule", "read_rule"]


@dataclass(frozen=True)
class Rule:
    """A rule file whose form is right.

    Attributes:
        name: The file's name without its suffix.
        path: The file, for errors.
        source: Its text.
        function: The rule itself.
        packet: Name of its first parameter.
        cpus: Name of its second parameter.
        constants: Module-level integers, the predefined ones included.
        sets: Module-level sets of integers.
        tables: Tables and counters by name.
        text: First line of the file's or the function's docstring.
    """

    name: str
    path: Path
    source: str
    function: ast.FunctionDef
    packet: str
    cpus: str
    constants: dict[str, int] = field(default_factory=dict)
    sets: Sets = field(default_factory=dict)
    tables: dict[str, Table] = field(default_factory=dict)
    text: str = ""


# What users write that Python has and rules do not, and what to write instead.
_REMEDIES: dict[type[ast.AST], tuple[str, str]] = {
    ast.Import: ("a rule cannot import", "pkt, table(), counter(), min() and max() are there"),
    ast.ImportFrom: ("a rule cannot import", "pkt, table(), counter(), min() and max() are there"),
    ast.While: ("a while loop has no bound", "write `for i in range(16):` and `break`"),
    ast.Try: ("nothing raises in a rule", "test for the case with if"),
    ast.Raise: ("nothing raises in a rule", "return None to leave the packet alone"),
    ast.Assert: ("nothing raises in a rule", "write `if ...: return None`"),
    ast.With: ("there is nothing to open in a rule", "leave it out"),
    ast.FunctionDef: ("a rule is one function", "write it out inside rule()"),
    ast.AsyncFunctionDef: ("a rule is one plain function", "write `def rule(pkt, cpus):`"),
    ast.ClassDef: ("a rule has no classes", "use integers, table() and counter()"),
    ast.Lambda: ("a rule is one function", "write the expression out"),
    ast.Global: ("a rule keeps nothing in names", "use table() or counter()"),
    ast.Nonlocal: ("a rule keeps nothing in names", "use table() or counter()"),
    ast.Delete: ("names are not deleted", "leave it out"),
    ast.Match: ("match is not in the language", "write if and elif"),
    ast.Div: ("/ gives fractions", "write // for whole numbers"),
    ast.Pow: ("** is only for constants", "multiply, or shift with <<"),
    ast.MatMult: ("@ is for matrices", "write *"),
    ast.Is: ("`is` compares objects", "write =="),
    ast.IsNot: ("`is not` compares objects", "write !="),
    ast.ListComp: ("rules have no lists", "write a for loop"),
    ast.SetComp: ("sets are constant", "write a for loop, or list the members"),
    ast.DictComp: ("rules have no dictionaries", "declare a table() above the rule"),
    ast.GeneratorExp: ("rules have no generators", "write a for loop"),
    ast.Dict: ("rules have no dictionaries", "declare a table() above the rule"),
    ast.JoinedStr: ("rules have no strings", "use integers"),
    ast.Subscript: ("there is nothing to index", "use NAME.get(key, default)"),
    ast.Starred: ("* is not understood here", "list the values"),
    ast.NamedExpr: (":= is not in the language", "assign on a line of its own"),
    ast.Await: ("await is not in the language", "leave it out"),
    ast.Yield: ("yield is not in the language", "return one CPU"),
    ast.YieldFrom: ("yield is not in the language", "return one CPU"),
    ast.AnnAssign: ("annotations are not in the language", "write `name = value`"),
}

_STATEMENTS = (
    ast.Return, ast.If, ast.For, ast.Assign, ast.AugAssign, ast.Expr, ast.Pass, ast.Break,
    ast.Continue,
)  # fmt: skip
_PARTS = (
    *_STATEMENTS, ast.Constant, ast.Name, ast.Attribute, ast.BinOp, ast.UnaryOp, ast.BoolOp,
    ast.Compare, ast.IfExp, ast.Call, ast.Set, ast.Tuple, ast.List, ast.expr_context, ast.boolop,
    ast.unaryop, ast.cmpop, ast.operator, ast.keyword,
)  # fmt: skip


def read_rule(path: Path) -> Rule:
    """Read and check the rule in `path`.

    Raises:
        UsageError: The file cannot be read.
        RuleError: The first thing in it that is not in the language.
    """
    try:
        with path.open("rb") as file:
            data = file.read(LIMITS.source_bytes + 1)
    except OSError as error:
        raise UsageError(
            f"{path} cannot be read",
            error.strerror or "",
            "give a rule file or a name from 'fastsocket steer list'",
        ) from error
    try:
        return parse_rule(data.decode(), path)
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        column = error.start - data.rfind(b"\n", 0, error.start)
        raise RuleError(path, line, column, "this is not UTF-8", "save it as UTF-8") from None


def parse_rule(source: str, path: Path) -> Rule:
    """Check the text of a rule; `path` only names it.

    Raises:
        RuleError: The first thing in it that is not in the language.
    """
    if len(source.encode()) > LIMITS.source_bytes:
        raise RuleError(
            path, 1, 1, f"the file is longer than {LIMITS.source_bytes} bytes",
            "keep data in tables that user space fills",
        )  # fmt: skip
    module = _parse(source, path)
    _check_depth(module, path)
    declarations = Declarations(path, CONSTANTS)
    function: ast.FunctionDef | None = None
    for statement in module.body:
        match statement:
            case ast.Expr(value=ast.Constant(value=str())):
                pass
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                declarations.read(name, value)
            case ast.FunctionDef(name="rule") if function is None:
                function = statement
            case ast.FunctionDef(name="rule"):
                raise _refusal(path, statement, "there is a second rule()", "keep one")
            case _:
                raise _refuse_part(path, statement)
    if function is None:
        raise RuleError(path, 1, 1, "there is no rule", "write `def rule(pkt, cpus):`")
    packet, cpus = _check_signature(function, path)
    for node in ast.walk(ast.Module(body=function.body, type_ignores=[])):
        _check_part(node, path)
    text = ast.get_docstring(module) or ast.get_docstring(function) or ""
    return Rule(
        path.stem, path, source, function, packet, cpus,
        declarations.constants, declarations.sets, declarations.tables, text.partition("\n")[0],
    )  # fmt: skip


def _parse(source: str, path: Path) -> ast.Module:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            return ast.parse(source, filename=str(path))
    except SyntaxError as error:
        raise RuleError(
            path, error.lineno or 1, max(error.offset or 1, 1), f"not Python: {error.msg}",
            "correct it",
        ) from None  # fmt: skip
    except (ValueError, RecursionError, MemoryError) as error:
        raise RuleError(path, 1, 1, f"not Python: {error}", "simplify it") from None


def _check_depth(module: ast.Module, path: Path) -> None:
    """Refuse nesting that would exhaust the stack of whoever walks the tree; itself it loops."""
    waiting: list[tuple[ast.AST, int]] = [(module, 0)]
    while waiting:
        node, depth = waiting.pop()
        if depth > LIMITS.depth:
            raise _refusal(
                path, node, f"nested deeper than {LIMITS.depth}",
                "use intermediate names, a set or a table",
            )  # fmt: skip
        waiting += [(child, depth + 1) for child in ast.iter_child_nodes(node)]


def _check_signature(function: ast.FunctionDef, path: Path) -> tuple[str, str]:
    arguments = function.args
    plain = arguments.posonlyargs + arguments.args
    if (
        len(plain) != 2
        or arguments.vararg
        or arguments.kwarg
        or arguments.kwonlyargs
        or arguments.defaults
    ):
        raise _refusal(
            path, function, "a rule takes the packet and the number of CPUs",
            "write `def rule(pkt, cpus):`",
        )  # fmt: skip
    if function.decorator_list:
        raise _refusal(
            path, function.decorator_list[0], "a rule has no decorators", "leave them out"
        )
    return plain[0].arg, plain[1].arg


def _check_part(node: ast.AST, path: Path) -> None:
    if type(node) in _REMEDIES or (isinstance(node, ast.stmt) and type(node) not in _STATEMENTS):
        raise _refuse_part(path, node)
    if not isinstance(node, _PARTS) and not isinstance(node, ast.Module):
        raise _refuse_part(path, node)
    for operator_name in ("op", "ops"):
        found = getattr(node, operator_name, [])
        for operator in found if isinstance(found, list) else [found]:
            if type(operator) in _REMEDIES:
                raise _refusal(path, node, *_REMEDIES[type(operator)])


def _refuse_part(path: Path, node: ast.AST) -> RuleError:
    what, todo = _REMEDIES.get(
        type(node),
        (f"{type(node).__name__} is not in the language", "see docs/rules.md for what is"),
    )
    return _refusal(path, node, what, todo)


def _refusal(path: Path, node: ast.AST, what: str, todo: str) -> RuleError:
    line, column = getattr(node, "lineno", 1), getattr(node, "col_offset", 0)
    return RuleError(path, line, column + 1, what, todo)
