# SPDX-License-Identifier: GPL-2.0-or-later
"""How servers and clients may behave on a connection, and what a client then sees and when.

A behaviour is a script for the server of `scripted.py`, and what the client does meanwhile.
"""

import json
import socket
import sys
import time
import zlib
from dataclasses import dataclass
from typing import Any

from fastsocket.bench import scripted
from fastsocket.bench.modes import Mode
from fastsocket.bench.servers import Site

__all__ = [
    "BEHAVIOURS",
    "SHORT",
    "Behaviour",
    "Said",
    "Scripted",
    "lateness",
    "script",
    "talk",
    "talk_to_each",
]

PATIENCE_S = 60.0
PIECE = 1 << 20
HEAD = 1 << 16
FEW_PIECES = 8
GIB = 1 << 30


@dataclass(frozen=True)
class Behaviour:
    """What is different about a connection.

    Attributes:
        steps: What the server does, each a name of `scripted.STEPS` and its arguments.
        later: What the client sends after the script, so many `times`.
        pause: How many seconds after it.
        silence: How many seconds the client says nothing at first.
        ends: Whether it ends its side when it has said all.
        visits: Whether it connects and leaves before, as a health check does.
        greets: Whether the server speaks first.
        seldom: Whether it takes long, so that few are compared.
    """

    steps: tuple[tuple[Any, ...], ...] = (("write", "hello"),)
    later: bytes = b""
    times: int = 1
    pause: float = 0
    silence: float = 0
    ends: bool = False
    visits: bool = False
    greets: bool = False
    seldom: bool = False


@dataclass(frozen=True)
class Said:
    """What a server said: the first 64 KiB, how much, its checksum, and when.

    `marks` are the times, in seconds since the client had connected (of one that greets) or since
    it spoke, with how much had come by then; of more than a few only the first and the last. The
    last is that of the end.
    """

    text: bytes
    size: int
    checksum: int
    marks: tuple[tuple[float, int], ...]

    def is_as(self, other: "Said") -> bool:
        """Whether both are the same bytes."""
        return (self.size, self.checksum) == (other.size, other.checksum)

    def when(self, size: int) -> float:
        """Return when `size` bytes had come."""
        return next(at for at, total in self.marks if total >= size)


SHORT = Behaviour()
_EVENTS = (("write", "data: 1\n\n"), ("sleep", 0.005)) * 3
BEHAVIOURS: dict[str, Behaviour] = {
    "short": SHORT,
    "two_writes": Behaviour((("write", "head"), ("write", "body"))),
    "sleeps_before_close": Behaviour((("write", "hello"), ("sleep", 0.005))),
    "waits_before_close": Behaviour((("write", "hello"), ("wait", 0.005))),
    "looks_before_close": Behaviour((("write", "hello"), ("look",))),
    "waits_for_a_lock": Behaviour((("write", "hello"), ("event", 0.005))),
    "reads_a_pipe": Behaviour((("write", "hello"), ("pipe", 0.005))),
    "forks": Behaviour((("write", "hello"), ("fork", 0.005))),
    "forks_then_writes": Behaviour((("fork", 0.005), ("write", "hello"))),
    "spawns": Behaviour((("write", "hello"), ("spawn", 0.005))),
    "has_a_copy": Behaviour((("write", "hello"), ("dup",), ("sleep", 0.005))),
    "logs": Behaviour((("write", "hello"), ("log",))),
    "sends_a_file": Behaviour((("write", "head"), ("file", 3000))),
    "answers_from_a_thread": Behaviour((("thread", "hello"),)),
    "passes_it_on": Behaviour((("pass", "hello"),)),
    "crashes": Behaviour((("write", "hello"), ("crash",))),
    "answers_late": Behaviour((("sleep", 0.05), ("write", "hello"))),
    "continue": Behaviour(
        (("write", "100 "), ("read", 4), ("write", "200")), later=b"body", pause=0.005
    ),
    "chunks": Behaviour(
        (("write", "a"), ("write", "b"), ("look",), ("write", "c"), ("look",), ("write", "0"))
    ),
    "streams": Behaviour((("write", "a"), ("sleep", 0.005), ("write", "b"), ("sleep", 0.005)) * 2),
    "server_sent_events": Behaviour((("write", "head"), *_EVENTS)),
    "websocket": Behaviour(
        (("write", "101"), ("echo", 9), ("write", "bye")), later=b"ping", pause=0.005
    ),
    "pipelines": Behaviour((("write", "one"), ("read", 4), ("write", "two")), later=b"more"),
    "keeps_alive": Behaviour(
        (("write", "one"), ("read", 4), ("write", "two"), ("read", 4)), later=b"moremore"
    ),
    "keeps_alive_idle": Behaviour(
        (("write", "one"), ("read", 4), ("write", "2")), later=b"more", pause=0.05
    ),
    "shuts_down_first": Behaviour((("write", "hello"), ("half",), ("sleep", 0.005))),
    "reads_on_after_its_fin": Behaviour(
        (("write", "hello"), ("half",), ("read", 4)), later=b"more", pause=0.005
    ),
    "client_ends_its_side": Behaviour((("until_eof",), ("write", "hello")), ends=True),
    "health_check": Behaviour(visits=True),
    "greets": Behaviour(greets=True),
    "silent_client": Behaviour(silence=5.0, seldom=True),
    "upload": Behaviour(
        (("read", 8 * PIECE), ("write", "hello")), later=bytes(PIECE), times=8, pause=0.001
    ),
    "download": Behaviour((("write", "x", 8 * PIECE),)),
    "upload_1gib": Behaviour(
        (("read", GIB), ("write", "hello")), later=bytes(PIECE), times=GIB // PIECE, seldom=True
    ),
    "download_1gib": Behaviour((("write", "x", GIB),), seldom=True),
}


