# SPDX-License-Identifier: GPL-2.0-or-later
"""The slot protocol as a small state machine, for tests/unit/test_slot_model.py to explore.

One listener with two sockets: number 0 is the application's own, which its master holds open and
listening for ever; number 1 is a sibling. Two workers claim slots as native/preload/claim.c does,
one step for each thing that others can see; each may be killed between any two steps, close its
listener, and be forked anew. The keeper sweeps and rescues, may be killed, and comes back when a
claim needs it. Connections come in at any time.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

__all__ = ["Rules", "Slot", "State", "Worker", "complaint", "first", "steps"]

FREE, CLAIMED, ORPHAN = "free", "claimed", "orphan"
NOBODY, KEEPER = -1, 9
OWN = 0
# Phases of a worker that holds the listener's lock.
LOCKED = ("locked", "swept", "reserved", "listening", "claimed", "published", "leaving", "left")


@dataclass(frozen=True)
class Rules:
    """What the protocol does against races; each can be taken away to see what it is for."""

    reserve_first: bool = True  # a socket is noted in the page before it listens
    reserving_wants_help: bool = True  # and the others are asked to look at its queue
    help_stays: bool = True  # while there are orphans that no program passes over
    dead_holders_lose_the_lock: bool = True


class Worker(NamedTuple):
    """A worker's phase and the slot that it deals with."""

    phase: str = "new"
    slot: int = NOBODY

    @property
    def lives(self) -> bool:
        return self.phase not in ("dead", "gone")


class Slot(NamedTuple):
    """A slot of the page, and its socket."""

    state: str = FREE
    owner: int = NOBODY
    listens: bool = False
    published: bool = False
    queue: int = 0


class State(NamedTuple):
    """All of it; the last fields are how often things may still happen."""

    workers: tuple[Worker, ...]
    slots: tuple[Slot, ...]
    lock: int
    help: bool
    program: bool
    keeper: bool
    noticed: bool  # the keeper has a death to look into
    crashes: int
    keeper_kills: int
    closes: int
    forks: int
    connections: int


def first(**budget: int) -> State:
    """Return the start: nobody polls yet, the application's socket listens."""
    return State(
        (Worker(), Worker()), (Slot(listens=True), Slot()), NOBODY, False, False, True, False,
        **budget,
    )  # fmt: skip


def _slot(state: State, index: int, /, **changes: object) -> State:
    slots = list(state.slots)
    slots[index] = slots[index]._replace(**changes)
    return state._replace(slots=tuple(slots))


def _worker(state: State, index: int, phase: str, slot: int | None = None) -> State:
    workers = list(state.workers)
    workers[index] = Worker(phase, workers[index].slot if slot is None else slot)
    return state._replace(workers=tuple(workers))


def _holder_lives(state: State) -> bool:
    if state.lock == KEEPER:
        return state.keeper
    return state.lock != NOBODY and state.workers[state.lock].phase in LOCKED


def _can_lock(state: State, rules: Rules) -> bool:
    if state.lock == NOBODY:
        return True
    return rules.dead_holders_lose_the_lock and not _holder_lives(state)


def _sweep(state: State) -> State:
    for index, slot in enumerate(state.slots):
        if slot.state == CLAIMED and not _owns(state, slot.owner, index):
            state = _slot(state, index, state=ORPHAN, owner=NOBODY)._replace(help=True)
    return state


def _owns(state: State, owner: int, index: int) -> bool:
    worker = state.workers[owner]
    return worker.lives and worker.slot == index


def _claimed(state: State) -> list[int]:
    return [index for index, slot in enumerate(state.slots) if slot.state == CLAIMED]


def _hand_over(state: State, index: int) -> Iterator[State]:
    """Let the kernel move an orphan's queue to a slot that is chosen by the program."""
    slot = state.slots[index]
    if slot.state != ORPHAN or not slot.published or not _claimed(state):
        yield state
        return
    for target in _claimed(state):
        moved = _slot(state, target, queue=state.slots[target].queue + slot.queue)
        if index == OWN:  # it listens again at once
            yield _slot(moved, index, published=False, queue=0)
        else:
            yield _slot(moved, index, published=False, queue=0, listens=False, state=FREE)


def _works(state: State, me: int, rules: Rules) -> Iterator[State]:
    """Yield what one worker's next step leads to."""
    phase, mine = state.workers[me]
    if phase in ("new", "locked", "swept", "reserved", "listening", "claimed", "published"):
        yield from _claims(state, me, rules)
    elif phase == "polling":
        yield from _accepts(state, me, rules)
        if state.closes and _can_lock(state, rules):
            closing = state._replace(closes=state.closes - 1, lock=me)
            yield _worker(closing, me, "leaving")
    elif phase == "shares" and state.slots[OWN].queue:
        yield _slot(state, OWN, queue=state.slots[OWN].queue - 1)
    elif phase == "leaving":
        left = _slot(state, mine, state=ORPHAN, owner=NOBODY)._replace(help=True)
        for after in _hand_over(left, mine):
            yield _worker(after, me, "left")
    elif phase == "left":
        yield _worker(state._replace(lock=NOBODY, noticed=True), me, "gone")


def _claims(state: State, me: int, rules: Rules) -> Iterator[State]:
    """The way of a worker from its first poll to a slot, fs_claim() in claim.c."""
    phase, mine = state.workers[me]
    match phase:
        case "new":
            if _can_lock(state, rules):
                yield _worker(state._replace(lock=me), me, "locked")
        case "locked":
            yield _worker(_sweep(state), me, "swept")
        case "swept":
            yield _chooses(state, me, rules)
        case "reserved":
            yield _worker(_slot(state, mine, listens=True), me, "listening")
        case "listening":
            yield _worker(_slot(state, mine, state=CLAIMED, owner=me), me, "claimed")
        case "claimed":
            yield _publishes(state, me)
        case "published":
            yield _worker(state._replace(lock=NOBODY), me, "polling")


