# SPDX-License-Identifier: GPL-2.0-or-later
"""The answer to "is it active, and does it help here?", from counts."""

import msgspec
import pytest

from fastsocket.bench.judgement import Answer, judge
from fastsocket.bench.live import CoreCount, Counts

pytestmark = pytest.mark.unit

PID = 4711
STOCK = Counts(
    tier="",
    workers=8,
    usable=8,
    seconds=5.0,
    connections=80_000,
    local_percent=12.5,
    lock_contentions_per_1k=210.0,
    resched_ipis_per_1k=230.0,
    worker_cv=0.1,
    cores=[CoreCount(cpu, 10_000, 1_250) for cpu in range(8)],
)


@pytest.mark.parametrize(
    ("changes", "answer", "todo"),
    [
        ({}, Answer.COULD, "fastsocket run"),
        ({"local_percent": 99.0}, Answer.NEEDLESS, "bench"),
        ({"workers": 1}, Answer.NEEDLESS, f"doctor {PID}"),
        ({"usable": 1}, Answer.NEEDLESS, f"doctor {PID}"),
        ({"tier": "none"}, Answer.COULD, "fastsocket run"),
        ({"tier": "migrate", "local_percent": 99.9}, Answer.HELPS, f"status {PID}"),
        ({"tier": "classic", "local_percent": 60.0}, Answer.HELPS, f"status {PID}"),
        ({"tier": "migrate"}, Answer.IDLE, "nic plan"),
        ({"tier": "migrate", "workers": 1}, Answer.IDLE, f"doctor {PID}"),
        ({"connections": 10}, Answer.UNKNOWN, "--seconds 30"),
        ({"connections": 0, "local_percent": None}, Answer.UNKNOWN, "--seconds 30"),
    ],
)
def test_answers(changes: dict[str, object], answer: Answer, todo: str) -> None:
    judged = judge(msgspec.structs.replace(STOCK, **changes), PID)
    assert judged.answer is answer
    assert todo in judged.todo
    assert judged.reasons


@pytest.mark.parametrize("tier", ["", "migrate"])
@pytest.mark.parametrize(("changes", "said"), [({"workers": 1}, True), ({"usable": 1}, False)])
def test_one_worker_is_said_only_of_one_worker(
    tier: str, changes: dict[str, int], said: bool
) -> None:
    judged = judge(msgspec.structs.replace(STOCK, tier=tier, **changes), PID)
    assert ("one worker" in " ".join(judged.reasons)) is said
