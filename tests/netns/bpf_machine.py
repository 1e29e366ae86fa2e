# SPDX-License-Identifier: GPL-2.0-or-later
"""Counts the instructions that a loaded steer program executes for a packet.

An interpreter of BPF (RFC 9669) in Python: unlike the time that a packet takes, what it counts is
the same on every machine. Look-ups in tables are real ones, in the program's own maps.
"""

import operator
import struct
from collections.abc import Callable
from ctypes import POINTER, c_size_t, c_uint64, c_void_p

from fastsocket.bpf.libbpf import Map, library
from fastsocket.bpf.objects import map_by_id, map_info
from fastsocket.steer.program import SteerProgram

M32, M64 = 0xFFFF_FFFF, 0xFFFF_FFFF_FFFF_FFFF
PERCPU_ARRAY = 6
LOOKUP, UPDATE, REDIRECT, BUFFER_LENGTH = 1, 2, 51, 188
CONSTANT_CALLS = {5: 12_345_678, 8: 0, 84: 0, 85: 0}  # the clock, this CPU, socket look-ups
CONTEXT, PACKET, STACK = 1 << 32, 2 << 32, 3 << 32
SIZES = {0: 4, 1: 2, 2: 1, 3: 8}  # W, H, B, DW
CALCULATIONS: list[Callable[[int, int], int]] = [
    operator.add, operator.sub, operator.mul, lambda a, b: a // b if b else 0, operator.or_,
    operator.and_, lambda a, b: a << b, lambda a, b: a >> b, lambda a, b: -a,
    lambda a, b: a % b if b else a, operator.xor, lambda a, b: b,
]  # fmt: skip
ARITHMETIC_SHIFT, SWAP = 12, 13


def signed(number: int, bits: int) -> int:
    return number - (1 << bits) if number >> (bits - 1) & 1 else number


COMPARISONS: dict[int, Callable[[int, int, int], bool]] = {
    0: lambda a, b, n: True, 1: lambda a, b, n: a == b, 2: lambda a, b, n: a > b,
    3: lambda a, b, n: a >= b, 4: lambda a, b, n: bool(a & b), 5: lambda a, b, n: a != b,
    6: lambda a, b, n: signed(a, n) > signed(b, n), 7: lambda a, b, n: signed(a, n) >= signed(b, n),
    10: lambda a, b, n: a < b, 11: lambda a, b, n: a <= b,
    12: lambda a, b, n: signed(a, n) < signed(b, n),
    13: lambda a, b, n: signed(a, n) <= signed(b, n),
}  # fmt: skip


