# SPDX-License-Identifier: GPL-2.0-or-later
"""A compiled rule in the kernel: its CPUs, tables, counters, and test runs."""

import errno
import struct
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self

from fastsocket.bpf.libbpf import BpfError, BpfObject, Map, Program, possible_cpus
from fastsocket.bpf.objects import map_info
from fastsocket.errors import FastsocketError, UsageError
from fastsocket.native import native_file
from fastsocket.steer.check import Rule
from fastsocket.steer.compile import CompiledRule, compile_rule
from fastsocket.steer.kernel import BPF_MAP_TYPE_LRU_HASH, allow_frags, set_map_type
from fastsocket.steer.language import VALUE, Table, TableKind
from fastsocket.steer.layout import MAX_CPUS, Exit, Settings, State
from fastsocket.steer.threads import schedule_batch

__all__ = ["SteerProgram", "per_cpu_sum", "read_table", "settings_for", "write_table"]

_QUEUE = 4096
"""Packets that wait for a CPU at most (cpumap's qsize); those beyond are lost, as with RPS."""


class _SteerObject(BpfObject):
    """The compiled object before loading."""

    def shape(self, table: Table) -> None:
        """Give the map of a table its size and type."""
        if table.kind == TableKind.COUNTER:
            return
        self.resize_map(table.map_name, table.size)
        if table.lru:
            set_map_type(self._map_handle(table.map_name), BPF_MAP_TYPE_LRU_HASH)


def settings_for(
    cpus: Sequence[int], tracing: bool = False, frags: bool = False, veth: bool = False
) -> Settings:
    """Return the program's constants for the set `cpus`.

    Raises:
        UsageError: More CPUs, or a higher number, than the program knows.
    """
    if len(cpus) > MAX_CPUS or max(cpus) >= MAX_CPUS:
        raise UsageError(f"at most the CPUs 0 to {MAX_CPUS - 1} can be steered to")
    settings = Settings(tracing=tracing, frags=frags, cpus=len(cpus), veth=veth)
    for number in range(MAX_CPUS):
        settings.index[number] = -1
    for index, number in enumerate(cpus):
        settings.number[index], settings.index[number] = number, index
    return settings


