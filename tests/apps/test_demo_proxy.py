# SPDX-License-Identifier: GPL-2.0-or-later
"""The demo server as a proxy."""

import os
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from demo_tools import GET, connected, demo, get, load, workers

pytestmark = pytest.mark.apps


def test_proxy_shares_among_backends(log: Path, tmp_path: Path) -> None:
    with (
        demo(tmp_path / "one", "-w", "1") as one,
        demo(tmp_path / "two", "-w", "1", "-a", "[::1]:0") as two,
        demo(log, "-w", "2", "-x", one.addresses[0], "-x", two.addresses[0]) as proxy,
    ):
        result = load("-n", "400", "-c", "8", f"127.0.0.1:{proxy.port}")
        assert result["completed"] == 400
        assert one.stats()["accepted"] + two.stats()["accepted"] == 400
        assert abs(one.stats()["accepted"] - two.stats()["accepted"]) <= 2
        stats = proxy.stats()
        assert stats["active"] == 400
        assert stats["backend_errors"] == stats["live"] == 0
        for pid in workers(proxy):
            # Standard streams, the log, the listener, epoll, signals: no connection is left.
            assert len(list(Path(f"/proc/{pid}/fd").iterdir())) <= 8


def test_proxy_passes_large_bodies_both_ways(log: Path) -> None:
    up, down = os.urandom(1_500_000), os.urandom(1_500_000)
    received = bytearray()
    with socket.create_server(("127.0.0.1", 0)) as backend:

        def serve() -> None:
            connection, _ = backend.accept()
            with connection:
                while part := connection.recv(65536):
                    received.extend(part)
                    time.sleep(0.0005)  # slower than the client: the proxy has to wait
                connection.sendall(down)

        thread = threading.Thread(target=serve)
        thread.start()
        where = f"127.0.0.1:{backend.getsockname()[1]}"
        with demo(log, "-w", "1", "-x", where) as proxy, connected(proxy) as client:
            client.sendall(up)
            client.shutdown(socket.SHUT_WR)  # half closed: the answer still comes
            answer = bytearray()
            while part := client.recv(4096):
                answer.extend(part)
                if len(answer) < 100_000:
                    time.sleep(0.001)  # slower than the backend, too
        thread.join(20)
    assert bytes(received) == up
    assert bytes(answer) == down


def test_proxy_keeps_what_its_ends_keep(log: Path, tmp_path: Path) -> None:
    with (
        demo(tmp_path / "backend", "-w", "1", "-k") as backend,
        demo(log, "-w", "1", "-x", backend.addresses[0]) as proxy,
    ):
        result = load("-n", "20", "-c", "4", "-k", "5", f"127.0.0.1:{proxy.port}")
        assert (result["completed"], result["requests"]) == (20, 100)
        assert proxy.stats()["active"] == 20


def test_proxy_without_backend(log: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # not listening
        where = f"127.0.0.1:{taken.getsockname()[1]}"
        with demo(log, "-w", "1", "-x", where) as proxy:
            assert get(proxy.port, GET).startswith(b"HTTP/1.1 502 Bad Gateway\r\n")
            assert proxy.stats()["backend_errors"] == 1


def test_proxy_survives_a_backend_that_hangs_up(log: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as backend:
        where = f"127.0.0.1:{backend.getsockname()[1]}"
        with demo(log, "-w", "1", "-x", where) as proxy, ThreadPoolExecutor(1) as pool:
            answer = pool.submit(get, proxy.port, GET)
            connection, _ = backend.accept()
            connection.recv(4096)
            connection.close()
            assert answer.result(10).startswith(b"HTTP/1.1 502 Bad Gateway\r\n")
