# SPDX-License-Identifier: GPL-2.0-or-later
"""A real server whose clients do all kinds of things while its connections are lean.

The kinds alternate, so that each comes upon means that are on, learning, or just dropped; what it
gets is compared with what nginx says without us.
"""

import hashlib
import json
import os
import random
import re
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from fastsocket.native import native_file
from tests.apps.harness import PATIENCE_S, Application, wait_until
from tests.apps.lean_tools import PORT, lean_state, learn, program

pytestmark = [pytest.mark.apps, pytest.mark.usefixtures("own_network")]

STOCK = PORT + 1
BIG = 8 << 20
ROUNDS = 3
SHORTS = 70  # after which a means that never was dropped is on again


@pytest.fixture
def nginx(tmp_path: Path) -> Iterator[Application]:
    """nginx with lean connections on PORT, and without us on STOCK."""
    tmp_path.chmod(0o755)
    (tmp_path / "big").write_bytes(random.Random(1).randbytes(BIG))
    with ExitStack() as stack:
        found = []
        for port, accelerated in ((STOCK, False), (PORT, True)):
            config = tmp_path / f"{port}.conf"
            config.write_text(
                f"daemon off; user root; worker_processes 2; pid {tmp_path}/{port}.pid;\n"
                "events { worker_connections 512; accept_mutex off; }\n"
                f"http {{ access_log {tmp_path}/{port}.log; sendfile on; tcp_nopush on;\n"
                "client_body_buffer_size 32m; client_max_body_size 32m; gzip off;\n"
                f"server {{ listen 127.0.0.1:{port}; root {tmp_path};\n"
                'location = / { return 200 "hello\\n"; }\n'
                f"location = /up {{ proxy_pass http://127.0.0.1:{port}/; }} }} }}\n"
            )
            command = [program("nginx"), "-e", str(tmp_path / f"{port}.err"), "-c", str(config)]
            options = ["--lean", "auto"] if accelerated else []
            app = Application(command, port, accelerated=accelerated, options=options)
            found.append(stack.enter_context(app))
        yield found[1]
        for app in found:
            app.process.terminate()
            app.process.wait(PATIENCE_S)


def exchange(port: int, *parts: bytes, half: bool = False) -> bytes:
    """Send the parts, each after something came for the one before; return all that comes."""
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as client:
        answer = b""
        for number, part in enumerate(parts):
            if number:
                answer += client.recv(65536)
            client.sendall(part)
        if half:
            client.shutdown(socket.SHUT_WR)
        while piece := client.recv(1 << 20):
            answer += piece
    return re.sub(rb"(Date|Last-Modified|ETag): [^\r]*\r\n", b"", answer)


def request(path: str = "/", *headers: str, method: str = "GET", last: bool = True) -> bytes:
    """Return a request's head; the server closes after the `last`."""
    lines = [f"{method} {path} HTTP/1.1", "Host: test", *headers]
    return "\r\n".join([*lines, *(["Connection: close"] if last else []), "", ""]).encode()


BODY = b"x" * (4 << 20)
UPLOAD = f"Content-Length: {len(BODY)}"
KINDS: dict[str, Callable[[int], bytes]] = {
    "short": lambda port: exchange(port, request()),
    "head": lambda port: exchange(port, request(method="HEAD")),
    "half": lambda port: exchange(port, request(), half=True),
    "large": lambda port: exchange(port, request("/big")),
    "range": lambda port: exchange(port, request("/big", "Range: bytes=5-70000")),
    "alive": lambda port: exchange(port, *[request(last=False)] * 5, request()),
    "pipelined": lambda port: exchange(port, request(last=False) * 9 + request()),
    "upload": lambda port: exchange(port, request("/up", UPLOAD, method="POST") + BODY),
    "continue": lambda port: exchange(
        port, request("/up", UPLOAD, "Expect: 100-continue", method="POST"), BODY
    ),
    "wrong": lambda port: exchange(port, b"what?\r\n\r\n"),
}


def test_same_bytes(nginx: Application) -> None:
    order = random.Random(2)
    expected = {name: hashlib.sha256(act(STOCK)).digest() for name, act in KINDS.items()}
    learn(nginx, lambda: KINDS["short"](PORT), ("hold", "ack"))
    for _ in range(ROUNDS):
        for name in order.sample(sorted(KINDS), len(KINDS)):
            assert hashlib.sha256(KINDS[name](PORT)).digest() == expected[name], name
        for _ in range(SHORTS):
            KINDS["short"](PORT)
    assert lean_state(nginx)["hold"]["drops"] > 0  # it was on, and some of them spoke against it


def test_reload_loses_nothing(nginx: Application, tmp_path: Path) -> None:
    """Queued connections and held answers survive the workers that they belong to."""
    learn(nginx, lambda: KINDS["short"](PORT), ("hold", "ack"))
    load = [native_file("fastsocket-load"), "--json", "-c", "8", "-t", "3", f"127.0.0.1:{PORT}"]
    with subprocess.Popen([*map(str, load)], stdout=subprocess.PIPE, text=True) as client:
        before = {slot["pid"] for slot in nginx.slots()}
        for _ in range(2):
            os.kill(nginx.pid, 1)  # SIGHUP

            def renewed(old: set[int] = before) -> set[int]:
                now = {slot["pid"] for slot in nginx.slots()}
                return now if len(now) == 2 and not now & old else set()

            before = wait_until(renewed, "new workers")
        assert client.stdout
        said = json.load(client.stdout)
    assert said["completed"] > 0
    assert not any(said["errors"].values()), said
