# SPDX-License-Identifier: GPL-2.0-or-later
"""A hostile application: it listens, and then scribbles over its own status page.

Its one argument is JSON: ``port`` to listen on, ``pids`` of processes that are none of its own,
``cookie`` and ``fd`` of a socket that is none of its own, and ``rounds``. Each round is random
bytes, every other one with names of what is not its own where the page names such things, and a
child that listens too and dies, so that the keeper looks at the page. Then it says so, by a file
named ``done``.
"""

import json
import os
import random
import re
import signal
import socket
import sys
from ctypes import addressof, memmove, sizeof
from pathlib import Path

from fastsocket.listen.layout import NO_CPU, Page, SlotState, Tier

PLAN = json.loads(sys.argv[1])
CHAOS = random.Random(2014)


def mapped_page() -> Page:
    found = re.search(r"^([0-9a-f]+)-.*(?:bpf-map|memfd:fs_page)", _maps(), re.MULTILINE)
    assert found
    return Page.from_address(int(found[1], 16))


def _maps() -> str:
    return Path("/proc/self/maps").read_text()


def name_what_is_foreign(page: Page) -> None:
    page.process[:] = [CHAOS.choice([*PLAN["pids"], 0, 2**31, 2**32 - 1]) for _ in page.process]
    for worker in page.worker:
        worker.pid = worker.tid = CHAOS.choice(PLAN["pids"])
        worker.start, worker.pinned, worker.cpu = 0, 1, 0
    for entry in page.listener[:8]:
        entry.lock, entry.slots, entry.claimed, entry.tier = 0, 256, 1, Tier.MIGRATE
        for slot in entry.slot:
            slot.state, slot.published = CHAOS.choice(list(SlotState)), 1
            slot.cookie, slot.fd = PLAN["cookie"], PLAN["fd"]
            slot.cpu = CHAOS.choice([0, 1023, 1024, NO_CPU])


def child() -> None:
    with socket.create_server(("127.0.0.1", 0)):
        os._exit(0)


server = socket.create_server(("127.0.0.1", PLAN["port"]))
the_page = mapped_page()
for number in range(PLAN["rounds"]):
    memmove(addressof(the_page), CHAOS.randbytes(sizeof(Page)), sizeof(Page))
    if number % 2:
        name_what_is_foreign(the_page)
    pid = os.fork()
    if not pid:
        child()
    os.waitpid(pid, 0)
Path("done").touch()
signal.pause()
