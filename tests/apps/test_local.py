# SPDX-License-Identifier: GPL-2.0-or-later
"""redis and PostgreSQL on the local fast path answer, and drop their clients, as without it."""

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fastsocket.app.client import ask
from tests.apps.harness import fastsocket_command, wait_until

pytestmark = pytest.mark.apps

PORT = 7391
PATIENCE_S = 10
NOT_FAST: list[str] = []
FAST = ["--listen-spawn", "0", "--local-fast-path", str(PORT)]


@contextmanager
def serving(command: Sequence[str], options: list[str]) -> Iterator[int]:
    """Run a server, under Fastsocket if there are options for it; yield its first process."""
    words = [*fastsocket_command(), "run", *options, "--", *command] if options else command
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            if options:
                wait_until(lambda: local_status(server.pid), "the local fast path to start")
            wait_until(answers, "the server to listen")
            yield server.pid
        finally:
            server.terminate()


def local_status(pid: int) -> dict[str, Any] | None:
    status = ask(pid)
    assert not status or "local-fast-path" not in status["reasons"], status["reasons"]
    return status and status["local"]


def answers() -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", PORT)) == 0


class Redis:
    """A client of its own, with a timeout and so with a socket that does not block."""

    def __init__(self) -> None:
        self.socket = socket.create_connection(("127.0.0.1", PORT), PATIENCE_S)

    def say(self, words: str) -> str:
        self.socket.sendall(words.encode() + b"\r\n")
        return self.hear()

    def hear(self) -> str:
        try:
            return self.socket.recv(1 << 16).decode()
        except ConnectionResetError:
            return "reset"


def what_clients_see() -> list[str]:
    """Go through what redis does to its clients; return all that they saw."""
    first, second = Redis(), Redis()
    seen = [first.say("SET key value"), second.say("GET key")]
    victim = second.say("CLIENT ID").strip().lstrip(":")
    seen.append(first.say(f"CLIENT KILL ID {victim}"))
    seen.append(second.hear())
    third = Redis()
    seen += [third.say("SUBSCRIBE news"), first.say("PUBLISH news today"), third.hear()]
    third.socket.shutdown(socket.SHUT_WR)
    seen.append(third.hear())
    fourth = Redis()
    fourth.socket.sendall(b"PING\r\n" * 500)
    answer = ""
    while len(answer) < 500 * len("+PONG\r\n"):
        answer += fourth.hear()
    seen.append(answer)
    fifth = Redis()
    seen += [fifth.say("QUIT"), fifth.hear()]
    return seen


@pytest.mark.usefixtures("own_network")
def test_redis_treats_its_clients_the_same(tmp_path: Path) -> None:
    command = ["redis-server", "--port", str(PORT), "--save", "", "--dir", str(tmp_path)]
    with serving(command, NOT_FAST):
        plain = what_clients_see()
    with serving(command, FAST) as pid:
        assert what_clients_see() == plain
        local = local_status(pid)
        assert local
        assert local["redirected"] > 10
        assert local["off"] == ""
        words = [*fastsocket_command(), "status", str(pid)]
        shown = subprocess.run(words, capture_output=True, text=True, check=True).stdout
        assert f"local fast path of port {PORT} is active" in shown


@pytest.mark.parametrize("port", ["0", "65536", "redis"])
def test_wrong_ports_are_refused(port: str) -> None:
    words = [*fastsocket_command(), "run", "--local-fast-path", port, "--", "true"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.usefixtures("own_network")
def test_redis_benchmark_goes_past_tcp(tmp_path: Path) -> None:
    command = ["redis-server", "--port", str(PORT), "--save", "", "--dir", str(tmp_path)]
    with serving(command, FAST) as pid:
        for pipeline in ("1", "16"):
            words = ["-p", str(PORT), "-c", "16", "-n", "16000", "-t", "set,get", "-P", pipeline]
            done = subprocess.run(
                ["redis-benchmark", *words, "--csv"], capture_output=True, text=True, check=True
            )
            assert '"GET"' in done.stdout
        local = local_status(pid)
        assert local
        assert local["redirected"] > 100 * local["passed"]


@pytest.mark.usefixtures("own_network")
def test_redis_with_a_reader_that_stops(tmp_path: Path) -> None:
    """Answers that nobody reads wait in redis and come when they are asked for."""
    command = ["redis-server", "--port", str(PORT), "--save", "", "--dir", str(tmp_path)]
    size, count = 1 << 20, 24
    with serving(command, FAST):
        client = Redis()
        value = b"x" * size
        client.socket.sendall(b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$%d\r\n%s\r\n" % (size, value))
        assert client.hear() == "+OK\r\n"
        client.socket.sendall(b"GET k\r\n" * count)
        other = Redis()
        assert other.say("PING") == "+PONG\r\n"
        answer = b"$%d\r\n%s\r\n" % (size, value)
        got = bytearray()
        while len(got) < count * len(answer):
            got += client.socket.recv(1 << 20)
        assert got == answer * count


@contextmanager
def postgres(options: list[str]) -> Iterator[int]:
    """A fresh database; the folder must be the server's user's, not the test's."""
    found = shutil.which("postgres") or next(
        iter(map(str, Path("/usr/lib/postgresql").glob("*/bin/postgres"))), None
    )
    if not found or not shutil.which("pgbench"):
        pytest.skip("PostgreSQL with pgbench is not installed")
    user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
    binaries = Path(found).resolve().parent
    with tempfile.TemporaryDirectory(prefix="fs-pg-") as folder:
        shutil.chown(folder, "postgres", "postgres")
        data = f"{folder}/data"
        subprocess.run(
            [*user, binaries / "initdb", "-D", data, "-A", "trust", "-N", "--no-instructions"],
            check=True,
            capture_output=True,
            cwd="/",
        )
        settings = ["-c", f"port={PORT}", "-c", f"unix_socket_directories={folder}"]
        settings += ["-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"]
        with serving([*user, str(binaries / "postgres"), "-D", data, *settings], options) as pid:
            yield pid


def psql(statement: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["psql", "-h", "127.0.0.1", "-p", str(PORT), "-U", "postgres", "-At", "-c", statement],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "PGSSLMODE": "disable"},
    )


@pytest.mark.usefixtures("own_network")
def test_postgresql_and_a_terminated_backend() -> None:
    bench = [
        "env",
        "PGDATABASE=postgres",
        "pgbench",
        "-h",
        "127.0.0.1",
        "-p",
        str(PORT),
        "-U",
        "postgres",
    ]
    with postgres(FAST) as pid:
        wait_until(lambda: psql("select 1").stdout == "1\n", "PostgreSQL to be ready")
        made = subprocess.run([*bench, "-i", "-q"], check=False, capture_output=True, text=True)
        assert made.returncode == 0, made.stderr
        done = subprocess.run(
            [*bench, "-S", "-c", "4", "-t", "500"], check=True, capture_output=True, text=True
        )
        assert "number of transactions actually processed: 2000/2000" in done.stdout
        killed = psql("select pg_terminate_backend(pg_backend_pid())")
        assert killed.returncode == 2
        assert "terminating connection due to administrator command" in killed.stderr
        large = psql("select repeat('x', 1000) from generate_series(1, 20000)")
        assert large.stdout == ("x" * 1000 + "\n") * 20_000
        local = local_status(pid)
        assert local
        assert local["redirected"] > 1000
        assert local["off"] == ""
