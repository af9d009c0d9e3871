"""The rate of a limit: how many items may begin at a moment, and never more than it says in any minute."""

from __future__ import annotations

import random
from math import ceil

import pytest

from ai_worker.models import Lane, Task, TaskStatus
from ai_worker.store import limits as module
from ai_worker.store.limits import QueueLimit, QueueLimits, _by_rate

TASK = Task(1, 1, "summary", "", {}, 3, 0, TaskStatus.NEW, queue="reply")


@pytest.mark.parametrize(
    ("per_minute", "ahead_us", "count", "seconds"),
    [
        (60, 2_000_000, 0, 2.0),
        (60, 0, 1, 1.008334),
        (60, -3_000_000, 1, 0.508334),
        (1200, -500_000, 10, 0.00417),
        (1200, -5_000_000, 10, 0.00417),  # what is longer ago is lost
        (6, -100_000_000, 1, 9.583334),
    ],
)
def test_how_many_may_begin_and_when_the_next(per_minute: int, ahead_us: int, count: int, seconds: float) -> None:
    assert _by_rate({"max_per_minute": per_minute, "ahead_us": ahead_us}) == (count, pytest.approx(seconds, abs=1e-5))


@pytest.mark.parametrize("per_minute", [3, 60, 700])
def test_no_minute_has_more_than_the_limit_whenever_workers_look(per_minute: int) -> None:
    rng = random.Random(per_minute)  # noqa: S311 -- no secret
    step = ceil((60 + module.CREDIT_SECONDS) * 1e6 / per_minute)
    now, paced_until = 0, 0
    begun: list[int] = []
    while now < 300_000_000:
        now += rng.choice([10_000, 200_000, 3_000_000])
        count, _ = _by_rate({"max_per_minute": per_minute, "ahead_us": paced_until - now})
        begun += [now] * count
        if count:
            paced_until = max(paced_until, now - int(module.CREDIT_SECONDS * 1e6)) + count * step
    assert len(begun) > per_minute
    for first, after in zip(begun, begun[per_minute:], strict=False):
        assert after - first >= 60_000_000


def test_a_task_keeps_to_all_limits_that_fit_it() -> None:
    limits = QueueLimits(None)  # type: ignore[arg-type]  # they are put in by hand
    rows = [
        QueueLimit("reply", "summary", per_minute=5),
        QueueLimit("reply", "", time_limit=30),
        QueueLimit("", "summary", at_once=3, time_limit=20),
        QueueLimit("batch", "", at_once=1),
    ]
    assert (bool(limits), limits.of(TASK), limits.timed(TASK)) == (False, (), TASK)
    limits._limits = {row.key: row for row in rows}
    assert limits.of(TASK) == (("", "summary"), ("reply", "summary"))
    assert limits.timed(TASK).time_limit == 20
    assert limits.claimed_by == [("reply", "summary"), ("", "summary"), ("batch", "")]
    batch = Task(1, 1, "summary", "", {}, 3, 0, TaskStatus.NEW, queue="reply", lane=Lane.BATCH)
    assert limits.of(batch) == (), "its provider paces it"
    limits.hold({("", "summary"): 5.0})
    assert (limits.holds(TASK), limits.held, limits.new_wait()) == (True, [("", "summary")], 5.0)
