# SPDX-License-Identifier: GPL-2.0-or-later
"""fastsocket-demo serves, proxies, restarts its workers and counts."""

import json
import os
import re
import signal
import socket
import threading
import time
from pathlib import Path
from shutil import which

import pytest
from demo_tools import GET, connected, demo, get, load, run, wait_for, workers

pytestmark = pytest.mark.apps

CPUS = sorted(os.sched_getaffinity(0))
KEEP = (
    b"HTTP/1.1 200 OK\r\nServer: fastsocket-demo\r\nContent-Type: text/plain\r\n"
    b"Content-Length: 64\r\nConnection: keep-alive\r\n\r\n"
    b"fastsocket-demo: one connection received and served on one core\n"
)

pair = pytest.mark.skipif(len(CPUS) < 2, reason="missing: two CPUs")


def body(answer: bytes) -> bytes:
    head, _, rest = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    return rest


def runs(pid: int) -> bool:
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False


def test_answer(log: Path) -> None:
    with demo(log, "-w", "2") as server:
        answer = get(server.port, GET)
        assert len(body(answer)) == 64
        assert b"Content-Length: 64\r\nConnection: close\r\n" in answer
        assert server.stop() == 0


def test_default_is_a_worker_a_cpu_unpinned(log: Path) -> None:
    with demo(log) as server:
        assert len(workers(server)) == len(CPUS)
        for pid in workers(server):
            assert sorted(os.sched_getaffinity(pid)) == CPUS


@pair
def test_pinning(log: Path) -> None:
    with demo(log, "-w", "2", "-c", str(CPUS[0])) as server:
        assert [os.sched_getaffinity(pid) for pid in workers(server)] == [
            {CPUS[0]},
            {CPUS[0] + 1},
        ]


def test_several_addresses_of_both_families(log: Path) -> None:
    where = ("-a", "127.0.0.1:0", "-a", "127.0.0.2:0", "-a", "[::1]:0")
    with demo(log, "-w", "1", *where) as server:
        assert len(server.addresses) == 3
        for address in server.addresses:
            host, _, port = address.rpartition(":")
            assert len(body(get(int(port), GET, host.strip("[]")))) == 64


def test_dual_stack(log: Path) -> None:
    with demo(log, "-w", "1", "-a", "[::]:0") as server:
        assert len(body(get(server.port, GET, "127.0.0.1"))) == 64
        assert len(body(get(server.port, GET, "::1"))) == 64


def test_both_wildcards_on_one_port(log: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("0.0.0.0", 0))
        port = probe.getsockname()[1]
    with demo(log, "-w", "1", "-a", f"0.0.0.0:{port}", "-a", f"[::]:{port}") as server:
        assert len(server.addresses) == 2
        assert len(body(get(port, GET, "127.0.0.1"))) == 64
        assert len(body(get(port, GET, "::1"))) == 64


def test_request_in_pieces(log: Path) -> None:
    with demo(log, "-w", "1") as server:
        with connected(server) as client:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for byte in GET:
                client.sendall(bytes([byte]))
                time.sleep(0.001)
            answer = client.recv(4096)
            assert client.recv(4096) == b""
        assert len(body(answer)) == 64


def test_endless_request_is_refused(log: Path) -> None:
    with demo(log, "-w", "1") as server:
        with (
            connected(server) as client,
            pytest.raises(ConnectionError),
        ):
            for _ in range(1000):
                client.sendall(b"x" * 4096)
        assert len(body(get(server.port, GET))) == 64


def test_without_keep_alive_one_answer_a_connection(log: Path) -> None:
    with demo(log, "-w", "1") as server:
        assert get(server.port, GET + GET).count(b"200 OK") == 1


def test_keep_alive(log: Path) -> None:
    with demo(log, "-w", "1", "-k") as server:
        result = load("-n", "50", "-c", "5", "-k", "10", f"127.0.0.1:{server.port}")
        assert (result["completed"], result["requests"]) == (50, 500)
        assert result["client_closed"] <= 5  # none, unless the server is paused for 100 ms
        stats = server.stats()
        assert (stats["accepted"], stats["requests"]) == (50, 500)


@pytest.mark.parametrize(
    "last",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        b"GET / HTTP/1.1\r\nconnection:close\r\n\r\n",
        b"GET / HTTP/1.0\r\n\r\n",
    ],
)
def test_keep_alive_ends_where_the_client_wants_it(log: Path, last: bytes) -> None:
    with demo(log, "-w", "1", "-k") as server:
        answer = get(server.port, GET + GET + last)
    assert answer.count(b"200 OK") == 3
    assert answer.count(b"Connection: close") == 1


