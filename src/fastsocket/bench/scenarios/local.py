# SPDX-License-Identifier: GPL-2.0-or-later
"""`local`: questions and answers on long connections, plain and on the local fast path.

One redis, and `redis-benchmark` asking GET on 16 connections without pipelining. In mode
`fastsocket` the server runs with ``--local-fast-path``. CPU time is that of server and client, and
with it that of the kernel's work in their name; it says more than requests per second where the
machine does other things meanwhile.
"""

import json
import os
import resource
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from fastsocket.bench.modes import Mode, fastsocket_command, tier_command
from fastsocket.bench.netspace import Netspace
from fastsocket.bench.process import ensure_free, spawn
from fastsocket.bench.scenario import ADDRESS, Measurement, Setup
from fastsocket.bench.servers import Site
from fastsocket.errors import FastsocketError

__all__ = ["Local", "parse"]

CONNECTIONS = 16
# Of each second that a round is to take; a slow machine takes longer, and does as much.
REQUESTS_A_SECOND = 30_000
READY_SECONDS = 15.0
# How much longer than asked for a round may take on a slow machine.
PATIENCE_FACTOR = 30


class Local:
    """Requests per second, latency and CPU time of redis on this host."""

    name = "local"
    metrics = {  # noqa: RUF012  # a constant by the protocol's read-only property
        "rps": "1/s",
        "p99_us": "us",
        "cpu_us_per_request": "us",
        "past_tcp_percent": "%",
    }
    servers = ("redis",)

    def prepare(self, setup: Setup) -> Setup:
        """See :class:`fastsocket.bench.scenario.Scenario`."""
        if shutil.which("redis-benchmark") is None:
            raise FastsocketError(
                "redis-benchmark is not installed", todo="apt-get install redis-tools"
            )
        local = ("--local-fast-path", str(setup.port))
        return replace(setup, connections=CONNECTIONS, run_options=(*setup.run_options, *local))

    def measure(self, setup: Setup, mode: Mode) -> Measurement:
        """See :class:`fastsocket.bench.scenario.Scenario`."""
        taken = Measurement()
        requests = int(REQUESTS_A_SECOND * setup.seconds)
        with (
            Netspace.make() if setup.private else Netspace.host() as netspace,
            _serving(setup, mode, netspace) as server,
        ):
            _ask(setup, netspace, max(requests // 5, CONNECTIONS))
            before, client = _cpu_seconds(server.pid), _children_seconds()
            rps, p99_us = _ask(setup, netspace, requests)
            spent = _cpu_seconds(server.pid) - before + _children_seconds() - client
            past = _past_tcp(server.pid, netspace) if mode is Mode.FASTSOCKET else 0.0
        taken.put("rps", rps)
        taken.put("p99_us", p99_us)
        taken.put("cpu_us_per_request", spent * 1e6 / requests)
        taken.put("past_tcp_percent", past)
        return taken


@contextmanager
def _serving(setup: Setup, mode: Mode, netspace: Netspace) -> Iterator[subprocess.Popen[str]]:
    """Run the server for a block; in mode fastsocket the fast path has begun before."""
    with tempfile.TemporaryDirectory(prefix="fastsocket-bench-") as place:
        site = Site(ADDRESS, setup.port, 1, Path(place), keep_alive=True)
        command = setup.server.command(mode, site)
        if mode is Mode.FASTSOCKET:
            command = fastsocket_command(setup.run_options, command)
        ensure_free(netspace, ADDRESS, setup.port)
        server = spawn(command, netspace, subprocess.DEVNULL)
        try:
            end = time.monotonic() + READY_SECONDS
            while not _ready(server, mode, netspace, setup.port):
                if server.poll() is not None or time.monotonic() > end:
                    raise FastsocketError("redis-server did not answer")
                time.sleep(0.02)
            yield server
        finally:
            server.terminate()
            server.wait()


def _ready(server: subprocess.Popen[str], mode: Mode, netspace: Netspace, port: int) -> bool:
    with netspace.entered(), socket.socket() as probe:
        if probe.connect_ex((ADDRESS, port)) != 0:
            return False
    return mode is not Mode.FASTSOCKET or _past_tcp(server.pid, netspace) is not None


def _past_tcp(pid: int, netspace: Netspace) -> float | None:
    """Return the percentage of messages past TCP, None before the fast path has begun.

    Raises:
        FastsocketError: It stays off here.
    """
    status = spawn(tier_command(pid), netspace, subprocess.DEVNULL, subprocess.PIPE)
    try:
        (application,) = json.loads(status.communicate(timeout=READY_SECONDS)[0])["applications"]
    except ValueError:
        return None  # the keeper does not answer yet
    local = application["local"]
    if local is None:
        raise FastsocketError(
            "the local fast path stays off", application["reasons"].get("local-fast-path", "")
        )
    total = local["redirected"] + local["passed"]
    return 100 * local["redirected"] / total if total else 0.0


def _ask(setup: Setup, netspace: Netspace, requests: int) -> tuple[float, float]:
    command = ["redis-benchmark", "-h", ADDRESS, "-p", str(setup.port), "-t", "get", "--csv"]
    command += ["-c", str(setup.connections), "-n", str(requests)]
    client = spawn(command, netspace, subprocess.DEVNULL, subprocess.PIPE)
    try:
        output, _ = client.communicate(timeout=PATIENCE_FACTOR * setup.seconds + READY_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise FastsocketError("redis-benchmark did not end", "no answers in time") from error
    finally:
        client.kill()
        client.wait()
    return parse(output)


def parse(output: str) -> tuple[float, float]:
    """Return requests per second and the 99th percentile in µs from redis-benchmark's CSV.

    Raises:
        FastsocketError: It is none.
    """
    lines = [line.replace('"', "").split(",") for line in output.splitlines()]
    try:
        head, row = lines[0], next(line for line in lines if line[0] == "GET")
        values = dict(zip(head, row, strict=True))
        return float(values["rps"]), float(values["p99_latency_ms"]) * 1000
    except (IndexError, StopIteration, KeyError, ValueError) as error:
        raise FastsocketError("redis-benchmark said something unreadable", output[:80]) from error


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _children_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
