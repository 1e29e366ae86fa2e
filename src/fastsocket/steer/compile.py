# SPDX-License-Identifier: GPL-2.0-or-later
"""Compiles a rule into the C dispatcher's bitcode: one BPF object with maps and BTF.

LLVM does with rule and dispatcher what clang does with one C file: the rule is inlined, what it
does not ask for is never parsed, and maps that it does not use are left out.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from fastsocket.errors import FastsocketError, MissingFeatureError
from fastsocket.native import native_file
from fastsocket.steer import ir
from fastsocket.steer.check import Rule
from fastsocket.steer.lower import lower

__all__ = ["CompiledRule", "compile_rule"]

_MANY_BRANCHES = 32
"""From so many branches on, compile carefully at once; else only if the verifier gives up."""

_KEPT = frozenset(
    {"steer", "LICENSE", "cpus", "batch", "queues", "exits", "steer_settings", "steer_state"}
)


@dataclass(frozen=True)
class CompiledRule:
    """A rule as a BPF object.

    Attributes:
        rule: Where it comes from.
        function: Its typed form.
        object: The bytes of the ELF object.
        careful: Whether it was compiled for the verifier's comfort.
    """

    rule: Rule
    function: ir.Function
    object: bytes
    careful: bool = False


def compile_rule(rule: Rule, cpus: int, careful: bool = False) -> CompiledRule:
    """Compile `rule` for a set of `cpus` CPUs.

    Args:
        rule: The rule.
        cpus: CPUs in the set.
        careful: Compile for the verifier's comfort even where the rule is short; see ``emit``.

    Raises:
        RuleError: The rule is refused.
        MissingFeatureError: llvmlite is not installed.
        FastsocketError: The dispatcher was not built, or LLVM cannot compile the rule.
    """
    function = lower(rule, cpus)
    _, branches = ir.cost(function.body)
    careful = careful or branches >= _MANY_BRANCHES
    llvm = _llvm()
    from fastsocket.steer.emit import emit

    bitcode = native_file("steer.bc")
    try:
        module = llvm.parse_bitcode(_read(bitcode))
        text = emit(function, careful)
        module.link_in(llvm.parse_assembly(text))
        used = {table.map_name for table in rule.tables.values()}
        if "steer_scratch" in text:
            used.add("scratch")
        _hide(module, used)
        machine = _machine()
        options = llvm.create_pipeline_tuning_options(speed_level=2)
        builder = llvm.create_pass_builder(machine, options)
        builder.getModulePassManager().run(module, builder)
        return CompiledRule(rule, function, machine.emit_object(module), careful)
    except RuntimeError as error:
        raise FastsocketError(
            f"LLVM cannot compile {rule.path}", str(error),
            f"rebuild {bitcode.name} with 'make setup', or simplify the rule",
        ) from error  # fmt: skip


def _hide(module: Any, used: set[str]) -> None:
    """Make everything local to the module but programs, licence, and the maps in use.

    libbpf wants maps to be global; the others go with the functions that name them.
    """
    for symbol in (*module.functions, *module.global_variables):
        name = symbol.name
        if not symbol.is_declaration and name not in _KEPT | used and not name.startswith("llvm."):
            symbol.linkage = "internal"


@cache
def _read(path: Path) -> bytes:
    return path.read_bytes()


@cache
def _llvm() -> Any:
    """Import llvmlite and set up its BPF target."""
    try:
        import llvmlite.binding as llvm
    except ImportError as error:
        raise MissingFeatureError(
            "rules cannot be compiled", "llvmlite is not installed",
            "run: pip install 'fastsocket[rules]'",
        ) from error  # fmt: skip
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    return llvm


@cache
def _machine() -> Any:
    """The code generator: BPF with 32-bit operations and jumps (v3), like clang's."""
    return _llvm().Target.from_triple("bpfel").create_target_machine(cpu="v3", opt=2)
