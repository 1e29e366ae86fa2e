# SPDX-License-Identifier: GPL-2.0-or-later
"""How servers whose connections stay are asked: by the client that their users measure with."""

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import quantiles
from typing import NamedTuple, Protocol

from fastsocket.bench.clients import Load
from fastsocket.bench.netspace import Netspace
from fastsocket.bench.postgresql import PACKAGE, USER
from fastsocket.bench.process import Greeting, spawn
from fastsocket.bench.servers import Site
from fastsocket.bench.stores import QUESTIONS, Kv
from fastsocket.errors import FastsocketError, UsageError

__all__ = ["ASKERS", "NAMES", "Answers", "Asker", "Order", "choose", "parse_redis_benchmark"]

READY_SECONDS = 15.0
# How much longer than asked for a round may take on a slow machine.
PATIENCE_FACTOR = 30


class Answers(NamedTuple):
    """Answers per second, the 99th percentile of their latency in µs, and how many there were."""

    per_second: float
    p99_us: float
    number: int


class Order(NamedTuple):
    """Connections, requests that each has under way at once, and for how many seconds.

    `prefix` are the words that the client's command follows, such as those of ``fastsocket run``.
    """

    connections: int
    pipeline: int
    seconds: float
    prefix: Sequence[str] = ()


class Asker(Protocol):
    """One client, and the servers' greeting."""

    name: str
    greeting: Greeting

    def check(self, pipeline: int) -> None:
        """See whether the client is there and can have so many requests under way.

        Raises:
            FastsocketError: It is not.
            UsageError: It cannot.
        """

    def fill(self, netspace: Netspace, site: Site) -> None:
        """Give a server that is up what it will be asked for."""

    def ask(self, netspace: Netspace, site: Site, order: Order) -> Answers:
        """Ask for about the seconds of `order`; a slow machine takes longer for as many answers.

        Raises:
            FastsocketError: The client failed, or said something unreadable.
        """


class RedisBenchmark:
    """redis-benchmark: GET, one thread."""

    name = "redis-benchmark"
    greeting = QUESTIONS["redis"].greeting
    requests_a_second = 30_000

    def check(self, pipeline: int) -> None:
        """See :class:`Asker`."""
        _check("redis-benchmark", "redis-tools")

    def fill(self, netspace: Netspace, site: Site) -> None:
        """See :class:`Asker`; what is not there is answered as well."""

    def ask(self, netspace: Netspace, site: Site, order: Order) -> Answers:
        """See :class:`Asker`."""
        count = max(int(self.requests_a_second * order.seconds), order.connections)
        command = ["redis-benchmark", "-h", site.address, "-p", str(site.port), "-t", "get"]
        command += ["--csv", "-c", str(order.connections), "-n", str(count)]
        command += ["-P", str(order.pipeline)]
        return Answers(
            *parse_redis_benchmark(_run(command, netspace, order.seconds, order.prefix)), count
        )


def parse_redis_benchmark(output: str) -> tuple[float, float]:
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


class KvAsker:
    """fastsocket-kv, one process a CPU."""

    name = Kv.name

    def __init__(self, server: str) -> None:
        self._question = QUESTIONS[server]
        self.greeting = self._question.greeting

    def check(self, pipeline: int) -> None:
        """See :class:`Asker`."""

    def fill(self, netspace: Netspace, site: Site) -> None:
        """See :class:`Asker`; the greeting has done it."""

    def ask(self, netspace: Netspace, site: Site, order: Order) -> Answers:
        """See :class:`Asker`."""
        client = Kv(self._question, [(site.address, site.port)], order.pipeline)
        load = Load(
            url_host=site.address,
            port=site.port,
            connections=order.connections,
            seconds=order.seconds,
            warmup=0,
            processes=len(os.sched_getaffinity(0)),
            directory=site.directory,
        )
        seen = client.parse(_run(client.command(load), netspace, order.seconds, order.prefix))
        if seen.errors or not seen.completed:
            raise FastsocketError(f"{seen.errors} connections ended", f"{seen.completed} answers")
        return Answers(seen.completed / seen.seconds, seen.latency_us["p99"], seen.completed)