def test_keep_alive_for_an_old_client_that_asks(log: Path) -> None:
    request = b"GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n"
    with demo(log, "-w", "1", "-k") as server, connected(server) as client:
        for _ in range(3):
            client.sendall(request)
            assert client.recv(4096) == KEEP


def test_pipelining_against_a_slow_reader(log: Path) -> None:
    count = 40_000
    with demo(log, "-w", "1", "-k") as server, connected(server) as client:
        sender = threading.Thread(target=client.sendall, args=(GET * count,))
        sender.start()
        time.sleep(0.3)  # until the server cannot send any more
        assert len(body(get(server.port, b"GET / HTTP/1.0\r\n\r\n"))) == 64
        answers = bytearray()
        while len(answers) < count * len(KEEP):
            part = client.recv(1 << 20)
            assert part
            answers.extend(part)
        sender.join()
    assert answers == KEEP * count


@pytest.mark.parametrize("own", [(), ("--reuseport",)], ids=["shared", "reuseport"])
def test_killed_workers_come_back(log: Path, own: tuple[str, ...]) -> None:
    with demo(log, "-w", "2", *own) as server:
        before = workers(server)
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        wait_for(lambda: server.text().count("started again") == 2, "two new workers")
        wait_for(lambda: len(workers(server)) == 2, "two workers")
        assert not set(workers(server)) & set(before)
        wait_for(lambda: not get_or_nothing(server.port), "an answer")
        assert server.stats()["restarts"] == 2
        assert server.stop() == 0


def get_or_nothing(port: int) -> bool:
    """True while the port refuses, as it may for a moment after a crash with --reuseport."""
    try:
        return len(body(get(port, GET))) != 64
    except ConnectionError:
        return True


def test_workers_end_with_a_killed_master(log: Path) -> None:
    with demo(log, "-w", "2") as server:
        pids = workers(server)
        server.process.kill()
        server.process.wait()
        wait_for(lambda: not any(runs(pid) for pid in pids), "the end")


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT])
def test_connections_in_progress_are_finished(log: Path, sig: int) -> None:
    with demo(log, "-w", "1") as server:
        with connected(server) as client:
            client.sendall(GET[:10])
            wait_for(lambda: server.stats()["live"] == 1, "the connection")
            server.process.send_signal(sig)
            time.sleep(0.1)
            client.sendall(GET[10:])
            assert len(body(client.recv(4096))) == 64
        assert server.process.wait(10) == 0


@pair
def test_reuseport_spreads_over_own_sockets(log: Path) -> None:
    with demo(log, "-w", "2", "--reuseport") as server:
        sockets = Path("/proc/net/tcp").read_text().count(f":{server.port:04X} 00000000:0000 0A")
        assert sockets == 2
        result = load("-n", "400", "-c", "8", f"127.0.0.1:{server.port}")
        assert result["completed"] == 400
        accepted = [worker["accepted"] for worker in server.stats()["workers"]]
        assert sum(accepted) == 400
        assert min(accepted) >= 120  # a fair coin, 400 times


def test_taken_port(log: Path) -> None:
    with demo(log, "-w", "1") as server:
        done = run("fastsocket-demo", "-w", "1", "-a", server.addresses[0])
    assert done.returncode == 1
    assert done.stderr == (
        f"fastsocket-demo: cannot bind to {server.addresses[0]}: Address already in use\n"
    )


@pytest.mark.parametrize("burn", [False, True], ids=["sleep", "burn"])
def test_stall(log: Path, burn: bool) -> None:
    def cpu_s(pid: int) -> float:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    extra = ("--burn",) if burn else ()
    with demo(log, "-w", "2", "--reuseport", "--stall", "100/300:1", *extra) as server:
        calm, stalled = workers(server)
        result = load("-t", "1.5", "-r", "200", f"127.0.0.1:{server.port}")
        # Half of the connections meet a worker that is away for a third of the time.
        waited = sum(count for upper, count in result["histogram"] if upper >= 30_000)
        assert 15 <= waited < 300
        assert result["latency_us"]["max"] >= 80_000
        assert result["completed"] == 300
        assert (cpu_s(stalled) >= 0.08) == burn
        assert cpu_s(calm) < 0.08


