# SPDX-License-Identifier: GPL-2.0-or-later
"""What tests of lean connections share: servers by name, a client, and counts of segments."""

import os
import shutil
import socket
import ssl
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fastsocket.app.client import ask
from fastsocket.native import native_file
from tests.apps.harness import PROGRAMS, Application, say, wait_until

__all__ = [
    "PORT",
    "REQUEST",
    "SERVERS",
    "get",
    "lean_state",
    "learn",
    "nginx_tls",
    "out_segments",
    "program",
    "segments",
    "tcp_counter",
    "tls_get",
    "typical_segments",
]

PORT = 8080
ROUNDS = 3
REQUEST = b"GET / HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n"


def program(name: str) -> str:
    """Return the path of a server, or skip the test."""
    path = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:{Path(sys.executable).parent}")
    if not path:
        pytest.skip(f"{name} is not installed")
    return path


def get(port: int = PORT) -> bytes:
    """Return the whole answer to one request on a connection of its own."""
    return say(port, REQUEST)


def out_segments() -> int:
    """Return how many segments this network namespace has sent."""
    text = Path("/proc/thread-self/net/snmp").read_text()
    names, values = (line.split() for line in text.splitlines() if line.startswith("Tcp:"))
    return int(values[names.index("OutSegs")])


def tcp_counter(name: str) -> int:
    """Return a counter of this network namespace's /proc/net/netstat, TcpExt."""
    text = Path("/proc/thread-self/net/netstat").read_text()
    names, values = (line.split() for line in text.splitlines() if line.startswith("TcpExt:"))
    return int(values[names.index(name)])


def segments(act: Callable[[], object], count: int) -> float:
    """Return the segments that one call of `act` costs both ends, the mean of `count` calls.

    The least of some rounds, as a busy machine's timers add some. Only where nothing else uses the
    network namespace.
    """
    means = []
    for _ in range(ROUNDS):
        before = out_segments()
        for _ in range(count):
            act()
        means.append((out_segments() - before) / count)
    return min(means)


def typical_segments(act: Callable[[], object], count: int) -> int:
    """Return the segments that one call of `act` costs both ends, the median of `count` calls.

    For two counts that are compared: what timers add to some calls, or save them, is in neither.
    """
    counts = []
    for _ in range(count):
        before = out_segments()
        act()
        counts.append(out_segments() - before)
    return statistics.median_low(counts)


def lean_state(app: Application, port: int = PORT) -> dict[str, Any]:
    """Return what the page says of the listener: means -> its entry."""
    lean: dict[str, Any] = _listener(app, port)["lean"]
    return lean


def _listener(app: Application, port: int) -> dict[str, Any]:
    """Ask the keeper itself, which is quick."""
    status = ask(app.pid)
    assert status, "no keeper"
    (listener,) = (entry for entry in status["listeners"] if entry["port"] == port)
    found: dict[str, Any] = listener
    return found


def learn(app: Application, act: Callable[[], object], means: tuple[str, ...]) -> None:
    """Make connections until those means are on."""

    def on() -> bool:
        for _ in range(10):
            act()
        lean = lean_state(app)
        return all(lean[name]["state"] == "on" for name in means)

    wait_until(on, f"{means} to be on: {lean_state(app)}")


def _nginx(folder: Path, http: str = 'location / { return 200 "hello\\n"; }') -> list[str]:
    folder.chmod(0o755)
    config = folder / "nginx.conf"
    config.write_text(
        f"daemon off; user root; worker_processes 2; pid {folder}/pid;\n"
        "events { worker_connections 512; accept_mutex off; }\n"
        f"http {{ access_log {folder}/access.log; sendfile on; tcp_nopush on;\n"
        f"server {{ listen 127.0.0.1:{PORT}; {http} }} }}\n"
    )
    return [program("nginx"), "-e", str(folder / "error.log"), "-c", str(config)]


def _nginx_file(folder: Path) -> list[str]:
    (folder / "index.html").write_text("hello\n")
    return _nginx(folder, f"root {folder};")


