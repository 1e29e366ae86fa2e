# SPDX-License-Identifier: GPL-2.0-or-later
"""What a running server's connections cost right now, counted without touching the server.

Accepts are told apart by the server's own threads; contentions and reschedule interrupts are those
of the whole machine, divided by the server's connections.
"""

import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
import psutil

from fastsocket.app.client import applications, owner_of
from fastsocket.bench.clients import SOURCES
from fastsocket.bench.probe import ACCEPTS, EVENTS, Accepts, Probe, summed
from fastsocket.bench.stats import spread
from fastsocket.errors import ConflictError, FastsocketError, MissingFeatureError, UsageError
from fastsocket.host.limits import live_limits
from fastsocket.host.sample import ServerFacts, server_facts
from fastsocket.native import native_file

__all__ = ["CoreCount", "Counts", "Target", "connect_to", "count", "find_target"]

CLIENT_CONNECTIONS = 16
"""At once on each CPU, by the client of ours."""

HTTP_PORT = 80


class CoreCount(msgspec.Struct, frozen=True):
    """What was accepted on one CPU, and how much of it had come in there."""

    cpu: int
    accepted: int
    local: int


class Counts(msgspec.Struct, frozen=True):
    """What was seen of a server.

    Attributes:
        tier: How it is accelerated; empty where it does not run under Fastsocket.
        workers: Threads that accepted something.
        usable: CPUs that the server may use at the same time.
        connections: Connections that it accepted in `seconds`.
        local_percent: Of these, those accepted on the CPU that had received them.
        lock_contentions_per_1k: Of the whole machine, per 1,000 of these connections.
        resched_ipis_per_1k: Reschedule interrupts, likewise.
        worker_cv: Deviation of accepts over the workers, divided by their mean.
        cores: Accepts by CPU.
    """

    tier: str
    workers: int
    usable: int
    seconds: float
    connections: int
    local_percent: float | None
    lock_contentions_per_1k: float | None
    resched_ipis_per_1k: float | None
    worker_cv: float | None
    cores: list[CoreCount]


class Target(msgspec.Struct, frozen=True):
    """The server, and the address to connect to where the user gave a URL."""

    facts: ServerFacts
    url: str = ""


def find_target(text: str) -> Target:
    """Return the server of this host that a PID or a URL means.

    Raises:
        UsageError: It is neither, or there is no such process.
        MissingFeatureError: It is another user's, which only root may look at.
        ConflictError: No server of this host listens there, or the process does not listen, or the
            URL leads to another host, which is not to be loaded.
    """
    if text.isascii() and text.isdigit():
        facts = server_facts(int(text))
        if not facts.ports:
            raise ConflictError(
                f"process {text} ({facts.program}) listens on no TCP port",
                todo="name the server's first process, see 'ss -ltnp'",
            )
        return Target(facts)
    port = _port_of(text)
    _require_own(_address_of(text))
    holders = _listeners_on(port)
    if not holders:
        raise ConflictError(
            f"no process that may be looked at listens on port {port} here",
            "only a server of this host can be measured",
            "see 'ss -ltnp'; root sees all processes",
        )
    return Target(server_facts(_first_process(holders[0])), text)


def connect_to(target: Target, seconds: float) -> subprocess.Popen[bytes]:
    """Start a client that makes short connections to the target's URL."""
    parts, address = urlsplit(target.url), _address_of(target.url)
    path = parts.path or "/"
    processes = len(os.sched_getaffinity(0))
    command = [str(native_file("fastsocket-load")), "-p", str(processes), "-u", path]
    command += ["-c", str(CLIENT_CONNECTIONS * processes), "-t", f"{seconds + 1:g}"]
    if address.startswith("127."):
        command += ["-s", SOURCES]
    command.append(f"{address}:{parts.port or HTTP_PORT}")
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def count(target: Target, seconds: float, wait: Callable[[float], None] = time.sleep) -> Counts:
    """Count what a server accepts for some seconds, with short connections of ours to its URL.

    Raises:
        MissingFeatureError: BPF may not be used.
        ConflictError: The server ended meanwhile.
        FastsocketError: Its URL's client failed.
    """
    pid = target.facts.pid
    try:
        netns = Path(f"/proc/{pid}/ns/net").stat().st_ino
        usable = live_limits(pid).count
        with Probe() as probe:
            probe.watch(netns)
            # Workers that end meanwhile are known from before, those that begin from after.
            threads = _threads(pid)
            client = connect_to(target, seconds) if target.url else None
            try:
                begin = time.monotonic()
                with probe.attached(*EVENTS, *ACCEPTS):
                    wait(seconds)
                    passed = time.monotonic() - begin
                    seen, acceptors = probe.events(), probe.acceptors()
            finally:
                if client:
                    client.terminate()
                    client.wait()
        threads |= _threads(pid)
    except (psutil.NoSuchProcess, FileNotFoundError):
        raise ConflictError(f"process {pid} ended while it was measured") from None
    except PermissionError as error:
        raise MissingFeatureError(
            f"process {pid} cannot be looked at", error.strerror or "", "run doctor as root"
        ) from error
    if client and client.returncode > 0:
        raise FastsocketError(f"the client of {target.url} failed", todo="try it with curl")
    mine = {key: counts for key, counts in acceptors.items() if key[0] in threads}
    owner = owner_of(pid, applications())
    return _counts(owner["tier"] if owner else "", usable, passed, mine, seen[:2])