class Scripted:
    """The server that does what its client says."""

    name = "scripted"
    modes = (Mode.STOCK, Mode.FASTSOCKET)

    def command(self, mode: Mode, site: Site) -> list[str]:
        """See :class:`fastsocket.bench.servers.Server`."""
        del mode
        return [sys.executable, scripted.__file__, str(site.port), str(site.directory / "greets")]


def script(behaviour: Behaviour) -> bytes:
    """Return the steps as the server reads them, in one piece."""
    return json.dumps(behaviour.steps).encode().ljust(scripted.SCRIPT)


def talk(port: int, behaviour: Behaviour = SHORT) -> Said:
    """Return what the server on `port` says to a client that behaves so."""
    (said,) = talk_to_each([port], behaviour)
    return said


def talk_to_each(ports: list[int], behaviour: Behaviour) -> list[Said]:
    """Return the same of several servers, one after the other; a silence is shared."""
    if behaviour.silence:
        connections = [_connect(port) for port in ports]
        time.sleep(behaviour.silence)
        return [_converse(one, behaviour, time.monotonic()) for one in connections]
    return [_visit_and_converse(port, behaviour) for port in ports]


def _visit_and_converse(port: int, behaviour: Behaviour) -> Said:
    begin = time.monotonic()
    if behaviour.visits:
        _connect(port).close()
    connection = _connect(port)
    if not (behaviour.visits or behaviour.greets):
        begin = time.monotonic()
    return _converse(connection, behaviour, begin)


def _connect(port: int) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def _converse(connection: socket.socket, behaviour: Behaviour, begin: float) -> Said:
    text, size, checksum = b"", 0, 0
    marks: list[tuple[float, int]] = []

    def hear() -> bool:
        nonlocal text, size, checksum
        piece = connection.recv(PIECE)
        size, checksum = size + len(piece), zlib.crc32(piece, checksum)
        text += piece[: HEAD - len(text)]
        marks.append((time.monotonic() - begin, size))
        return bool(piece)

    with connection:
        if behaviour.greets:
            hear()
        connection.sendall(script(behaviour))
        if behaviour.later:
            time.sleep(behaviour.pause)
            for _ in range(behaviour.times):
                connection.sendall(behaviour.later)
        if behaviour.ends:
            connection.shutdown(socket.SHUT_WR)
        while hear():
            pass
    thin = marks if len(marks) <= FEW_PIECES else [marks[0], *marks[-2:]]
    return Said(text, size, checksum, tuple(thin))


def lateness(ours: Said, theirs: Said) -> float:
    """Return by how many seconds `ours` was later at worst: at the end, or at a piece before."""
    late = ours.marks[-1][0] - theirs.marks[-1][0]
    if max(len(ours.marks), len(theirs.marks)) > FEW_PIECES:
        return late
    return max(late, *(ours.when(size) - at for at, size in theirs.marks))
