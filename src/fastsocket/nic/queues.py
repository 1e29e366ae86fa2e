# SPDX-License-Identifier: GPL-2.0-or-later
"""Plans a card's queues: how many, on which CPU, and who feeds the CPUs without one. Pure."""

from collections import Counter
from collections.abc import Iterator, Sequence

import msgspec

from fastsocket.host.cpulist import format_list
from fastsocket.host.topology import Topology, order_physical_first
from fastsocket.nic.changes import COMING, Change, Setting, change
from fastsocket.nic.drivers import driver_of, rss_reach
from fastsocket.nic.facts import Irq, Nic

__all__ = ["Layout", "lay_out", "plan_queues", "share_idle"]


class Layout(msgspec.Struct):
    """The queues of one card as they will be."""

    nic: Nic
    channels: dict[str, int]
    """Channel counts to set, where they differ from now."""
    rx: list[int]
    """CPU of each receive queue."""
    tx: list[int]
    """CPU of each transmit queue."""
    reach: int
    """Receive queues, from the first, that RSS spreads packets over."""
    shares: list[list[int]] = []
    """For each of those queues, the CPUs without a queue that it feeds."""


def lay_out(nic: Nic, topology: Topology, cpus: Sequence[int], used: Counter[int]) -> Layout:
    """Return the queues of a card on `cpus`; `used` counts queues that other cards have there."""
    channels: dict[str, int] = {}
    rx, tx = len(nic.rx), len(nic.tx)
    if nic.channels and cpus:
        now, most = nic.channels.now, nic.channels.most
        names = ("combined",) if most.get("combined") else tuple(most)
        wanted = {name: min(most[name], len(cpus)) for name in names}
        channels = {name: count for name, count in wanted.items() if now[name] != count}
        if channels:
            rx = wanted.get("combined", wanted.get("rx", rx))
            tx = wanted.get("combined", wanted.get("tx", tx))
    # A queue pair stays on one CPU, so the longer list decides.
    owners = _give(nic, topology, cpus, max(rx, tx), used)
    return Layout(nic, channels, owners[:rx], owners[:tx], rss_reach(nic, rx))


def _give(
    nic: Nic, topology: Topology, cpus: Sequence[int], queues: int, used: Counter[int]
) -> list[int]:
    """Round robin over the CPUs: the least used first, then physical cores, then the node."""
    order = order_physical_first(topology, cpus, nic.node)
    rank = {cpu: position for position, cpu in enumerate(order)}
    given: list[int] = []
    for _ in range(queues if order else 0):
        best = min(order, key=lambda cpu: (used[cpu], rank[cpu]))
        used[best] += 1
        given.append(best)
    return given


def share_idle(layouts: Sequence[Layout], topology: Topology, cpus: Sequence[int]) -> None:
    """Give every CPU that no queue's packets reach to one queue of the cards in `layouts`.

    Cards of a bond that are all in use share the CPUs; call it for each card alone otherwise.
    The shares differ by one at most; among equal ones a CPU goes to the queue of its
    hyper-thread, then of its last-level cache, then of its NUMA node.
    """
    for layout in layouts:
        layout.shares = [[] for _ in range(layout.reach)]
    fed = [
        (cpu, layout.shares[queue])
        for layout in layouts
        for queue, cpu in enumerate(layout.rx[: layout.reach])
    ]
    served = {cpu for cpu, _ in fed}
    known = {cpu.id: cpu for cpu in topology.cpus}
    for number in order_physical_first(topology, cpus):
        if number in served or not fed:
            continue
        mine = known[number]
        ranked = []
        for index, (cpu, share) in enumerate(fed):
            owner = known[cpu]
            near = (
                number not in owner.siblings,
                owner.llc != mine.llc,
                topology.distance(mine.node, owner.node),
            )
            ranked.append((len(share), near, index))
        fed[min(ranked)[2]][1].append(number)


