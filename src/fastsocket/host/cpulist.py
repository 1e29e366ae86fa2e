# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's two text forms of a CPU set: the list ``0-3,8`` and the mask ``ff,00000001``.

Sources: ``bitmap_parselist()`` and ``bitmap_parse()`` in the kernel's lib/bitmap-str.c.
"""

from collections.abc import Iterable
from pathlib import Path

__all__ = ["format_list", "format_mask", "online_cpus", "parse_list", "parse_mask"]

_ONLINE = Path("/sys/devices/system/cpu/online")
_GROUP_BITS = 32
_MOST = 65535  # CPUs are numbered below 8192 on every kernel; lists of ports have this form, too


def parse_list(text: str) -> tuple[int, ...]:
    """Return the CPUs of a list such as ``0-3,8`` in ascending order.

    Raises:
        ValueError: The text is no CPU list.
    """
    cpus: set[int] = set()
    for part in text.strip().split(","):
        if not part:
            continue
        first, _, last = part.partition("-")
        if int(last or first) > _MOST:
            raise ValueError(f"{part} is out of range")
        cpus.update(range(int(first), int(last or first) + 1))
    return tuple(sorted(cpus))


def format_list(cpus: Iterable[int]) -> str:
    """Return the CPUs as the kernel prints them: ``0-3,8``; empty for no CPU."""
    parts: list[str] = []
    first = last = None
    for cpu in sorted(set(cpus)):
        if last is not None and cpu == last + 1:
            last = cpu
            continue
        if first is not None:
            parts.append(f"{first}-{last}" if last != first else f"{first}")
        first = last = cpu
    if first is not None:
        parts.append(f"{first}-{last}" if last != first else f"{first}")
    return ",".join(parts)


def parse_mask(text: str) -> tuple[int, ...]:
    """Return the CPUs of a hexadecimal mask in groups of 32 bits, such as ``ff,00000001``.

    Raises:
        ValueError: The text is no mask.
    """
    bits = 0
    for group in text.strip().split(","):
        bits = bits << _GROUP_BITS | int(group or "0", 16)
    return tuple(cpu for cpu in range(bits.bit_length()) if bits >> cpu & 1)


def format_mask(cpus: Iterable[int], width: int = 1) -> str:
    """Return the CPUs as a mask of at least `width` bits, as the kernel prints it.

    The kernel pads every group but the first to eight digits, and the first to the digits that
    its number of possible CPUs needs: pass that number as `width` to get the same bytes.
    """
    bits = 0
    for cpu in cpus:
        bits |= 1 << cpu
    length = max(bits.bit_length(), width, 1)
    groups = -(-length // _GROUP_BITS)
    words = [bits >> _GROUP_BITS * i & 0xFFFFFFFF for i in reversed(range(groups))]
    head = -(-(length - _GROUP_BITS * (groups - 1)) // 4)
    return ",".join([f"{words[0]:0{head}x}", *(f"{word:08x}" for word in words[1:])])


def online_cpus() -> tuple[int, ...]:
    """Return the CPUs that are online, in ascending order."""
    return parse_list(_ONLINE.read_text())
