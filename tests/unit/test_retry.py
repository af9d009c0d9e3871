"""When calls and attempts are tried again; nobody sleeps here."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from tenacity import RetryCallState

from ai_worker.errors import (
    AccessDenied,
    BadAnswer,
    ContentRefused,
    InvalidRequest,
    NetworkFailed,
    Overloaded,
    ProviderError,
    QuotaExhausted,
    RateLimited,
)
from ai_worker.retry import attempt_delay, call_retrying


class Call:
    """A model call that fails with each of the given errors in turn, then answers; and a clock that nobody waits for."""

    def __init__(self, *problems: Exception) -> None:
        self.problems = list(problems)
        self.calls = 0
        self.slept: list[float] = []

    async def __call__(self) -> str:
        self.calls += 1
        if self.problems:
            raise self.problems.pop(0)
        return "odpowiedź"

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)

    def run(self, **policy: Any) -> str:
        async def calling() -> str:
            answer: str = await call_retrying(sleep=self.sleep, **policy)(self)
            return answer

        return asyncio.run(calling())


@pytest.mark.parametrize("problem", [RateLimited("a"), Overloaded("b"), NetworkFailed("c")])
def test_what_may_succeed_soon_is_tried_again(problem: ProviderError) -> None:
    call = Call(problem, problem)
    assert call.run() == "odpowiedź"
    assert call.calls == 3


@pytest.mark.parametrize(
    "problem",
    [
        QuotaExhausted("a", retry_after=1.0),
        AccessDenied("b"),
        ContentRefused("c"),
        InvalidRequest("d"),
        BadAnswer("e"),
        KeyError("f"),
    ],
)
def test_nothing_else_is(problem: Exception) -> None:
    call = Call(problem)
    with pytest.raises(type(problem)) as caught:
        call.run()
    assert caught.value is problem
    assert (call.calls, call.slept) == (1, [])


def test_the_servers_wish_is_met_and_spread_by_up_to_a_quarter() -> None:
    for drawn, wait in ((0.0, 8.0), (0.5, 9.0), (0.999999, 10.0)):
        call = Call(RateLimited("slowly", retry_after=8.0))
        call.run(rng=lambda drawn=drawn: drawn)
        assert call.slept == [pytest.approx(wait, abs=1e-4)]


def test_without_a_wish_the_wait_grows_with_full_jitter() -> None:
    longest = [0.0] * 8
    for _ in range(200):
        call = Call(*(Overloaded("busy") for _ in range(8)))
        call.run(attempts=9)
        longest = [max(pair) for pair in zip(longest, call.slept, strict=True)]
    for number, seconds in enumerate(longest):
        ceiling = min(60.0, 0.5 * 2**number)
        assert ceiling * 0.8 < seconds <= ceiling


def test_it_gives_up_after_so_many_calls_with_the_last_error() -> None:
    problems = [Overloaded(str(number)) for number in range(9)]
    call = Call(*problems)
    with pytest.raises(Overloaded) as caught:
        call.run(attempts=4)
    assert caught.value is problems[3]
    assert (call.calls, len(call.slept)) == (4, 3)


def test_five_calls_by_default() -> None:
    call = Call(*(NetworkFailed("lost") for _ in range(9)))
    with pytest.raises(NetworkFailed):
        call.run()
    assert call.calls == 5


def test_a_wish_above_the_cap_is_not_slept() -> None:
    call = Call(RateLimited("later", retry_after=61.0))
    with pytest.raises(RateLimited) as caught:
        call.run()
    assert (call.calls, call.slept, caught.value.retry_after) == (1, [], 61.0)
    call = Call(RateLimited("soon", retry_after=60.0))
    call.run(rng=lambda: 0.999)
    assert len(call.slept) == 1  # the spread does not count against the cap


def test_a_wait_that_would_outlast_the_deadline_is_not_begun() -> None:
    call = Call(RateLimited("later", retry_after=10.0))
    with pytest.raises(RateLimited):
        call.run(deadline=9.0)
    assert (call.calls, call.slept) == (1, [])
    call = Call(RateLimited("soon", retry_after=5.0))
    call.run(deadline=9.0)
    assert len(call.slept) == 1


def test_the_hook_is_told_of_each_wait() -> None:
    told: list[tuple[int, str, float]] = []

    def hook(state: RetryCallState) -> None:
        assert state.outcome is not None
        told.append((state.attempt_number, type(state.outcome.exception()).__name__, state.upcoming_sleep))

    call = Call(RateLimited("a", retry_after=2.0), NetworkFailed("b"))
    call.run(before_sleep=hook, rng=lambda: 0.0)
    assert told[0] == (1, "RateLimited", 2.0)
    assert told[1][:2] == (2, "NetworkFailed")
    assert [wait for _, _, wait in told] == call.slept


def test_a_wait_can_be_cancelled() -> None:
    async def run() -> None:
        asleep = asyncio.Event()

        async def call() -> None:
            raise RateLimited("later", retry_after=50.0)

        waiting = asyncio.create_task(call_retrying(before_sleep=lambda _: asleep.set())(call))
        await asleep.wait()
        waiting.cancel()
        await waiting

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(asyncio.wait_for(run(), 10))


@pytest.mark.parametrize(("failed", "ceiling"), [(1, 2), (2, 4), (3, 8), (9, 512), (10, 600), (5000, 600)])
def test_the_delay_between_attempts_grows_to_its_cap(failed: int, ceiling: float) -> None:
    assert attempt_delay(failed, rng=lambda: 1.0) == ceiling
    assert attempt_delay(failed, rng=lambda: 0.5) == ceiling / 2
    assert attempt_delay(failed, rng=lambda: 0.0) == 0


@pytest.mark.parametrize("rng", [lambda: 0.0, lambda: 0.3, lambda: 0.999])
@pytest.mark.parametrize("asked", [1.0, 45.0, 37024.0])
def test_the_next_attempt_never_comes_before_the_server_wants_it(rng: Callable[[], float], asked: float) -> None:
    assert attempt_delay(1, asked, rng=rng) >= asked
    assert attempt_delay(1, asked, rng=rng) <= max(asked * 1.25, 2.0)
