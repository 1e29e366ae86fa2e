# SPDX-License-Identifier: GPL-2.0-or-later
"""What tests of the keeper and of rules share."""

import ctypes
import os
from collections.abc import Iterator

import pytest

from fastsocket.steer import device, pins
from tests.netns.keeper_tools import Tame, keeper_of_a_test
from tests.netns.steer_tools import CLONE_NEWNET, PEER, arrive, ip


@pytest.fixture
def keeper() -> Iterator[Tame]:
    """A keeper without its loop, of this process's application."""
    with keeper_of_a_test() as tame:
        yield tame


@pytest.fixture
def one_cpu() -> Iterator[None]:
    """Stay on one CPU: each counts for itself, and "here" is another answer than "there"."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    yield
    os.sched_setaffinity(0, before)


@pytest.fixture
def veth() -> Iterator[str]:
    """A device in a network namespace of this thread; its other end, 10.9.0.2, is in PEER."""
    libc = ctypes.CDLL(None, use_errno=True)
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    ip("netns", "add", PEER)
    try:
        assert libc.unshare(CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
        ip("link", "add", "fs.0", "type", "veth", "peer", "name", "fs1", "netns", PEER)
        for inside, name, number in ((False, "fs.0", 1), (True, "fs1", 2)):
            where = ("-n", PEER) if inside else ()
            ip(*where, "addr", "add", f"10.9.0.{number}/24", "dev", name)
            ip(*where, "addr", "add", f"fd09::{number}/64", "dev", name, "nodad")
            ip(*where, "link", "set", name, "up")
        # The kernel takes its time to see that the link is up; until then it drops.
        while not (arrive(1) and arrive(1, target="fd09::1")):
            pass
        yield "fs.0"
    finally:
        for place in pins.all_places():
            device.detach(pins.Note.read(place).device)
        libc.setns(home, CLONE_NEWNET)
        os.close(home)
        ip("netns", "del", PEER)
