# SPDX-License-Identifier: GPL-2.0-or-later
"""Who is pinned to a CPU: a worker that does its work itself, not one whose threads do it."""

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.apps.harness import (
    PATIENCE_S,
    PROGRAMS,
    Application,
    fastsocket_command,
    say,
    wait_until,
)

pytestmark = [pytest.mark.apps, pytest.mark.usefixtures("own_network")]

PORT = 8080
WEIGHED = 128  # FS_WEIGH_EACH of native/preload/fsocket.h
MANY = 6 * WEIGHED  # connections of each worker
LONG_S = 2.0  # ENOUGH + 1 times WEIGH_NS of native/preload/cpu.c, and more

SLOW_TO_BEGIN = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <unistd.h>

int pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*start)(void *),
                   void *argument)
{
    int (*next)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *) =
        dlsym(RTLD_NEXT, "pthread_create");

    usleep(500000);
    return next(thread, attributes, start, argument);
}
"""


def served(app: Application) -> int:
    """Make some connections; return how many the worker has that got fewest."""
    for _ in range(WEIGHED):
        say(PORT, b"x")
    return min(slot["accepted"] for slot in app.wait_for_slots(2))


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="on one CPU nobody can roam")
@pytest.mark.parametrize("who", ["self", "other"])
def test_worker_whose_threads_work(who: str) -> None:
    server = [sys.executable, PROGRAMS / "hands_over.py", str(PORT), who]
    with Application(server, PORT) as app:
        wait_until(lambda: say(PORT, b"x") and all(s["pinned"] for s in app.slots()), "both pinned")
        begun = time.monotonic()
        wait_until(
            lambda: served(app) > MANY and time.monotonic() > begun + LONG_S,
            "many connections on each",
            2 * PATIENCE_S,
        )
        slots = app.wait_for_slots(2)
        text = subprocess.run(
            fastsocket_command("status", str(app.pid)), check=True, capture_output=True, text=True
        ).stdout
        free = [os.sched_getaffinity(slot["tid"]) == os.sched_getaffinity(0) for slot in slots]
        cpus = {slot["cpu"] for slot in slots}
        others = [
            os.sched_getaffinity(tid) == os.sched_getaffinity(0)
            for slot in slots
            for tid in (thread.id for thread in psutil.Process(slot["pid"]).threads())
            if tid != slot["tid"]
        ]
    roam = who == "other"
    assert others == [True] * len(slots) * roam  # a pool's threads, begun by pinned ones
    assert free == [roam] * 2
    assert [(slot["roams"], slot["pinned"]) for slot in slots] == [(roam, not roam)] * 2
    assert (cpus == {None}) == roam
    assert ("2 of 2 workers have no CPU of their own" in text) == roam


def test_thread_that_begins_while_another_worker_pins_this_one(tmp_path: Path) -> None:
    source, library = tmp_path / "slow.c", tmp_path / "slow.so"
    source.write_text(SLOW_TO_BEGIN)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True)
    server = [sys.executable, PROGRAMS / "begins_late.py", str(PORT)]
    with Application(server, PORT, environment={"LD_PRELOAD": str(library)}) as app:
        cpus = say(PORT).split()
        assert [slot["pinned"] for slot in app.wait_for_slots(2)] == [True, True]
    assert [int(cpu) for cpu in cpus] == sorted(os.sched_getaffinity(0))