class Machine:
    """Runs the program of `loaded` on one frame; `executed` counts instructions."""

    def __init__(self, loaded: SteerProgram, frame: bytes) -> None:
        find, count = library().bpf_program__insns, library().bpf_program__insn_cnt
        find.restype, count.restype = POINTER(c_uint64), c_size_t
        handle = c_void_p(loaded.program.handle)
        self.code: list[int] = find(handle)[: count(handle)]
        self.frame, self.executed = frame, 0
        self.memory = {PACKET: bytearray(frame), STACK: bytearray(512)}
        self.maps: dict[int, Map] = {}
        self.values: dict[int, int] = {}
        self.r = [0] * 11
        self.r[1], self.r[10] = CONTEXT, STACK + 512

    def load(self, at: int, size: int) -> int:
        if at >> 32 == CONTEXT >> 32:
            field = at & M32
            return {0: PACKET, 4: PACKET + len(self.frame)}.get(field, 0)
        region = self.memory[at & ~M32]
        return int.from_bytes(region[at & M32 : (at & M32) + size], "little")

    def store(self, at: int, size: int, value: int) -> None:
        region = self.memory[at & ~M32]
        region[at & M32 : (at & M32) + size] = (value & (1 << 8 * size) - 1).to_bytes(
            size, "little"
        )

    def place(self, content: bytes) -> int:
        at = len(self.memory) + 2 << 32
        self.memory[at] = bytearray(content)
        return at

    def map(self, fd: int) -> Map:
        if fd not in self.maps:
            self.maps[fd] = map_by_id(map_info(fd).number)
        return self.maps[fd]

    def value_of(self, fd: int) -> int:
        """Return where the only value of a data section's map is."""
        if fd not in self.values:
            self.values[fd] = self.place(self.map(fd).lookup(bytes(4)) or b"")
        return self.values[fd]

    def constant(self, source: int, low: int, high: int) -> int:
        """Return a number of 64 bits, a map, or a place in the data section that a map is."""
        if source == 2:
            return self.value_of(low) + high
        return low if source == 1 else low & M32 | high << 32

    def bytes_at(self, at: int, size: int) -> bytes:
        return bytes(self.memory[at & ~M32][at & M32 : (at & M32) + size])

    def call(self, helper: int) -> int:
        if helper in CONSTANT_CALLS:
            return CONSTANT_CALLS[helper]
        if helper == BUFFER_LENGTH:
            return len(self.frame)
        if helper == REDIRECT:  # while tracing no CPU has a queue
            return self.r[3]
        kept = self.map(self.r[1])
        key = self.bytes_at(self.r[2], kept.key_size)
        if helper == UPDATE:
            kept.update(key, self.bytes_at(self.r[3], kept.value_size))
            return 0
        assert helper == LOOKUP, helper
        if map_info(self.r[1]).kind == PERCPU_ARRAY:
            return self.place(bytes(kept.value_size))
        found = kept.lookup(key)
        return 0 if found is None else self.place(found)

    def calculate(self, code: int, target: int, right: int, bits: int, immediate: int) -> None:
        operation, left = code >> 4, self.r[target] & (1 << bits) - 1
        if operation == SWAP:
            size = immediate // 8
            if code & 8:
                left = int.from_bytes((left & (1 << immediate) - 1).to_bytes(size, "little"), "big")
            self.r[target] = left & (1 << immediate) - 1
            return
        right &= (1 << bits) - 1
        if operation == ARITHMETIC_SHIFT:
            left = signed(left, bits) >> (right & bits - 1)
        else:
            shift = operation in (6, 7)
            left = CALCULATIONS[operation](left, right & bits - 1 if shift else right)
        self.r[target] = left & (1 << bits) - 1

    def run(self) -> int:
        """Return the program's result."""
        at = 0
        while True:
            word = struct.pack("=Q", self.code[at])
            code, registers, offset, immediate = struct.unpack("=BBhi", word)
            target, source = registers & 15, registers >> 4
            self.executed += 1
            at += 1
            kind, right = code & 7, self.r[source] if code & 8 else immediate
            if kind in (4, 7):
                # The swap's flag says to which order, its operand how many bits.
                width = 64 if kind == 7 or code >> 4 == SWAP else 32
                self.calculate(code, target, right, width, immediate)
            elif code == 0x95:
                return self.r[0]
            elif code == 0x85:
                self.r[0] = self.call(immediate) & M64
            elif kind in (5, 6):
                bits = 64 if kind == 5 else 32
                mask = (1 << bits) - 1
                if COMPARISONS[code >> 4](self.r[target] & mask, right & mask, bits):
                    at += offset
            elif code == 0x18:
                high = self.code[at] >> 32
                at += 1
                self.r[target] = self.constant(source, immediate, high)
            elif kind == 1:
                self.r[target] = self.load(self.r[source] + offset & M64, SIZES[code >> 3 & 3])
            else:
                self.write(code, self.r[target] + offset & M64, source, right, immediate)

    def write(self, code: int, to: int, source: int, right: int, immediate: int) -> None:
        size = SIZES[code >> 3 & 3]
        if code & 7 == 2:
            self.store(to, size, immediate)
        elif code >> 5 == 6:  # atomic addition, which returns what was there if asked
            before = self.load(to, size)
            self.store(to, size, before + self.r[source])
            if immediate & 1:
                self.r[source] = before
        else:
            self.store(to, size, self.r[source])

    def left(self, content: bytes) -> bool:
        """Say whether a data section of the program begins with `content` now."""
        return any(self.memory[at].startswith(content) for at in self.values.values())

    def close(self) -> None:
        """Close the maps; those of the program stay."""
        for kept in self.maps.values():
            kept.close()
