# SPDX-License-Identifier: GPL-2.0-or-later
"""What the live view says about a real server under Fastsocket, against what a client counted."""

import json
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fastsocket.native import NATIVE_DIR
from fastsocket.observe.recording import Recording

PROGRAM = [sys.executable, "-c", "from fastsocket.cli.main import main; main()"]
WORKERS = 2

pytestmark = [
    pytest.mark.apps,
    pytest.mark.skipif(shutil.which("nginx") is None, reason="nginx is not installed"),
    pytest.mark.skipif(
        not (NATIVE_DIR / "libfsocket.so").exists(), reason="libfsocket.so is not built"
    ),
]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[int, int]]:
    """An nginx under Fastsocket; gives its pid and port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    config = tmp_path / "nginx.conf"
    config.write_text(
        f"daemon off; pid {tmp_path}/pid; error_log stderr; worker_processes {WORKERS};\n"
        "events { worker_connections 256; accept_mutex off; }\n"
        f"http {{ access_log off; client_body_temp_path {tmp_path}; proxy_temp_path {tmp_path};\n"
        f"fastcgi_temp_path {tmp_path}; uwsgi_temp_path {tmp_path}; scgi_temp_path {tmp_path};\n"
        f"keepalive_timeout 0; server {{ listen 127.0.0.1:{port}; return 200 ok; }} }}\n"
    )
    words = [*PROGRAM, "run", "--", "nginx", "-p", str(tmp_path), "-c", str(config)]
    with subprocess.Popen(words, stderr=subprocess.PIPE) as process:
        try:
            wait_until(lambda: len(workers(process.pid)) == WORKERS)
            yield process.pid, port
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=15)


def fastsocket(*words: str) -> Any:
    done = subprocess.run(
        [*PROGRAM, *words], capture_output=True, text=True, timeout=60, check=True
    )
    return json.loads(done.stdout)


def workers(pid: int) -> list[dict[str, Any]]:
    slots = fastsocket("top", "--json", "--interval", "0.1")["slots"]
    return [slot for slot in slots if slot["app"] == pid and slot["state"] == "claimed"]


def wait_until(condition: Any) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def recorded(recording: Path, pid: int) -> int:
    """Return how many connections the last sample counts as accepted."""
    samples = list(Recording(recording))
    last = samples[-1].listeners if samples else []
    mine = [listener for listener in last if listener.app == pid]
    return sum(slot.accepted for listener in mine for slot in listener.slots)


def fetch(port: int, times: int) -> None:
    for _ in range(times):
        with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
            client.sendall(b"GET / HTTP/1.0\r\n\r\n")
            answer = b""
            while part := client.recv(4096):
                answer += part
            assert answer.startswith(b"HTTP/1.1 200")


def test_counts_are_those_of_the_client(server: tuple[int, int], tmp_path: Path) -> None:
    pid, port = server
    fetch(port, 300)

    def accepted() -> float:
        found = fastsocket("export", "--json")
        mine = [one for one in found if one["labels"].get("app") == str(pid)]
        return float(
            sum(one["value"] for one in mine if one["name"] == "fastsocket_accepted_total")
        )

    assert accepted() == 300
    recording = tmp_path / "run.fsr"
    # The file has whole blocks of 60 samples.
    words = ["record", str(recording), "--interval", "0.02", "--json"]
    with subprocess.Popen([*PROGRAM, *words], stdout=subprocess.PIPE, text=True) as recorder:
        try:
            wait_until(lambda: recording.exists() and recorded(recording, pid) == 300)
            fetch(port, 200)
            wait_until(lambda: recorded(recording, pid) == 500)
            recorder.send_signal(signal.SIGINT)
            said = json.loads(recorder.communicate(timeout=30)[0])
        finally:
            recorder.kill()
    assert recorder.returncode == 0
    samples = list(Recording(recording))
    assert len(samples) == said["samples"] >= 2
    assert recorded(recording, pid) == 500
    assert accepted() == 500
    slots = [slot for slot in workers(pid) if slot["port"] == port]
    assert len(slots) == WORKERS
    assert all(slot["live"] == 0 and not slot["stalled"] for slot in slots)
