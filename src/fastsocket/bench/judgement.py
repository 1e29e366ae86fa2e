# SPDX-License-Identifier: GPL-2.0-or-later
"""Is it active, and does it help here? An answer from the counts of a running server.

Judging is pure: the same counts give the same answer.
"""

from enum import StrEnum

import msgspec

from fastsocket.bench.live import Counts

__all__ = ["Answer", "Judgement", "judge"]

# A server whose connections stay on their CPU has above 99 %; below this something hands them on.
LOCAL = 90.0
FEWEST = 200
"""Connections below which the counts say nothing."""


class Answer(StrEnum):
    """What the counts show."""

    HELPS = "active, and most connections stay on their CPU"
    IDLE = "active, but it cannot keep connections on their CPU here"
    COULD = "not active, and connections change their CPU"
    NEEDLESS = "not active, and not needed"
    UNKNOWN = "unknown"


class Judgement(msgspec.Struct, frozen=True):
    """The answer, why, and what to type next."""

    answer: Answer
    reasons: tuple[str, ...]
    todo: str


def judge(counts: Counts, pid: int) -> Judgement:
    """Say what the counts of the server `pid` show."""
    active = counts.tier not in ("", "none")
    local = counts.local_percent
    if counts.connections < FEWEST or local is None:
        return Judgement(
            Answer.UNKNOWN,
            (
                f"{counts.connections} connections in {counts.seconds:.0f} s are too few to judge",
                "accepts through io_uring are not seen",
            ),
            f"fastsocket doctor --measure {pid} --seconds 30    # while clients connect",
        )
    chance = 100 / max(counts.usable, 1)
    reasons = [f"{local:.1f} % of the connections were accepted on the CPU that received them"]
    if counts.usable > 1:
        reasons.append(f"by chance it would be {chance:.0f} % on {counts.usable} CPUs")
    if active:
        return _active(counts, local, chance, reasons, pid)
    if counts.usable < 2 or counts.workers < 2:
        reasons.append(_only(counts))
        todo = f"fastsocket doctor {pid}    # what the server and the host are like"
        return Judgement(Answer.NEEDLESS, tuple(reasons), todo)
    if local >= LOCAL:
        reasons.append("its connections stay on their CPU already")
        return Judgement(Answer.NEEDLESS, tuple(reasons), "fastsocket bench short")
    reasons.append(f"each of {counts.workers} workers could have those of its own CPU")
    return Judgement(Answer.COULD, tuple(reasons), "fastsocket run -- CMD    # its command line")


def _only(counts: Counts) -> str:
    """Say why there is nothing to keep apart."""
    if counts.workers < 2:
        return "one worker accepted all, so it shares nothing with others"
    return "all workers share the one CPU that the server may use"


def _active(counts: Counts, local: float, chance: float, reasons: list[str], pid: int) -> Judgement:
    """Judge a server that runs under Fastsocket."""
    if counts.usable < 2 or counts.workers < 2:
        reasons.append(_only(counts))
        todo = f"fastsocket doctor {pid}    # what the server and the host are like"
        return Judgement(Answer.IDLE, tuple(reasons), todo)
    # A shared socket is local by chance: nearer to all than to that is no chance.
    if local >= (100 + chance) / 2:
        reasons.append(f"{len(counts.cores)} CPUs share the work, tier {counts.tier}")
        return Judgement(Answer.HELPS, tuple(reasons), f"fastsocket status {pid}")
    reasons.append("packets come in on few CPUs, so that the work had to be handed to the others")
    return Judgement(Answer.IDLE, tuple(reasons), "fastsocket nic plan -i IF    # spreads packets")
