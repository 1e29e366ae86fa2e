# SPDX-License-Identifier: GPL-2.0-or-later
"""Real servers, unchanged: how many segments one of their connections takes."""

import os
import re
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fastsocket.bench.modes import Mode
from fastsocket.bench.servers import HTTP_SERVERS, Site
from fastsocket.native import LIBRARIES, native_file
from tests.apps.harness import (
    PATIENCE_S,
    PROGRAMS,
    Application,
    fastsocket_command,
    on_cpu,
    say,
    wait_until,
)
from tests.apps.lean_tools import (
    PORT,
    SERVERS,
    get,
    lean_state,
    learn,
    nginx_tls,
    out_segments,
    segments,
    tcp_counter,
    tls_get,
    typical_segments,
)

pytestmark = [pytest.mark.apps, pytest.mark.usefixtures("own_network")]

LEAN = ("--lean", "auto")
COUNTED = 20
LEARNED = 80  # connections after which the request's lone ACK is saved
FAST_OPENED = 256  # requests in SYNs that a listener lets wait
# Client and server take turns on one CPU, so that no answer is there before the call that sent the
# request has returned, as over a network: else the client's kernel sends its ACK apart.
ONE_CPU = min(os.sched_getaffinity(0))
IN_TURN = ("taskset", "-c", str(ONE_CPU), "chrt", "--batch", "0")
DISTURBED = 0.05  # segments a connection that a busy machine's timers may add
# What each comes to: six are TCP's, one is the client's ACK of the handshake. Granian answers from
# another thread, so the request is acknowledged before; HAProxy leaves that ACK out by itself.
MOST = {name: 8.0 if name == "granian" else 7.0 for name in SERVERS}


@contextmanager
def in_turn() -> Iterator[None]:
    """Let this thread, and what it starts, be as IN_TURN."""
    with on_cpu(ONE_CPU):
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
        try:
            yield
        finally:
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


@pytest.mark.parametrize("name", SERVERS)
def test_segments(tmp_path: Path, name: str) -> None:
    with Application(SERVERS[name](tmp_path), PORT, options=LEAN) as app:
        wait_until(lambda: b"200 OK" in get(), "the first answer")
        learn(app, get, ("hold",) if name in ("granian", "haproxy") else ("hold", "ack"))
        assert segments(get, COUNTED) <= MOST[name] + DISTURBED, lean_state(app)


def test_off_means_off(tmp_path: Path) -> None:
    with Application(SERVERS["demo"](tmp_path), PORT, options=["--lean", "off"]) as app:
        for _ in range(100):
            get()
        assert segments(get, COUNTED) >= 10
        assert {means["state"] for means in lean_state(app).values()} == {"off"}


@pytest.mark.parametrize("how", ["clone", "_Fork"])
def test_child_that_closes_its_copy(tmp_path: Path, how: str) -> None:
    """Its parent's connection does not end with that."""
    server = [sys.executable, str(PROGRAMS / "forks.py"), str(PORT), how]
    with Application(server, PORT, options=LEAN) as app:
        learn(app, get, ("hold",))
        answer = say(PORT, b"GET /fork HTTP/1.1\r\n\r\n")
        app.process.terminate()
        app.process.wait()
    assert answer.endswith(b"rest")


def test_without_keeper(tmp_path: Path) -> None:
    """The library alone learns, too; the other one does not."""
    command = SERVERS["demo"](tmp_path)
    for word, least, most in (("auto", 6.0, 7.0 + DISTURBED), ("off", 10.0, 10.0 + DISTURBED)):
        variables = {"LD_PRELOAD": str(native_file(LIBRARIES[word]))}
        with Application(command, PORT, accelerated=False, environment=variables) as app:
            for _ in range(200):
                get()
            assert least <= segments(get, COUNTED) <= most
            app.process.terminate()
            app.process.wait()


@pytest.mark.parametrize("options", [LEAN, (*LEAN, "--fast-epoll")])
def test_lean_client(tmp_path: Path, options: tuple[str, ...]) -> None:
    """With a client that is lean as well nothing is left but what TCP needs."""
    load = [native_file("fastsocket-load"), "-n", "2000", "-c", "4", "-p", "1", f"127.0.0.1:{PORT}"]

    def run() -> None:
        command = fastsocket_command("run", *options, "--", *map(str, load))
        subprocess.run([*IN_TURN, *command], check=True, capture_output=True)

    with Application(SERVERS["demo"](tmp_path), PORT, options=LEAN, prefix=IN_TURN) as app:
        learn(app, get, ("hold", "ack"))
        assert segments(run, 1) / 2000 <= 6.0 + DISTURBED


