"""How many calls a model takes at a time: fewer once for all that complain together, more while it answers; its retries."""

from __future__ import annotations

import math

from ai_worker.errors import NetworkFailed, Overloaded, RateLimited
from ai_worker.worker.congestion import DECREASE, PER_ANSWER, RETRIES, SHORTEST_WINDOW, Congestion, Throttle


def test_however_many_complain_together_it_is_one_decrease() -> None:
    congestion = Congestion(100)
    assert congestion.complained(0.0, 100)
    assert not any(congestion.complained(0.01 * n, 100 - n) for n in range(1, 99))
    assert congestion.most == 100 * DECREASE
    congestion.answered(0.5)
    assert congestion.complained(SHORTEST_WINDOW, 70)
    assert congestion.most < 100 * DECREASE * DECREASE + 1


def test_the_window_is_as_long_as_a_call() -> None:
    congestion = Congestion(100)
    for _ in range(100):
        congestion.answered(5.0)
    congestion.complained(0.0, 100)
    congestion.answered(5.0)
    assert not congestion.complained(4.5, 70)
    assert congestion.complained(5.1, 70)


def test_a_model_that_takes_nothing_is_not_measured_by_that() -> None:
    congestion = Congestion(100)
    congestion.complained(0.0, 100)
    assert not any(congestion.complained(2.0 * n, 70) for n in range(1, 20))
    assert congestion.most == 70


def test_it_never_comes_to_nothing() -> None:
    congestion = Congestion(100)
    for n in range(100):
        congestion.complained(2.0 * n, 2)
        congestion.answered(0.1)
    assert congestion.most >= 1


def test_it_grows_by_one_in_the_time_of_a_call_until_it_is_no_matter() -> None:
    congestion = Congestion(10)
    congestion.complained(0.0, 10)
    for _ in range(7):
        congestion.answered(1.0)
    assert 7.9 < congestion.most < 8.1
    for _ in range(1000):
        congestion.answered(1.0)
    assert congestion.most == math.inf


def test_after_a_stop_it_begins_with_one_and_doubles() -> None:
    congestion = Congestion(64)
    congestion.restart()
    seen = []
    for _ in range(6):
        seen.append(int(congestion.most))
        for _ in range(int(congestion.most)):
            congestion.answered(1.0)
    assert seen == [1, 2, 4, 8, 16, 32]


def test_a_complaint_ends_the_doubling() -> None:
    congestion = Congestion(64)
    congestion.restart()
    for _ in range(19):
        congestion.answered(0.1)
    congestion.complained(0.0, 20)
    assert congestion.most == 14
    congestion.answered(0.1)
    assert congestion.most < 15


def test_retries_have_a_budget_that_answers_fill() -> None:
    congestion = Congestion(10)
    assert sum(congestion.may_retry() for _ in range(1000)) == RETRIES
    for _ in range(round(3 / PER_ANSWER)):
        congestion.answered(0.1)
    assert sum(congestion.may_retry() for _ in range(1000)) in {2, 3}
    for _ in range(100_000):
        congestion.answered(0.1)
    assert sum(congestion.may_retry() for _ in range(1000)) in {RETRIES, RETRIES + 1}


def test_only_what_speaks_of_load_counts() -> None:
    held = {1: 10, 2: 10, 3: 10}
    throttle = Throttle(10, held.__getitem__, lambda: 0.0)
    throttle.failed(1, RateLimited("slower"))
    throttle.failed(2, Overloaded("too much"))
    throttle.failed(3, NetworkFailed("gone"))
    assert throttle.full_models() == [1, 2]
    assert [throttle.room(each) for each in (1, 2)] == [-3, -3]
    assert throttle.room(3) > 1000
    held[1] = 0
    assert throttle.full_models() == [2]
    assert throttle.caps(1)
    for _ in range(1000):
        throttle.answered(1, 0.0)
    assert not throttle.caps(1)
