# SPDX-License-Identifier: GPL-2.0-or-later
"""Would Fastsocket help here? The 2014 README's suitable scenarios, as checks with reasons.

Judging is pure: the same facts give the same answer, on this host or from a recorded one.
"""

from enum import StrEnum

import msgspec

from fastsocket.host.load import Load
from fastsocket.host.sample import HostFacts, ServerFacts

__all__ = ["Check", "Diagnosis", "Grade", "Verdict", "diagnose"]

# "The machine has no less than 8 CPU cores" (2014 README, Suitable Scenarios). The README puts
# no number on its "large portion" and "heavily"; the next three are this project's.
_CORES = 8
_KERNEL_SHARE = 0.30  # of the busy time, in softirq and system calls
_SHORT = 30.0  # segments a connection: ten is one small request and its answer, alone
_BUSY = 0.10  # of all CPU time; below, shares and rates say nothing about the host under load
_RATE = 1.0  # connections a second; below there is no traffic to judge

_NOFILE = 65536  # two descriptors a connection of a proxy, tens of thousands of connections
_SOMAXCONN = 4096  # the kernel's own default since v5.4 (19f92a030ca6)


class Grade(StrEnum):
    """How one check came out: GOOD or POOR for Fastsocket, UNKNOWN, or FIX: a host setting."""

    GOOD = "good"
    POOR = "poor"
    FIX = "fix"
    UNKNOWN = "unknown"


class Verdict(StrEnum):
    """The answer."""

    YES = "yes"
    PERHAPS = "perhaps"
    UNLIKELY = "unlikely"


class Check(msgspec.Struct, frozen=True):
    """One check: what was found, why it matters, and what to do where something can be done."""

    name: str
    grade: Grade
    found: str
    why: str
    todo: str = ""


class Diagnosis(msgspec.Struct, frozen=True):
    """The checks and what follows from them."""

    verdict: Verdict
    reasons: tuple[str, ...]
    checks: tuple[Check, ...]


def diagnose(
    host: HostFacts, load: Load, server: ServerFacts | None, more: tuple[Check, ...] = ()
) -> Diagnosis:
    """Say whether Fastsocket would help a host, or one server on it, and why.

    `more` are further checks of settings, which like the host's do not change the verdict.
    """
    suited = [_cores(host), _kernel_share(load), _short(load)]
    if server is not None:
        suited += [_epoll(server), _workers(server)]
    checks = [*suited, _quota(host), _netfilter(host), _nofile(host), _somaxconn(host, load), *more]
    poor = [check for check in suited if check.grade is Grade.POOR]
    unknown = [check for check in suited if check.grade is Grade.UNKNOWN]
    if not poor and not unknown:
        verdict, decisive = Verdict.YES, suited
    elif host.usable < 2 or any(check.name != "cores" for check in poor):
        verdict, decisive = Verdict.UNLIKELY, poor
    else:
        verdict, decisive = Verdict.PERHAPS, [*poor, *unknown]
    reasons = tuple(f"{check.name}: {check.found}, {check.why}" for check in decisive)
    return Diagnosis(verdict, reasons, tuple(checks))


def _cores(host: HostFacts) -> Check:
    found = f"{host.usable} of {host.cpus} CPUs usable, {host.cores} cores"
    if host.usable < 2:
        return Check("cores", Grade.POOR, found, "one worker shares nothing with others")
    if host.usable < _CORES:
        why = f"below {_CORES} the gain is small"
        return Check("cores", Grade.POOR, found, why)
    return Check("cores", Grade.GOOD, found, f"from {_CORES} on, shared sockets stop scaling")


def _kernel_share(load: Load) -> Check:
    found = f"{load.softirq + load.system:.0%} of {load.busy:.0%} busy CPU time in the kernel"
    if load.busy < _BUSY:
        todo = "run doctor again under load"
        return Check("kernel-share", Grade.UNKNOWN, found, "the host is nearly idle", todo)
    if load.softirq + load.system < _KERNEL_SHARE:
        return Check("kernel-share", Grade.POOR, found, "the application itself needs the time")
    return Check("kernel-share", Grade.GOOD, found, "that is the time that sockets can save")


