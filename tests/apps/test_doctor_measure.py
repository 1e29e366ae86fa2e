# SPDX-License-Identifier: GPL-2.0-or-later
"""`fastsocket doctor --measure` on a real nginx, under load and without, and on what is none."""

import json
import os
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from fastsocket.bench.judgement import Answer
from tests.apps.harness import Application, fastsocket_command, http_get
from tests.apps.test_servers import PORT, nginx

pytestmark = [pytest.mark.apps, pytest.mark.usefixtures("own_network")]

URL = f"http://127.0.0.1:{PORT}/"
POWERLESS = ["setpriv", "--bounding-set", "-all", "--inh-caps", "-all", "--"]


def doctor(*words: str, prefix: Sequence[str] = ()) -> "subprocess.CompletedProcess[str]":
    command = [*prefix, *fastsocket_command("doctor", "--measure", *words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def measured(*words: str) -> dict[str, Any]:
    done = doctor(*words, "--json")
    assert done.returncode == 0, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def test_stock_and_accelerated_are_told_apart(tmp_path: Path, cpus: list[int]) -> None:
    command = nginx(tmp_path, f"listen 127.0.0.1:{PORT};")
    with Application(command, PORT, accelerated=False) as server:
        stock = measured(URL, "--seconds", "2")
        # Nobody connects, and a pid is not connected to.
        idle = measured(str(server.pid), "--seconds", "0.2")
        server.stop()
    with Application(command, PORT) as server:
        server.wait_for_slots(2)
        fast = measured(URL, "--seconds", "2")
        server.stop()
    assert stock["server"]["pid"] and stock["server"]["ports"] == [PORT]
    assert stock["counts"]["tier"] == ""
    # Workers that the scheduler happens to leave where packets come in need no help.
    assert stock["judgement"]["answer"] in (Answer.COULD, Answer.NEEDLESS), stock
    assert idle["counts"]["connections"] == 0
    assert idle["judgement"]["answer"] == Answer.UNKNOWN
    assert fast["counts"]["tier"] in ("migrate", "select")
    assert fast["judgement"]["answer"] == Answer.HELPS, fast
    for document in (stock, fast):
        counts = document["counts"]
        assert counts["connections"] > 200
        assert sum(core["accepted"] for core in counts["cores"]) == counts["connections"]
        assert counts["lock_contentions_per_1k"] >= 0
        assert counts["resched_ipis_per_1k"] >= 0


def test_people_read_counts_answer_and_next_command(tmp_path: Path) -> None:
    command = nginx(tmp_path, f"listen 127.0.0.1:{PORT};")
    with Application(command, PORT, accelerated=False) as server:
        assert http_get(PORT)
        done = doctor(URL, "--seconds", "1")
        assert done.returncode == 0, done.stderr
        assert f"on port {PORT}: not under Fastsocket" in done.stdout
        assert re.search(r"^  CPU +\d+: +[\d,]+ accepted", done.stdout, re.MULTILINE)
        assert "Is it active, and does it help here?" in done.stdout
        assert done.stdout.splitlines()[-1].startswith("next: fastsocket ")
        weak = doctor(str(server.pid), "--seconds", "0.2", prefix=POWERLESS)
        assert weak.returncode == 3
        assert len(weak.stderr.splitlines()) == 1
        server.stop()


@pytest.mark.parametrize(
    ("what", "code", "words"),
    [
        ("4194305", 2, "no process 4194305"),
        (str(os.getpid()), 4, "listens on no TCP port"),
        ("https://127.0.0.1/", 2, "begins with http://"),
        ("nginx", 2, "neither a process id nor a URL"),
        (f"http://127.0.0.1:{PORT}/", 4, f"listens on port {PORT} here"),
    ],
)
def test_one_line_for_what_cannot_be_measured(what: str, code: int, words: str) -> None:
    done = doctor(what)
    assert (done.returncode, done.stdout) == (code, "")
    assert len(done.stderr.splitlines()) == 1
    assert words in done.stderr
