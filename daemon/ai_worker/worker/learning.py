"""What a model takes per minute where nobody has configured it: learnt from what its provider says, or from what it refuses.

A provider that names its limits is believed. Of one that only refuses, the fleet's answers of the last minute are the first
guess: a limit that counts by the minute lets just so many in, and a bucket that is refilled about as many. From there the limit
grows, first fast and then slower with each refusal, is lowered a little by the next one, and stays just below the wall for most
of the time, as TCP's CUBIC does (https://www.rfc-editor.org/rfc/rfc9438). What was not refused for long is forgotten.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from ai_worker.errors import RateLimited
from ai_worker.models import Learnt, Limits, Task
from ai_worker.retry import CALL_CAP
from ai_worker.worker.line import MARGIN

RAMP: Final = 0.35  # growth per second of a first guess, which may be far too low
COUNTED: Final = 0.0006  # ... of one whose provider has named a long wait: it counts by the minute, and the guess is right
SLOWEST: Final = 0.0005
CALMING: Final = 5.0  # growth is divided by that at each refusal
DOUBT: Final = 60.0  # seconds in which what was taken off beyond STEP would grow back
FASTER: Final = 90.0  # seconds, after which growth itself has doubled
MOST: Final = 8.0  # times as much as at the latest refusal; but for the ramp
FORGET: Final = 400.0  # seconds without a refusal
STEP: Final = 0.03  # by which a limit is lowered at least
LONG: Final = 5.0  # seconds: whoever asks for such a wait counts by the minute
MANY: Final = 5  # refusals in five seconds, from which on there is something to learn
FEWEST: Final = 30  # requests per minute of a first guess: it grows fast
WINDOW: Final = 2.0  # seconds in which the whole fleet's refusals are one, and more where calls take long
BLOCKED: Final = 0.1  # the same while nothing at all is let in: after a pause, one call is tried
COUNTING: Final = 1.5  # seconds from the first refusal until all calls that were let in before have been answered
LONGEST_BLOCK: Final = 8.0  # seconds between two tries of a model that refuses everything


def grown(learnt: Learnt, now: float) -> float:
    """Requests per minute now, of a limit that was learnt from refusals."""
    age = max(0.0, now - learnt.since)
    exponent = min(learnt.growth * age * (1 + (age / FASTER) ** 2), 50.0)
    factor = math.exp(exponent)
    return (learnt.requests_per_minute or 0) * (factor if learnt.growth >= RAMP else min(factor, MOST))


@dataclass(slots=True)
class _Known:
    """One model, as this worker sees it."""

    learnt: Learnt | None = None
    told: Limits | None = None
    counted_at: float = -math.inf
    is_counting: bool = False
    blocks: int = 0  # refusals of everything, in a row
    trying_since: float | None = None  # when the first call was made of those that were refused since the latest answer
    held_until: float = -math.inf


class Learner:
    """Used in the loop, but for `limits` and `held_until`, which the claim's thread may ask.

    Parameters
    ----------
    store: does one of the verbs of `store.pace.Pace` in the background: `store(verb's name, id_ai_model, **its parameters)`.
    hold: lets no call of a model begin in this worker for so many seconds.
    held: how many calls of a model are under way, about.
    on_refused: told the model of each call that was refused.
    later: calls a function after some seconds.
    """

    def __init__(
        self,
        store: Callable[..., None],
        hold: Callable[[int, float], None],
        held: Callable[[int], int],
        on_refused: Callable[[int], None] = lambda _: None,
        later: Callable[[float, Callable[[], None]], Any] = lambda *after: asyncio.get_running_loop().call_later(*after),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._hold = hold
        self._held = held
        self._on_refused = on_refused
        self._later = later
        self._clock = clock
        self._known: dict[int, _Known] = {}
        self._answers: dict[int, deque[list[float]]] = {}  # by model: a second, and how many calls were answered in it
        self._latest: dict[int, deque[tuple[float, bool]]] = {}  # by model: when one ended, and whether it was refused

    # ----- what holds

    def limits(self, task: Task) -> Limits:
        """What holds for the task's model now: configured, or learnt."""
        if task.learnt is None and task.id_ai_model not in self._known:
            return task.limits
        known = self._of(task.id_ai_model)
        if task.learnt is not None and (
            known.learnt is None or task.learnt.since > known.learnt.since + 0.05 or not task.learnt.growth
        ):
            self._see(task.id_ai_model, known, task.learnt)
        learnt = known.learnt
        if learnt is None:
            return task.limits
        requests: float | None = learnt.requests_per_minute
        if learnt.growth and requests is not None:
            now = self._clock()
            requests = None if now - learnt.since > FORGET else grown(learnt, now) / MARGIN
            if requests is not None and known.told is not None and known.told.requests_per_minute is not None:
                requests = min(requests, known.told.requests_per_minute)
        return Limits(
            task.limits.requests_per_minute or (None if requests is None else max(1, round(requests))),
            task.limits.tokens_per_minute or learnt.tokens_per_minute,
        )

    def held_until(self, id_ai_model: int) -> float:
        """No call of the model is to begin before: whichever worker was refused, its provider wants a pause."""
        known = self._known.get(id_ai_model)
        return known.learnt.since if known is not None and known.learnt is not None and known.learnt.growth else -math.inf

    def _see(self, id_ai_model: int, known: _Known, learnt: Learnt) -> None:
        """Somebody has stored something newer."""
        known.learnt = learnt
        now = self._clock()
        is_first_guess = learnt.growth in {RAMP, COUNTED} and now - learnt.since < 2 * WINDOW
        if is_first_guess and not known.is_counting and now - known.counted_at > 10 * WINDOW:
            self._count(id_ai_model, known, 0.0)  # the guess is the sum of what all workers got

    # ----- what is seen

    def answered(self, id_ai_model: int, limits: Limits | None) -> None:
        """A call was answered, and its provider said that these were its limits."""
        now = self._clock()
        answers = self._answers.get(id_ai_model)
        if answers is None:
            answers = self._answers[id_ai_model] = deque([[now, 0]], maxlen=61)
        if now - answers[-1][0] >= 1.0:
            answers.append([now, 0])
        answers[-1][1] += 1
        if limits is not None:
            self._told(id_ai_model, limits)
        if (known := self._known.get(id_ai_model)) is not None:
            known.trying_since, known.blocks = None, 0
            self._note(id_ai_model, now, False)

    def refused(self, task: Task, error: RateLimited, began: float, latency: float) -> None:
        """A call that began then was answered with a 429; calls take so many seconds."""
        id_ai_model, now = task.id_ai_model, self._clock()
        self._on_refused(id_ai_model)
        known = self._of(id_ai_model)
        if error.limits is not None:
            self._told(id_ai_model, error.limits)
        pause = None if error.retry_after is None else min(error.retry_after, CALL_CAP)
        if task.limits.requests_per_minute is None:
            self._learn(id_ai_model, known, pause, began, latency)
        if pause is not None:
            self._pause(id_ai_model, known, now, pause)

    def _learn(self, id_ai_model: int, known: _Known, pause: float | None, began: float, latency: float) -> None:
        now = self._clock()
        self._note(id_ai_model, now, True)
        if known.trying_since is None:
            known.trying_since = began
        learnt = known.learnt
        if learnt is None or (learnt.growth and now - learnt.since > FORGET):
            if not known.is_counting and now - known.counted_at > 2 * WINDOW and self._is_much(id_ai_model, now):
                wait = max(COUNTING, 2 * latency)
                self._hold(id_ai_model, wait + 1.0)  # until the sum is there
                known.is_counting = True
                self._later(wait, lambda: self._count(id_ai_model, known, pause or 0.0))
        elif learnt.requests_per_minute is not None and began > learnt.since:
            # It refuses everything when no call that was made together with a refused one has been answered since.
            is_blocked = now - known.trying_since > 1.25 * latency + BLOCKED
            window = BLOCKED if is_blocked else max(WINDOW, 2 * latency)
            if now - learnt.since > window:
                self._lower(id_ai_model, known, learnt, is_blocked, pause, window)

    def _is_much(self, id_ai_model: int, now: float) -> bool:
        """Whether enough was refused lately to do something about it: a stray refusal is a matter of its own call."""
        refused = sum(is_refused for at, is_refused in self._latest[id_ai_model] if at > now - 5.0)
        answered = sum(count for at, count in self._answers.get(id_ai_model, ()) if at > now - 6.0)
        return refused >= max(MANY, 0.02 * answered)

    def _told(self, id_ai_model: int, limits: Limits) -> None:
        known = self._of(id_ai_model)
        if limits == known.told:
            return
        known.told = limits
        if known.learnt is not None and known.learnt[:2] == limits:
            return  # somebody has stored it already, and this worker has kept to it
        # What was sent before anybody knew of the limit is paid for now, in sending time.
        sent = self._last_minute(id_ai_model) + self._held(id_ai_model)
        pay = 60.0 * sent / limits.requests_per_minute if limits.requests_per_minute else 0.0
        if known.learnt is None or not known.learnt.growth:
            known.learnt = Learnt(*limits, 0.0, self._clock())
        self._store("told", id_ai_model, limits=limits, pay=min(pay, 60.0))

    def _count(self, id_ai_model: int, known: _Known, pause: float) -> None:
        """This worker's part of the first guess."""
        known.is_counting = False
        known.counted_at = self._clock()
        answers = round((1 - STEP) * max(FEWEST, self._last_minute(id_ai_model)))
        growth = COUNTED if pause > LONG else RAMP
        self._store("count", id_ai_model, answers=answers, growth=growth, pause=pause, growths=(RAMP, COUNTED), forget=FORGET)

    def _lower(
        self, id_ai_model: int, known: _Known, learnt: Learnt, is_blocked: bool, pause: float | None, window: float
    ) -> None:
        now = self._clock()
        rate = grown(learnt, now) if learnt.growth else float(learnt.requests_per_minute or 0)
        base = float(learnt.requests_per_minute or 0)
        if is_blocked:  # which is no measure of how much it takes
            known.blocks += 1
        else:
            base = rate * math.exp(-(STEP + 3 * learnt.growth))
            latest = [is_refused for at, is_refused in self._latest[id_ai_model] if at > max(learnt.since, now - 5.0)]
            share = sum(latest) / len(latest)
            if len(latest) >= 10 and share > 0.1:
                base = min(base, rate * max(0.5, (1 - share) * 0.98))
        wait = pause or (min(0.5 * 2.0**known.blocks, LONGEST_BLOCK) if known.blocks else 0.0)
        lowered = max(1, round(base))
        # The more is taken off at once, the less sure it is that it was not too much.
        doubt = 0.0 if is_blocked else (math.log(rate / lowered) - STEP) / DOUBT
        growth = max(SLOWEST, learnt.growth / CALMING, doubt)
        known.learnt = Learnt(lowered, learnt.tokens_per_minute, growth, now + wait)
        self._store("lower", id_ai_model, requests_per_minute=lowered, growth=growth, pause=wait, window=window)
        if wait:
            self._pause(id_ai_model, known, now, wait)

    # ----- small helpers

    def _of(self, id_ai_model: int) -> _Known:
        return self._known.setdefault(id_ai_model, _Known())

    def _pause(self, id_ai_model: int, known: _Known, now: float, seconds: float) -> None:
        """For this worker at once, and for the fleet; not again for each call that is told the same."""
        self._hold(id_ai_model, seconds)
        if now + seconds > known.held_until + 0.25:
            known.held_until = now + seconds
            self._store("hold", id_ai_model, seconds=seconds)

    def _note(self, id_ai_model: int, now: float, is_refused: bool) -> None:
        self._latest.setdefault(id_ai_model, deque(maxlen=100)).append((now, is_refused))

    def _last_minute(self, id_ai_model: int) -> int:
        """How many calls were answered in it."""
        since = self._clock() - 60.0
        return round(sum(count for at, count in self._answers.get(id_ai_model, ()) if at > since))