# A fast open saves a round trip and no segment: Linux sends the SYN/ACK before the application has
# the request, its ACK would be delayed only together with that of the answer, and each end's FIN
# needs one.
@pytest.mark.parametrize("setting", ["1", "3"])
@pytest.mark.parametrize("how", ["events", "blocks"])
def test_fast_open(tmp_path: Path, setting: str, how: str) -> None:
    """A sysctl that forbids it is named."""
    Path("/proc/sys/net/ipv4/tcp_fastopen").write_text(setting)
    options = (*LEAN, "--fast-open")
    counts, said = [], ""
    with Application(SERVERS["nginx"](tmp_path), PORT, options=options, prefix=IN_TURN) as app:
        learn(app, get, ("hold", "ack"))
        for connections in (100, 300):
            client = [sys.executable, str(PROGRAMS / "asks.py"), str(PORT), str(connections), how]
            command = [*IN_TURN, *fastsocket_command("run", *options, "--", *client)]
            before = out_segments()
            said = subprocess.run(command, check=True, capture_output=True, text=True).stderr
            counts.append(out_segments() - before)
        app.process.terminate()
        app.process.wait()
    assert (counts[1] - counts[0]) / 200 <= 6.0 + 3 * DISTURBED
    assert (tcp_counter("TCPFastOpenActive") > 200) == (setting == "3")
    assert ("TCP Fast Open is off for servers" in said) == (setting == "1")


@pytest.mark.parametrize("how", ["events", "blocks"])
def test_server_that_waits_for_an_ack(tmp_path: Path, how: str) -> None:
    """An answer in two pieces, of which the second waits for the ACK of the first: at once."""
    server = [sys.executable, PROGRAMS / "two_pieces.py", str(PORT)]
    delayed = []
    with Application(server, PORT, accelerated=False) as app:
        for options in ([], ["run", *LEAN, "--"]):
            client = [sys.executable, str(PROGRAMS / "asks.py"), str(PORT), "200", how]
            command = fastsocket_command(*options, *client) if options else client
            before = tcp_counter("DelayedACKs")
            subprocess.run(command, check=True, timeout=PATIENCE_S)
            delayed.append(tcp_counter("DelayedACKs") - before)
        app.process.terminate()
        app.process.wait()
    assert delayed[1] <= delayed[0] + 4  # those that a busy machine delays


@pytest.mark.parametrize(("name", "most"), [("nginx", 17.0), ("haproxy-single-queue", 16.0)])
def test_proxy(tmp_path: Path, name: str, most: float) -> None:
    """Its backend's connections are lean, too; the backend itself makes nothing lean."""
    backend = [native_file("fastsocket-demo"), "-a", f"127.0.0.1:{PORT + 1}", "-w", "1"]
    site = Site("127.0.0.1", PORT, 1, tmp_path, backend=("127.0.0.1", PORT + 1))
    command = HTTP_SERVERS[name].command(Mode.STOCK, site)
    with (
        Application(backend, PORT + 1, accelerated=False) as behind,
        Application(command, PORT, options=LEAN) as app,
    ):
        wait_until(lambda: b"200 OK" in get(), "the first answer")
        learn(app, get, ("hold",))
        assert segments(get, COUNTED) <= most + DISTURBED, lean_state(app)
        for each in (app, behind):
            each.process.terminate()
            each.process.wait()


def test_fast_open_as_the_application_has_it(tmp_path: Path) -> None:
    """How many requests may wait in SYNs stays what the application said; others get a number."""
    Path("/proc/sys/net/ipv4/tcp_fastopen").write_text("3")
    options = (*LEAN, "--fast-open")
    for own, seen in ((0, FAST_OPENED), (5, 5)):
        server = [sys.executable, str(PROGRAMS / "opens.py"), str(PORT), str(own)]
        with Application(server, PORT, options=options) as app:
            wait_until(lambda seen=seen: int(get()) == seen, "its number")
            app.process.terminate()
            app.process.wait()


def test_fast_open_client_that_only_listens(tmp_path: Path) -> None:
    """Its SYN waits for a request that never comes, so it is sent before the client reads."""
    Path("/proc/sys/net/ipv4/tcp_fastopen").write_text("3")
    options = (*LEAN, "--fast-open")
    with Application(SERVERS["demo"](tmp_path), PORT, options=options) as app:
        ways = ("read", "wait", "hand over", "become")
        client = [sys.executable, str(PROGRAMS / "asks.py"), str(PORT), "100", "blocks", *ways]
        command = fastsocket_command("run", *options, "--", *client)
        subprocess.run(command, check=True, timeout=PATIENCE_S)
        app.process.terminate()
        app.process.wait()


@pytest.mark.parametrize("resumes", [False, True])
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_tls(tmp_path: Path, version: ssl.TLSVersion, resumes: bool) -> None:
    command, context = nginx_tls(tmp_path, version)
    found = {}
    with in_turn():
        for lean in ("off", "auto"):
            with Application(command, PORT, options=["--lean", lean]) as app:
                session = tls_get(context) if resumes else None
                for _ in range(LEARNED if lean == "auto" else 1):
                    tls_get(context, session)
                found[lean] = typical_segments(
                    lambda given=session: tls_get(context, given), COUNTED
                )
                app.stop()
    # At least the request's lone ACK is saved; how many answers there are is TLS's.
    assert found["auto"] <= found["off"] - 1, found


def test_status_tells(tmp_path: Path) -> None:
    with Application(SERVERS["demo"](tmp_path), PORT, options=LEAN) as app:
        learn(app, get, ("hold", "ack"))
        done = subprocess.run(
            fastsocket_command("status", str(app.pid)), check=True, capture_output=True, text=True
        )
    assert "only when the request is there: off" in done.stdout
    for means in ("answer and FIN", "no lone ACK"):
        assert re.search(rf"{means}.*: on$", done.stdout, re.MULTILINE), done.stdout
