# SPDX-License-Identifier: GPL-2.0-or-later
"""Real servers, configured the way each one's users run it on several cores.

Every server answers ``GET /`` with 64 bytes and closes the connection. A server writes its files
into a directory of the run and stays in the foreground; the mode decides only how it listens.
"""

import importlib.util
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from fastsocket.bench.modes import Mode
from fastsocket.errors import FastsocketError, UsageError
from fastsocket.native import native_file

__all__ = ["ANSWER", "SERVERS", "Server", "Site", "Stall", "server"]

ANSWER = "0123456789abcdef" * 4
# Below the hard limit of open files that containers usually get (4,096 or more).
CONNECTIONS = 3000
BACKLOG = 2048


@dataclass(frozen=True)
class Stall:
    """One worker is away for `milliseconds` in every `every_milliseconds`.

    It sleeps, or with `burn` it computes. nginx blocks in a write to `log`, a FIFO that the
    scenario keeps full meanwhile: a log on a slow disk. Python servers sleep in each request for
    /slow.
    """

    milliseconds: int
    every_milliseconds: int
    burn: bool
    log: Path


@dataclass(frozen=True)
class Site:
    """Where and how large: address and port to listen on, workers, and a directory for files.

    `keep_alive` keeps connections open after the answer; `stall` makes one worker stall.
    """

    address: str
    port: int
    workers: int
    directory: Path
    keep_alive: bool = False
    stall: Stall | None = None

    def file(self, name: str, text: str) -> Path:
        """Write a file of the server and return its path."""
        path = self.directory / name
        path.write_text(text, encoding="ascii")
        return path


class Server(Protocol):
    """One server program in one configuration."""

    @property
    def name(self) -> str:
        """The name on the command line."""

    @property
    def modes(self) -> tuple[Mode, ...]:
        """The modes that it has: without a reuseport setting of its own, two."""

    def command(self, mode: Mode, site: Site) -> list[str]:
        """Write the configuration and return the command that serves in the foreground.

        Raises:
            FastsocketError: The program is not installed.
        """


def _program(name: str, package: str) -> str:
    """Return the program's path, also where sbin is not in a user's PATH."""
    path = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin:/sbin")
    if path is None:
        raise FastsocketError(f"{name} is not installed", todo=f"apt-get install {package}")
    return path


class Nginx:
    """nginx: master and workers, one to a CPU, no accept mutex."""

    name = "nginx"
    modes = (Mode.STOCK, Mode.REUSEPORT, Mode.FASTSOCKET)

    def command(self, mode: Mode, site: Site) -> list[str]:
        """See :class:`Server`."""
        reuseport = " reuseport" if mode.listens is Mode.REUSEPORT else ""
        keep = "600s" if site.keep_alive else "0"
        slow = ""
        if site.stall:
            slow = f"location = /slow {{ access_log {site.stall.log}; return 200 slow; }}"
        path = site.file(
            "nginx.conf",
            f"""\
daemon off;
worker_processes {site.workers};
worker_cpu_affinity auto;
pid {site.directory}/nginx.pid;
error_log stderr;
events {{
    accept_mutex off;
    worker_connections {CONNECTIONS};
}}
http {{
    access_log off;
    keepalive_timeout {keep};
    client_body_temp_path {site.directory}/body;
    server {{
        listen {site.address}:{site.port}{reuseport};
        {slow}
        location / {{ return 200 "{ANSWER}"; }}
    }}
}}
""",
        )
        program = _program("nginx", "nginx-light")
        return [program, "-e", "stderr", "-p", str(site.directory), "-c", str(path)]


class Haproxy:
    """HAProxy: threads, answering itself; its own reuseport setting is one shard a thread.

    Its listener hands connections to the least loaded thread by default (``multi-queue``), which
    undoes locality; a second variant is measured without.
    """

    modes = (Mode.STOCK, Mode.REUSEPORT, Mode.FASTSOCKET)

    def __init__(self, name: str, multi_queue: bool) -> None:
        self.name = name
        self._tuning = "" if multi_queue else "    tune.listener.multi-queue off\n"

    def command(self, mode: Mode, site: Site) -> list[str]:
        """See :class:`Server`."""
        shards = " shards by-thread" if mode.listens is Mode.REUSEPORT else ""
        path = site.file(
            "haproxy.cfg",
            f"""\
global
    nbthread {site.workers}
    maxconn {CONNECTIONS}
{self._tuning}
defaults
    mode http
    option httpclose
    timeout client 10s
    timeout server 10s
    timeout connect 10s

frontend bench
    bind {site.address}:{site.port}{shards}
    http-request return status 200 content-type text/plain string "{ANSWER}"
""",
        )
        return [_program("haproxy", "haproxy"), "-db", "-f", str(path)]


