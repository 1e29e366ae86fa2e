# SPDX-License-Identifier: GPL-2.0-or-later
"""Facts and plans as text for people. Pure."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TypeVar

from fastsocket.host.cpulist import format_list
from fastsocket.nic.changes import Change, Note, Plan
from fastsocket.nic.facts import Counts, HostFacts, Nic

__all__ = ["facts_text", "plan_text"]

Q = TypeVar("Q")


def plan_text(plan: Plan) -> str:
    """Return a plan; neighbouring lines with the same reason and risk share them."""
    count = len(plan.changes)
    head = f"{plan.target}, profile {plan.profile}: "
    lines = [head + (f"{count} change{'s' if count > 1 else ''}" if count else "nothing to change")]
    for (why, risk), group in groupby(plan.changes, key=lambda line: (line.why, line.risk)):
        lines.extend(f"  {_arrow(line)}" for line in group)
        lines.append(f"      why:  {why}")
        lines.append(f"      risk: {risk}")
    lines.extend(_note(note) for note in plan.notes)
    return "\n".join(lines)


def _arrow(line: Change) -> str:
    return f"{line.what}: {line.old or 'none'} -> {line.new or 'none'}"


def _note(note: Note) -> str:
    todo = f"; {note.todo}" if note.todo else ""
    return f"  {note.level}: {note.what}: {note.why}{todo}"


def facts_text(facts: HostFacts) -> str:
    """Return the facts that a person looks for first; the JSON has them all."""
    topology = facts.topology
    lines = [
        f"kernel {facts.kernel}, {len(topology.online)} CPUs online in {topology.cores} cores, "
        f"{len(topology.packages)} packages, {len(topology.nodes)} NUMA nodes; "
        f"this process may use {facts.allowed}"
    ]
    for word, cpus in (
        ("offline", [cpu.id for cpu in topology.cpus if not cpu.online]),
        ("isolated", [cpu.id for cpu in topology.cpus if cpu.isolated]),
    ):
        lines += [f"{word}: CPU {format_list(cpus)}"] if cpus else []
    for nic in facts.nics:
        lines.extend(_nic_lines(nic))
    netfilter = facts.netfilter
    seen = [*netfilter.tables] + ["not seen without root and nft"] * (not netfilter.visible)
    lines.append(f"netfilter: {', '.join(seen) or 'no tables'}")
    tracked = f"{netfilter.connections} connections" if netfilter.conntrack else "not active"
    lines.append(f"connection tracking: {tracked}")
    daemon = facts.irqbalance
    lines.append(f"irqbalance: {f'process {daemon.pid}' if daemon.pid else 'not running'}")
    lines.append(f"open files: at most {facts.open_files}")
    lines.extend(f"{name} = {value}" for name, value in sorted(facts.sysctls.items()))
    return "\n".join(lines)


def _nic_lines(nic: Nic) -> Iterator[str]:
    state = "up" if nic.up and nic.carrier else "no link" if nic.up else "down"
    place = [word for word in (nic.driver, nic.model, nic.bus) if word]
    place += [f"NUMA node {nic.node}"] if nic.node >= 0 else []
    place += [f"{nic.speed} Mbit/s"] if nic.speed > 0 else []
    yield f"{nic.name}: {nic.kind}, {state}, {', '.join(place) or 'no hardware'}"
    if nic.lower:
        yield f"  stands on {', '.join(nic.lower)}"
    if nic.bond:
        yield f"  mode {nic.bond.mode}, hash policy {nic.bond.hash_policy or 'none'}"
    for word, counts in (("channels", nic.channels), ("rings", nic.rings)):
        if counts:
            yield f"  {word}: {_counts(counts)}"
    if nic.coalesce:
        words = (f"{name} {value}" for name, value in nic.coalesce.items())
        yield f"  throttling: {', '.join(words)}"
    if nic.indirection:
        queues = len(set(nic.indirection))
        yield f"  RSS: {len(nic.indirection)} buckets over {queues} queues"
    if nic.rule_limit:
        yield f"  flow rules: {len(nic.rules)} of {nic.rule_limit}"
    yield f"  qdisc {nic.qdisc or 'none'}, {nic.drops} packets dropped for want of descriptors"
    for irq in nic.irqs:
        serves = f"{irq.kind} {irq.queue}" if irq.kind != "other" else "no queue"
        yield f"  interrupt {irq.number} {irq.name}: {serves}, CPU {irq.affinity}"
    for numbers, rx in _alike(nic.rx):
        yield f"  rx {numbers}: RPS {rx.rps_cpus or 'off'}, RFS {rx.rps_flow_cnt or 'off'}"
    for numbers, tx in _alike(nic.tx):
        yield f"  tx {numbers}: XPS {tx.xps_cpus or 'off'}"


def _alike(queues: Sequence[Q]) -> Iterator[tuple[str, Q]]:
    """Yield the numbers of queues that are set alike, and what they are set to."""
    numbers: dict[Q, list[int]] = {}
    for number, queue in enumerate(queues):
        numbers.setdefault(queue, []).append(number)
    yield from ((format_list(alike), queue) for queue, alike in numbers.items())


def _counts(counts: Counts) -> str:
    return ", ".join(f"{name} {now} of {counts.most[name]}" for name, now in counts.now.items())
