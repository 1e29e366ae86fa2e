# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs inside a virtual machine with many CPUs: receive flow deliver, and a rule.

Usage: steer_guest.py FOLDER. FOLDER has the compiled rules, as LLVM takes its time in an emulated
machine; writes a JSON object to FOLDER/result.json.
"""

import json
import os
import pickle
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fastsocket.bench.netspace import Netspace
from fastsocket.bench.probe import ACTIVE, Probe
from fastsocket.bench.process import spawn
from fastsocket.bench.wires import finish_checksums, spread_packets, wire
from fastsocket.host.cpulist import online_cpus
from fastsocket.host.slices import local_slices
from fastsocket.local.fastpath import FastPath
from fastsocket.local.selftest import self_test
from fastsocket.steer import device

OPENER = Path(__file__).parents[1] / "apps/programs/opener.py"
FOLDER = Path(sys.argv[1])
HERE, THERE = "192.0.2.1", "192.0.2.2"
PORT = 8080
EACH = 8  # connections from each CPU
RUN = [sys.executable, "-m", "fastsocket", "run", "--receive-flow-deliver", "--"]


def start(netspace: Netspace, *words: str) -> "subprocess.Popen[str]":
    return spawn([*words], netspace, None, subprocess.PIPE)


def finish(process: "subprocess.Popen[str]") -> Any:
    return json.loads(process.communicate(timeout=300)[0].splitlines()[-1])


def opener(*words: str) -> list[str]:
    return [sys.executable, str(OPENER), *words]


@contextmanager
def answering(server: Netspace, client: Netspace, host: str) -> Iterator[dict[str, Any]]:
    """Run a server for a block; at its end, what the server says is in the yielded dictionary."""
    said: dict[str, Any] = {}
    process = start(server, *opener("answer", host, str(PORT)))
    assert process.stdout
    process.stdout.readline()
    yield said
    finish(start(client, *opener("ask", host, str(PORT), "0", "end")))
    said.update(finish(process))


def attach(netspace: Netspace, rule: str, cpus: tuple[int, ...]) -> str:
    """Attach a rule to the device `inside`; return its mode."""
    compiled = pickle.loads((FOLDER / f"{rule}.pickle").read_bytes())
    with netspace.entered():
        mode = device.attach(compiled, "inside", cpus).note.mode
        if rule == "rfd":
            device.fill_slices("inside", local_slices().table(cpus))
    return mode


def delivered(probe: Probe, cpus: tuple[int, ...], deliver: bool) -> dict[str, Any]:
    """Return the share of a backend's packets that came in on the CPU that had connected."""
    with Netspace.make() as front, Netspace.make() as back:
        wire(back, front, ("backend", "inside"), ([f"{THERE}/24"], f"{HERE}/24"))
        finish_checksums(back, "backend")
        mode = ""
        if deliver:
            mode = attach(front, "rfd", cpus)
        else:
            spread_packets(front, "inside", cpus)
        probe.watch_backend(front.inode, PORT)
        command = opener("ask", THERE, str(PORT), str(EACH))
        with answering(back, front, THERE), probe.attached(*ACTIVE):
            before = probe.events()
            finish(start(front, *RUN, *command) if deliver else start(front, *command))
            after = probe.events()
        if deliver:
            with front.entered():
                device.detach("inside")
    packets = after.active_packets - before.active_packets
    local = after.local_active_packets - before.local_active_packets
    return {"packets": packets, "percent": 100 * local / packets, "mode": mode}


def spread(cpus: tuple[int, ...]) -> dict[str, Any]:
    """Return on which CPUs a server finds its connections under the rule `hash`."""
    with Netspace.make() as front, Netspace.make() as back:
        wire(back, front, ("backend", "inside"), ([f"{THERE}/24"], f"{HERE}/24"))
        finish_checksums(back, "backend")
        attach(front, "hash", cpus)
        with answering(front, back, HERE) as seen:
            finish(start(back, *opener("ask", HERE, str(PORT), str(EACH))))
        with front.entered():
            (status,) = device.status()
            device.detach("inside")
    return {"cpus": seen["cpus"], "exits": status.exits}


def past_tcp() -> dict[str, Any]:
    """Return what the local fast path's self-test found, and what watches for splice()."""
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    with FastPath(PORT) as fast:
        watches = fast.watches
    return {"failed": self_test().failed, "watches": watches}


def guest() -> dict[str, Any]:
    if " cgroup2 " not in Path("/proc/mounts").read_text():
        subprocess.run(["mount", "-t", "cgroup2", "cgroup2", "/sys/fs/cgroup"], check=True)
    cpus = online_cpus()
    with Probe() as probe:
        return {
            "cpus": len(cpus),
            "kernel": os.uname().release,
            "stock": delivered(probe, cpus, deliver=False),
            "rfd": delivered(probe, cpus, deliver=True),
            "hash": spread(cpus),
            "past_tcp": past_tcp(),
        }


def guarded(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return work()
    except Exception:
        return {"error": traceback.format_exc()}


if __name__ == "__main__":
    (FOLDER / "result.json").write_text(json.dumps(guarded(guest)))
