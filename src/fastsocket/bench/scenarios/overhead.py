# SPDX-License-Identifier: GPL-2.0-or-later
"""`overhead`: what Fastsocket itself costs: instructions, time to launch, memory.

Instructions are counted under ``valgrind --tool=callgrind`` on the demo server, which does little
of its own; counts do not depend on what else the machine does. Two loads of different size are
run, and the difference is divided by the difference of their connections, so that starting and
ending do not count.
"""

import os
import re
import select
import statistics
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from fastsocket.bench.modes import Mode, fastsocket_command
from fastsocket.bench.netspace import Netspace
from fastsocket.bench.process import running_server, spawn
from fastsocket.bench.scenario import ADDRESS, Measurement, Setup
from fastsocket.errors import FastsocketError, MissingFeatureError
from fastsocket.native import native_file

__all__ = ["Overhead", "instructions_in"]

FEW, MANY = 500, 1500
CONCURRENT = 8
LAUNCHES = 7
PATIENCE = 60.0
KEEPER = "fastsocket-keep"


class Overhead:
    """Cost per connection, per launch, and of the keeper."""

    name = "overhead"
    metrics = {  # noqa: RUF012  # a constant by the protocol's read-only property
        "instructions_per_conn": "instructions",
        "launch_ms": "ms",
        "keeper_mib": "MiB",
    }
    servers = ("demo",)

    def prepare(self, setup: Setup) -> Setup:
        """See :class:`fastsocket.bench.scenario.Scenario`."""
        try:
            subprocess.run(["valgrind", "--version"], capture_output=True, check=True)
        except OSError as error:
            raise MissingFeatureError(
                "valgrind cannot be started", error.strerror or "", "install it (Debian: valgrind)"
            ) from error
        return setup

    def measure(self, setup: Setup, mode: Mode) -> Measurement:
        """See :class:`fastsocket.bench.scenario.Scenario`."""
        taken = Measurement()
        few, _ = _serve(setup, mode, FEW)
        many, keeper = _serve(setup, mode, MANY)
        taken.put("instructions_per_conn", (many - few) / (MANY - FEW))
        taken.put("launch_ms", _launch(setup, mode))
        taken.put("keeper_mib", keeper, "there is no keeper in this mode")
        return taken


def instructions_in(directory: Path) -> int:
    """Return the instructions that callgrind counted in all processes that wrote there."""
    total = 0
    for file in directory.glob("callgrind.*"):
        counts = re.findall(r"^(?:totals|summary): (\d+)", file.read_text(), re.MULTILINE)
        total += int(counts[-1])
    return total


def _serve(setup: Setup, mode: Mode, connections: int) -> tuple[int, float | None]:
    """Serve that many connections; return instructions and the keeper's resident MiB."""
    with (
        Netspace.make() if setup.private else Netspace.host() as netspace,
        tempfile.TemporaryDirectory(prefix="fastsocket-bench-") as place,
    ):
        callgrind = [
            "valgrind",
            "--tool=callgrind",
            "--trace-children=yes",
            "-q",
            f"--callgrind-out-file={place}/callgrind.%p",
        ]
        where = f"{ADDRESS}:{setup.port}"
        server = [str(native_file("fastsocket-demo")), "-w", "1", "-o", f"{place}/log", "-a", where]
        command = [*callgrind, *server]
        if mode is Mode.FASTSOCKET:
            command = fastsocket_command(setup.run_options, command)
        with running_server(command, netspace, (ADDRESS, setup.port), setup.note):
            load = [str(native_file("fastsocket-load")), "-p", "1", "-c", str(CONCURRENT)]
            _run([*load, "-n", str(connections), where], netspace)
            keeper = _resident(KEEPER, netspace) if mode is Mode.FASTSOCKET else None
        return instructions_in(Path(place)), keeper


def _run(command: Sequence[str], netspace: Netspace) -> None:
    process = spawn(command, netspace, subprocess.DEVNULL)
    # wait() with a limit looks every 50 ms only, which is what a launch takes.
    end = os.pidfd_open(process.pid)
    try:
        select.select([end], [], [], PATIENCE)
    finally:
        os.close(end)
    if process.wait(0) != 0:
        raise FastsocketError(f"{Path(command[0]).name} failed with status {process.returncode}")


def _launch(setup: Setup, mode: Mode) -> float:
    """Return the median time to run `true`, in ms."""
    command = ["true"]
    if mode is Mode.FASTSOCKET:
        command = fastsocket_command(setup.run_options, command)
    times = []
    with Netspace.make() if setup.private else Netspace.host() as netspace:
        for _ in range(LAUNCHES):
            begin = time.monotonic()
            _run(command, netspace)
            times.append((time.monotonic() - begin) * 1000)
    return statistics.median(times)


def _resident(name: str, netspace: Netspace) -> float | None:
    """Return the resident MiB of the process of that name in the namespace."""
    for pid in netspace.processes():
        with suppress(OSError):
            status = Path(f"/proc/{pid}/status").read_text()
            if status.startswith(f"Name:\t{name}\n"):
                kib = re.search(r"^VmRSS:\s+(\d+) kB", status, re.MULTILINE)
                return int(kib[1]) / 1024 if kib else None
    return None
