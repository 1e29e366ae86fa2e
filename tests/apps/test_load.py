# SPDX-License-Identifier: GPL-2.0-or-later
"""fastsocket-load counts what becomes of connections, and when."""

import asyncio
import itertools
import json
import os
import signal
import socket
import subprocess
from pathlib import Path

import pytest
from demo_tools import Handler, Odd, demo, load, odd_server, run
from load_answers import (
    NO_LENGTH,
    OK,
    answering,
    keep_alive,
    never,
    reset_after_request,
    reset_at_once,
    reset_within_answer,
)

from fastsocket.native import native_file

pytestmark = pytest.mark.apps


@pytest.mark.parametrize("answer", [OK, NO_LENGTH], ids=["length", "until-end"])
def test_counts_every_connection(answer: bytes) -> None:
    with odd_server(answering(answer)) as server:
        result = load("-n", "501", "-c", "16", server.target)
    assert result["started"] == result["completed"] == result["requests"] == 501
    assert server.connections == server.requests == 501
    assert result["errors"] == {"reset": 0, "refused": 0, "timeout": 0, "other": 0}
    assert result["unfinished"] == 0
    assert result["client_closed"] <= 5  # none, unless the machine pauses the server for 100 ms
    assert sum(count for _, count in result["histogram"]) == 501
    # A bucket's upper end is at most 1/128 above what fell into it; the mean is exact.
    upper_mean = sum(upper * count for upper, count in result["histogram"]) / 501
    assert 1.0 <= upper_mean / result["latency_us"]["mean"] <= 1 + 1 / 128
    assert result["cps"] == pytest.approx(501 / result["seconds"], rel=1e-3)


def test_answer_in_single_bytes() -> None:
    with odd_server(answering(*(bytes([byte]) for byte in OK), delay_s=0.001)) as server:
        result = load("-n", "4", "-c", "4", server.target)
    assert result["completed"] == 4


def test_large_answer() -> None:
    body = bytes(3_000_000)
    head = b"HTTP/1.1 200 OK\r\ncontent-length: 3000000\r\n\r\n"
    with odd_server(answering(head + body)) as server:
        result = load("-n", "8", "-c", "4", server.target)
    assert result["completed"] == 8


FAILURES: list[tuple[str, Handler, str, str | None, tuple[int, int]]] = [
    # name, server, error, cause within "other", lost before and after the request
    ("reset", reset_after_request, "reset", None, (0, 20)),
    ("reset-within", reset_within_answer, "reset", None, (0, 0)),
    ("closed", answering(), "other", "closed", (0, 20)),
    ("truncated", answering(OK[:-2]), "other", "truncated", (0, 0)),
    ("truncated-head", answering(OK[:20]), "other", "truncated", (0, 0)),
    ("status", answering(OK.replace(b"200", b"503")), "other", "status", (0, 0)),
    ("garbage", answering(b"220 mail.example ESMTP\r\n\r\n"), "other", "protocol", (0, 0)),
    ("too-long", answering(OK + b"more"), "other", "protocol", (0, 0)),
    (
        "endless-head",
        answering(b"HTTP/1.1 200 OK\r\nx: " + bytes(20000)),
        "other",
        "protocol",
        (0, 0),
    ),
    ("timeout", never, "timeout", None, (0, 0)),
]


@pytest.mark.parametrize(
    ("handler", "error", "cause", "lost"),
    [case[1:] for case in FAILURES],
    ids=[case[0] for case in FAILURES],
)
def test_failure(handler: Handler, error: str, cause: str | None, lost: tuple[int, int]) -> None:
    with odd_server(handler) as server:
        timeout = "300" if error == "timeout" else "5000"
        result = load("-n", "20", "-c", "10", "--timeout", timeout, server.target)
    assert result["started"] == 20
    assert result["completed"] == 0
    assert {name: count for name, count in result["errors"].items() if count} == {error: 20}
    causes = {name: count for name, count in result["other_causes"].items() if count}
    assert causes == ({cause: 20} if cause else {})
    assert tuple(result["accepted_lost"].values()) == lost
    assert result["latency_us"]["p99"] is None
    assert result["histogram"] == []


