# SPDX-License-Identifier: GPL-2.0-or-later
"""Fast epoll makes fewer calls and changes nothing else."""

import json
import os
import select
import subprocess
import sys
from collections.abc import Iterator, Sequence
from errno import ENOSPC
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastsocket.app.client import ask
from fastsocket.native import native_file
from tests.apps.harness import PROGRAMS, Application, fastsocket_command, say

pytestmark = pytest.mark.apps

LIBRARIES = ("libfsocket-plain-epoll.so", "libfsocket-epoll.so")
LIBRARY = LIBRARIES[0]
PORT = 8080
ADD, DEL, MOD = 1, 2, 3  # EPOLL_CTL_*, which the module select lacks
IN, OUT, ET, ONESHOT = select.EPOLLIN, select.EPOLLOUT, select.EPOLLET, select.EPOLLONESHOT
TROUBLE = select.EPOLLERR | select.EPOLLHUP

# The next in the chain of preloaded libraries: it sees what is left of the application's calls.
COUNTER = """
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
static int calls, refused;
int epoll_ctl(int epfd, int op, int fd, void *event)
{
	calls++;
	if (refused && op == 1) {
		errno = refused;
		return -1;
	}
	int (*next)(int, int, int, void *) = dlsym(RTLD_NEXT, "epoll_ctl");
	return next(epfd, op, fd, event);
}
int epoll_ctl_calls(void) { return calls; }
void epoll_ctl_refuse(int error) { refused = error; }
__attribute__((destructor)) static void tell(void)
{
	const char *path = getenv("EPOLL_CTL_CALLS");
	FILE *file = path ? fopen(path, "w") : NULL;
	if (file) {
		fprintf(file, "%d", calls);
		fclose(file);
	}
}
"""


@pytest.fixture(scope="module")
def counter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    library = tmp_path_factory.mktemp("counter") / "counter.so"
    command = ["gcc", "-D_GNU_SOURCE", "-shared", "-fPIC", "-x", "c", "-", "-o", library]
    subprocess.run(command, input=COUNTER, text=True, check=True)
    return library