def _chooses(state: State, me: int, rules: Rules) -> State:
    index = OWN if state.slots[OWN].state != CLAIMED else 1
    if state.slots[index].state == CLAIMED:
        return _worker(state._replace(lock=NOBODY), me, "shares", NOBODY)
    noted = state
    if rules.reserve_first:
        noted = _slot(state, index, state=ORPHAN)
        noted = noted._replace(help=state.help or rules.reserving_wants_help)
    return _worker(noted, me, "reserved", index)


def _publishes(state: State, me: int) -> State:
    """A lone socket needs no choice; from the second on the keeper must know all of them."""
    orphans = any(each.state == ORPHAN for each in state.slots)
    if len(_claimed(state)) < 2 and not orphans:
        return _worker(state, me, "published")
    if not state.keeper:
        return state._replace(keeper=True, noticed=True)  # another one is started
    for index in _claimed(state):
        state = _slot(state, index, published=True)
    return _worker(state._replace(program=True), me, "published")


def _accepts(state: State, me: int, rules: Rules) -> Iterator[State]:
    """A worker whose socket is readable looks at the queues of others first, if asked to."""
    mine = state.workers[me].slot
    if not state.slots[mine].queue:
        return
    if state.help:
        for index, slot in enumerate(state.slots):
            if index != mine and slot.state == ORPHAN and slot.queue:
                yield _slot(state, index, queue=slot.queue - 1)
                return
        orphans = any(slot.state == ORPHAN for slot in state.slots)
        stays = rules.help_stays and orphans and not state.slots[mine].published
        state = state._replace(help=stays)
    yield _slot(state, mine, queue=state.slots[mine].queue - 1)


def _keeps(state: State, rules: Rules) -> Iterator[State]:
    """Yield what the keeper's next step leads to."""
    if not state.keeper:
        return
    if state.lock == KEEPER:
        swept = _sweep(state)._replace(lock=NOBODY, noticed=False)
        results = [swept]
        for index in range(len(swept.slots)):
            results = [after for each in results for after in _hand_over(each, index)]
        yield from results
    elif state.noticed and _can_lock(state, rules):
        yield state._replace(lock=KEEPER)


def _arrives(state: State) -> Iterator[State]:
    """A connection: the program's choice, else the kernel's hash over what listens."""
    chosen = [
        index
        for index in _claimed(state)
        if state.program and state.slots[index].published and state.slots[index].listens
    ]
    listening = [index for index, slot in enumerate(state.slots) if slot.listens]
    if state.program and not chosen:
        state = state._replace(help=True)
    for index in chosen or listening:
        yield _slot(state, index, queue=state.slots[index].queue + 1)._replace(
            connections=state.connections - 1
        )


def steps(state: State, rules: Rules) -> Iterator[State]:
    """Yield every state that one step of anybody leads to."""
    for index, worker in enumerate(state.workers):
        yield from _works(state, index, rules)
        if worker.lives and worker.phase != "new" and state.crashes:
            yield _worker(state._replace(crashes=state.crashes - 1, noticed=True), index, "dead")
        if not worker.lives and state.forks:
            yield _worker(state._replace(forks=state.forks - 1), index, "new", NOBODY)
    yield from _keeps(state, rules)
    if state.keeper and state.keeper_kills:
        yield state._replace(keeper=False, noticed=False, keeper_kills=state.keeper_kills - 1)
    if state.connections:
        yield from _arrives(state)


def complaint(state: State) -> str:
    """Return which invariant the state breaks, or an empty string.

    - A slot has at most one living owner, and one process at most holds the lock.
    - Nobody waits for ever for the lock: one who holds it lives, or can be relieved of it.
    - A queued connection has an acceptor as soon as anybody polls: its slot's worker, one that was
      asked to help, or one that will be, since the page knows of the queue.
    - With nothing left to do, a living keeper leaves no slot claimed by the dead.
    """
    owners = [
        worker.slot
        for worker in state.workers
        if worker.phase in ("claimed", "published", "polling", "leaving")
    ]
    if len(owners) != len(set(owners)):
        return "two living workers own one slot"
    if sum(worker.phase in LOCKED for worker in state.workers) > 1:
        return "two workers hold the lock"
    at_rest = all(each.phase in ("polling", "shares", "dead", "gone") for each in state.workers)
    if not at_rest or (state.keeper and (state.noticed or state.lock == KEEPER)):
        return ""
    found = (_complaint_of_slot(state, index) for index in range(len(state.slots)))
    return next((each for each in found if each), "")


def _complaint_of_slot(state: State, index: int) -> str:
    """The same for one slot, when nobody is about to do anything."""
    slot = state.slots[index]
    if slot.state == CLAIMED and not _owns(state, slot.owner, index) and state.keeper:
        return f"slot {index} is claimed by a dead worker for ever"
    # Of a claimed slot the program notices that nothing is accepted there, and asks for help.
    if slot.queue and any(each.phase == "polling" for each in state.workers):
        if slot.state == FREE:
            return f"connections wait on socket {index}, of which the page does not know"
        if slot.state == ORPHAN and not state.help:
            return f"connections wait on orphan {index}, and nobody was asked to help"
    return ""


def without(**rules: bool) -> Rules:
    """Return the rules with some of them taken away."""
    return replace(Rules(), **rules)
