# SPDX-License-Identifier: GPL-2.0-or-later
"""Stores: servers with one thread, so several instances side by side, and their client.

nginx is one, too, with one worker and connections that stay.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fastsocket.bench.behaviours import Scripted
from fastsocket.bench.clients import Load, Outcome
from fastsocket.bench.modes import Mode
from fastsocket.bench.postgresql import Postgresql
from fastsocket.bench.process import HTTP, Greeting
from fastsocket.bench.servers import (
    ANSWER,
    HTTP_SERVERS,
    KEPT_ANSWER_BYTES,
    Server,
    Site,
    program,
)
from fastsocket.bench.steer import Rules
from fastsocket.errors import FastsocketError, UsageError
from fastsocket.native import native_file

__all__ = ["QUESTIONS", "SERVERS", "STORES", "Kv", "Question", "Store", "server"]

KEY = "bench"
_SIZE = len(ANSWER)


@dataclass(frozen=True)
class Question:
    """What tells that a server is up, what it is then asked all the time, and the answer's size."""

    greeting: Greeting
    text: str
    answer_bytes: int


@dataclass(frozen=True)
class Store:
    """A key-value store: how it is started."""

    name: str
    package: str
    program: str
    options: Sequence[str]
    address: tuple[str, str]

    modes = (Mode.STOCK, Mode.FASTSOCKET)

    def command(self, mode: Mode, site: Site) -> list[str]:
        """See :class:`fastsocket.bench.servers.Server`; a store listens alike in all modes."""
        host, port = self.address
        listen = [host, site.address, port, str(site.port)]
        return [program(self.program, self.package), *listen, *self.options]


@dataclass(frozen=True)
class Kv:
    """fastsocket-kv: the same question again and again to every instance of a store.

    With a `pipeline` of several, a connection sends so many questions at once, and as many again
    when all are answered; latency is that of all together.
    """

    question: Question
    targets: Sequence[tuple[str, int]]
    pipeline: int = 1

    name = "fastsocket-kv"
    warms_up = True
    versatile = False

    def command(self, load: Load) -> list[str]:
        """See :class:`fastsocket.bench.clients.Client`."""
        size = self.question.answer_bytes * self.pipeline
        return [
            str(native_file(self.name)),
            *("-q", self.question.text * self.pipeline, "-a", str(size)),
            *("-c", str(load.connections), "-p", str(load.processes)),
            *("-t", f"{load.seconds:g}", "-W", f"{load.warmup:g}"),
            *(f"{host}:{port}" for host, port in self.targets),
        ]

    def parse(self, output: str) -> Outcome:
        """See :class:`fastsocket.bench.clients.Client`."""
        try:
            said = json.loads(output)
            completed = self.pipeline * said["completed"]
            return Outcome(said["seconds"], completed, said["errors"], said["latency_us"])
        except (ValueError, KeyError, TypeError) as error:
            raise FastsocketError(
                f"the output of {self.name} cannot be read", output[-80:].strip()
            ) from error


REDIS = Store(
    name="redis",
    package="redis-server",
    program="redis-server",
    # Nothing is written to disk: a fork for a snapshot would be measured as well.
    # In its namespace there is nobody to be protected from.
    options=(
        *("--save", "", "--appendonly", "no", "--daemonize", "no"),
        *("--protected-mode", "no"),
    ),
    address=("--bind", "--port"),
)
MEMCACHED = Store(
    name="memcached",
    package="memcached",
    program="memcached",
    # It would not run as root without a user to become, and becomes nobody else's.
    options=("-t", "1", "-U", "0", "-u", "root"),
    address=("-l", "-p"),
)
QUESTIONS: Mapping[str, Question] = {
    "redis": Question(
        Greeting(f"SET {KEY} {ANSWER}\r\n".encode(), b"+OK"),
        f"GET {KEY}\r\n",
        len(f"${_SIZE}\r\n{ANSWER}\r\n"),
    ),
    "memcached": Question(
        Greeting(f"set {KEY} 0 0 {_SIZE}\r\n{ANSWER}\r\n".encode(), b"STORED"),
        f"get {KEY}\r\n",
        len(f"VALUE {KEY} 0 {_SIZE}\r\n{ANSWER}\r\nEND\r\n"),
    ),
    "nginx": Question(HTTP, "GET / HTTP/1.1\r\nHost: bench\r\n\r\n", KEPT_ANSWER_BYTES),
}
"""What servers whose connections stay are asked by :class:`Kv`."""

STORES: Mapping[str, Store] = {store.name: store for store in (REDIS, MEMCACHED)}
SERVERS: Mapping[str, Server] = {
    **HTTP_SERVERS,
    **STORES,
    Postgresql.name: Postgresql(),
    Rules.name: Rules(),
    Scripted.name: Scripted(),
}
"""Everything that a scenario may be run with."""


def server(name: str) -> Server:
    """Return the server `name`.

    Raises:
        UsageError: There is none.
    """
    if name not in SERVERS:
        raise UsageError(f"no server {name!r}", todo=f"choose one of {', '.join(SERVERS)}")
    return SERVERS[name]