class Program:
    """programs/epolls.py, which answers a line of steps with a line of results."""

    def __init__(self, counter: Path, *library: str) -> None:
        libraries = [*map(native_file, library), counter]
        self.process = subprocess.Popen(
            [sys.executable, "-S", PROGRAMS / "epolls.py"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={"LD_PRELOAD": ":".join(map(str, libraries))},
        )

    def run(self, steps: Sequence[Sequence[Any]]) -> list[Any]:
        """Return what came of each step."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps(steps) + "\n")
        self.process.stdin.flush()
        results: list[Any] = json.loads(self.process.stdout.readline())
        return results

    def calls(self, *steps: Sequence[Any]) -> int:
        """Return how many calls the kernel saw of these steps."""
        results = self.run([("calls",), *steps, ("calls",)])
        return int(results[-1] - results[0])

    def end(self) -> None:
        """Let it end by itself."""
        self.process.communicate(timeout=15)
        assert self.process.returncode == 0


@pytest.fixture(scope="module", params=LIBRARIES)
def programs(request: pytest.FixtureRequest, counter: Path) -> Iterator[tuple[Program, Program]]:
    """Without and with fast epoll; both keep what they learned from one test to the next."""
    both = Program(counter), Program(counter, request.param)
    yield both
    for each in both:
        each.end()


@pytest.fixture
def fast(programs: tuple[Program, Program]) -> Program:
    return programs[1]


# What is merged


@pytest.mark.parametrize(
    ("steps", "most"),
    [
        ([("ctl", 0, ADD, 0, IN), ("wait", 0, 0)], 1),
        ([("ctl", 0, ADD, 0, IN), ("close", 0), ("wait", 0, 0)], 0),
        ([("ctl", 0, ADD, 0, IN), ("ctl", 0, DEL, 0, 0), ("close", 0), ("wait", 0, 0)], 0),
        ([("ctl", 0, ADD, 0, IN), ("ctl", 0, MOD, 0, OUT), ("wait", 0, 0)], 1),
        ([("ctl", 0, ADD, 0, IN), ("wait", 0, 0), ("ctl", 0, DEL, 0, 0), ("close", 0)], 1),
        # asyncio looks between the two; so it may whatever the client does.
        (
            [("ctl", 0, ADD, 0, IN), ("wait", 0, 0), ("leave", 0), ("ctl", 0, DEL, 0, 0),
             ("wait", 0, 0), ("close", 0), ("wait", 0, 1)], 1,
        ),
        # A change undone by a change, and several changes of what each counts.
        (
            [("ctl", 0, ADD, 0, IN), ("wait", 0, 0), ("ctl", 0, MOD, 0, IN | OUT),
             ("ctl", 0, MOD, 0, IN), ("wait", 0, 0)], 1,
        ),
        (
            [("ctl", 0, ADD, 0, IN | ONESHOT), ("wait", 0, 0), ("ctl", 0, MOD, 0, OUT | ONESHOT),
             ("ctl", 0, MOD, 0, IN | ONESHOT), ("wait", 0, 0)], 2,
        ),
        # Taken out and put back, as redis-benchmark does: with the same events, and with others.
        (
            [("ctl", 0, ADD, 0, IN), ("wait", 0, 0), ("ctl", 0, DEL, 0, 0), ("ctl", 0, ADD, 0, IN),
             ("send", 0), ("wait", 0, 0)], 1,
        ),
        (
            [("ctl", 0, ADD, 0, IN), ("wait", 0, 0), ("ctl", 0, DEL, 0, 0), ("ctl", 0, ADD, 0, OUT),
             ("ctl", 0, DEL, 0, 0), ("wait", 0, 0), ("ctl", 0, ADD, 0, IN | OUT),
             ("wait", 0, 0)], 2,
        ),
        (
            [("ctl", 0, ADD, 0, IN | ET), ("send", 0), ("wait", 0, 0), ("ctl", 0, DEL, 0, 0),
             ("ctl", 0, ADD, 0, IN | ET), ("wait", 0, 0), ("wait", 0, 0)], 2,
        ),
    ],
)  # fmt: skip
@pytest.mark.parametrize("first", ([], [("close", 0), ("connect", 0)]), ids=("accepted", "opened"))
def test_calls_are_merged(
    programs: tuple[Program, Program],
    first: list[tuple[Any, ...]],
    steps: list[tuple[Any, ...]],
    most: int,
) -> None:
    stock, fast = programs
    steps = [*first, *steps]
    assert fast.calls(*steps) == most
    assert stock.calls(*steps) > most or most == 1
    assert fast.run(steps) == stock.run(steps)


REGISTERED = [("ctl", 0, ADD, 0, IN), ("wait", 0, 0)]


@pytest.mark.parametrize(
    "step",
    [("dup", 0), ("pass_on", 0), ("pass_with_second", 0), ("fork",), ("dup_epoll", 0), ("nest", IN),
     ("ctl", 1, ADD, 0, IN), ("over", 0, 1)],
)  # fmt: skip
def test_what_is_shared_is_left_alone(fast: Program, step: tuple[Any, ...]) -> None:
    """The kernel would not forget it at the close, or others would not know."""
    more = step[0] in ("nest", "ctl")
    assert fast.calls(*REGISTERED, ("ctl", 0, DEL, 0, 0), step) == 2 + more
    assert fast.calls(*REGISTERED, step, ("ctl", 0, DEL, 0, 0), ("close", 0)) == 2 + more


def test_both_messages_go(programs: tuple[Program, Program]) -> None:
    assert [program.run([("pass_with_second", 0)]) for program in programs] == [[2], [2]]


def test_a_number_that_a_stream_gave_back(programs: tuple[Program, Program]) -> None:
    steps = [*REGISTERED, ("replace", 0, 1), ("ctl", 0, MOD, 0, IN), ("wait", 0, 0)]
    stock, fast = (program.run(steps) for program in programs)
    assert fast == stock
    assert stock[3] == "ENOENT"


@pytest.mark.parametrize("wait", [("wait", 0, 1), ("poll", 0), ("handler", "poll", 0)])
def test_waits_that_do_not_only_look(fast: Program, wait: tuple[Any, ...]) -> None:
    assert fast.calls(*REGISTERED, ("ctl", 0, DEL, 0, 0), wait, ("close", 0)) == 2


def test_data_that_does_not_tell(fast: Program) -> None:
    """Without the descriptor in the data its events would not be known from others'."""
    steps = [("ctl", 0, ADD, 0, IN, False), ("wait", 0, 0), ("ctl", 0, DEL, 0, 0)]
    assert fast.calls(*steps, ("close", 0)) == 1
    assert fast.calls(*steps, ("wait", 0, 0), ("close", 0)) == 2


def test_more_than_can_wait(programs: tuple[Program, Program]) -> None:
    many = range(4, 150)
    steps = [("more", len(many)), *(("ctl", 0, ADD, each, OUT) for each in many)]
    steps += [("ctl", 0, MOD, each, IN) for each in many]
    steps += [("ctl", 0, DEL, each, 0) for each in many[:-2]]
    steps += [("send", many[-1]), ("send", many[0]), ("wait", 0, 0)]
    results = [program.run(steps) for program in programs]
    assert results[0] == results[1]
    assert results[1][-1] == [[many[-1], IN]]


def test_threads(counter: Path) -> None:
    """Another thread finds everything done, and from then on calls are made at once."""
    fast = Program(counter, LIBRARY)
    adds = [("ctl", 0, ADD, 0, IN), ("send", 0)]
    assert fast.run([*adds, ("thread", "wait", 0, 0)])[2] == [[[0, IN]]]
    assert fast.calls(*REGISTERED, ("ctl", 0, DEL, 0, 0), ("close", 0)) == 2
    fast.end()


def test_the_kernel_has_no_memory_left(fast: Program) -> None:
    """An addition that was believed in: the connection is in trouble until there is memory."""
    steps = [("refuse", ENOSPC), ("ctl", 0, ADD, 0, IN), ("send", 0), ("wait", 0, 1000),
             ("wait", 0, 1000), ("refuse", 0), ("wait", 0, 1000), ("wait", 0, 0)]  # fmt: skip
    results = fast.run(steps)
    assert results[3] == results[4] == [[0, TROUBLE]]
    assert results[6] == results[7] == [[0, IN]]


def test_trouble_is_told_once(fast: Program) -> None:
    """Also where the number of what was closed is another's by then."""
    steps = [("refuse", ENOSPC), ("ctl", 0, ADD, 0, IN), ("wait", 0, 0), ("close", 0),
             ("accept", 0), ("ctl", 0, ADD, 0, IN), ("wait", 0, 0), ("refuse", 0)]  # fmt: skip
    assert fast.run(steps)[-2] == [[0, TROUBLE]]


def test_registered_before_it_connects(programs: tuple[Program, Program]) -> None:
    """As nginx does."""
    steps = [("close", 0), ("socket", 0), ("ctl", 0, ADD, 0, OUT | ET), ("connect", 0),
             ("wait", 0, 0), ("wait", 0, 0), ("send", 0), ("ctl", 0, MOD, 0, IN | ET),
             ("wait", 0, 0)]  # fmt: skip
    stock, fast = (program.run(steps) for program in programs)
    assert fast == stock
    assert [fast[4], fast[5], fast[8]] == [[[0, OUT]], [], [[0, IN]]]


def test_refused_and_closed(fast: Program) -> None:
    """Also what had a second descriptor by then is in no trouble any more."""
    steps = [("refuse", ENOSPC), ("ctl", 0, ADD, 0, IN), ("dup", 0), ("close", 0), ("wait", 0, 0),
             ("refuse", 0)]  # fmt: skip
    assert fast.run(steps)[-2] == []


def test_what_listens_is_no_connection(programs: tuple[Program, Program]) -> None:
    first = [("close", 0), ("socket", 0), ("ctl", 0, ADD, 0, IN)]
    rest = [("listen", 0), ("ctl", 0, DEL, 0, 0), ("close", 0)]
    assert [program.calls(*first, *rest) for program in programs] == [2, 2]
    assert programs[0].run([*first, *rest]) == programs[1].run([*first, *rest])


# Nothing is lost, nothing comes twice, no error is another


def steps() -> st.SearchStrategy[list[tuple[Any, ...]]]:
    """Steps of all kinds; those that end it all for fast epoll are rare."""
    epoll, each = st.sampled_from([0, 0, 0, 1]), st.integers(0, 3)
    events = st.sampled_from(
        [IN, IN, OUT, IN | OUT, IN | ET, OUT | ET, IN | OUT | ET, IN | ONESHOT,
         IN | OUT | ONESHOT, IN | select.EPOLLEXCLUSIVE, 0]
    )  # fmt: skip
    by_fd = st.sampled_from([True, True, True, True, True, True, True, True, True, False])
    call = st.tuples(st.just("ctl"), epoll, st.sampled_from([ADD, MOD, DEL]), each, events, by_fd)
    wait = st.tuples(st.just("wait"), epoll, st.sampled_from([0, 0, 0, 1]))
    traffic = st.tuples(st.sampled_from(["send", "receive", "leave"]), each)
    life = st.tuples(st.sampled_from(["close", "close", "accept", "connect", "socket"]), each)
    rare = st.one_of(
        st.tuples(st.sampled_from(["dup", "pass_on", "listen"]), each),
        st.tuples(st.sampled_from(["over", "replace"]), each, each),
        st.tuples(st.sampled_from(["poll", "dup_epoll", "close_epoll"]), epoll),
        st.tuples(st.just("nest"), st.sampled_from([IN, IN | ET])),
        st.just(("fork",)),
        st.tuples(st.just("ctl"), epoll, st.just(7), each, events),
        call.map(lambda step: ("handler", *step)),
    )
    return st.lists(
        st.one_of(call, call, call, wait, wait, traffic, life, call, wait, traffic, life, rare),
        min_size=4,
        max_size=40,
    )


@settings(max_examples=100, deadline=None)
@given(steps())
def test_same_as_without(programs: tuple[Program, Program], steps: list[tuple[Any, ...]]) -> None:
    looks = [("wait", 0, 0), ("wait", 1, 0)]
    stock, fast = (program.run([*steps, *looks]) for program in programs)
    assert fast == stock


# Real servers


def asyncio_calls(counter: Path, connections: int, fast: bool) -> float:
    """Return the epoll_ctl calls that a connection of an asyncio server takes."""
    libraries = [native_file(LIBRARY), counter] if fast else [counter]
    server = [sys.executable, PROGRAMS / "asyncio_server.py", str(PORT)]
    variables = {"LD_PRELOAD": ":".join(map(str, libraries))}
    with Application(server, PORT, accelerated=False, environment=variables) as app:
        counts = [int(say(PORT, b"x")) for _ in range(connections + 1)]
        app.process.terminate()
        app.process.wait()
    return (counts[-1] - counts[0]) / connections


@pytest.mark.usefixtures("own_network")
def test_asyncio_makes_fewer_calls(counter: Path) -> None:
    stock, fast = (asyncio_calls(counter, 50, fast) for fast in (False, True))
    assert stock == 2
    assert fast <= 0.7 * stock


@pytest.mark.usefixtures("own_network")
@pytest.mark.parametrize("library", LIBRARIES)
def test_redis_benchmark_makes_fewer_calls(counter: Path, tmp_path: Path, library: str) -> None:
    """It opens its connections itself, takes each out and puts it back for every request."""
    requests, told = 2000, tmp_path / "calls"
    client = ["redis-benchmark", "-h", "127.0.0.1", "-p", str(PORT), "-t", "get", "-c", "4"]
    client += ["-n", str(requests), "-q"]
    server = ["redis-server", "--port", str(PORT), "--save", "", "--dir", str(tmp_path)]
    calls = []
    with Application(server, PORT, accelerated=False) as app:
        for libraries in ([counter], [native_file(library), counter]):
            preload = {"LD_PRELOAD": ":".join(map(str, libraries)), "EPOLL_CTL_CALLS": str(told)}
            subprocess.run(client, check=True, env=os.environ | preload, capture_output=True)
            calls.append(int(told.read_text()) / requests)
        app.process.terminate()
        app.process.wait()
    stock, fast = calls
    assert stock >= 4
    assert fast <= 2.1


@pytest.mark.usefixtures("own_network")
@pytest.mark.parametrize(
    ("options", "words", "state", "line"),
    [
        ([], [], "on", "calls were not needed"),
        (["--lean", "auto"], [], "on", "calls were not needed"),
        ([], ["threads"], "threads", "off in 1 of 1 workers: their process has several threads"),
    ],
)
def test_status_says_what_it_saved(
    counter: Path, options: list[str], words: list[str], state: str, line: str
) -> None:
    """Under the launcher, in either library that has it."""
    server = [sys.executable, PROGRAMS / "asyncio_server.py", str(PORT), *words]
    options, variables = ["--fast-epoll", *options], {"LD_PRELOAD": str(counter)}
    with Application(server, PORT, options=options, environment=variables) as app:
        for _ in range(20):
            say(PORT, b"x")
        told = subprocess.run(
            fastsocket_command("status", str(app.pid)), capture_output=True, text=True, check=True
        ).stdout
        status = ask(app.pid)
    assert status, "no keeper"
    (slot,) = status["listeners"][0]["slots"]
    assert slot["fast_epoll"] == state
    assert slot["merged"] >= 15 if state == "on" else slot["merged"] <= 1
    assert line in told
