# SPDX-License-Identifier: GPL-2.0-or-later
"""CPython's own network tests give the same results with the library preloaded as without."""

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from tools import cpython

pytestmark = pytest.mark.apps

# Under the launcher, with its BPF tier: the modules that listen and are quick.
LAUNCHED = (
    "test_epoll",
    "test_httplib",
    "test_select",
    "test_socketserver",
    "test_asyncio.test_server",
    "test_asyncio.test_sock_lowlevel",
    "test_asyncio.test_streams",
)

# With fast epoll: what selects, and what waits for connections that it accepted.
FAST_EPOLL = (
    "test_epoll",
    "test_select",
    "test_selectors",
    "test_asyncio.test_selector_events",
    "test_asyncio.test_server",
    "test_asyncio.test_sendfile",
    "test_asyncio.test_sock_lowlevel",
    "test_asyncio.test_streams",
)

# What a faulty library would offer.
FORGETS_CLOEXEC = """
#include <sys/syscall.h>
#include <unistd.h>
int epoll_create1(int flags) { return syscall(SYS_epoll_create1, 0 * flags); }
"""
CRASHES = """
#include <stdlib.h>
int epoll_wait(int epfd, void *events, int most, int timeout) { abort(); }
"""


def check(result: cpython.Comparison, fewest: int) -> None:
    """Fail with the names of what differs, or if too little ran to mean anything."""
    print(result.text())
    assert not result.different, result.text()
    lost = [name for name in result.failed if name.endswith(cpython.WHOLE)]
    assert not lost, "these did not finish even without Fastsocket"
    assert sum(outcome == "passed" for outcome in result.stock.values()) >= fewest


def test_preloaded() -> None:
    check(cpython.compare(cpython.MODULES, cpython.sides()), fewest=2500)


@pytest.mark.parametrize("busy_poll_us", [0, 100])
def test_fast_epoll(busy_poll_us: int) -> None:
    """What waits with epoll, in processes without the threads that would switch it off."""
    stock, ours = cpython.sides(library=cpython.EPOLL)
    variables = {**ours.variables, "FASTSOCKET_BUSY_POLL": str(busy_poll_us)}
    sides = (stock, replace(ours, variables=variables))
    check(cpython.compare(FAST_EPOLL, sides), fewest=200)


def test_launched() -> None:
    check(cpython.compare(LAUNCHED, cpython.sides(launch=True)), fewest=150)


@pytest.mark.parametrize(
    ("source", "named"),
    [(FORGETS_CLOEXEC, "test_fd_non_inheritable"), (CRASHES, cpython.WHOLE)],
)
def test_a_faulty_library_is_found_out(tmp_path: Path, source: str, named: str) -> None:
    library = tmp_path / "faulty.so"
    subprocess.run(
        ["gcc", "-shared", "-fPIC", "-x", "c", "-", "-o", library],
        input=source,
        text=True,
        check=True,
    )
    faulty = cpython.Side("faulty", variables={"LD_PRELOAD": str(library)})
    result = cpython.compare(["test_epoll"], (cpython.Side("stock"), faulty))
    assert any(name.endswith(named) for name in result.different), result.text()
