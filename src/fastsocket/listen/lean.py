# SPDX-License-Identifier: GPL-2.0-or-later
"""What the workers of a listener learned of its connections, as the status page has it."""

from typing import Any

from fastsocket.listen.layout import (
    LEAN_NEVER,
    LEAN_PROOF,
    Contradiction,
    Lean,
    Means,
    Page,
)

__all__ = ["lean_snapshot"]

CONTRADICTIONS: dict[int, str] = {
    Contradiction.SPOKE_FIRST: "it spoke before it read",
    Contradiction.WAITED: "it waited with the connection open or the request unanswered",
    Contradiction.SLEPT: "it called what may sleep between answer and close",
    Contradiction.WAS_SLOW: "it took long between answer and close",
    Contradiction.READ_ON: "it read from a connection that it had answered",
    Contradiction.SHARED: "another process or descriptor shared the connection",
    Contradiction.SET_OPTION: "it set such options itself",
    Contradiction.VARIED: "it closed after different numbers of answers",
}


def lean_snapshot(page: Page, lean: Lean) -> dict[str, dict[str, Any]]:
    """Return, for each of the means, how far it is learned, ready for JSON.

    ``state`` is "off", "learning", "on", "dropped" or "own" (of the application), ``proof`` the
    connections in a row that speak for it, ``need`` how many it takes (None: not again), ``drops``
    how often it was dropped, and ``why`` what last spoke against it, or None.
    """
    return {means.name.lower(): _means(page, lean, means) for means in Means}


def _means(page: Page, lean: Lean, means: Means) -> dict[str, Any]:
    entry = lean.means[means]
    never = entry.need == LEAN_NEVER
    if not page.lean >> means & 1:
        state = "off"
    elif lean.own >> means & 1:
        state = "own"
    elif lean.on >> means & 1:
        state = "on"
    else:
        state = "dropped" if never or entry.drops else "learning"
    return {
        "state": state,
        "proof": entry.proof,
        "need": None if never else entry.need or LEAN_PROOF,
        "drops": entry.drops,
        "why": CONTRADICTIONS.get(entry.reason),
    }
