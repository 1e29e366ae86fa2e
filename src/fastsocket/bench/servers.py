# SPDX-License-Identifier: GPL-2.0-or-later
"""Real servers, configured the way each one's users run it on several cores.

Every server answers ``GET /`` with 64 bytes and closes the connection. A server writes its files
into a directory of the run and stays in the foreground; the mode decides only how it listens. Those
in Python have a module of their own, and so has where a server is, whose names are here, too.
"""

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Protocol

from fastsocket.bench.modes import Mode
from fastsocket.bench.python_servers import Granian, Gunicorn, Uvicorn
from fastsocket.bench.site import ANSWER, CONNECTIONS, Site, Stall
from fastsocket.errors import FastsocketError
from fastsocket.native import native_file

__all__ = [
    "ANSWER",
    "CONNECTIONS",
    "HTTP_SERVERS",
    "KEPT_ANSWER_BYTES",
    "Server",
    "Site",
    "Stall",
    "program",
]

# nginx's answer on a connection that it keeps, as it is configured here.
KEPT_ANSWER_BYTES = len(
    "HTTP/1.1 200 OK\r\nServer: nginx\r\nDate: Thu, 01 Jan 1970 00:00:00 GMT\r\n"
    f"Content-Type: text/plain\r\nContent-Length: {len(ANSWER)}\r\n"
    f"Connection: keep-alive\r\n\r\n{ANSWER}"
)
# A user that is not root, whatever its name.
NOBODY = 65534


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


def program(name: str, package: str) -> str:
    """Return the program's path, also where sbin is not in a user's PATH."""
    path = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin:/sbin")
    if path is None:
        raise FastsocketError(f"{name} is not installed", todo=f"apt-get install {package}")
    return path


def cpu_mask(cpus: Sequence[int]) -> str:
    """Return nginx's mask of `cpus`, with a space before it; nothing for all of the machine."""
    if not cpus:
        return ""
    return " " + "".join("1" if cpu in cpus else "0" for cpu in range(max(cpus), -1, -1))


def _identity(site: Site) -> str:
    """Return the directive that lets nginx's workers stay root where root has no capabilities.

    Such a root, as in some containers, cannot give the workers' directories to another user, and
    nginx ends then.
    """
    probe = site.file("owner", "")
    try:
        os.chown(probe, NOBODY, -1)
    except PermissionError:
        return "user root;\n" if os.geteuid() == 0 else ""
    finally:
        probe.unlink()
    return ""


def _temporary_paths(nginx: str, directory: Path) -> str:
    """Return directives that keep nginx out of directories that only root may write."""
    paths = ("client_body", *_passing_modules(nginx))
    return "\n    ".join(f"{name}_temp_path {directory}/{name};" for name in paths)


@cache
def _passing_modules(nginx: str) -> tuple[str, ...]:
    """Return the modules with a directory of their own that the program was built with."""
    said = subprocess.run([nginx, "-V"], capture_output=True, text=True, check=False).stderr
    modules = ("proxy", "fastcgi", "uwsgi", "scgi")
    return tuple(name for name in modules if f"--without-http_{name}_module" not in said)


def _sockets(site: Site) -> int:
    """Return how many sockets a worker may have: a proxy has two for each connection."""
    return 2 * site.capacity if site.backend else site.capacity


def _first_core(site: Site) -> list[str]:
    """Return the demo server's option to pin its workers: to neighbouring CPUs, one each."""
    cpus = sorted(site.cpus or os.sched_getaffinity(0))
    neighbours = cpus[-1] - cpus[0] == len(cpus) - 1 and site.workers <= len(cpus)
    return ["-c", str(cpus[0])] if neighbours else []


class Nginx:
    """nginx: master and workers, one to a CPU, no accept mutex."""

    name = "nginx"
    modes = (Mode.STOCK, Mode.REUSEPORT, Mode.FASTSOCKET)

    def command(self, mode: Mode, site: Site) -> list[str]:
        """See :class:`Server`."""
        nginx = program("nginx", "nginx-light")
        reuseport = " reuseport" if mode.listens is Mode.REUSEPORT else ""
        keep = "keepalive_timeout 0;"
        if site.keep_alive:  # for ever, with answers of one size whatever its version
            keep = "keepalive_timeout 600s; keepalive_requests 1000000000; server_tokens off;"
        slow = ""
        if site.stall:
            slow = f"location = /slow {{ access_log {site.stall.log}; return 200 slow; }}"
        serve = f'return 200 "{ANSWER}";'
        if site.backend:
            serve = f"proxy_pass http://{site.backend[0]}:{site.backend[1]};"
        path = site.file(
            "nginx.conf",
            f"""\
daemon off;
{_identity(site)}worker_processes {site.workers};
worker_cpu_affinity auto{cpu_mask(site.cpus)};
pid {site.directory}/nginx.pid;
error_log stderr;
events {{
    accept_mutex off;
    worker_connections {_sockets(site)};
}}
http {{
    access_log off;
    {keep}
    {_temporary_paths(nginx, site.directory)}
    server {{
        listen {site.address}:{site.port}{reuseport};
        {slow}
        location / {{ {serve} }}
    }}
}}
""",
        )
        return [nginx, "-e", "stderr", "-p", str(site.directory), "-c", str(path)]


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
        # The next worker takes the listening sockets from the one before over that socket.
        stats = f"stats socket {site.directory}/stats mode 600 level admin expose-fd listeners"
        reloads = f"    {stats}\n" if site.reloads else ""
        serve = f'http-request return status 200 content-type text/plain string "{ANSWER}"'
        if site.backend:
            host, port = site.backend
            serve = f"default_backend behind\n\nbackend behind\n    server one {host}:{port}"
        path = site.file(
            "haproxy.cfg",
            f"""\
global
    nbthread {site.workers}
    maxconn {site.capacity}
{self._tuning}{reloads}
defaults
    mode http
    option httpclose
    timeout client 10s
    timeout server 10s
    timeout connect 10s

frontend bench
    bind {site.address}:{site.port}{shards}
    {serve}
""",
        )
        return [program("haproxy", "haproxy"), "-W" if site.reloads else "-db", "-f", str(path)]


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
server.max-connections = {site.capacity}
server.max-fds = {2 * site.capacity}
index-file.names = ( "answer.txt" )
mimetype.assign = ( ".txt" => "text/plain" )
""",
        )
        return [program("lighttpd", "lighttpd"), "-D", "-f", str(path)]


class Demo:
    """The demo server of this project: what is left when the application costs nothing."""

    name = "demo"
    modes = (Mode.STOCK, Mode.REUSEPORT, Mode.FASTSOCKET)

    def command(self, mode: Mode, site: Site) -> list[str]:
        """See :class:`Server`."""
        demo = str(native_file("fastsocket-demo"))
        listen = ["-w", str(site.workers), *_first_core(site), "-a", f"{site.address}:{site.port}"]
        own = ["--reuseport"] if mode.listens is Mode.REUSEPORT else []
        keep = ["-k"] if site.keep_alive else []
        stall = []
        if site.stall:
            times = f"{site.stall.milliseconds}/{site.stall.every_milliseconds}"
            stall = ["--stall", times, *(["--burn"] if site.stall.burn else [])]
        return [demo, *listen, *own, *keep, *stall]


HTTP_SERVERS: Mapping[str, Server] = {
    known.name: known
    for known in (
        Nginx(),
        Haproxy("haproxy", multi_queue=True),
        Haproxy("haproxy-single-queue", multi_queue=False),
        Lighttpd(),
        Gunicorn(),
        Granian(),
        Uvicorn(),
        Demo(),
    )
}
