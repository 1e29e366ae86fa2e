# SPDX-License-Identifier: GPL-2.0-or-later
"""Every interleaving of claims, releases, crashes and keeper deaths, within small bounds.

`tests/unit/slot_model.py` has the protocol and states its invariants. Rules that were added to the
protocol because of a race found here are taken away again, and the race must show.
"""

from collections import deque

import pytest

from tests.unit.slot_model import Rules, State, complaint, first, steps, without

pytestmark = pytest.mark.unit

MOST_STATES = 400_000


def explore(rules: Rules, **budget: int) -> tuple[int, list[State]]:
    """Return the number of reachable states, and the shortest way to one that is wrong."""
    start = first(**budget)
    seen: dict[State, State | None] = {start: None}
    waiting = deque([start])
    while waiting:
        state = waiting.popleft()
        if complaint(state):
            way: list[State] = []
            at: State | None = state
            while at is not None:
                way.append(at)
                at = seen[at]
            return len(seen), way[::-1]
        for after in steps(state, rules):
            if after not in seen:
                seen[after] = state
                waiting.append(after)
        assert len(seen) < MOST_STATES, "the bounds of the model are too wide"
    return len(seen), []


def told(way: list[State]) -> str:
    return "\n".join(str(state) for state in way) + "\n" + (complaint(way[-1]) if way else "")


@pytest.mark.parametrize(
    "budget",
    [
        {"crashes": 2, "keeper_kills": 0, "closes": 0, "forks": 1, "connections": 2},
        {"crashes": 1, "keeper_kills": 1, "closes": 1, "forks": 1, "connections": 1},
        {"crashes": 0, "keeper_kills": 1, "closes": 2, "forks": 1, "connections": 2},
    ],
)
def test_no_interleaving_breaks_an_invariant(budget: dict[str, int]) -> None:
    count, way = explore(Rules(), **budget)
    assert not way, told(way)
    assert count > 1000, "the model does next to nothing"


def test_a_socket_that_listens_before_the_page_knows_of_it_can_be_lost() -> None:
    """A worker killed between listen() and its claim left a queue that nobody knew of."""
    rules = without(reserve_first=False)
    _, way = explore(rules, crashes=1, keeper_kills=0, closes=0, forks=0, connections=1)
    assert "does not know" in complaint(way[-1])


@pytest.mark.parametrize("rule", ["reserving_wants_help", "help_stays"])
def test_an_orphan_that_nobody_mentions_can_be_lost(rule: str) -> None:
    """A worker was killed between reservation and claim, and then the keeper."""
    rules = without(**{rule: False})
    _, way = explore(rules, crashes=1, keeper_kills=1, closes=0, forks=0, connections=2)
    assert "nobody was asked" in complaint(way[-1])


def test_a_lock_of_the_dead_must_be_taken() -> None:
    rules = without(dead_holders_lose_the_lock=False)
    start = first(crashes=1, keeper_kills=0, closes=0, forks=0, connections=0)
    seen, waiting, stuck = {start}, deque([start]), False
    while waiting:
        state = waiting.popleft()
        following = list(steps(state, rules))
        stuck = stuck or (not following and any(each.phase == "new" for each in state.workers))
        waiting += [after for after in following if after not in seen]
        seen.update(following)
    assert stuck
