# SPDX-License-Identifier: GPL-2.0-or-later
"""Makes a plan from facts. Pure: reads nothing, changes nothing, and gives the same plan again."""

from collections import Counter
from collections.abc import Iterator

from fastsocket.errors import UsageError
from fastsocket.host.cpulist import format_list, parse_list
from fastsocket.nic.changes import ORDER, Change, Note, Plan, Request, Setting, change
from fastsocket.nic.facts import HostFacts, Nic
from fastsocket.nic.profiles import OPEN_FILES_LOW, Profile, find_profile
from fastsocket.nic.queues import Layout, lay_out, plan_queues, share_idle
from fastsocket.nic.tuning import (
    plan_coalesce,
    plan_notrack,
    plan_rfs,
    plan_ring,
    plan_rss,
    plan_rules,
    plan_sysctls,
    takes_slices,
)

__all__ = ["choose_cpus", "lay_out_cards", "make_plan"]

_QUEUE_KINDS = frozenset({"irq", "irqbalance"})


def make_plan(facts: HostFacts, request: Request) -> Plan:
    """Return what to change on the host of `facts`.

    Raises:
        UsageError: The profile is unknown, a kind to skip is, or no CPU is left.
    """
    profile = find_profile(request.profile)
    if unknown := sorted(set(request.skip) - set(ORDER)):
        raise UsageError(f"there is no kind {unknown[0]}", "", f"choose from {', '.join(ORDER)}")
    changes, notes = [], []
    for line in _all_changes(facts, request, profile):
        if line.setting.kind in request.skip:
            continue
        if foreign := _not_ours(facts, line):
            notes.append(foreign)
        else:
            changes.append(line)
    if profile.slices:
        notes.extend(_slice_notes(facts, request))
    changes.sort(key=lambda line: ORDER.index(line.setting.kind))
    return Plan(
        facts.target,
        profile.name,
        tuple(changes),
        (*_merge(notes), *_notes(facts, request, bool(changes))),
    )


def choose_cpus(facts: HostFacts, request: Request) -> list[int]:
    """Return the CPUs that get queues: online, not isolated, allowed and asked for.

    Raises:
        UsageError: There is none.
    """
    allowed = set(parse_list(facts.allowed))
    if request.cpus is not None:
        allowed &= set(request.cpus)
    cpus = [cpu for cpu in facts.topology.usable if cpu in allowed]
    if not cpus:
        raise UsageError(
            "no CPU is left for the queues",
            f"online and not isolated are {format_list(facts.topology.usable)}, "
            f"this process may use {facts.allowed}",
            "choose others with --cpus",
        )
    return cpus


def lay_out_cards(facts: HostFacts, request: Request) -> list[Layout]:
    """Return the queues of every card as they are to be.

    The cards of a bond share the CPUs, unless only one of them is active at a time.
    """
    cpus = choose_cpus(facts, request)
    cards = [nic for nic in facts.cards if nic.kind in ("card", "virtual")]
    one_at_a_time = facts.one_at_a_time
    used: Counter[int] = Counter()
    layouts = []
    for nic in cards:
        layouts.append(lay_out(nic, facts.topology, cpus, Counter() if one_at_a_time else used))
    for group in [[layout] for layout in layouts] if one_at_a_time else [layouts]:
        share_idle(group, facts.topology, cpus)
    return layouts


def _all_changes(facts: HostFacts, request: Request, profile: Profile) -> Iterator[Change]:
    layouts = lay_out_cards(facts, request)
    for layout in layouts:
        yield from plan_queues(layout)
        yield from plan_rss(layout)
        yield from plan_coalesce(layout.nic, profile)
        yield from plan_ring(layout.nic, profile)
        yield from plan_rfs(layout, profile)
        yield from _plan_irqbalance(facts, layout)
        if profile.slices:
            yield from plan_rules(layout, facts)
    moves = bool(profile.flow_entries) or any(
        share for layout in layouts if layout.nic.kind == "card" for share in layout.shares
    )
    yield from plan_sysctls(facts, profile, moves=moves)
    yield from plan_notrack(facts, request.ports)


def _plan_irqbalance(facts: HostFacts, layout: Layout) -> Iterator[Change]:
    nic, daemon = layout.nic, facts.irqbalance
    serving = [irq for irq in nic.irqs if irq.kind != "other"]
    if not daemon.socket or not serving:
        return
    left_alone = [irq for irq in serving if irq.number in daemon.banned]
    if len(left_alone) < len(serving) or layout.channels:
        yield change(
            Setting("irqbalance", nic.name, "ban"),
            f"{len(left_alone)} of {len(serving)}",
            "all",
            "it would move the interrupts again; other cards stay in its care",
            "forgotten when irqbalance is started anew: apply again then",
        )


