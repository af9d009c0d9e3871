"""The arithmetic of sending time, by a clock that the test turns: what is sent when, and no minute gets more than its worth."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable

import pytest

from ai_worker.models import Limits
from ai_worker.worker.line import CARRY, LAG, LONGEST, MARGIN, Line

RPM = Limits(600, None)
PER_CALL = 0.1 / MARGIN


def held(limits: Limits = RPM, begins: float = 100.0, seconds: float = 2.0) -> Line:
    line = Line(limits, 50)
    line.add(begins, seconds, 0.0)
    return line


def sent(line: Line, now: float, until: float, tokens: Callable[[], int] = lambda: 1, step: float = 0.001) -> list[float]:
    """When calls begin for somebody who always has one more to make."""
    times = []
    while now < until:
        if line.take(now, tokens()) == 0:
            times.append(now)
        else:
            now += step
    return times


def test_without_sending_time_nothing_is_sent() -> None:
    line = Line(RPM, 50)
    assert line.take(100.0, 1) == math.inf
    assert line.calls_until(1e9, 100.0) == 0


def test_a_stretch_is_used_at_the_models_rate_and_not_before_it_begins() -> None:
    line = held(begins=101.0)
    assert line.take(100.0, 1) == pytest.approx(1.0)
    times = sent(line, 100.0, 110.0)
    assert times[0] == pytest.approx(101.0, abs=0.002)
    assert len(times) == math.ceil(2.0 / PER_CALL)
    gaps = [after - before for before, after in itertools.pairwise(times)]
    assert min(gaps) > PER_CALL - 0.002  # no burst
    assert times[-1] < 103.0


def test_what_comes_late_is_made_up_for_a_little_and_then_lost() -> None:
    line = held()
    at_once = [line.take(101.0, 1) for _ in range(20)].index(line.until(101.0))
    assert at_once == math.ceil(LAG / PER_CALL) + 1 or at_once == math.ceil(LAG / PER_CALL)
    assert held().take(102.0 + LAG, 1) == math.inf  # all of it has passed


def test_a_call_costs_its_tokens() -> None:
    line = held(Limits(None, 60_000))
    assert line.counts_tokens
    assert line.take(100.0, 500) == 0
    assert line.take(100.0, 500) == pytest.approx(0.5 / MARGIN)
    line.settle(-300)
    assert line.take(100.0, 500) == pytest.approx(0.2 / MARGIN)
    line.settle(+1000)
    assert line.take(100.0, 500) == pytest.approx(1.2 / MARGIN)


def test_a_call_too_big_for_its_stretch_is_paid_from_the_next() -> None:
    line = held(Limits(None, 60_000), seconds=1.0)
    assert line.take(100.0, 3000) == 0
    assert line.take(101.0, 10) == math.inf
    line.add(200.0, 1.0, 0.0)
    assert line.take(200.0, 10) == math.inf  # all of it
    line.add(300.0, 2.0, 0.0)
    assert line.take(300.0, 10) == pytest.approx(3 / MARGIN - 2.0, abs=0.01)


def test_the_kind_that_was_not_used_up_is_carried_over_a_little() -> None:
    """Else two limits that are used equally would each cost the other one a part."""
    line = held(Limits(600, 60_000), seconds=1.0)
    sent(line, 100.0, 102.0)  # of few tokens: requests are used up
    line.add(200.0, 1.0, 0.0)
    times = sent(line, 200.0, 203.0, tokens=lambda: 400)
    tokens = 400 * len(times)
    assert (1.0 + CARRY / 2) * 1000 * MARGIN < tokens <= (1.0 + CARRY) * 1000 * MARGIN + 400


def test_nothing_is_carried_over_from_a_time_without_work() -> None:
    line = held()
    line.take(100.0, 1)
    line.add(200.0, 1.0, 0.0)
    assert len(sent(line, 200.0, 203.0)) <= math.ceil(1.0 / PER_CALL)


def test_stretches_grow_while_they_are_used_and_shrink_when_not() -> None:
    line = Line(RPM, 50)
    asked = []
    now = 100.0
    for _ in range(7):
        seconds = line.wants(now, 0.5)
        asked.append(seconds)
        line.add(now, seconds, 0.0)
        sent(line, now, now + seconds)
        now += seconds
    assert asked == pytest.approx([min(PER_CALL * 2**n, LONGEST) for n in range(7)])
    line.add(now, 2.0, 0.0)
    line.until(now + LAG)
    line.add(now + 2.0, 1.0, 0.0)
    line.until(now + 2.0 + LAG)  # in the first one nobody had anything to send
    assert line.wants(now + 2.9, 0.5) < 1.0
    assert line.wants(now + 60.0, 0.5) == pytest.approx(PER_CALL)  # after a rest one call's worth again


def test_it_asks_in_time_and_only_once() -> None:
    line = held()
    assert line.wants(100.0, 0.5) == 0
    sent(line, 100.0, 101.6)
    assert line.wants(101.6, 0.5) > 0
    line.add(105.0, 2.0, 0.0)
    assert line.wants(101.6, 0.5) == 0
    with pytest.raises(RuntimeError):
        line.add(107.0, 2.0, 0.0)


def test_a_stretch_is_no_longer_than_the_slots_can_use() -> None:
    line, now = Line(Limits(6000, None), 20), 100.0
    for _ in range(8):
        seconds = line.wants(now, 0.5)
        line.add(now, seconds, 0.0)
        sent(line, now, now + seconds)
        now += seconds
    assert seconds == pytest.approx(10 * 0.01 / MARGIN)


def test_it_tells_how_many_calls_a_moment_holds() -> None:
    line = held(begins=101.0)
    assert line.calls_until(100.5, 100.0) == 0
    assert line.calls_until(101.2, 100.0) == 2
    assert line.calls_until(200.0, 100.0) == math.ceil(2.0 / PER_CALL)


def test_new_limits_count_from_now_on() -> None:
    line = held()
    line.take(100.0, 1)
    line.limits = Limits(60, None)
    assert line.take(100.2, 1) == 0
    assert line.take(100.2, 1) == pytest.approx(1 / MARGIN - 0.1, abs=0.05)


@pytest.mark.parametrize("workers", [1, 4, 12])
def test_no_minute_gets_more_than_its_worth_and_a_busy_fleet_uses_nearly_all(workers: int) -> None:
    """Workers with one line between them, as the database keeps it; late now and then; with guesses that are wrong."""
    rng = random.Random(7)  # noqa: S311 -- no secret
    limits = Limits(600, 60_000)
    lines = [Line(limits, 50) for _ in range(workers)]
    paced_until, now, calls = 0.0, 0.0, []
    owed: list[tuple[float, Line, int]] = []  # answers: when, whose, tokens more than guessed
    late = [0.0] * workers
    while now < 200.0:
        for number, line in enumerate(lines):
            if now < late[number]:
                continue
            if rng.random() < 0.002:
                late[number] = now + rng.uniform(0.0, 0.3)
            while line.take(now, 100) == 0:
                tokens = rng.randint(50, 150)
                calls.append((now, tokens))
                owed.append((now + 1.0, line, tokens - 100))
            if seconds := line.wants(now, 0.5):
                begins = max(paced_until, now)
                paced_until = begins + seconds
                line.add(begins, seconds, begins - now)
        for _, line, tokens in [each for each in owed if each[0] <= now]:
            line.settle(tokens)
        owed = [each for each in owed if each[0] > now]
        now += 0.01
    first = oldest = count = tokens = 0
    for at, cost in calls:
        count, tokens = count + 1, tokens + cost
        while calls[oldest][0] <= at - 60.0:
            count, tokens, oldest = count - 1, tokens - calls[oldest][1], oldest + 1
        assert count <= 600
        assert tokens <= 60_000
        first += at >= 60.0
    assert first / (600 * 140 / 60) >= 0.95