class Lighttpd:
    """lighttpd with ``server.max-worker``; it has no reuseport setting (as of 1.4.69)."""

    name = "lighttpd"
    modes = (Mode.STOCK, Mode.FASTSOCKET)

    def command(self, mode: Mode, site: Site) -> list[str]:
        """See :class:`Server`."""
        site.file("answer.txt", ANSWER)
        path = site.file(
            "lighttpd.conf",
            f"""\
server.document-root = "{site.directory}"
server.bind = "{site.address}"
server.port = {site.port}
server.max-worker = {site.workers}
server.max-keep-alive-requests = 0
server.max-connections = {CONNECTIONS}
index-file.names = ( "answer.txt" )
mimetype.assign = ( ".txt" => "text/plain" )
""",
        )
        return [_program("lighttpd", "lighttpd"), "-D", "-f", str(path)]


class Demo:
    """The demo server of this project: what is left when the application costs nothing."""

    name = "demo"
    modes = (Mode.STOCK, Mode.REUSEPORT, Mode.FASTSOCKET)

    def command(self, mode: Mode, site: Site) -> list[str]:
        """See :class:`Server`."""
        program = str(native_file("fastsocket-demo"))
        first = str(min(os.sched_getaffinity(0)))
        listen = ["-w", str(site.workers), "-c", first, "-a", f"{site.address}:{site.port}"]
        own = ["--reuseport"] if mode.listens is Mode.REUSEPORT else []
        keep = ["-k"] if site.keep_alive else []
        stall = []
        if site.stall:
            times = f"{site.stall.milliseconds}/{site.stall.every_milliseconds}"
            stall = ["--stall", times, *(["--burn"] if site.stall.burn else [])]
        return [program, *listen, *own, *keep, *stall]


_APPLICATION = """\
import time

ANSWER = b"{answer}"
HEADERS = [("content-type", "text/plain"), ("content-length", str(len(ANSWER)))]


def answer(path):
    if path == "/slow":
        time.sleep({seconds})
    return ANSWER


def wsgi(environ, start_response):
    start_response("200 OK", HEADERS)
    return [answer(environ["PATH_INFO"])]


async def asgi(scope, receive, send):
    headers = [(name.encode(), value.encode()) for name, value in HEADERS]
    body = answer(scope["path"])
    await send({{"type": "http.response.start", "status": 200, "headers": headers}})
    await send({{"type": "http.response.body", "body": body}})
"""


class Gunicorn:
    """gunicorn with sync workers; its `--reuse-port` still shares one socket among workers."""

    name = "gunicorn"
    modes = (Mode.STOCK, Mode.FASTSOCKET)

    def command(self, mode: Mode, site: Site) -> list[str]:
        """See :class:`Server`."""
        return [
            *_module("gunicorn"),
            *("--workers", str(site.workers), "--bind", f"{site.address}:{site.port}"),
            *("--chdir", str(_application(site)), "--log-level", "warning", "bench_app:wsgi"),
        ]


class Granian:
    """granian serving ASGI, an event loop in each worker; its workers share one socket."""

    name = "granian"
    modes = (Mode.STOCK, Mode.FASTSOCKET)

    def command(self, mode: Mode, site: Site) -> list[str]:
        """See :class:`Server`."""
        keep = "--http1-keep-alive" if site.keep_alive else "--no-http1-keep-alive"
        return [
            *_module("granian"),
            *("--interface", "asgi", "--workers", str(site.workers), keep),
            # Idle connections count against the backpressure, whose default is 1,024 for all.
            *("--backlog", str(BACKLOG), "--backpressure", str(CONNECTIONS)),
            *("--host", site.address, "--port", str(site.port), "--log-level", "warning"),
            *("--working-dir", str(_application(site)), "bench_app:asgi"),
        ]


def _module(name: str) -> list[str]:
    """Return the command of a Python server in this interpreter's environment."""
    if importlib.util.find_spec(name) is None:
        raise FastsocketError(f"{name} is not installed", todo=f"pip install {name}")
    return [sys.executable, "-m", name]


def _application(site: Site) -> Path:
    """Write the application of the Python servers and return its folder."""
    seconds = site.stall.milliseconds / 1000 if site.stall else 0
    return site.file("bench_app.py", _APPLICATION.format(answer=ANSWER, seconds=seconds)).parent


SERVERS: Mapping[str, Server] = {
    known.name: known
    for known in (
        Nginx(),
        Haproxy("haproxy", multi_queue=True),
        Haproxy("haproxy-single-queue", multi_queue=False),
        Lighttpd(),
        Gunicorn(),
        Granian(),
        Demo(),
    )
}


def server(name: str) -> Server:
    """Return the server `name`.

    Raises:
        UsageError: There is none.
    """
    if name not in SERVERS:
        raise UsageError(f"no server {name!r}", todo=f"choose one of {', '.join(SERVERS)}")
    return SERVERS[name]