class Pgbench:
    """pgbench: one row selected by its key (--select-only), prepared, a thread each CPU."""

    name = "pgbench"
    # SSLRequest, which is refused before anybody has to say who they are.
    greeting = Greeting(bytes.fromhex("0000000804d2162f"), b"N")
    requests_a_second = 8_000
    # Of the transactions, how many are written down with their latency: that takes time, too.
    sampled = 0.2

    def check(self, pipeline: int) -> None:
        """See :class:`Asker`."""
        _check("pgbench", PACKAGE)
        if pipeline > 1:
            raise UsageError("pgbench has no pipelines here", todo="leave --pipeline out")

    def fill(self, netspace: Netspace, site: Site) -> None:
        """See :class:`Asker`; a database that still starts refuses."""
        end = time.monotonic() + READY_SECONDS
        while True:
            try:
                _run([*self._command(site), "-i", "-q"], netspace, READY_SECONDS)
                return
            except FastsocketError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.05)

    def ask(self, netspace: Netspace, site: Site, order: Order) -> Answers:
        """See :class:`Asker`."""
        connections = order.connections
        each = max(int(self.requests_a_second * order.seconds) // connections, 1)
        with tempfile.TemporaryDirectory(dir=site.directory) as place:
            load = ["-S", "-n", "-M", "prepared", "-c", str(connections), "-t", str(each)]
            load += ["-j", str(min(len(os.sched_getaffinity(0)), connections))]
            load += ["-l", f"--log-prefix={place}/log", f"--sampling-rate={self.sampled}"]
            said = _run([*self._command(site), *load], netspace, order.seconds, order.prefix)
            files = [file.read_text(encoding="ascii") for file in Path(place).iterdir()]
        try:
            speed = next(line for line in said.splitlines() if line.startswith("tps = "))
            # client, transaction, latency in µs, …: pgbench(1), "Per-Transaction Logging"
            latencies = [float(line.split()[2]) for text in files for line in text.splitlines()]
            return Answers(
                float(speed.split()[2]), quantiles(latencies, n=100)[98], each * connections
            )
        except (StopIteration, IndexError, ValueError) as error:
            raise FastsocketError("pgbench said something unreadable", said[-80:]) from error

    @staticmethod
    def _command(site: Site) -> list[str]:
        """Return the command up to its options; the database is the user's own."""
        words = {"PGHOST": site.address, "PGPORT": str(site.port), "PGUSER": USER}
        environment = [f"{name}={value}" for name, value in words.items()]
        return ["env", *environment, "PGDATABASE=postgres", "PGSSLMODE=disable", "pgbench"]


ASKERS: Mapping[str, Sequence[Asker]] = {
    "redis": (RedisBenchmark(), KvAsker("redis")),
    "memcached": (KvAsker("memcached"),),
    "nginx": (KvAsker("nginx"),),
    "postgresql": (Pgbench(),),
}
"""By name of the server; the first is the default."""

NAMES = tuple(dict.fromkeys(asker.name for askers in ASKERS.values() for asker in askers))
"""Of all of them."""


def choose(server: str, name: str) -> Asker:
    """Return the asker `name` of a server; "auto" is the first.

    Raises:
        UsageError: It is not asked by that one.
    """
    askers = {asker.name: asker for asker in ASKERS[server]}
    if name == "auto":
        return ASKERS[server][0]
    if name not in askers:
        raise UsageError(f"{server} is not asked by {name}", todo=f"choose of {', '.join(askers)}")
    return askers[name]


def _check(program: str, package: str) -> None:
    if shutil.which(program) is None:
        raise FastsocketError(f"{program} is not installed", todo=f"apt-get install {package}")


def _run(
    command: Sequence[str], netspace: Netspace, seconds: float, prefix: Sequence[str] = ()
) -> str:
    """Run a client, after the words of `prefix`, to its end and return what it said.

    Raises:
        FastsocketError: It failed or hung.
    """
    name = next(Path(word).name for word in command if word != "env" and "=" not in word)
    with tempfile.TemporaryFile() as errors:
        client = spawn([*prefix, *command], netspace, errors.fileno(), subprocess.PIPE)
        try:
            output, _ = client.communicate(timeout=PATIENCE_FACTOR * seconds + READY_SECONDS)
        except subprocess.TimeoutExpired as error:
            raise FastsocketError(f"{name} did not end", "no answers in time") from error
        finally:
            client.kill()
            client.wait()
        if client.returncode != 0:
            errors.seek(0)
            last = errors.read().decode(errors="replace").strip().splitlines()[-1:]
            raise FastsocketError(f"{name} failed", "".join(last))
    return output
