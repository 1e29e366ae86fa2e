# SPDX-License-Identifier: GPL-2.0-or-later
"""Talking to a running irqbalance, so that it leaves our interrupts alone without being killed.

Its control socket takes one command a connection: ``setup`` answers with the banned interrupts,
``settings ban irqs N N …`` replaces them (``NONE`` = empty). Source: sock_handle() of
irqbalance.c, versions 1.3 to 1.9. The bans last until that process ends.
"""

import re
import socket
from collections.abc import Iterable
from pathlib import Path

from fastsocket.nic.facts import Irqbalance

__all__ = ["ban", "find_irqbalance"]

_TIMEOUT_S = 2.0
_REPLY_BYTES = 1 << 20


def _ask(path: str, command: str) -> str:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as link:
        link.settimeout(_TIMEOUT_S)
        link.connect(path)
        link.sendall(command.encode())
        parts = []
        while part := link.recv(_REPLY_BYTES):
            parts.append(part)
        return b"".join(parts).decode(errors="replace")


def _banned(path: str) -> tuple[int, ...]:
    return tuple(sorted(int(number) for number in re.findall(r"\bIRQ (\d+)", _ask(path, "setup"))))


def find_irqbalance(root: Path = Path("/")) -> Irqbalance:
    """Return the irqbalance that runs, by its process; without one, `Irqbalance.pid` is 0."""
    for comm in (root / "proc").glob("[0-9]*/comm"):
        try:
            if comm.read_text().strip() != "irqbalance":
                continue
        except OSError:
            continue
        pid = int(comm.parent.name)
        path = root / f"run/irqbalance/irqbalance{pid}.sock"
        try:
            return Irqbalance(pid, str(path), _banned(str(path)))
        except OSError as error:
            return Irqbalance(pid, refused=isinstance(error, PermissionError))
    return Irqbalance()


def ban(path: str, irqs: Iterable[int]) -> None:
    """Replace the interrupts that irqbalance leaves alone.

    Raises:
        OSError: It does not answer at `path`.
    """
    words = " ".join(str(number) for number in sorted(irqs)) or "NONE"
    _ask(path, f"settings ban irqs {words}")