SLOW_WAIT = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <sys/epoll.h>
#include <unistd.h>
int epoll_pwait2(int epoll, struct epoll_event *events, int size, const struct timespec *wait,
                 const sigset_t *set)
{
    int (*next)(int, struct epoll_event *, int, const struct timespec *, const sigset_t *) =
        dlsym(RTLD_NEXT, "epoll_pwait2");
    usleep(100000);
    return next(epoll, events, size, wait, set);
}
"""


def test_lost_before_the_request(tmp_path: Path) -> None:
    """A generator that is slow to see its connections loses them before it can ask."""
    source, library = tmp_path / "slow.c", tmp_path / "slow.so"
    source.write_text(SLOW_WAIT)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True)
    with odd_server(reset_at_once) as server:
        done = subprocess.run(
            [native_file("fastsocket-load"), "-j", "-n", "20", "-p", "1", server.target],
            env={**os.environ, "LD_PRELOAD": str(library)},
            capture_output=True,
            timeout=30,
            check=False,
        )
    result = json.loads(done.stdout)
    assert result["errors"]["reset"] == 20
    assert result["accepted_lost"] == {"before_request": 20, "after_request": 0}


def test_refused() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # not listening: nobody else can be there
        done = run("fastsocket-load", "-j", "-n", "50", f"127.0.0.1:{taken.getsockname()[1]}")
    result = json.loads(done.stdout)
    assert result["errors"]["refused"] == result["started"] == 50
    assert list(result["accepted_lost"].values()) == [0, 0]
    assert done.returncode == 1
    assert done.stderr == "fastsocket-load: no connection completed\n"


def test_failures_beside_successes() -> None:
    numbers = itertools.count()

    async def mixed(seen: Odd, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        handler = reset_after_request if next(numbers) % 4 == 0 else answering(OK)
        await handler(seen, reader, writer)

    with odd_server(mixed) as server:
        result = load("-n", "400", "-c", "8", server.target)
    assert result["errors"]["reset"] == result["accepted_lost"]["after_request"] == 100
    assert result["completed"] == 300


def test_source_addresses_and_targets() -> None:
    with odd_server(answering(OK)) as one, odd_server(answering(OK)) as other:
        result = load(
            *("-n", "64", "-s", "127.0.0.2-127.0.0.5", "-s", "127.0.0.9"), one.target, other.target
        )
    assert result["completed"] == 64
    assert one.connections == other.connections == 32
    assert one.peers | other.peers == {f"127.0.0.{last}" for last in (2, 3, 4, 5, 9)}


def test_source_address_of_ipv6(tmp_path: Path) -> None:
    where = ("-a", "[::1]:0", "-a", "127.0.0.1:0")
    with demo(tmp_path / "log", "-w", "1", "-d", *where) as server:
        result = load("-n", "20", "-s", "::1", "-s", "127.0.0.7", *server.addresses)
    assert result["completed"] == 20
    assert server.text().count("accepted [::1]:") == 10
    assert server.text().count("accepted 127.0.0.7:") == 10


def test_keep_alive_and_path() -> None:
    with odd_server(keep_alive) as server:
        result = load("-n", "20", "-c", "4", "-k", "5", "-u", "/some/path", server.target)
    assert result["completed"] == server.connections == 20
    assert result["requests"] == server.requests == 100
    assert all(head.startswith(b"GET /some/path HTTP/1.1\r\n") for head in server.heads)
    assert sum(b"Connection: close" in head for head in server.heads) == 20


def test_server_that_leaves_the_closing_to_the_client() -> None:
    async def stays(seen: Odd, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await answering(OK)(seen, reader, writer)
        await reader.read()

    with odd_server(stays) as server:
        result = load("-n", "6", "-c", "2", server.target)
    assert result["completed"] == result["client_closed"] == 6
    assert result["latency_us"]["p50"] < 100_000  # the answer counts, not the close


def test_hold() -> None:
    with odd_server(keep_alive) as server:
        result = load("--hold", "30", "-k", "1", "-t", "0.3", server.target)
    assert result["held"] == result["requests"] == server.connections == 30
    assert result["dropped"] == 0


def test_hold_counts_what_the_server_drops() -> None:
    async def drop_some(
        seen: Odd, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        if seen.connections <= 10:
            await asyncio.sleep(0.2)
        else:
            await reader.read()

    with odd_server(drop_some) as server:
        result = load("--hold", "30", "-t", "1.0", server.target)
    assert (result["held"], result["dropped"]) == (20, 10)


def test_interrupt_reports_what_there_is() -> None:
    with odd_server(answering(OK)) as server:
        program = str(native_file("fastsocket-load"))
        command = [program, "-j", "-v", "-t", "30", "-r", "100", server.target]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert process.stderr is not None
        progress = process.stderr.readline()
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=10)
    result = json.loads(out)
    assert process.returncode == 0
    assert "connections, 0 failed" in progress
    assert result["interrupted"]
    assert 50 <= result["completed"] <= 400
    assert 0.9 <= result["seconds"] <= 5.0
    assert result["started"] - result["completed"] == result["unfinished"]


def test_lean_client_sends_fewer_segments(tmp_path: Path) -> None:
    """The request takes the handshake's last ACK along, and the FIN the ACK of the answer."""
    if os.geteuid() != 0:
        pytest.skip("missing privilege: a network namespace of its own needs root")
    server, client = native_file("fastsocket-demo"), native_file("fastsocket-load")
    log = tmp_path / "log"
    script = f"""
        ip link set lo up
        {server} -w 1 -a 127.0.0.1:80 -o {log} &
        until grep -q ready: {log} 2>/dev/null; do sleep 0.01; done
        for options in "" --lean; do
            {client} -n 300 -c 1 $options 127.0.0.1:80 >/dev/null
            grep ^Tcp: /proc/net/snmp
        done
        kill $!
        wait
    """
    done = subprocess.run(
        ["unshare", "--net", "sh", "-c", script],
        capture_output=True, text=True, timeout=30, check=True,
    )  # fmt: skip
    names, first, _, second = (line.split() for line in done.stdout.splitlines())
    column = names.index("OutSegs")
    plain = int(first[column]) / 300
    lean = int(second[column]) / 300 - plain
    assert plain - lean >= 0.9
    assert lean >= 6.0  # what TCP needs


