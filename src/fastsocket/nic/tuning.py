# SPDX-License-Identifier: GPL-2.0-or-later
"""Plans what is not the layout of queues: throttling, rings, RSS, flow rules, sysctls. Pure."""

from collections.abc import Iterator, Sequence

from fastsocket.errors import UsageError
from fastsocket.host.slices import PortRange, plan_slices
from fastsocket.nic.changes import Change, Setting, change
from fastsocket.nic.drivers import driver_of
from fastsocket.nic.ethtool import FlowRule
from fastsocket.nic.facts import HostFacts, Nic
from fastsocket.nic.profiles import SQUEEZED_MANY, Profile
from fastsocket.nic.queues import Layout

__all__ = [
    "plan_coalesce",
    "plan_notrack",
    "plan_rfs",
    "plan_ring",
    "plan_rss",
    "plan_rules",
    "plan_sysctls",
    "takes_slices",
]

_NTUPLE = "rx-ntuple-filter"
_RFS_TABLE = "net.core.rps_sock_flow_entries"


def plan_coalesce(nic: Nic, profile: Profile) -> Iterator[Change]:
    """Yield the changes to interrupt throttling: the card's own adaptation where it has one."""
    now = nic.coalesce
    dynamic = driver_of(nic).dynamic_usecs

    def line(name: str, value: int, why: str, risk: str) -> Iterator[Change]:
        if name in now and now[name] != value:
            setting = Setting("coalesce", nic.name, name)
            yield change(setting, str(now[name]), str(value), why, risk)

    if profile.adaptive and "adaptive-rx" in now:
        why = "follows the load: few interrupts when busy, none late when idle"
        risk = f"worse than a fixed {profile.fixed_usecs} µs only if the load never changes"
        yield from line("adaptive-rx", 1, why, risk)
    elif profile.adaptive and dynamic:
        why = f"rx-usecs {dynamic} is this driver's adaptive mode: it follows the load"
        risk = f"worse than a fixed {profile.fixed_usecs} µs only if the load never changes"
        yield from line("rx-usecs", dynamic, why, risk)
    else:
        usecs = profile.fixed_usecs
        yield from line(
            "adaptive-rx", 0, f"keeps the delay at {usecs} µs", "more interrupts under load"
        )
        if profile.adaptive:
            why = f"the card cannot adapt; {1_000_000 // usecs} interrupts/s a queue are enough"
            risk = f"up to {usecs} µs more latency for each packet at low load"
        else:
            why = f"an interrupt at most {usecs} µs after the packet"
            risk = f"up to {1_000_000 // usecs} interrupts/s a queue"
        yield from line("rx-usecs", usecs, why, risk)


def plan_ring(nic: Nic, profile: Profile) -> Iterator[Change]:
    """Yield the change to the receive ring, which is only ever made longer."""
    if not nic.rings or "rx" not in nic.rings.now:
        return
    now, wanted = nic.rings.now["rx"], min(nic.rings.most["rx"], profile.rx_ring)
    if now < wanted:
        why = "takes a burst of new connections while its CPU is busy"
        if nic.drops:
            why += f"; {nic.drops} packets were dropped for want of descriptors"
        setting = Setting("ring", nic.name, "rx")
        yield change(setting, str(now), str(wanted), why, driver_of(nic).rings_risk)


def plan_rss(layout: Layout) -> Iterator[Change]:
    """Yield the change to an RSS table that does not spread evenly over the queues.

    A driver spreads its own default table anew when its channels change.
    """
    table = layout.nic.indirection
    if not table or layout.reach < 1:
        return
    before = layout.reach
    if layout.channels:
        before = min(len(layout.nic.rx), max(table) + 1)
    counts = [table.count(queue) for queue in range(before)]
    if max(counts) - min(counts) > 1 or sum(counts) != len(table):
        yield change(
            Setting("rss", layout.nic.name, "indirection"),
            f"uneven over {len(set(table))}",
            f"equal {layout.reach}",
            "every queue is to get the same share of connections",
            "connections move to other queues; a few segments may arrive out of order",
        )


