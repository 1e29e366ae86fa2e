# SPDX-License-Identifier: GPL-2.0-or-later
"""Which queue an interrupt serves, told from the name that its driver gave it.

There is no other source that all supported kernels have; the names are those that the drivers
pass to request_irq(). They are the name of an action in /proc/interrupts.
"""

import re
from collections.abc import Iterable
from typing import Literal

from fastsocket.nic.facts import Irq

__all__ = ["assign_queues", "classify"]

Kind = Literal["combined", "rx", "tx", "other"]

# First match wins; the number in the name is the queue.
# ixgbe, igb, igc, i40e, ice, iavf, bnxt (TxRx), ena (Tx-Rx), vmxnet3 and nfp (rxtx), bnx2x (fp),
# mlx5 (comp), virtio-net (input, output), xen-netfront (q0-rx), e1000e (rx-0).
_GENERAL: tuple[tuple[re.Pattern[str], Kind], ...] = (
    (re.compile(r"(?:-TxRx-|-Tx-Rx-|-rxtx-|-txrx-|-fp-|^mlx5_comp)(\d+)(?:@.*)?$"), "combined"),
    (re.compile(r"-input\.(\d+)$"), "rx"),
    (re.compile(r"-output\.(\d+)$"), "tx"),
    (re.compile(r"-q(\d+)-rx$"), "rx"),
    (re.compile(r"-q(\d+)-tx$"), "tx"),
    (re.compile(r"-rx-(\d+)$", re.IGNORECASE), "rx"),
    (re.compile(r"-tx-(\d+)$", re.IGNORECASE), "tx"),
)
_GVE = re.compile(r"(?:gve-ntfy-blk|-ntfy-block\.)(\d+)(?:@.*)?$")


def classify(name: str, interface: str, driver: str) -> tuple[Kind, int]:
    """Return what the interrupt `name` of `interface` serves, and the number of its queue."""
    if driver == "tg3" and (found := re.search(r"-(txrx|rx|tx)-(\d+)$", name)):
        # tg3 numbers vectors, and its vector 0 is the link's; named tx-0 it also transmits.
        number = int(found[2])
        kind: Kind = "combined" if found[1] == "txrx" else "rx" if found[1] == "rx" else "tx"
        return kind, max(number - 1, 0)
    if driver == "bnx2" and (found := re.fullmatch(re.escape(interface) + r"-(\d+)", name)):
        return "combined", int(found[1])
    for pattern, general in _GENERAL:
        if found := pattern.search(name):
            return general, int(found[1])
    return "other", 0


def assign_queues(
    found: Iterable[tuple[int, str, str]], interface: str, driver: str
) -> tuple[Irq, ...]:
    """Return the interrupts of a card from their (number, name, affinity list)."""
    rows = sorted(found)
    blocks = sum(1 for _, name, _ in rows if _GVE.search(name))
    irqs = []
    for number, name, affinity in rows:
        if block := _GVE.search(name):
            # gve: the first half of the blocks transmits and the second half receives.
            index, half = int(block[1]), blocks // 2
            kind: Kind = "tx" if index < half else "rx"
            irqs.append(Irq(number, name, kind, index % half, affinity))
        else:
            irqs.append(Irq(number, name, *classify(name, interface, driver), affinity))
    if len(irqs) == 1 and irqs[0].kind == "other":
        # One interrupt for everything, as with INTx and MSI.
        irqs = [Irq(irqs[0].number, irqs[0].name, "combined", 0, irqs[0].affinity)]
    return tuple(irqs)
