# SPDX-License-Identifier: GPL-2.0-or-later
"""What `doctor` makes of the facts that plans are made from: of this host, or of a recorded one."""

from pathlib import Path

from fastsocket.host.doctor import Check, Grade
from fastsocket.host.files import read_text
from fastsocket.host.limits import CpuLimits
from fastsocket.host.sample import HostFacts as Settings
from fastsocket.nic.changes import Request
from fastsocket.nic.facts import HostFacts
from fastsocket.nic.plan import choose_cpus, make_plan

__all__ = ["card_check", "default_interface", "recorded_settings"]

_PLACEMENT = frozenset({"channels", "rss", "irq", "rps", "xps"})
_RTF_UP = 1


def default_interface(root: Path = Path("/")) -> str:
    """Return the interface of the default route of least metric; empty where there is none."""
    found: list[tuple[int, str]] = []
    for line in read_text(root / "proc/net/route").splitlines()[1:]:
        name, target, _, flags, _, _, metric, mask, *_ = line.split()
        if int(target, 16) == int(mask, 16) == 0 and int(flags, 16) & _RTF_UP:
            found.append((int(metric), name))
    if not found:
        for line in read_text(root / "proc/net/ipv6_route").splitlines():
            target, length, *_, metric, _, _, flags, name = line.split()
            if int(target, 16) == int(length, 16) == 0 and int(flags, 16) & _RTF_UP:
                found.append((int(metric, 16), name))
    return min((row for row in found if row[1] != "lo"), default=(0, ""))[1]


def card_check(facts: HostFacts) -> Check:
    """Judge whether the card's packets reach the CPUs as a plan would have it."""
    counts = [len(nic.rx) for nic in facts.cards]
    queues = max(counts) if facts.one_at_a_time else sum(counts)
    cpus = len(choose_cpus(facts, Request()))
    differ = sum(line.setting.kind in _PLACEMENT for line in make_plan(facts, Request()).changes)
    found = f"{facts.target}: {queues} receive queue{'s' * (queues != 1)} for {cpus} CPUs"
    if differ:
        found += f", {differ} setting{'s' * (differ != 1)} not as planned"
        todo = f"fastsocket nic plan -i {facts.target}"
        return Check("card", Grade.FIX, found, "packets change their CPU, or crowd on one", todo)
    if any(nic.kind == "card" for nic in facts.cards):
        return Check("card", Grade.GOOD, found, "each CPU gets its part of the packets")
    if not all(nic.driver == "veth" or nic.kind == "loopback" for nic in facts.cards):
        return Check("card", Grade.UNKNOWN, found, "this kind of device shows no queues of a card")
    return Check("card", Grade.GOOD, found, "packets are handled on the CPU that sent them")


def recorded_settings(facts: HostFacts) -> Settings:
    """Return the settings that `doctor` judges, for the process that recorded the facts."""
    online, allowed = facts.topology.online, choose_cpus(facts, Request())
    limits = CpuLimits(online, tuple(allowed), facts.quota, ())
    reasons = []
    if len(allowed) < len(online):
        reasons.append(f"{len(allowed)} of {len(online)} CPUs allowed and not isolated")
    if facts.quota is not None:
        reasons.append(f"quota of {facts.quota:g} CPUs")
    netfilter = facts.netfilter
    return Settings(
        cores=facts.topology.cores,
        cpus=len(online),
        usable=limits.count,
        quota=facts.quota,
        limits=tuple(reasons),
        nofile=facts.open_files,
        somaxconn=int(facts.sysctls.get("net.core.somaxconn", "0")),
        conntrack=netfilter.connections or None,
        tables=netfilter.tables if netfilter.visible or netfilter.tables else None,
    )
