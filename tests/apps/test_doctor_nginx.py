# SPDX-License-Identifier: GPL-2.0-or-later
"""doctor looks at a real nginx while short connections are made to it."""

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastsocket.host.doctor import Grade, diagnose
from fastsocket.host.load import load_between, read_counters
from fastsocket.host.sample import host_facts, server_facts

pytestmark = [
    pytest.mark.apps,
    pytest.mark.skipif(shutil.which("nginx") is None, reason="needs nginx"),
]

CONFIG = """
daemon off; master_process on; worker_processes 2; pid {folder}/pid; error_log {folder}/error;
events {{ worker_connections 64; accept_mutex off; }}
http {{ access_log off; client_body_temp_path {folder}/a; proxy_temp_path {folder}/b;
fastcgi_temp_path {folder}/c; uwsgi_temp_path {folder}/d; scgi_temp_path {folder}/e;
server {{ listen 127.0.0.1:{port}; location / {{ return 200 "ok"; }} }} }}
"""


@pytest.fixture
def nginx(tmp_path: Path) -> Iterator[tuple[int, int]]:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    config = tmp_path / "nginx.conf"
    config.write_text(CONFIG.format(folder=tmp_path, port=port))
    with subprocess.Popen(["nginx", "-e", tmp_path / "error", "-c", config]) as process:
        deadline = time.monotonic() + 10
        while not _workers_ready(process.pid) and time.monotonic() < deadline:
            time.sleep(0.05)
        yield process.pid, port
        process.terminate()
        process.wait(10)


def _workers_ready(pid: int) -> bool:
    return server_facts(pid).epoll >= 2


def test_nginx_is_seen_as_it_is(nginx: tuple[int, int]) -> None:
    pid, port = nginx
    facts = server_facts(pid)
    assert (facts.program, facts.ports) == ("nginx", (port,))
    assert (facts.processes, facts.sharers, facts.epoll) == (3, 3, 2)
    assert facts.nonblocking is True
    before = read_counters(pid=pid)
    for _ in range(100):
        with socket.create_connection(("127.0.0.1", port), 5) as client:
            client.sendall(b"GET / HTTP/1.0\r\n\r\n")
            while client.recv(4096):
                pass
    load = load_between(before, read_counters(pid=pid), 1.0)
    assert load.connections >= 200  # each is opened once actively and once passively
    diagnosis = diagnose(host_facts(pid=pid), load, facts)
    grades = {check.name: check.grade for check in diagnosis.checks}
    assert grades["epoll"] is grades["workers"] is grades["short-connections"] is Grade.GOOD