def _not_ours(facts: HostFacts, line: Change) -> Note | None:
    """Return why a line cannot be applied from here; None where it can."""
    setting = line.setting
    where = "apply it on the host, outside of this container"
    if setting.kind in _QUEUE_KINDS and not facts.owns.irqs:
        return Note("warning", "interrupts are not ours to move", "/proc/irq is read-only", where)
    if setting.kind == "sysctl" and not facts.owns.sysctls:
        return Note("warning", f"{setting.name} is not ours", "/proc/sys is read-only", where)
    nic = facts.nic(setting.interface) if setting.interface else None
    # More queues of a virtual interface are of no use without XPS.
    sets_queues = setting.kind in ("rps", "xps", "rfs") or (
        nic is not None and nic.kind == "virtual" and setting.kind == "channels"
    )
    if nic is not None and sets_queues and not nic.writable:
        what = f"queues of {setting.interface} are not ours to set"
        why = "/sys is read-only, or the container has users of its own"
        return Note("warning", what, why, where)
    if setting.kind == "rfs" and not facts.owns.host_namespace:
        return Note("warning", "RFS is not ours", "its table belongs to the host", where)
    if setting.kind == "notrack" and not facts.netfilter.can_notrack:
        return Note("warning", "connection tracking stays on", "nft is missing", "install nftables")
    return None


def _merge(notes: list[Note]) -> list[Note]:
    return list(dict.fromkeys(notes))


def _notes(facts: HostFacts, request: Request, changes: bool) -> Iterator[Note]:
    for nic in facts.nics:
        yield from _interface_notes(nic, changes)
    isolated = [cpu.id for cpu in facts.topology.cpus if cpu.online and cpu.isolated]
    if isolated:
        what = f"CPU {format_list(isolated)} gets no queue"
        yield Note("info", what, "it is isolated from the scheduler")
    netfilter = facts.netfilter
    if netfilter.tables:
        what = f"netfilter is active: {', '.join(netfilter.tables)}"
        why = "every packet passes its rules"
        yield Note("warning", what, why, "remove tables that the server does not need")
    if netfilter.conntrack and not netfilter.notrack_ports and not request.ports:
        what = f"connections are tracked ({netfilter.connections} now)"
        why = "tracking costs a lookup and a lock for each packet"
        yield Note("warning", what, why, "name the server's ports with --port")
    if not netfilter.visible:
        why = "that needs root and the nft command"
        yield Note("info", "tables of netfilter and our notrack ports are not seen", why)
    daemon = facts.irqbalance
    if daemon.refused:
        yield Note("info", f"irqbalance (process {daemon.pid}) was not asked", "that needs root")
    elif daemon.pid and not daemon.socket:
        what = f"irqbalance (process {daemon.pid}) cannot be told to leave interrupts"
        yield Note("warning", what, "its control socket is missing", "start it with --banirq")
    if 0 < facts.open_files < OPEN_FILES_LOW:
        what = f"only {facts.open_files} files can be open"
        why = "each connection takes one, and a proxy's takes two"
        yield Note("warning", what, why, "raise LimitNOFILE or 'ulimit -n'")
    if facts.sysctls.get("net.ipv4.tcp_syncookies") == "0":
        why = "a full backlog then drops new connections"
        yield Note("warning", "SYN cookies are off", why, "set net.ipv4.tcp_syncookies to 1")


def _slice_notes(facts: HostFacts, request: Request) -> Iterator[Note]:
    for layout in lay_out_cards(facts, request):
        if layout.nic.kind == "card" and not takes_slices(layout):
            what = f"{layout.nic.name} does not bring backends' replies to the CPU that asked"
            why = "it has no flow rules for slices of ports"
            yield Note("info", what, why, "'fastsocket run --receive-flow-deliver' does")
        elif layout.nic.kind == "card" and any(layout.shares):
            what = (
                f"RPS moves some backends' replies away from the CPU that asked ({layout.nic.name})"
            )
            why = "the card brings them to a queue that feeds several CPUs"
            yield Note("info", what, why, "'fastsocket run --receive-flow-deliver' moves them back")


def _interface_notes(nic: Nic, changes: bool) -> Iterator[Note]:
    name = nic.name
    if not nic.up:
        why = "many cards have interrupts only while they are up"
        yield Note("warning", f"{name} is down", why, f"'ip link set {name} up', then plan again")
    if nic.kind == "virtual" and changes:
        why = "its packets are handled on the CPU that sent them"
        yield Note("info", f"{name} has no interrupts to place", why)
    if len(nic.tx) > 1 and nic.qdisc not in ("", "mq", "noqueue", "mqprio"):
        what = f"{name} sends through one {nic.qdisc} queue"
        todo = f"'tc qdisc replace dev {name} root mq', if nothing needs it"
        yield Note("warning", what, "all CPUs take its lock", todo)
    if (
        nic.bond
        and nic.bond.hash_policy == "layer2"
        and nic.bond.mode in ("802.3ad", "balance-xor")
    ):
        what = f"{name} chooses its member by MAC address (xmit_hash_policy layer2)"
        todo = "set xmit_hash_policy to layer3+4"
        yield Note("warning", what, "behind one router all answers leave by one member", todo)
    if nic.rules and "foreign" in nic.rules.values():
        why = "it goes before RSS"
        yield Note("info", f"{name} has flow rules of somebody else", why)