def _short(load: Load) -> Check:
    if load.segments is None or load.connections < _RATE:
        found = f"{load.connections:.1f} connections/s"
        todo = "run doctor again under load"
        return Check("short-connections", Grade.UNKNOWN, found, "there is no traffic", todo)
    found = f"{load.connections:.0f} connections/s of {load.segments:.0f} segments"
    if load.segments > _SHORT:
        return Check("short-connections", Grade.POOR, found, "accept and close are rare")
    return Check("short-connections", Grade.GOOD, found, "accept and close are most of the work")


def _epoll(server: ServerFacts) -> Check:
    found = f"{server.epoll} of {server.processes} processes of {server.program} use epoll"
    if server.epoll == 0:
        return Check("epoll", Grade.POOR, found, "one blocked connection holds up its worker")
    if server.nonblocking is False:
        why = "but a listening socket is blocking"
        return Check("epoll", Grade.POOR, found, why)
    return Check("epoll", Grade.GOOD, found, "a worker can serve whatever its CPU receives")


def _workers(server: ServerFacts) -> Check:
    ports = ", ".join(map(str, server.ports)) or "no port"
    found = f"{server.sharers} processes share a listener on {ports}, {server.threads} threads"
    if not server.ports:
        return Check("workers", Grade.POOR, found, "this process accepts no TCP connections")
    if max(server.sharers, server.threads) < 2:
        todo = "give the server several workers"
        return Check("workers", Grade.POOR, found, "one worker shares nothing with others", todo)
    return Check("workers", Grade.GOOD, found, "each can have a listening socket of its own")


def _quota(host: HostFacts) -> Check:
    if host.usable >= host.cpus:
        return Check("cpu-limits", Grade.GOOD, f"none below {host.cpus} CPUs", "all may be used")
    why = "more workers than that take turns on a CPU"
    todo = f"run {host.usable} workers"
    return Check("cpu-limits", Grade.FIX, "; ".join(host.limits), why, todo)


def _netfilter(host: HostFacts) -> Check:
    tables = ", ".join(host.tables or ())
    if host.conntrack:
        found = f"{host.conntrack} connections tracked" + (f", tables {tables}" if tables else "")
        todo = "exempt the served ports: 'fastsocket nic apply -i IF --port PORT'"
        why = "each connection costs an entry in a table that all CPUs share"
        return Check("netfilter", Grade.FIX, found, why, todo)
    if tables:
        why = "each packet walks the rules"
        return Check("netfilter", Grade.FIX, f"tables {tables}", why, "remove rules not needed")
    if host.tables is None:
        found = "no connection tracked, tables not visible"
        return Check("netfilter", Grade.UNKNOWN, found, "rules may be active", "run doctor as root")
    return Check("netfilter", Grade.GOOD, "no connection tracked", "no such table is shared")


def _nofile(host: HostFacts) -> Check:
    found = "unlimited" if host.nofile < 0 else str(host.nofile)
    if 0 <= host.nofile < _NOFILE:
        todo = f"ulimit -n {_NOFILE}, or LimitNOFILE={_NOFILE} in the systemd unit"
        return Check("open-files", Grade.FIX, found, "connections end there before CPUs do", todo)
    return Check("open-files", Grade.GOOD, found, "enough for tens of thousands of connections")


def _somaxconn(host: HostFacts, load: Load) -> Check:
    todo = f"sysctl -w net.core.somaxconn={_SOMAXCONN}"
    if load.overflows > 0:
        found = f"{load.overflows:.1f} connections/s found a full accept queue"
        todo = "raise the server's backlog, and net.core.somaxconn with it"
        return Check("somaxconn", Grade.FIX, found, "clients wait for a retry or give up", todo)
    if host.somaxconn < _SOMAXCONN:
        return Check("somaxconn", Grade.FIX, str(host.somaxconn), "bursts overflow it", todo)
    return Check("somaxconn", Grade.GOOD, str(host.somaxconn), "no accept queue overflowed")