class SteerProgram:
    """A rule, loaded.

    Args:
        compiled: The rule as compiled for ``len(cpus)`` CPUs.
        cpus: CPUs of the set: what a rule calls 0 is ``cpus[0]``.
        tracing: Keep each result for `trace` and redirect nothing, as test runs do.
        reuse: Descriptors of maps to take over, by the table's name in the rule.
        veth: The device is a veth: leave packets alone whose checksum is not finished.
        wait: Packets wait until what runs on their CPU sleeps, where that is possible.

    Attributes:
        frags: Whether packets of several buffers (jumbo frames) are handled by this kernel.
        prompt: CPUs that packets always interrupt, as their threads cannot be made to wait.

    Raises:
        BpfError: The kernel refuses.
    """

    def __init__(
        self,
        compiled: CompiledRule,
        cpus: Sequence[int],
        tracing: bool = False,
        reuse: Mapping[str, int] | None = None,
        veth: bool = False,
        wait: bool = True,
    ) -> None:
        self._veth, self._wait = veth, wait
        self.rule: Rule = compiled.rule
        self.cpus = tuple(cpus)
        self.frags = True
        self.prompt: frozenset[int] = frozenset()
        self._object = self._load_somehow(compiled, tracing, reuse or {})
        self._state = self._object.map(".bss.steer").mmap(4096, writable=False) if tracing else None
        if not tracing:
            self._open_cpus()
        for name, table in self.rule.tables.items():
            if table.kind != TableKind.COUNTER and name not in (reuse or {}):
                for key, value in table.entries:
                    write_table(table, self.map(name), key, value)

    @property
    def program(self) -> Program:
        """The XDP program."""
        return self._object.program("steer")

    def map(self, name: str) -> Map:
        """Return the map of the table `name` of the rule.

        Raises:
            UsageError: The rule has no such table.
        """
        if name not in self.rule.tables:
            raise UsageError(
                f"{self.rule.name} has no table {name}", "",
                f"it has {', '.join(self.rule.tables) or 'none'}",
            )  # fmt: skip
        return self._object.map(self.rule.tables[name].map_name)

    def system_map(self, name: str) -> Map:
        """Return the dispatcher's own map `name`: ``cpus``, ``batch``, ``queues`` or ``exits``."""
        return self._object.map(name)

    def exits(self) -> dict[Exit, int]:
        """Return how many packets left each way so far."""
        exits = self._object.map("exits")
        return {way: per_cpu_sum(exits, int(way)) for way in Exit}

    def counters(self) -> dict[str, int]:
        """Return the rule's counters, each summed over the CPUs."""
        counters = [t for t in self.rule.tables.values() if t.kind == TableKind.COUNTER]
        return {table.name: per_cpu_sum(self.map(table.name), table.slot) for table in counters}

    def trace(self, frame: bytes) -> tuple[Exit, int]:
        """Run the program on one Ethernet frame; return its way out and the rule's result.

        Only for programs loaded with `tracing`.

        Raises:
            FastsocketError: Not loaded so.
            BpfError: The kernel takes no such frame: shorter than 14 bytes, or too long.
        """
        if self._state is None:
            raise FastsocketError("this program was not loaded for tracing")
        self.program_run(frame)
        state = State.from_buffer_copy(self._state)
        return Exit(state.way), state.verdict

    def program_run(self, frame: bytes, repeat: int = 1) -> int:
        """Run the program `repeat` times on `frame`; return the mean duration in ns."""
        return self.program.test_run(frame, repeat).duration_ns

    def close(self) -> None:
        """Free what is not attached or pinned."""
        if self._state is not None:
            self._state.close()
        self._object.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _load_somehow(
        self, compiled: CompiledRule, tracing: bool, reuse: Mapping[str, int]
    ) -> _SteerObject:
        """Load; where the verifier gives up, carefully, and where it must be, without frags."""
        try:
            return self._load(compiled, tracing, reuse)
        except BpfError as error:
            if error.errno in (errno.E2BIG, errno.ENOSPC) and not compiled.careful:
                again = compile_rule(compiled.rule, compiled.function.cpus, careful=True)
                return self._load_somehow(again, tracing, reuse)
            if error.errno in (errno.EINVAL, errno.EOPNOTSUPP) and self.frags:
                self.frags = False
                return self._load_somehow(compiled, tracing, reuse)
            raise

    def _load(
        self, compiled: CompiledRule, tracing: bool, reuse: Mapping[str, int]
    ) -> _SteerObject:
        loaded = _SteerObject(compiled.object, self.rule.name)
        try:
            for name in ("cpus", "batch", "queues"):
                loaded.resize_map(name, min(possible_cpus(), MAX_CPUS))
            for name, table in self.rule.tables.items():
                loaded.shape(table)
                if name in reuse:
                    loaded.reuse_map(table.map_name, reuse[name])
            if self.frags:
                allow_frags(loaded.program("steer").handle)
            settings = settings_for(self.cpus, tracing, self.frags, self._veth)
            loaded.set_variable(0, bytes(settings), ".rodata.steer")
            return loaded.load()
        except BaseException:
            loaded.close()
            raise

    def _open_cpus(self) -> None:
        """Give each CPU of the set its threads (struct bpf_cpumap_val: size, program)."""
        with BpfObject(native_file("steer_taken.bpf.o")) as counting:
            counting.reuse_map("queues", self._object.map("queues").fd)
            if self.frags:
                allow_frags(counting.program("steer_taken").handle)
            counting.load()
            value = struct.pack("=Ii", _QUEUE, counting.program("steer_taken").fd)
            for name in ("cpus", "batch") if self._wait else ("cpus",):
                threads = self._object.map(name)
                for number in self.cpus:
                    threads.update(struct.pack("=I", number), value)
        if not self._wait:
            return
        batch = self._object.map("batch")
        self.prompt = frozenset(self.cpus) - schedule_batch(map_info(batch.fd).number, self.cpus)
        for number in self.prompt:
            batch.delete(struct.pack("=I", number))


def per_cpu_sum(counts: Map, index: int) -> int:
    """Return an entry of a per-CPU array of 64-bit counts, summed over the CPUs."""
    value = counts.lookup(struct.pack("=I", index), 8 * possible_cpus())
    return sum(struct.unpack(f"={len(value) // 8}Q", value)) if value else 0


def write_table(table: Table, kept: Map, key: int | str, value: int) -> None:
    """Set an entry of a table.

    Raises:
        UsageError: Not a key of this table, or not a value of 32 bits.
        BpfError: The table is full.
    """
    if value not in VALUE:
        raise UsageError(f"{value} does not fit", "values of tables have 32 signed bits")
    kept.update(table.key_bytes(key), struct.pack("=i", value))


def read_table(table: Table, kept: Map, key: int | str) -> int | None:
    """Return an entry of a table, or None.

    Raises:
        UsageError: Not a key of this table.
    """
    value = kept.lookup(table.key_bytes(key))
    return None if value is None else int(struct.unpack("=i", value)[0])
