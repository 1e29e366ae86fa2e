# SPDX-License-Identifier: GPL-2.0-or-later
"""Lean connections hurt nobody: the same bytes, and no promise forgotten, however a server behaves.

Each behaviour meets the library when all means are on, which is worst: the connection that
contradicts them must not wait for a timer of the kernel, 40 ms for an ACK, 200 ms for the end of an
answer, a second for an accept. Smaller delays are measured by `fastsocket bench lean`.
"""

import socket
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastsocket.bench.behaviours import BEHAVIOURS, SHORT, Behaviour, Scripted, script, talk
from fastsocket.bench.modes import Mode
from fastsocket.bench.scenarios.lean import Pair
from fastsocket.bench.servers import Site
from fastsocket.listen.layout import LEAN_PROOF
from tests.apps.harness import Application, namespace

pytestmark = pytest.mark.apps

STOCK, LEAN = 8080, 8081
PAIRS = 8  # a forgotten promise is late each time, a busy machine only at times
TIMER_S = 0.030  # what a forgotten promise costs at least, less what a busy machine does
QUICK = [name for name, behaviour in BEHAVIOURS.items() if not behaviour.seldom]


def pair_of(place: pytest.TempPathFactory, options: list[str]) -> Iterator[Pair]:
    """Run a stock server and a lean one."""
    directory = place.mktemp("lean")
    with ExitStack() as stack:
        stack.enter_context(namespace())
        apps = []
        for port in (STOCK, LEAN):
            command = Scripted().command(Mode.STOCK, Site("127.0.0.1", port, 1, directory))
            lean = port == LEAN
            app = Application(command, port, accelerated=lean, options=options if lean else [])
            apps.append(stack.enter_context(app))
        yield Pair(STOCK, LEAN, apps[1].pid, directory / "greets")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    yield from pair_of(tmp_path_factory, ["--lean", "auto"])


def means(pair: Pair) -> dict[str, str]:
    """Return the state of each of the means."""
    return {name: each["state"] for name, each in pair.listener()["lean"].items()}


def expect_in_time(
    pair: Pair, name: str, behaviour: Behaviour, learned: bool = True, pairs: int = PAIRS
) -> None:
    """Compare pairs, each in that state, until half of all were in time, or more were late."""
    late: list[float] = []
    while sum(each < TIMER_S for each in late) < pairs // 2:
        late += pair.late(behaviour, 1, learned)
        assert sum(each >= TIMER_S for each in late) <= pairs // 2, (name, late)


@pytest.mark.parametrize("name", QUICK)
def test_nobody_waits_for_a_timer(pair: Pair, name: str) -> None:
    """At the moment of the change: all means on, then a connection of another kind."""
    expect_in_time(pair, name, BEHAVIOURS[name])


def test_deferred_accept_is_not_for_all(pair: Pair) -> None:
    """It would hide a client for a second from a server that begins to greet."""
    pair.renew()
    pair.learn()
    assert means(pair) == {"defer": "off", "hold": "on", "ack": "on"}


def test_silent_client(pair: Pair) -> None:
    expect_in_time(pair, "silent", Behaviour(silence=0.3))


def test_unread_input_does_not_cost_the_answer(pair: Pair) -> None:
    """The kernel resets a connection that is closed with input unread; the answer comes first."""
    pair.renew()
    pair.learn()
    for _ in range(3):
        with socket.create_connection(("127.0.0.1", LEAN), timeout=15) as client:
            client.sendall(script(SHORT) + b"pipelined")
            assert client.recv(100) == b"hello"
    assert means(pair)["hold"] == "on"


def test_visits_teach_nothing(pair: Pair) -> None:
    """A health check connects and leaves, with FIN or with a reset."""
    pair.renew()
    pair.learn()
    for reset in (False, True) * 20:
        with socket.create_connection(("127.0.0.1", LEAN), timeout=15) as client:
            if reset:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    assert talk(LEAN).text == b"hello"
    assert means(pair)["hold"] == "on"


runs = st.lists(st.tuples(st.sampled_from(QUICK), st.integers(1, 70)), min_size=2, max_size=5)


@settings(
    max_examples=10,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(behaviour=runs)
def test_alternating_behaviour(pair: Pair, behaviour: list[tuple[str, int]]) -> None:
    """Whatever comes in whatever order, each client gets the bytes that it would have got."""
    pair.renew()
    for name, count in behaviour:
        kind = BEHAVIOURS[name]
        begin = time.monotonic()
        late = [pair.late_now(kind)]
        slow = time.monotonic() - begin > TIMER_S / 3
        late += [pair.late_now(kind) for _ in range(3 if slow else count)]
        while min(late) >= TIMER_S and len(late) < PAIRS:
            late.append(pair.late_now(kind))
        assert min(late) < TIMER_S, (name, late)


def test_alternating_for_long(pair: Pair) -> None:
    """A listener that changes its ways again and again is left alone."""
    pair.renew()
    pair.learn()
    before = pair.listener()["lean"]["hold"]["drops"]
    for _ in range(3):
        for _ in range(64):
            assert talk(LEAN).text == b"hello"
        talk(LEAN, BEHAVIOURS["waits_before_close"])
    hold = pair.listener()["lean"]["hold"]
    drops = hold["drops"] - before
    assert (hold["state"], drops, hold["need"]) == ("dropped", 1, 512), hold


def test_deferred_accepts(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Where somebody asked for them: who greets is never deferred, who begins to only once."""
    for pair in pair_of(tmp_path_factory, ["--lean", "auto", "--defer-accept"]):
        pair.renew()
        pair.learn()
        assert means(pair) == {"defer": "on", "hold": "on", "ack": "on"}
        expect_in_time(pair, "visits", BEHAVIOURS["health_check"])
        expect_in_time(pair, "silent", Behaviour(silence=1.2), pairs=2)
        assert means(pair)["defer"] == "on"
        (late,) = pair.late(BEHAVIOURS["greets"], 1, learned=True)
        assert late < 5  # it is about one second, and a busy machine's share
        for _ in range(LEAN_PROOF + 6):
            assert talk(LEAN).text == b"hello"
        defer = pair.listener()["lean"]["defer"]
        assert (defer["state"], defer["need"]) == ("dropped", None)
        assert defer["why"] == "it spoke before it read"
        expect_in_time(pair, "greets", BEHAVIOURS["greets"], learned=False)
