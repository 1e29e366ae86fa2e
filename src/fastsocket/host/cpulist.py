# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's list format for sets of CPUs, as in ``0-3,8`` (cpuset(7), FORMATS)."""

from collections.abc import Iterable

__all__ = ["format_cpu_list", "parse_cpu_list"]


def parse_cpu_list(text: str) -> frozenset[int]:
    """Return the CPUs that a list such as ``0-3,8`` or ``0-31:2/4`` names.

    An empty list is an empty set, as in the cpuset of an offline node.

    Raises:
        ValueError: The text is not a list of CPUs.
    """
    cpus: set[int] = set()
    for part in filter(None, (piece.strip() for piece in text.strip().split(","))):
        span, _, stride = part.partition(":")
        first, _, last = span.partition("-")
        low, high = int(first), int(last or first)
        used, _, group = stride.partition("/")
        run, step = (int(used), int(group)) if stride else (1, 1)
        if high < low or run < 1 or step < run:
            raise ValueError(f"not a list of CPUs: {text.strip()!r}")
        cpus.update(cpu for cpu in range(low, high + 1) if (cpu - low) % step < run)
    return frozenset(cpus)


def format_cpu_list(cpus: Iterable[int]) -> str:
    """Return the shortest list, runs joined: ``{0, 1, 2, 8}`` becomes ``0-2,8``."""
    runs: list[list[int]] = []
    for cpu in sorted(set(cpus)):
        if runs and cpu == runs[-1][1] + 1:
            runs[-1][1] = cpu
        else:
            runs.append([cpu, cpu])
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in runs)
