# SPDX-License-Identifier: GPL-2.0-or-later
"""Real servers that speak first: an SMTP one and an SSH one."""

import importlib.util
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fastsocket.listen.layout import LEAN_PROOF
from tests.apps.harness import PATIENCE_S, Application
from tests.apps.lean_tools import PORT, lean_state, program

pytestmark = [pytest.mark.apps, pytest.mark.usefixtures("own_network")]

TIMER_S = 0.030  # what a forgotten promise costs at least, less what a busy machine does


def smtp(_: Path) -> list[str]:
    """Python's own, up to 3.11."""
    if importlib.util.find_spec("smtpd") is None:
        pytest.skip("this Python has no smtpd")
    return [sys.executable, "-m", "smtpd", "-n", "-c", "DebuggingServer", f"127.0.0.1:{PORT}"]


def ssh(folder: Path) -> list[str]:
    """Dropbear, which forks for each connection."""
    key = folder / "key"
    if not key.exists():
        command = [program("dropbearkey"), "-t", "ed25519", "-f", str(key)]
        subprocess.run(command, check=True, capture_output=True)
    where = ("-p", f"127.0.0.1:{PORT}", "-P", str(folder / "pid"))
    return [program("dropbear"), "-F", "-E", "-r", str(key), *where]


def greeting() -> tuple[bytes, float]:
    """Return the first line, and after how many seconds it came."""
    begin = time.monotonic()
    with socket.create_connection(("127.0.0.1", PORT), timeout=PATIENCE_S) as client:
        said = b""
        while b"\n" not in said:
            piece = client.recv(4096)
            assert piece, said
            said += piece
        late = time.monotonic() - begin
        client.sendall(b"QUIT\r\n")
        client.shutdown(socket.SHUT_WR)
        while client.recv(4096):
            pass
    return said.partition(b"\n")[0], late


# The first makes enough connections to learn what must not be. Dropbear has no worker that polls
# by epoll, so nothing is learned of it.
@pytest.mark.parametrize(
    ("server", "connections", "state", "why"),
    [(smtp, LEAN_PROOF + 16, "dropped", "it spoke before it read"), (ssh, 20, "off", None)],
)
def test_greeting(
    tmp_path: Path,
    server: Callable[[Path], list[str]],
    connections: int,
    state: str,
    why: str | None,
) -> None:
    said, late = set(), {}
    for options in ((), ("--lean", "auto", "--defer-accept")):
        accelerated = bool(options)
        with Application(server(tmp_path), PORT, accelerated=accelerated, options=options) as app:
            found = [greeting() for _ in range(connections)]
            said |= {text for text, _ in found}
            late[accelerated] = statistics.median(seconds for _, seconds in found)
            if accelerated:
                lean = lean_state(app)
                assert "on" not in {each["state"] for each in lean.values()}
                assert (lean["defer"]["state"], lean["defer"]["why"]) == (state, why)
            app.process.kill()
            app.process.wait()
    assert len(said) == 1, said
    assert late[True] < late[False] + TIMER_S, late