def takes_slices(layout: Layout) -> bool:
    """Whether the card can steer slices of ports to its queues."""
    nic = layout.nic
    able = _NTUPLE in nic.offloads and driver_of(nic).port_masks
    return able and nic.rule_limit >= len(layout.rx) > 1


def plan_rules(layout: Layout, facts: HostFacts) -> Iterator[Change]:
    """Yield ntuple rules that bring a backend's replies to the CPU whose local port they carry.

    Every online CPU has a slice; those that own a queue get a rule.
    """
    nic = layout.nic
    ports = facts.sysctls.get("net.ipv4.ip_local_port_range", "").split()
    if len(ports) != 2 or not takes_slices(layout):
        return
    try:
        plan = plan_slices(PortRange(int(ports[0]), int(ports[1])), facts.topology.online)
    except UsageError:  # too few ports
        return
    queue_of = {cpu: queue for queue, cpu in reversed(list(enumerate(layout.rx)))}
    missing = []
    for part in plan.slices:
        if part.cpu in queue_of:
            rule = str(FlowRule("tcp4", part.first, part.mask, queue_of[part.cpu]))
            if rule not in nic.rules.values():
                missing.append((part, rule))
    if missing and not nic.offloads[_NTUPLE]:
        setting = Setting("feature", nic.name, _NTUPLE)
        yield change(setting, "off", "on", "flow rules need it", driver_of(nic).ntuple_risk)
    free = (where for where in reversed(range(nic.rule_limit)) if where not in nic.rules)
    for (part, rule), where in zip(missing, free, strict=False):
        yield change(
            Setting("rule", nic.name, str(where)),
            "",
            rule,
            f"local ports {part.first}-{part.last} are those of CPU {part.cpu}",
            "connections that a server makes without Fastsocket move to that CPU too",
        )


def plan_rfs(layout: Layout, profile: Profile) -> Iterator[Change]:
    """Yield the flow tables of the queues, for packets to follow the thread that reads them."""
    queues = len(layout.rx)
    if not profile.flow_entries or not queues:
        return
    # A power of two, as the kernel rounds it, and no fewer than the table of sockets in all.
    flows = 1 << max((-(-profile.flow_entries // queues) - 1).bit_length(), 0)
    for queue in range(queues):
        now = layout.nic.rx[queue].rps_flow_cnt if queue < len(layout.nic.rx) else 0
        if now < flows:
            yield change(
                Setting("rfs", layout.nic.name, str(queue)),
                str(now),
                str(flows),
                "packets of a long connection follow the thread that reads it",
                "a thread that moves often drags its packets along",
            )


def plan_sysctls(facts: HostFacts, profile: Profile, *, moves: bool) -> Iterator[Change]:
    """Yield sysctls that are too low; `moves`: packets are moved between CPUs (RPS, RFS)."""
    conditions = {
        "always": True,
        "rps": moves,
        "squeezed": facts.softnet.squeezed >= SQUEEZED_MANY,
    }
    for floor in profile.floors:
        now = facts.sysctls.get(floor.name)
        if now is not None and conditions[floor.when] and int(now) < floor.value:
            setting = Setting("sysctl", "", floor.name)
            yield change(setting, now, str(floor.value), floor.why, floor.risk)
    entries = facts.sysctls.get(_RFS_TABLE)
    if entries is not None and int(entries) < profile.flow_entries:
        yield change(
            Setting("sysctl", "", _RFS_TABLE),
            entries,
            str(profile.flow_entries),
            "RFS keeps here on which CPU each connection is read",
            f"{4 * profile.flow_entries // 1024} KiB of memory",
        )


def plan_notrack(facts: HostFacts, ports: Sequence[int]) -> Iterator[Change]:
    """Yield the table that exempts the server's ports from connection tracking."""
    now = facts.netfilter.notrack_ports
    # Those that are there belong to the server behind another interface, or of an earlier apply.
    wanted = tuple(sorted({*ports, *now}))
    if ports and now != wanted and (facts.netfilter.conntrack or now):
        yield change(
            Setting("notrack", "", "ports"),
            ",".join(str(port) for port in now),
            ",".join(str(port) for port in wanted),
            "tracking costs a lookup and a lock for each packet, and its table can overflow",
            "rules with a connection state, and NAT, no longer see connections to these ports",
        )