def plan_queues(layout: Layout) -> Iterator[Change]:
    """Yield the changes that bring about a layout."""
    nic = layout.nic
    yield from _plan_channels(layout)
    if nic.kind == "card":
        yield from _plan_irqs(layout)
    yield from _plan_rps(layout)
    yield from _plan_xps(layout)


def _plan_channels(layout: Layout) -> Iterator[Change]:
    nic = layout.nic
    if nic.channels is None:
        return
    for name, count in layout.channels.items():
        now, most = nic.channels.now[name], nic.channels.most[name]
        if count < now:
            why = f"{now} queues for {count} CPUs: a second queue on a CPU only adds interrupts"
        elif count == most:
            why = f"one queue for each CPU, up to the {most} that the card has"
        else:
            why = "one queue for each CPU"
        yield change(
            Setting("channels", nic.name, name),
            str(now),
            str(count),
            why,
            driver_of(nic).channels_risk,
        )


def _plan_irqs(layout: Layout) -> Iterator[Change]:
    """One CPU for each queue's interrupt. Interrupts of queues to come have no value yet."""
    nic = layout.nic
    serving: dict[tuple[str, int], Irq] = {
        (irq.kind, irq.queue): irq for irq in nic.irqs if irq.kind != "other"
    }
    if not serving:
        return
    why = "one queue a CPU, physical cores first"
    if nic.node >= 0:
        why += f", from NUMA node {nic.node} of the card on"
    alone = any(kind == "tx" for kind, _ in serving)
    if driver_of(nic).pairs_vectors and len(layout.tx) > 1:
        alone = False
    for direction, owners in (("rx", layout.rx), ("tx", layout.tx if alone else [])):
        for queue, cpu in enumerate(owners):
            irq = serving.get((direction, queue))
            if direction == "rx":
                irq = irq or serving.get(("combined", queue))
            if irq is None and not layout.channels:
                continue
            old, new = irq.affinity if irq else COMING, str(cpu)
            if old != new:
                setting = Setting("irq", nic.name, f"{direction}-{queue}")
                yield change(setting, old, new, why, "none while that CPU is online")


def _plan_rps(layout: Layout) -> Iterator[Change]:
    nic = layout.nic
    for queue, owner in enumerate(layout.rx):
        share = layout.shares[queue] if queue < layout.reach else []
        # A virtual interface has no interrupts: its packets arrive on the CPU that sent them.
        wanted = format_list([owner, *share]) if share and nic.kind == "card" else ""
        old = nic.rx[queue].rps_cpus if queue < len(nic.rx) else ""
        if old == wanted:
            continue
        if wanted:
            lack = "that RSS does not reach" if set(share) & set(layout.rx) else "without a queue"
            why = f"CPUs {lack} share that of a near one, which keeps its part"
            risk = "an interrupt between CPUs for each packet that is moved"
        elif nic.kind == "card":
            why = "a queue's own CPU is to handle its packets: moving them loses locality"
            risk = "its other CPUs get no more packets from it"
        else:
            why = "packets arrive on the CPU that sent them: moving them loses locality"
            risk = "other CPUs get no more packets from it"
        yield change(Setting("rps", nic.name, str(queue)), old, wanted, why, risk)


def _plan_xps(layout: Layout) -> Iterator[Change]:
    """One transmit queue for each CPU; CPUs without one share that of their receive queue."""
    nic = layout.nic
    if len(layout.tx) < 2:
        return
    groups: list[set[int]] = [{cpu} for cpu in layout.tx]
    served = set(layout.tx)
    for queue, share in enumerate(layout.shares):
        # RSS may reach fewer queues than there are to send on.
        groups[queue % len(groups)].update(cpu for cpu in share if cpu not in served)
    for queue, group in enumerate(groups):
        old = nic.tx[queue].xps_cpus if queue < len(nic.tx) else COMING
        new = format_list(group)
        if old != new:
            why = (
                "each CPU sends on a queue of its own: no lock, and completions come back to it"
                if len(group) == 1
                else "fewer queues than CPUs: each CPU sends on the queue that it receives from"
            )
            yield change(Setting("xps", nic.name, str(queue)), old, new, why, "none")
