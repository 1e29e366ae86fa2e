# SPDX-License-Identifier: GPL-2.0-or-later
"""Under plain load each worker accepts its own connections, hardly ever another's."""

import json
import subprocess
from pathlib import Path

import pytest

from fastsocket.native import native_file
from tests.apps.harness import Application
from tests.apps.test_servers import PORT, nginx

pytestmark = [pytest.mark.apps, pytest.mark.usefixtures("own_network")]

CONNECTIONS = 5000


def test_a_pause_asks_nobody_for_help(tmp_path: Path) -> None:
    """nginx takes its listener out of epoll at every sixteenth accept, and puts it back at once."""
    parameters = tmp_path / "fastsocket.toml"
    parameters.write_text("stall_us = 2000000\n")  # late workers, on a loaded machine, do ask
    command = nginx(tmp_path, f"listen 127.0.0.1:{PORT};")
    with Application(command, PORT, options=("--config", str(parameters))) as app:
        app.wait_for_slots(2)
        load = [native_file("fastsocket-load"), "--json", "-n", str(CONNECTIONS), "-c", "64"]
        done = subprocess.run(
            [*load, f"127.0.0.1:{PORT}"], capture_output=True, timeout=100, check=True
        )
        assert json.loads(done.stdout)["completed"] == CONNECTIONS
        (listener,) = app.status()["listeners"]
        accepted = [slot["accepted"] for slot in listener["slots"]]
        assert sum(accepted) == CONNECTIONS
        assert listener["stolen"] < CONNECTIONS / 100, (listener["stolen"], accepted)
        assert app.stop() == 0
