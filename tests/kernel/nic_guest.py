# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs inside a virtual machine: applies, reads back and undoes on its emulated cards.

Usage: nic_guest.py RESULT STATE. Writes a JSON object to RESULT: per interface what was planned,
what was left after applying, and what differed after undoing.
"""

import json
import os
import signal
import subprocess
import sys
import time
import traceback
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

REQUEST = Request("long", cpus=(0, 1, 2))
MODULES = ("e1000e", "virtio_net", "bonding", "8021q")


def run(*command: str) -> None:
    subprocess.run(command, check=True, timeout=60)


def drivers() -> dict[str, str]:
    """Return the interface of each driver."""
    links = Path("/sys/class/net").glob("*/device/driver")
    return {link.resolve().name: link.parts[4] for link in links}


def bring_up(interface: str) -> None:
    run("ip", "link", "set", interface, "up")
    carrier = Path(f"/sys/class/net/{interface}/carrier")
    end = time.monotonic() + 30
    while carrier.read_text().strip() != "1":
        if time.monotonic() > end:
            raise TimeoutError(f"{interface} has no link")
        time.sleep(0.2)


def differences(before: dict[str, dict[str, str]], cards: list[str]) -> list[str]:
    found = []
    for card in cards:
        now = state_of(card)
        names = sorted(before[card].keys() | now.keys())
        found += [
            f"{name}: {before[card].get(name)} -> {now.get(name)}"
            for name in names
            if before[card].get(name) != now.get(name)
        ]
    return found


def try_out(target: str, cards: list[str], store: Store, *, kill_at: int = -1) -> dict[str, object]:
    """Apply, look, undo; with `kill_at`, first die before that change and undo."""
    before = {card: state_of(card) for card in cards}

    def make() -> tuple[HostFacts, Plan]:
        facts = collect(target)
        return facts, make_plan(facts, REQUEST)

    if kill_at >= 0:
        child = os.fork()
        if child == 0:
            steps = iter(range(kill_at, -1, -1))

            def die(setting: Setting, value: str) -> None:
                if next(steps) == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

            apply(LiveHost(), store, target, make, progress=die)
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        undo(LiveHost(), store, target)
        return {"status": status, "differ": differences(before, cards)}
    done = apply(LiveHost(), store, target, make)
    left = make()[1].changes
    changed = bool(differences(before, cards))
    outcome = undo(LiveHost(), store, target)
    return {
        "planned": [f"{line.what}: {line.old} -> {line.new}" for line in done.plan.changes],
        "kinds": sorted({line.setting.kind for line in done.plan.changes}),
        "left": [line.what for line in left],
        "changed": changed,
        "foreign": outcome.foreign if outcome else {"undo": "found nothing"},
        "differ": differences(before, cards),
    }


def main(result: Path, state: Path) -> None:
    answer: dict[str, object] = {}
    try:
        store = Store(state)
        for module in MODULES:
            run("modprobe", module)
        found = drivers()
        cards = [found["e1000e"], *([found["virtio_net"]] if "virtio_net" in found else [])]
        for card in cards:
            bring_up(card)
        for driver, card in found.items():
            answer[driver] = try_out(card, [card], store)
        for step in (1, 4):
            answer[f"kill {step}"] = try_out(cards[0], cards[:1], store, kill_at=step)
        run("ip", "link", "add", "bond0", "type", "bond", "mode", "active-backup")
        for card in cards:
            run("ip", "link", "set", card, "down")
            run("ip", "link", "set", card, "master", "bond0")
        run("ip", "link", "add", "link", "bond0", "name", "bond0.5", "type", "vlan", "id", "5")
        for card in (*cards, "bond0"):
            bring_up(card)
        answer["vlan on bond"] = try_out("bond0.5", cards, store)
    except Exception:
        answer["error"] = traceback.format_exc()
    result.write_text(json.dumps(answer, indent=1))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