def _haproxy(folder: Path) -> list[str]:
    config = folder / "haproxy.cfg"
    config.write_text(
        "global\n  maxconn 500\n  nbthread 2\n"
        "defaults\n  mode http\n  timeout connect 5s\n  timeout client 5s\n  timeout server 5s\n"
        f"frontend front\n  bind 127.0.0.1:{PORT}\n"
        '  http-request return status 200 content-type text/plain string "hello\\n"\n'
    )
    return [program("haproxy"), "-db", "-f", str(config)]


def _lighttpd(folder: Path) -> list[str]:
    (folder / "index.html").write_text("hello\n")
    config = folder / "lighttpd.conf"
    config.write_text(
        f'server.document-root = "{folder}"\nserver.bind = "127.0.0.1"\n'
        f'server.port = {PORT}\nserver.max-worker = 2\nindex-file.names = ("index.html")\n'
    )
    return [program("lighttpd"), "-D", "-f", str(config)]


def _demo(folder: Path) -> list[str]:
    return [
        str(native_file("fastsocket-demo")),
        *("-w", "2", "-o", str(folder / "log"), "-a", f"127.0.0.1:{PORT}"),
    ]


def _python(name: str, *words: str) -> list[str]:
    program(name)
    return [sys.executable, "-m", name, *words]


def _gunicorn(_: Path) -> list[str]:
    return _python(
        "gunicorn", "-w", "2", "-b", f"127.0.0.1:{PORT}", "--chdir", str(PROGRAMS),
        "hello_wsgi:application", "--no-control-socket",
    )  # fmt: skip


def _uvicorn(_: Path, *options: str) -> list[str]:
    return _python(
        "uvicorn", "--workers", "2", "--host", "127.0.0.1", "--port", str(PORT),
        "--app-dir", str(PROGRAMS), *options, "hello_asgi:application",
    )  # fmt: skip


def _uvicorn_quiet(folder: Path) -> list[str]:
    return _uvicorn(folder, "--no-access-log")


def _granian(_: Path) -> list[str]:
    return _python(
        "granian", "--workers", "2", "--host", "127.0.0.1", "--port", str(PORT),
        "--interface", "asgi", "--working-dir", str(PROGRAMS), "hello_asgi:application",
    )  # fmt: skip


def _node(_: Path) -> list[str]:
    return [program("node"), str(PROGRAMS / "hello.js"), str(PORT), "0"]


def nginx_tls(folder: Path, version: ssl.TLSVersion) -> tuple[list[str], ssl.SSLContext]:
    """Return nginx's command line with a certificate of its own, and a client's settings."""
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-nodes", "-days", "1", "-subj", "/CN=localhost",
         "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
         "-keyout", key, "-out", certificate],
        check=True, capture_output=True,
    )  # fmt: skip
    command = _nginx(
        folder,
        f"ssl_certificate {certificate}; ssl_certificate_key {key}; "
        f"ssl_protocols {'TLSv1.2' if version == ssl.TLSVersion.TLSv1_2 else 'TLSv1.3'}; "
        'location / { return 200 "hello\\n"; }',
    )
    config = folder / "nginx.conf"
    config.write_text(config.read_text().replace(f"{PORT};", f"{PORT} ssl;"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.minimum_version = context.maximum_version = version
    return command, context


def tls_get(context: ssl.SSLContext, session: ssl.SSLSession | None = None) -> ssl.SSLSession:
    """Make one HTTPS request on a connection of its own, and return its session to resume."""
    with (
        socket.create_connection(("127.0.0.1", PORT), timeout=15) as raw,
        context.wrap_socket(raw, session=session) as connection,
    ):
        connection.sendall(REQUEST)
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
        assert answer.endswith(b"hello\n")
        assert connection.session_reused == (session is not None)
        assert connection.session
        return connection.session


SERVERS: dict[str, Callable[[Path], list[str]]] = {
    "nginx": _nginx,
    "nginx-file": _nginx_file,
    "haproxy": _haproxy,
    "lighttpd": _lighttpd,
    "demo": _demo,
    "gunicorn": _gunicorn,
    "uvicorn": _uvicorn,
    "uvicorn-quiet": _uvicorn_quiet,
    "granian": _granian,
    "node": _node,
}
