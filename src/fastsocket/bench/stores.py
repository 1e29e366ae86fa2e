# SPDX-License-Identifier: GPL-2.0-or-later
"""Key-value stores: one thread each, so several instances side by side, and their client."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fastsocket.bench.behaviours import Scripted
from fastsocket.bench.clients import Load, Outcome
from fastsocket.bench.modes import Mode
from fastsocket.bench.process import Greeting
from fastsocket.bench.servers import ANSWER, HTTP_SERVERS, Server, Site, program
from fastsocket.bench.steer import Rules
from fastsocket.errors import FastsocketError, UsageError
from fastsocket.native import native_file

__all__ = ["SERVERS", "STORES", "Kv", "Store", "server"]

KEY = "bench"
_SIZE = len(ANSWER)


@dataclass(frozen=True)
class Store:
    """A store: how it is started, what stores a value, and what asks for it."""

    name: str
    package: str
    program: str
    options: Sequence[str]
    address: tuple[str, str]
    greeting: Greeting
    question: str
    answer_bytes: int

    modes = (Mode.STOCK, Mode.FASTSOCKET)

    def command(self, mode: Mode, site: Site) -> list[str]:
        """See :class:`fastsocket.bench.servers.Server`; a store listens alike in all modes."""
        host, port = self.address
        listen = [host, site.address, port, str(site.port)]
        return [program(self.program, self.package), *listen, *self.options]


@dataclass(frozen=True)
class Kv:
    """fastsocket-kv: the same question again and again to every instance of a store."""

    store: Store
    hosts: Sequence[str]

    name = "fastsocket-kv"
    warms_up = True
    versatile = False

    def command(self, load: Load) -> list[str]:
        """See :class:`fastsocket.bench.clients.Client`."""
        return [
            str(native_file(self.name)),
            *("-q", self.store.question, "-a", str(self.store.answer_bytes)),
            *("-c", str(load.connections), "-p", str(load.processes)),
            *("-t", f"{load.seconds:g}", "-W", f"{load.warmup:g}"),
            *(f"{host}:{load.port}" for host in self.hosts),
        ]

    def parse(self, output: str) -> Outcome:
        """See :class:`fastsocket.bench.clients.Client`."""
        try:
            said = json.loads(output)
            return Outcome(said["seconds"], said["completed"], said["errors"], said["latency_us"])
        except (ValueError, KeyError, TypeError) as error:
            raise FastsocketError(
                f"the output of {self.name} cannot be read", output[-80:].strip()
            ) from error


REDIS = Store(
    name="redis",
    package="redis-server",
    program="redis-server",
    # Nothing is written to disk: a fork for a snapshot would be measured as well.
    options=("--save", "", "--appendonly", "no", "--daemonize", "no"),
    address=("--bind", "--port"),
    greeting=Greeting(f"SET {KEY} {ANSWER}\r\n".encode(), b"+OK"),
    question=f"GET {KEY}\r\n",
    answer_bytes=len(f"${_SIZE}\r\n{ANSWER}\r\n"),
)
MEMCACHED = Store(
    name="memcached",
    package="memcached",
    program="memcached",
    # It would not run as root without a user to become, and becomes nobody else's.
    options=("-t", "1", "-U", "0", "-u", "root"),
    address=("-l", "-p"),
    greeting=Greeting(f"set {KEY} 0 0 {_SIZE}\r\n{ANSWER}\r\n".encode(), b"STORED"),
    question=f"get {KEY}\r\n",
    answer_bytes=len(f"VALUE {KEY} 0 {_SIZE}\r\n{ANSWER}\r\nEND\r\n"),
)

STORES: Mapping[str, Store] = {store.name: store for store in (REDIS, MEMCACHED)}
SERVERS: Mapping[str, Server] = {
    **HTTP_SERVERS,
    **STORES,
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
