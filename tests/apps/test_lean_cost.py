# SPDX-License-Identifier: GPL-2.0-or-later
"""What lean connections cost the server's own CPU time, in instructions as valgrind counts them."""

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from fastsocket.bench.scenarios.overhead import instructions_in
from fastsocket.native import LIBRARIES, native_file
from tests.apps.harness import PATIENCE_S, Application
from tests.apps.lean_tools import PORT

pytestmark = [pytest.mark.apps, pytest.mark.usefixtures("own_network")]

FEW, MANY = 300, 1300
ROUNDS = 3  # the least counts: a busy machine makes the library measure whom to blame
MOST = 100


def _count(place: Path, library: str, connections: int) -> int:
    place.mkdir()
    command = [
        "valgrind", "--tool=callgrind", "--trace-children=yes", "-q",
        f"--callgrind-out-file={place}/callgrind.%p",
        native_file("fastsocket-demo"), "-w", "1", "-o", place / "log", "-a", f"127.0.0.1:{PORT}",
    ]  # fmt: skip
    variables = {"LD_PRELOAD": str(native_file(library))}
    with Application(command, PORT, accelerated=False, environment=variables) as app:
        load = [native_file("fastsocket-load"), "-p", "1", "-c", "1", "-n", str(connections)]
        subprocess.run([*load, f"127.0.0.1:{PORT}"], check=True, stdout=subprocess.DEVNULL)
        os.kill(app.pid, signal.SIGTERM)
        app.process.wait(PATIENCE_S)
    return instructions_in(place)


@pytest.mark.skipif(shutil.which("valgrind") is None, reason="missing: valgrind")
def test_instructions_a_connection(tmp_path: Path) -> None:
    """Once all is learned; starting and learning are in both counts and do not matter."""
    least: dict[tuple[str, int], int] = {}
    cost = float(MOST + 1)
    for number in range(ROUNDS):
        for library in LIBRARIES.values():
            for connections in (FEW, MANY):
                place = tmp_path / f"{number}.{library}.{connections}"
                count = _count(place, library, connections)
                least[library, connections] = min(count, least.get((library, connections), count))
        each = {
            word: (least[library, MANY] - least[library, FEW]) / (MANY - FEW)
            for word, library in LIBRARIES.items()
        }
        cost = each["auto"] - each["off"]
        if 0 < cost <= MOST:
            return
    pytest.fail(f"{cost:.1f} instructions a connection: {least}")
