# SPDX-License-Identifier: GPL-2.0-or-later
"""Ranges of integers, and the arithmetic on them that proves a rule stays within 64 bits.

Each operation returns the smallest range that is cheap to state and holds every result of Python's
operator on operands from the given ranges. Results may lie outside 64 bits: the caller decides.
"""

from dataclasses import dataclass
from typing import Self

__all__ = ["BOOL", "I64", "Interval"]


@dataclass(frozen=True, slots=True)
class Interval:
    """All integers from `lo` to `hi`, both included."""

    lo: int
    hi: int

    @classmethod
    def of(cls, value: int) -> Self:
        """The range that holds one integer."""
        return cls(value, value)

    @property
    def single(self) -> int | None:
        """The only integer in the range, or None if there are more."""
        return self.lo if self.lo == self.hi else None

    def __contains__(self, value: int) -> bool:
        """Whether `value` is in the range."""
        return self.lo <= value <= self.hi

    def within(self, other: "Interval") -> bool:
        """Whether all of this range is in `other`."""
        return other.lo <= self.lo and self.hi <= other.hi

    def join(self, other: "Interval") -> "Interval":
        """The smallest range that holds both."""
        return Interval(min(self.lo, other.lo), max(self.hi, other.hi))

    def meet(self, lo: int | None = None, hi: int | None = None) -> "Interval | None":
        """The part from `lo` to `hi`, or None where nothing is left."""
        low = self.lo if lo is None else max(self.lo, lo)
        high = self.hi if hi is None else min(self.hi, hi)
        return Interval(low, high) if low <= high else None

    def without(self, value: int) -> "Interval | None":
        """The range without `value` if that is one of its ends, else as it is."""
        if self.single == value:
            return None
        if self.lo == value:
            return Interval(value + 1, self.hi)
        return Interval(self.lo, value - 1) if self.hi == value else self

    def __add__(self, other: "Interval") -> "Interval":
        """Range of a + b."""
        return Interval(self.lo + other.lo, self.hi + other.hi)

    def __sub__(self, other: "Interval") -> "Interval":
        """Range of a - b."""
        return Interval(self.lo - other.hi, self.hi - other.lo)

    def __neg__(self) -> "Interval":
        """Range of -a."""
        return Interval(-self.hi, -self.lo)

    def __invert__(self) -> "Interval":
        """Range of ~a."""
        return Interval(~self.hi, ~self.lo)

    def __mul__(self, other: "Interval") -> "Interval":
        """Range of a * b."""
        return _corners([a * b for a in (self.lo, self.hi) for b in (other.lo, other.hi)])

    def __floordiv__(self, other: "Interval") -> "Interval":
        """Range of a // b; 0 must not be in `other`."""
        return _corners([a // b for a in (self.lo, self.hi) for b in (other.lo, other.hi)])

    def __mod__(self, other: "Interval") -> "Interval":
        """Range of a % b, which has the sign of b; 0 must not be in `other`."""
        if other.lo > 0:
            if self.lo >= 0 and self.hi < other.lo:
                return self
            return Interval(0, min(other.hi - 1, self.hi) if self.lo >= 0 else other.hi - 1)
        return Interval(other.lo + 1, 0)

    def __lshift__(self, other: "Interval") -> "Interval":
        """Range of a << b; `other` must not be negative."""
        return _corners([a << b for a in (self.lo, self.hi) for b in (other.lo, other.hi)])

    def __rshift__(self, other: "Interval") -> "Interval":
        """Range of a >> b; `other` must not be negative."""
        return _corners([a >> b for a in (self.lo, self.hi) for b in (other.lo, other.hi)])

    def __and__(self, other: "Interval") -> "Interval":
        """Range of a & b."""
        if self.lo >= 0 and other.lo >= 0:
            return Interval(0, min(self.hi, other.hi))
        if self.lo >= 0 or other.lo >= 0:
            return Interval(0, self.hi if self.lo >= 0 else other.hi)
        return self._bits(other)

    def __or__(self, other: "Interval") -> "Interval":
        """Range of a | b."""
        return self._bits(other)

    def __xor__(self, other: "Interval") -> "Interval":
        """Range of a ^ b."""
        return self._bits(other)

    def minimum(self, other: "Interval") -> "Interval":
        """Range of min(a, b)."""
        return Interval(min(self.lo, other.lo), min(self.hi, other.hi))

    def maximum(self, other: "Interval") -> "Interval":
        """Range of max(a, b)."""
        return Interval(max(self.lo, other.lo), max(self.hi, other.hi))

    def absolute(self) -> "Interval":
        """Range of abs(a)."""
        if self.lo >= 0:
            return self
        return -self if self.hi <= 0 else Interval(0, max(-self.lo, self.hi))

    def _bits(self, other: "Interval") -> "Interval":
        """Range of a bitwise result: as many bits as the wider operand has."""
        bits = max(value.bit_length() for value in (self.lo, self.hi, other.lo, other.hi))
        negative = self.lo < 0 or other.lo < 0
        return Interval(-(1 << bits) if negative else 0, (1 << bits) - 1)


def _corners(values: list[int]) -> Interval:
    """The range between the extremes, for operations that are monotone in each operand."""
    return Interval(min(values), max(values))


I64 = Interval(-(2**63), 2**63 - 1)
BOOL = Interval(0, 1)
