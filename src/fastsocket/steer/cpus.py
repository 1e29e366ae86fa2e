# SPDX-License-Identifier: GPL-2.0-or-later
"""The set of CPUs that a rule chooses from."""

from fastsocket.errors import UsageError
from fastsocket.host.cpulist import format_list, online_cpus

__all__ = ["cpu_set", "online_cpus", "parse_cpus"]


def parse_cpus(text: str) -> tuple[int, ...]:
    """Parse a list such as ``0-3,8`` in the order in which it is written.

    Raises:
        UsageError: Not such a list, or a CPU comes twice.
    """
    numbers: list[int] = []
    for part in text.strip().split(","):
        first, dash, last = part.partition("-")
        try:
            numbers += range(int(first), int(last if dash else first) + 1)
        except ValueError:
            raise UsageError(
                f"{text!r} is no list of CPUs", "", "write numbers and ranges, such as 0-3,8"
            ) from None
    if len(set(numbers)) != len(numbers) or not numbers or min(numbers) < 0:
        raise UsageError(f"{text!r} is no list of CPUs", "", "name each CPU once")
    return tuple(numbers)


def cpu_set(text: str | None) -> tuple[int, ...]:
    """Return the CPUs in `text`, or all that are online.

    Raises:
        UsageError: One of them is absent or offline.
    """
    online = online_cpus()
    chosen = parse_cpus(text) if text else online
    missing = sorted(set(chosen) - set(online))
    if missing:
        raise UsageError(
            f"CPU {', '.join(map(str, missing))} cannot take packets", "absent or offline",
            f"choose from {format_list(online)}",
        )  # fmt: skip
    return chosen
