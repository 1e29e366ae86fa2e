# SPDX-License-Identifier: GPL-2.0-or-later
"""A hostile worker and a hostile keeper: neither reaches beyond the application."""

import ctypes
import fcntl
import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from fastsocket.app.protocol import LARGEST_REQUEST, pack_reply
from fastsocket.listen import layout
from fastsocket.listen.layout import Page, Tier
from fastsocket.listen.page import MAPPED, SEALS
from tests.apps.harness import PROGRAMS, Application, library_environment, say

pytestmark = [pytest.mark.apps, pytest.mark.usefixtures("own_network")]

PORT = 8080
SO_COOKIE = 57
ROUNDS = 24
KEEPER = "a-keeper-of-a-test"
SERVER = f"""
import os, socket
with socket.create_server(("127.0.0.1", {PORT})) as server:
    while True:
        server.accept()[0].sendall(open("/proc/self/maps", "rb").read())
"""


def watched_by(keeper: int) -> set[int]:
    """Return the processes of which `keeper` holds a pidfd."""
    found = set()
    for path in Path(f"/proc/{keeper}/fdinfo").iterdir():
        with suppress(OSError):
            found |= {int(pid) for pid in re.findall(r"^Pid:\s+(\d+)", path.read_text(), re.M)}
    return found


def test_a_page_that_is_scribbled_over_all_the_time(tmp_path: Path) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as foreign,
        subprocess.Popen(["sleep", "600"]) as bystander,
    ):
        before = os.sched_getaffinity(bystander.pid)
        cookie = foreign.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8)
        pids = [1, os.getpid(), bystander.pid]
        plan = {
            "port": PORT,
            "pids": pids,
            "cookie": int.from_bytes(cookie, sys.byteorder),
            "fd": foreign.fileno(),
            "rounds": ROUNDS,
        }
        command = [sys.executable, PROGRAMS / "scribbler.py", json.dumps(plan)]
        with Application(command, PORT, directory=tmp_path) as app:
            keeper = app.status()["keeper"]
            looks = 0
            while not (tmp_path / "done").exists() or looks < 3:
                assert app.process.poll() is None, app.process.communicate()[0]
                status = app.status()
                assert status["keeper"] == keeper, "it lives"
                assert not watched_by(keeper) & set(pids)
                looks += 1
            assert app.pid in watched_by(keeper)
            socket.create_connection(foreign.getsockname(), timeout=5).close()
            assert os.sched_getaffinity(bystander.pid) == before
            app.ask()
            # The keeper goes too, though the page names processes that live.
            assert app.stop() == -signal.SIGTERM
        bystander.kill()


def file_of_a_page(
    magic: int = layout.MAGIC, size: int = MAPPED, seals: int = SEALS, memory: bool = True
) -> int:
    """Return what a keeper could answer with in place of its page."""
    page = Page(magic=magic, version=layout.VERSION, size=ctypes.sizeof(Page), spare_slots=16)
    page.listener[0].generation = 1
    fd = os.memfd_create("fs_page", os.MFD_ALLOW_SEALING) if memory else -1
    if fd < 0:
        fd = os.open("fs_page", os.O_RDWR | os.O_CREAT)
    os.write(fd, bytes(page))
    os.ftruncate(fd, size)
    if memory:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


@contextmanager
def keeper_that_answers_with(fd: int, deaf: int = 0) -> Iterator[None]:
    """Stand in for the keeper: all but the first `deaf` requests it answers with that page."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
        server.bind("\0" + KEEPER)
        server.listen()

        def serve() -> None:
            with suppress(OSError):
                for number in itertools.count():
                    peer, _ = server.accept()
                    with peer:
                        for extra in socket.recv_fds(peer, LARGEST_REQUEST, 1)[1]:
                            os.close(extra)
                        if number >= deaf:
                            socket.send_fds(peer, [pack_reply(0, 0, Tier.CLASSIC)], [fd])

        serving = threading.Thread(target=serve)
        serving.start()
        yield
        server.shutdown(socket.SHUT_RDWR)
        serving.join()
    os.close(fd)


@pytest.mark.parametrize(
    ("page", "taken"),
    [
        ({}, True),
        ({"magic": 0}, False),
        ({"size": MAPPED - 4096}, False),
        ({"size": 2 * MAPPED}, False),
        ({"seals": fcntl.F_SEAL_GROW}, False),
        ({"memory": False}, False),
    ],
    ids=["whole", "half-written", "short", "long", "can shrink", "on disk"],
)
def test_only_a_page_that_stays_whole_is_mapped(
    page: dict[str, int], taken: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    command = [sys.executable, "-c", SERVER]
    environment = {**library_environment(), "FASTSOCKET_KEEPER": KEEPER}
    with (
        keeper_that_answers_with(file_of_a_page(**page)),
        Application(command, PORT, accelerated=False, environment=environment) as app,
    ):
        assert (b"fs_page" in say(PORT)) == taken
        listening = subprocess.getoutput(f"ss -Htlne sport = :{PORT}")
        assert listening.count("LISTEN") == 1
        assert app.stop() == -signal.SIGTERM


def test_a_keeper_that_dies_before_it_answers_is_asked_again() -> None:
    environment = {**library_environment(), "FASTSOCKET_KEEPER": KEEPER}
    with (
        keeper_that_answers_with(file_of_a_page(), deaf=1),
        Application(
            [sys.executable, "-c", SERVER], PORT, accelerated=False, environment=environment
        ) as app,
    ):
        assert b"fs_page" in say(PORT)
        assert app.stop() == -signal.SIGTERM
