# SPDX-License-Identifier: GPL-2.0-or-later
"""Real servers with their stock configuration for several workers, and real clients."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.apps.harness import (
    PATIENCE_S,
    PROGRAMS,
    Application,
    fastsocket_command,
    http_get,
    listening,
    on_cpu,
    say,
    wait_until,
)

pytestmark = [pytest.mark.apps, pytest.mark.usefixtures("own_network")]

CONNECTIONS = 20  # a CPU; fewer than the policy's slack
PORT = 8080


def program(name: str) -> str:
    """Return the path of a server, or skip the test."""
    path = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:{Path(sys.executable).parent}")
    if not path:
        pytest.skip(f"{name} is not installed")
    return path


def expect_workers(
    app: Application,
    cpus: Sequence[int],
    request: Callable[[], object],
    workers: int = 2,
    port: int = 0,
) -> None:
    """Each worker must poll a socket and a CPU of its own and serve that CPU's clients."""
    slots = app.wait_for_slots(workers, port)
    serving = Counter(slot["cpu"] for slot in slots)
    used = cpus[: min(workers, len(cpus))]
    assert sorted(serving) == used, "each CPU has a worker"
    assert max(serving.values()) - min(serving.values()) <= 1
    assert len({slot["tid"] for slot in slots}) == workers
    wait_until(
        lambda: all(os.sched_getaffinity(slot["tid"]) == {slot["cpu"]} for slot in slots),
        "each worker to be pinned",
    )
    before = sum(slot["accepted"] for slot in slots)
    for cpu in used:
        with on_cpu(cpu):
            for _ in range(CONNECTIONS):
                request()
    rows = [row for row in app.status()["listeners"] if row["port"] == (port or app.port)]
    listener = next(row for row in rows if ":" not in row["address"])
    slots = [slot for slot in listener["slots"] if slot["state"] == "claimed"]
    assert sum(slot["accepted"] for slot in slots) - before == len(used) * CONNECTIONS
    for cpu in used:
        assert sum(slot["accepted"] for slot in slots if slot["cpu"] == cpu) > 0
    wait_until(lambda: not any(slot["live"] for slot in app.slots(port)), "connections to end")
    sockets = {found.cookie: found for found in listening(port or app.port)}
    assert len({slot["cookie"] for slot in slots}) == workers, "a socket each"
    for slot in slots:
        holders = {pid for pid, _ in sockets[slot["cookie"]].holders}
        assert slot["pid"] in holders


def hello(port: int = PORT, host: str = "127.0.0.1") -> None:
    assert http_get(port, host) == "hello\n"


# -- nginx ------------------------------------------------------------------------------------

NGINX = """
{main} worker_processes 2; pid {folder}/pid; error_log {folder}/error.log;
events {{ worker_connections 512; accept_mutex off; }}
http {{ access_log {folder}/access.log; {http}
  server {{ {listen} location / {{ return 200 "hello\\n"; }} }} }}
"""


def nginx(folder: Path, listen: str, main: str = "daemon off;", http: str = "") -> list[str]:
    folder.chmod(0o755)
    config = folder / "nginx.conf"
    config.write_text(NGINX.format(folder=folder, listen=listen, main=main, http=http))
    return [program("nginx"), "-e", str(folder / "error.log"), "-c", str(config)]


def expect_clean_nginx_log(folder: Path) -> None:
    log = (folder / "error.log").read_text()
    assert not [line for line in log.splitlines() if "[notice]" not in line], log


@pytest.mark.parametrize(
    "listen", [f"listen 127.0.0.1:{PORT};", f"listen 127.0.0.1:{PORT} reuseport;"]
)
def test_nginx(tmp_path: Path, cpus: list[int], listen: str) -> None:
    with Application(nginx(tmp_path, listen), PORT) as app:
        expect_workers(app, cpus, hello)
        assert app.stop(signal.SIGQUIT) == 0
    expect_clean_nginx_log(tmp_path)


def test_nginx_as_another_user_on_a_low_port(tmp_path: Path, cpus: list[int]) -> None:
    command = nginx(tmp_path, "listen 80; listen [::]:80;", "daemon off; user www-data;")
    with Application(command, 80) as app:
        app.wait_for_slots(2)
        expect_workers(app, cpus, lambda: hello(80))
        for slot in app.slots():
            assert Path(f"/proc/{slot['pid']}").owner() == "www-data"
        hello(80, "::1")
        assert app.stop() == 0
    expect_clean_nginx_log(tmp_path)


