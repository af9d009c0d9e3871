"""When to try again, in named parts: within an attempt (in memory, tenacity) and between attempts (through the database)."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_after_attempt, stop_before_delay
from tenacity.stop import stop_base
from tenacity.wait import wait_base, wait_random_exponential

from ai_worker.errors import ProviderError, Transient

CALL_ATTEMPTS = 5
CALL_CAP = 60.0  # seconds; whoever must wait longer should not hold a slot, and a restart, meanwhile
ATTEMPT_BASE = 2.0  # seconds
ATTEMPT_CAP = 600.0  # seconds
LONGEST_WAIT = 7 * 86_400.0  # seconds; whoever asks for more has made a mistake, or counts in milliseconds

Random = Callable[[], float]
"""Gives a number from 0 (included) to 1 (excluded)."""


def call_retrying(
    *,
    deadline: float | None = None,
    attempts: int = CALL_ATTEMPTS,
    cap: float = CALL_CAP,
    may_retry: Callable[[], bool] = lambda: True,
    before_sleep: Callable[[RetryCallState], None] | None = None,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    rng: Random = random.random,
) -> AsyncRetrying:
    """The policy for one attempt's calls; one object per attempt: `await call_retrying(...)(provider.complete, prompt)`.

    Only `Transient` errors are tried again. The wait is what the server asked for, lengthened at random by up to a quarter so
    that workers told the same do not come back together; else exponential with full jitter. When it gives up, the last error is
    raised as it was; the caller then defers the item by `attempt_delay`.

    Parameters
    ----------
    deadline: seconds from now; a wait that would end after it is not begun.
    attempts: calls in all.
    cap: seconds; a longer wait asked for by the server is not slept here.
    may_retry: asked last, when a call would be made again: whether there is budget for it.
    before_sleep: called before each wait, with the error in `state.outcome` and the wait in `state.upcoming_sleep`.
    sleep, rng: for tests.
    """
    stop: stop_base = stop_after_attempt(attempts) | stop_when_told_to_wait(cap)
    if deadline is not None:
        stop |= stop_before_delay(deadline)
    stop |= stop_unless(may_retry)
    return AsyncRetrying(
        retry=retry_if_exception_type(Transient),
        wait=wait_server_or(wait_random_exponential(multiplier=0.5, max=cap), rng),
        stop=stop,
        before_sleep=before_sleep,
        sleep=sleep,
        reraise=True,
    )


def attempt_delay(failed_attempts: int, retry_after: float | None = None, *, rng: Random = random.random) -> float:
    """Seconds until the next attempt, after so many failed ones (1 or more): exponential from 2 s to 600 s, with full jitter.

    Never less than `retry_after`, the seconds that the provider asked for (the cap does not apply to it), up to a week.
    Full jitter: https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
    """
    ceiling = min(ATTEMPT_CAP, ATTEMPT_BASE * 2.0 ** min(failed_attempts - 1, 16))
    return max(rng() * ceiling, _spread(bounded(retry_after or 0.0), rng))


def bounded(seconds: float) -> float:
    """A time to wait as a provider names it, at most a week; a week too for what is no number."""
    return min(LONGEST_WAIT, max(0.0, seconds)) if seconds == seconds else LONGEST_WAIT  # noqa: PLR0124 -- NaN is not itself


class wait_server_or(wait_base):
    """As long as the server asked, spread; `otherwise` where it did not ask."""

    def __init__(self, otherwise: wait_base, rng: Random = random.random) -> None:
        self.otherwise = otherwise
        self.rng = rng

    def __call__(self, retry_state: RetryCallState) -> float:
        asked = _asked_wait(retry_state)
        return self.otherwise(retry_state) if asked is None else _spread(asked, self.rng)


class stop_when_told_to_wait(stop_base):
    """Stops when the server asks for more than `cap` seconds."""

    def __init__(self, cap: float) -> None:
        self.cap = cap

    def __call__(self, retry_state: RetryCallState) -> bool:
        asked = _asked_wait(retry_state)
        return asked is not None and asked > self.cap


class stop_unless(stop_base):
    """Stops when it is told that it may not go on."""

    def __init__(self, may_retry: Callable[[], bool]) -> None:
        self.may_retry = may_retry

    def __call__(self, retry_state: RetryCallState) -> bool:  # noqa: ARG002 -- tenacity's signature
        return not self.may_retry()


def _asked_wait(retry_state: RetryCallState) -> float | None:
    error = retry_state.outcome.exception() if retry_state.outcome else None
    return error.retry_after if isinstance(error, ProviderError) else None


def _spread(seconds: float, rng: Random) -> float:
    return seconds * (1 + rng() / 4)