def test_text_for_people() -> None:
    with odd_server(answering(OK)) as server:
        done = run("fastsocket-load", "-n", "10", "-c", "2", server.target)
    assert done.returncode == 0
    assert done.stdout.startswith("10 of 10 connections completed in ")
    assert "latency in us: mean " in done.stdout
    assert done.stderr == ""


BAD: list[tuple[str, ...]] = [
    (),
    ("nowhere",),
    ("::1:80",),
    ("127.0.0.1:65536",),
    ("[127.0.0.1]:80",),
    ("-n", "0", "127.0.0.1:80"),
    ("-n", "-1", "127.0.0.1:80"),
    ("-c", "1e3", "127.0.0.1:80"),
    ("-c", "1", "-p", "2", "127.0.0.1:80"),
    ("-c", "9999999", "-p", "1", "127.0.0.1:80"),
    ("-p", "0", "127.0.0.1:80"),
    ("-t", "0", "127.0.0.1:80"),
    ("-t", "nan", "127.0.0.1:80"),
    ("-W", "x", "127.0.0.1:80"),
    ("-r", "inf", "127.0.0.1:80"),
    ("-k", "0", "127.0.0.1:80"),
    ("-u", "no-slash", "127.0.0.1:80"),
    ("-u", "/a b", "127.0.0.1:80"),
    ("-s", "127.0.0.9-127.0.0.2", "127.0.0.1:80"),
    ("-s", "127.0.0.2-::1", "127.0.0.1:80"),
    ("-s", "10.0.0.0-10.9.0.0", "127.0.0.1:80"),
    ("--timeout", "0", "127.0.0.1:80"),
    ("--hold", "10", "-n", "5", "127.0.0.1:80"),
    ("--no-such-option", "127.0.0.1:80"),
]


@pytest.mark.parametrize("args", BAD, ids=" ".join)
def test_bad_usage(args: tuple[str, ...]) -> None:
    done = run("fastsocket-load", *args)
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1


def test_few_open_files() -> None:
    with odd_server(answering(OK)) as server:
        limited = ["prlimit", "--nofile=80:80", str(native_file("fastsocket-load"))]
        done = subprocess.run(
            [*limited, "-j", "-n", "100", "-r", "500", "-p", "1", server.target],
            capture_output=True,
            timeout=30,
            check=True,
        )
    assert json.loads(done.stdout)["completed"] == 100


def test_foreign_source_address() -> None:
    done = run("fastsocket-load", "-s", "192.0.2.1", "127.0.0.1:80")
    assert done.returncode == 1
    assert done.stderr.startswith("fastsocket-load: -s: cannot use the source address 192.0.2.1")


def test_help_names_every_option() -> None:
    done = run("fastsocket-load", "--help")
    assert done.returncode == 0
    for option in [
        "-p",
        "-c",
        "-n",
        "-t",
        "-W",
        "-r",
        "-s",
        "-k",
        "-u",
        "--hold",
        "--timeout",
        "--lean",
        "-j",
        "-v",
    ]:
        assert f" {option}" in done.stdout