def test_nginx_as_a_daemon(tmp_path: Path, cpus: list[int]) -> None:
    command = nginx(tmp_path, f"listen 127.0.0.1:{PORT};", "daemon on;")
    with Application(command, PORT) as app:
        assert app.process.wait(PATIENCE_S) == 0
        master = int(wait_until((tmp_path / "pid").read_text, "the master's pid"))
        expect_workers(app, cpus, hello)
        os.kill(master, signal.SIGQUIT)
        wait_until(lambda: not listening(PORT), "the daemon to go")
        app.expect_nothing_left()
    expect_clean_nginx_log(tmp_path)


def test_nginx_reload_and_worker_crash(tmp_path: Path, cpus: list[int]) -> None:
    """Old workers leave, new ones come: the CPUs stay served and nothing fails."""
    with Application(nginx(tmp_path, f"listen 127.0.0.1:{PORT};"), PORT) as app:
        first = {slot["pid"] for slot in app.wait_for_slots(2)}
        os.kill(app.pid, signal.SIGHUP)

        def all_new() -> bool:
            hello()
            pids = {slot["pid"] for slot in app.slots()}
            return len(pids) == 2 and not pids & first

        wait_until(all_new, "the new workers")
        expect_workers(app, cpus, hello)
        victim = app.slots()[0]["pid"]
        os.kill(victim, signal.SIGKILL)

        def replaced() -> bool:
            hello()
            pids = {slot["pid"] for slot in app.slots()}
            return len(pids) == 2 and victim not in pids

        wait_until(replaced, "the killed worker's successor")
        expect_workers(app, cpus, hello)
        assert app.stop() == 0


# -- HAProxy ----------------------------------------------------------------------------------

HAPROXY = """
global
    maxconn 500
    {global_lines}
    nbthread 2
defaults
    mode http
    timeout connect 5s
    timeout client 5s
    timeout server 5s
    option http-server-close
frontend front
    bind 127.0.0.1:{port}
    {rule}
backend back
    server one 127.0.0.1:8081
"""
ANSWER = 'http-request return status 200 content-type text/plain string "hello\\n"'


def haproxy(folder: Path, rule: str, global_lines: str = "") -> list[str]:
    config = folder / "haproxy.cfg"
    config.write_text(HAPROXY.format(port=PORT, rule=rule, global_lines=global_lines))
    return [program("haproxy"), "-db", "-f", str(config)]


@pytest.mark.parametrize("multi_queue", ["on", "off"])
def test_haproxy_threads(tmp_path: Path, cpus: list[int], multi_queue: str) -> None:
    command = haproxy(tmp_path, ANSWER, f"tune.listener.multi-queue {multi_queue}")
    with Application(command, PORT) as app:
        expect_workers(app, cpus, hello)
        assert app.stop(signal.SIGUSR1) == 0


def test_haproxy_in_a_chroot_as_another_user(tmp_path: Path, cpus: list[int]) -> None:
    command = haproxy(tmp_path, ANSWER, f"user haproxy\n    group haproxy\n    chroot {tmp_path}")
    with Application(command, PORT) as app:
        expect_workers(app, cpus, hello)
        assert Path(f"/proc/{app.slots()[0]['pid']}").owner() == "haproxy"
        assert app.stop(signal.SIGUSR1) == 0


@pytest.fixture
def backend(own_network: None) -> Iterator[None]:
    """An HTTP server on port 8081, in this process."""
    server = socket.create_server(("127.0.0.1", 8081))

    def serve() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            with connection:
                connection.recv(4096)
                connection.sendall(
                    b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\nConnection: close\r\n\r\nhello\n"
                )

    thread = threading.Thread(target=serve)
    thread.start()
    yield
    server.shutdown(socket.SHUT_RDWR)
    thread.join()
    server.close()


@pytest.mark.usefixtures("backend")
def test_haproxy_as_proxy(tmp_path: Path, cpus: list[int]) -> None:
    with Application(haproxy(tmp_path, "default_backend back"), PORT) as app:
        expect_workers(app, cpus, hello)
        assert app.stop(signal.SIGUSR1) == 0


# -- lighttpd, redis, memcached ---------------------------------------------------------------


def test_lighttpd(tmp_path: Path, cpus: list[int]) -> None:
    (tmp_path / "index.html").write_text("hello\n")
    config = tmp_path / "lighttpd.conf"
    config.write_text(
        f'server.document-root = "{tmp_path}"\nserver.bind = "127.0.0.1"\n'
        f'server.port = {PORT}\nserver.max-worker = 2\nindex-file.names = ("index.html")\n'
    )
    with Application([program("lighttpd"), "-D", "-f", config], PORT) as app:
        expect_workers(app, cpus, hello)
        assert app.stop() == 0


def ping_redis() -> None:
    assert say(PORT, b"PING\r\nQUIT\r\n") == b"+PONG\r\n+OK\r\n"


