# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs inside a namespace: kills `apply` and `undo` before every change, and undoes each time.

Usage: nic_kills.py INTERFACE STATE. Prints one JSON line: the number of kills, and what differed.
"""

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from nic_state import state_of

from fastsocket.nic.apply import apply
from fastsocket.nic.changes import Plan, Request, Setting
from fastsocket.nic.collect import collect
from fastsocket.nic.facts import HostFacts
from fastsocket.nic.journal import Store
from fastsocket.nic.live import LiveHost
from fastsocket.nic.plan import make_plan
from fastsocket.nic.undo import undo

REQUEST = Request("short", (80,))


def in_child(work: Callable[[Callable[[Setting, str], None]], None], step: int) -> bool:
    """Run `work` in a child that kills itself before change number `step`; whether it did."""
    child = os.fork()
    if child == 0:
        left = step

        def kill(setting: Setting, value: str) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

        work(kill)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, -signal.SIGKILL), status
    return status != 0


def main(interface: str, folder: Path) -> None:
    store = Store(folder)

    def make() -> tuple[HostFacts, Plan]:
        facts = collect(interface)
        return facts, make_plan(facts, REQUEST)

    def do_apply(progress: Callable[[Setting, str], None]) -> None:
        apply(LiveHost(), store, interface, make, progress=progress)

    def do_undo(progress: Callable[[Setting, str], None]) -> None:
        undo(LiveHost(), store, interface, progress=progress)

    make()  # imports what every child would import again
    before = state_of(interface)
    kills = {"apply": 0, "undo": 0}
    wrong: list[str] = []

    def check(label: str) -> None:
        undo(LiveHost(), store, interface)
        after = state_of(interface)
        names = before.keys() | after.keys()
        wrong.extend(f"{label}: {name}" for name in names if before.get(name) != after.get(name))

    while in_child(do_apply, kills["apply"]):
        kills["apply"] += 1
        check(f"apply killed before change {kills['apply']}")
    while in_child(do_undo, kills["undo"]):
        kills["undo"] += 1
        check(f"undo killed before change {kills['undo']}")
        in_child(do_apply, sys.maxsize)
    check("at the end")
    print(json.dumps({"kills": kills, "wrong": wrong}))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