def _counts(
    tier: str,
    usable: int,
    seconds: float,
    acceptors: Mapping[tuple[int, int], Accepts],
    events: Iterable[int],
) -> Counts:
    """Divide what was counted by the connections."""
    by_thread = summed((tid, counts) for (tid, _), counts in acceptors.items())
    by_cpu = summed((cpu, counts) for (_, cpu), counts in acceptors.items())
    total = sum(each.accepted for each in by_thread.values())
    contentions, interrupts = (1000 * each / total if total else None for each in events)
    local = sum(each.local for each in by_thread.values())
    return Counts(
        tier=tier,
        workers=len(by_thread),
        usable=usable,
        seconds=seconds,
        connections=total,
        local_percent=100 * local / total if total else None,
        lock_contentions_per_1k=contentions,
        resched_ipis_per_1k=interrupts,
        worker_cv=spread([each.accepted for each in by_thread.values()], len(by_thread)),
        cores=[CoreCount(cpu, *by_cpu[cpu]) for cpu in sorted(by_cpu)],
    )


def _threads(pid: int) -> set[int]:
    """Return the threads of a process and of its descendants."""
    process = psutil.Process(pid)
    found: set[int] = set()
    for member in [process, *process.children(recursive=True)]:
        with suppress(OSError):  # it ended meanwhile
            found |= {int(task.name) for task in Path(f"/proc/{member.pid}/task").iterdir()}
    return found


def _port_of(url: str) -> int:
    """Return the port of an http:// URL.

    Raises:
        UsageError: It is none.
    """
    parts = urlsplit(url)
    try:
        port = parts.port or HTTP_PORT
    except ValueError:
        port = 0
    if parts.scheme != "http" or not parts.hostname or not port:
        raise UsageError(
            f"{url!r} is neither a process id nor a URL that begins with http://",
            todo="such as 'doctor --measure 4711' or 'doctor --measure http://127.0.0.1:80/'",
        )
    return port


def _address_of(url: str) -> str:
    """Return the IPv4 address of a URL's host.

    Raises:
        UsageError: It has none.
    """
    host = urlsplit(url).hostname or ""
    try:
        return socket.gethostbyname(host)
    except OSError as error:
        raise UsageError(f"{host} has no IPv4 address", error.strerror or "") from error


def _require_own(address: str) -> None:
    """Check that an address is of this host: only such a one can be bound.

    Raises:
        ConflictError: It is another host's.
    """
    with socket.socket() as tried:
        try:
            tried.bind((address, 0))
        except OSError as error:
            raise ConflictError(
                f"{address} is no address of this host",
                "only a server of this host can be measured",
                "run doctor where the server runs",
            ) from error


def _listeners_on(port: int) -> list[int]:
    """Return the processes that listen on a TCP port in this network namespace, oldest first."""
    found = {
        one.pid
        for one in psutil.net_connections("tcp")
        if one.status == psutil.CONN_LISTEN and one.laddr and one.laddr.port == port and one.pid
    }
    return sorted(found, key=_started)


def _first_process(pid: int) -> int:
    """Return the process that started a worker, if it runs the same program, else the worker."""
    with suppress(psutil.Error):
        process = psutil.Process(pid)
        while (parent := process.parent()) and parent.exe() == process.exe() and parent.pid > 1:
            process = parent
        return process.pid
    return pid


def _started(pid: int) -> tuple[float, int]:
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).create_time(), pid
    return float("inf"), pid