def test_redis(tmp_path: Path) -> None:
    """One worker: nothing to spread, nothing pinned, and it must not mind."""
    command = [program("redis-server"), "--port", str(PORT), "--save", "", "--dir", str(tmp_path)]
    with Application(command, PORT) as app:
        for _ in range(CONNECTIONS):
            ping_redis()
        for listener in app.status()["listeners"]:
            (slot,) = listener["slots"]
            assert not slot["pinned"]
        assert sum(slot["accepted"] for slot in app.slots()) == CONNECTIONS
        assert app.stop() == 0


def set_and_get() -> None:
    answer = say(PORT, b"set a 0 0 1\r\nx\r\nget a\r\nquit\r\n")
    assert answer == b"STORED\r\nVALUE a 0 1\r\nx\r\nEND\r\n"


def test_memcached(cpus: list[int]) -> None:
    """Its main thread accepts for all others: one slot, and its threads stay where they are."""
    command = [program("memcached"), "-u", "nobody", "-t", "2", "-l", "127.0.0.1", "-p", str(PORT)]
    with Application(command, PORT) as app:
        for cpu in cpus:
            with on_cpu(cpu):
                for _ in range(CONNECTIONS):
                    set_and_get()
        (slot,) = app.slots()
        assert slot["accepted"] == CONNECTIONS * len(cpus)
        assert app.stop() == 0


# -- Python and JavaScript servers ------------------------------------------------------------


def python_server(name: str, *words: str) -> list[str]:
    program(name)
    return [sys.executable, "-m", name, *words]


@pytest.mark.parametrize("workers", [2, 5])
def test_gunicorn_sync(cpus: list[int], workers: int) -> None:
    """Also with more workers than CPUs."""
    command = python_server(
        "gunicorn", "-w", str(workers), "-b", f"127.0.0.1:{PORT}", "--chdir", str(PROGRAMS),
        "hello_wsgi:application", "--no-control-socket",
    )  # fmt: skip
    with Application(command, PORT) as app:
        expect_workers(app, cpus, hello, workers)
        assert app.stop() == 0


def test_gunicorn_uvicorn_workers(cpus: list[int]) -> None:
    command = python_server(
        "gunicorn", "-w", "2", "-k", "uvicorn_worker.UvicornWorker", "-b", f"127.0.0.1:{PORT}",
        "--chdir", str(PROGRAMS), "hello_asgi:application", "--no-control-socket",
    )  # fmt: skip
    with Application(command, PORT) as app:
        expect_workers(app, cpus, hello)
        assert app.stop() == 0


def test_uvicorn(cpus: list[int]) -> None:
    command = python_server(
        "uvicorn", "--workers", "2", "--host", "127.0.0.1", "--port", str(PORT),
        "--app-dir", str(PROGRAMS), "hello_asgi:application",
    )  # fmt: skip
    with Application(command, PORT) as app:
        expect_workers(app, cpus, hello)
        app.stop()


def test_granian(cpus: list[int]) -> None:
    command = python_server(
        "granian", "--workers", "2", "--host", "127.0.0.1", "--port", str(PORT),
        "--interface", "asgi", "--working-dir", str(PROGRAMS), "hello_asgi:application",
    )  # fmt: skip
    with Application(command, PORT) as app:
        expect_workers(app, cpus, hello)
        assert app.stop() == 0


def test_node_single() -> None:
    with Application([program("node"), PROGRAMS / "hello.js", str(PORT), "0"], PORT) as app:
        for _ in range(CONNECTIONS):
            hello()
        (slot,) = app.slots()
        assert slot["accepted"] == CONNECTIONS
        assert not slot["pinned"]
        assert app.stop() == -signal.SIGTERM


def test_node_cluster() -> None:
    with Application([program("node"), PROGRAMS / "hello.js", str(PORT), "2"], PORT) as app:
        for _ in range(CONNECTIONS):
            hello()
        assert sum(slot["accepted"] for slot in app.slots()) == CONNECTIONS
        assert app.stop() == -signal.SIGTERM


# -- clients ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    [
        ["ab", "-q", "-n", "200", "-c", "4"],
        ["wrk", "-t", "2", "-c", "4", "-d", "1"],
        ["curl", "-fsS"],
    ],
    ids=lambda command: command[0],
)
def test_clients(tmp_path: Path, command: list[str]) -> None:
    """A client has no listeners: under Fastsocket it does what it does without."""
    program(command[0])
    with Application(nginx(tmp_path, f"listen 127.0.0.1:{PORT};"), PORT) as app:
        done = subprocess.run(
            fastsocket_command("run", "--", *command, f"http://127.0.0.1:{PORT}/"),
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert not done.stderr
        match command[0]:
            case "ab":
                assert "Complete requests:      200\nFailed requests:        0" in done.stdout
            case "wrk":
                assert "requests in" in done.stdout
                assert "Socket errors" not in done.stdout
            case "curl":
                assert done.stdout == "hello\n"
        assert app.stop() == 0