def test_stats_file_counts_local_connections(log: Path, tmp_path: Path) -> None:
    path = tmp_path / "stats.json"
    with demo(log, "-w", "1", "-c", str(CPUS[0]), "--stats", str(path)) as server:
        result = load("-n", "200", "-c", "4", "-p", "1", f"127.0.0.1:{server.port}")
        assert result["completed"] == 200
        server.process.send_signal(signal.SIGUSR1)
        wait_for(path.exists, "the file")
        # The only load process is pinned to the first CPU, too, and loopback stays there.
        stats = json.loads(path.read_text())
        assert stats["accepted"] == stats["local"] == 200
        path.unlink()
        assert server.stop() == 0
    stats = json.loads(path.read_text())
    assert stats["workers"][0]["accepted"] == 200
    assert stats["workers"][0]["cpu"] == CPUS[0]
    assert {file.name for file in tmp_path.iterdir()} == {"log", "stats.json"}


def test_stats_without_file_leave_locality_out(log: Path) -> None:
    with demo(log, "-w", "1") as server:
        get(server.port, GET)
        stats = server.stats()
    assert stats["accepted"] == 1
    assert stats["local"] is stats["active_local"] is None


def test_verbose_and_debug(log: Path) -> None:
    with demo(log, "-w", "1", "-v", "-d") as server:
        get(server.port, GET)
        wait_for(
            lambda: re.search(r"^1 connections/s, 1 to 1 a worker; 0 open$", server.text(), re.M),
            "a line of statistics",
        )
        assert re.search(
            r"^worker 0: cpu \d+ accepted 127\.0\.0\.1:\d+, received on cpu \d+$",
            server.text(),
            re.M,
        )


def test_out_of_descriptors(log: Path) -> None:
    prefix = ("prlimit", "--nofile=40:40")
    with demo(log, "-w", "1", "-k", prefix=prefix) as server:
        address = ("127.0.0.1", server.port)
        clients = [socket.create_connection(address, timeout=10) for _ in range(60)]
        wait_for(lambda: "accepts nothing for now" in server.text(), "the message")
        (pid,) = workers(server)
        before = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
        time.sleep(0.3)
        after = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
        assert sum(map(int, after)) - sum(map(int, before)) <= 5  # ticks: it does not spin
        for client in clients:
            client.sendall(b"GET / HTTP/1.0\r\n\r\n")
        for client in clients:
            assert len(body(client.recv(4096))) == 64
            client.close()


@pytest.mark.skipif(which("valgrind") is None, reason="missing: valgrind")
def test_instructions_a_connection(log: Path, tmp_path: Path) -> None:
    """The server's own work stays small beside the system calls that are to be measured."""

    def instructions(connections: int) -> int:
        out = tmp_path / f"callgrind.{connections}.%p"
        valgrind = ("valgrind", "--tool=callgrind", "--trace-children=yes", "-q")
        prefix = (*valgrind, f"--callgrind-out-file={out}")
        log.unlink(missing_ok=True)
        with demo(log, "-w", "1", prefix=prefix) as server:
            result = load("-n", str(connections), "-c", "8", f"127.0.0.1:{server.port}")
            assert result["completed"] == connections
            assert server.stop() == 0
        totals = [
            int(re.findall(r"^(?:totals|summary): (\d+)", file.read_text(), re.M)[-1])
            for file in tmp_path.glob(f"callgrind.{connections}.*")
        ]
        assert len(totals) == 2  # master and worker
        return sum(totals)

    assert 100 < (instructions(1500) - instructions(500)) / 1000 < 1000


BAD: list[tuple[str, ...]] = [
    ("-w", "0"),
    ("-w", "two"),
    ("-w", "99999"),
    ("-c", "4095", "-w", "1"),
    ("-c", "-1"),
    ("-a", "80"),
    ("-a", "localhost:80"),
    ("-a", "127.0.0.1"),
    ("-a", "[::1]:99999"),
    ("-x", "127.0.0.1:"),
    ("--stall", "100"),
    ("--stall", "0/100"),
    ("--stall", "100/100"),
    ("--stall", "1/100:x"),
    ("--stall", "1/100:7", "-w", "2"),
    ("--burn",),
    ("--stats",),
    ("--no-such-option",),
    ("stray",),
]


@pytest.mark.parametrize("args", BAD, ids=" ".join)
def test_bad_usage(args: tuple[str, ...]) -> None:
    done = run("fastsocket-demo", *args)
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1


def test_log_file_that_cannot_be(tmp_path: Path) -> None:
    done = run("fastsocket-demo", "-o", str(tmp_path / "no" / "log"), "-a", "127.0.0.1:0")
    assert done.returncode == 1
    assert "cannot open the log file" in done.stderr


def test_help_names_every_option() -> None:
    done = run("fastsocket-demo", "--help")
    assert done.returncode == 0
    for option in [
        "-w",
        "-c",
        "-o",
        "-a",
        "-x",
        "-v",
        "-d",
        "-k",
        "--reuseport",
        "--stall",
        "--burn",
        "--stats",
    ]:
        assert f" {option}" in done.stdout
