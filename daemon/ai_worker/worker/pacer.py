"""Keeps the fleet's calls to a model within its limits per minute: each call of such a model waits for its turn.

Sending time is leased from the database, a stretch at a time and as late as it can be, see `store.pace` and `worker.line`. Items
are claimed only as far as the sending time for the next moment is held; until then their model counts as busy, and others' items
flow on. Models without limits are not in here, and their calls pay nothing.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager
from typing import Final

from ai_worker.errors import DatabaseError
from ai_worker.models import NO_LIMITS, NO_USAGE, Limits, Prompt, Task, Usage
from ai_worker.store.pace import AHEAD_SECONDS, Stretch
from ai_worker.text import estimate_tokens
from ai_worker.worker.line import Line

AHEAD: Final = 0.5  # seconds: sending time is asked for, and items are claimed, so long before
PAUSE: Final = 0.05  # seconds between two looks for items of the same model, at the least
PLENTY: Final = 1_000_000  # calls of a model without limits
AGAIN: Final = 1.0  # seconds until sending time is asked for again, when the database was away
CAUTION: Final = 1.3  # a model's tokens by our estimate, before the first answer
WEIGHT: Final = 200.0  # tokens that the caution counts for


class Tokens:
    """What a task type's prompts cost on a model, learnt from its answers."""

    __slots__ = ("_actual", "_estimated")

    def __init__(self) -> None:
        self._estimated, self._actual = WEIGHT, WEIGHT * CAUTION

    def of(self, prompt: Prompt) -> int:
        """Tokens in and out that the prompt will cost, as a first guess."""
        answer = prompt.tokens_output_expected or estimate_tokens(prompt.text)
        return estimate_tokens(prompt.system) + estimate_tokens(prompt.user) + answer

    def expected(self, guess: int) -> int:
        """The guess, put right by what others of the kind have cost."""
        return round(guess * self._actual / self._estimated)

    def learn(self, guess: int, actual: int) -> None:
        """What one has cost; the latest hundred or so count."""
        if self._estimated > 100 * max(guess, 1):
            self._estimated, self._actual = self._estimated * 0.95, self._actual * 0.95
        self._estimated += guess
        self._actual += actual


class Turn:
    """The right to one call, from `Pacer.turn`; `end` must follow."""

    __slots__ = ("_guess", "_paced", "_tokens", "expected", "granted", "is_away")

    def __init__(self, paced: _Paced, task: Task, prompt: Prompt, granted: asyncio.Future[bool]) -> None:
        self._paced = paced
        self._tokens: Tokens | None = None
        self._guess = self.expected = 0
        if paced.line is not None and paced.line.counts_tokens:
            self._tokens = paced.tokens.setdefault(task.task_type, Tokens())
            self._guess = self._tokens.of(prompt)
            self.expected = self._tokens.expected(self._guess)
        self.granted = granted
        self.is_away = False

    def end(self, usage: Usage) -> None:
        """The call has ended; of one without `usage` it is not known what it cost."""
        paced = self._paced
        paced.sent -= 1
        if self._tokens is not None and usage is not NO_USAGE:
            actual = usage.tokens_input + usage.tokens_output
            self._tokens.learn(self._guess, actual)
            if paced.line is not None:
                paced.line.settle(actual - self.expected)


class _Paced:
    """One model's state."""

    __slots__ = (
        "asked",
        "away",
        "companions",
        "held_until",
        "id_ai_model",
        "line",
        "ready_at",
        "sent",
        "timers",
        "tokens",
        "turns",
    )

    def __init__(self, id_ai_model: int) -> None:
        self.id_ai_model = id_ai_model
        self.line: Line | None = None
        self.turns: deque[Turn] = deque()
        self.tokens: dict[str, Tokens] = {}
        self.sent = 0  # calls under way
        self.away = 0  # turns that are waited for without a slot
        self.companions = 0  # items that will be sent in the same calls as those that wait for their turns
        self.asked: asyncio.Task[None] | None = None  # for sending time
        self.held_until = self.ready_at = -math.inf  # no call may begin before; no item be claimed before
        self.timers: dict[str, asyncio.TimerHandle] = {}


class Pacer:
    """Used in the loop, but for `room` and `busy_models`, which the claim's thread may ask.

    Parameters
    ----------
    lease: gets the next free seconds of a model's sending time, see `store.pace.Pace.lease`.
    limits, held_until: what a task's model takes per minute now, and from when on. Called from any thread.
    slots: how many calls can be in flight.
    held: how many items of a model have a slot or wait for one.
    away: gives the slot of the running call away, for a turn that takes long to come.
    on_ready: told when items of a model may be claimed that could not be before.
    """

    def __init__(
        self,
        lease: Callable[[int, float], Awaitable[Stretch]],
        limits: Callable[[Task], Limits],
        held_until: Callable[[int], float],
        *,
        slots: int,
        held: Callable[[int], int],
        away: Callable[[], AbstractAsyncContextManager[object]],
        on_ready: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._lease = lease
        self._limits_of = limits
        self._held_until = held_until
        self._slots = slots
        self._held = held
        self._away = away
        self._on_ready = on_ready
        self._clock = clock
        self._models: dict[int, _Paced] = {}
        self._is_stopping = False
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        """Call it in the loop, before anything is claimed."""
        self._loop = asyncio.get_running_loop()

    def stop(self) -> None:
        """Nobody's turn comes any more: the worker is stopping."""
        self._is_stopping = True
        for paced in self._models.values():
            for timer in paced.timers.values():
                timer.cancel()
            while paced.turns:
                turn = paced.turns.popleft()
                if not turn.granted.done():
                    turn.granted.set_result(False)

    # ----- for the claim

    def saw(self, tasks: Iterable[Task]) -> None:
        """Takes note of the limits of the tasks' models. Callable from any thread."""
        for task in tasks:
            self._paced(task)

    def room(self, task: Task) -> int:
        """How many more items of this task's model may be claimed now. Asks for sending time when there are none."""
        paced = self._paced(task)
        if paced is None:
            return PLENTY
        room = self._room(paced, task.pack)
        if self._loop is not None:
            if room <= 0:
                self._loop.call_soon_threadsafe(self._plan, paced, task.pack)
            elif paced.asked is None:
                self._loop.call_soon_threadsafe(self._ask, paced)
        return max(0, room)

    def busy_models(self) -> list[int]:
        """Models that take no more items now."""
        now = self._clock()
        return [each for each, paced in list(self._models.items()) if paced.ready_at > now]

    # ----- for the calls

    def __contains__(self, id_ai_model: int) -> bool:
        """Whether the model's calls have to wait for their turn."""
        return id_ai_model in self._models

    def paces(self, id_ai_model: int) -> bool:
        """Whether the model has a limit per minute, configured or learnt."""
        paced = self._models.get(id_ai_model)
        return paced is not None and paced.line is not None

    async def turn(self, task: Task, prompt: Prompt, companions: int = 0) -> Turn | None:
        """Returns when the call may be made; `Turn.end` must follow it. None when the worker is stopping.

        So many `companions` are sent in the same call, and have no slot.
        """
        if self._is_stopping:
            return None
        paced = self._models[task.id_ai_model]
        turn = Turn(paced, task, prompt, asyncio.get_running_loop().create_future())
        paced.turns.append(turn)
        paced.companions += companions
        self._serve(paced)
        try:
            if not turn.granted.done():
                await asyncio.wait([turn.granted], timeout=2 * AHEAD)
            if not turn.granted.done():
                async with self._away():
                    turn.is_away = True
                    paced.away += 1
                    try:
                        await turn.granted
                    finally:
                        paced.away -= 1
        except BaseException:
            if turn.granted.done() and turn.granted.result():
                turn.end(NO_USAGE)
            turn.granted.cancel()
            raise
        finally:
            paced.companions -= companions
        return turn if turn.granted.result() else None

    def hold(self, id_ai_model: int, seconds: float) -> None:
        """No call of the model begins within the next `seconds`: its provider has asked for a pause."""
        paced = self._models.setdefault(id_ai_model, _Paced(id_ai_model))
        paced.held_until = max(paced.held_until, self._clock() + seconds)
        self._get_ready(paced, paced.held_until)

    # ----- inside

    def _paced(self, task: Task) -> _Paced | None:
        paced = self._models.get(task.id_ai_model)
        limits = self._limits_of(task)
        if limits == NO_LIMITS:
            if paced is not None:
                paced.line = None
            return paced
        if paced is None:
            paced = self._models.setdefault(task.id_ai_model, _Paced(task.id_ai_model))
        if paced.line is None:
            paced.line = Line(limits, self._slots)
        elif paced.line.limits != limits:
            paced.line.limits = limits
        paced.held_until = max(paced.held_until, self._held_until(task.id_ai_model))
        return paced

    def _unsent(self, paced: _Paced) -> int:
        return max(0, self._held(paced.id_ai_model) - paced.sent) + paced.away + paced.companions

    def _room(self, paced: _Paced, pack: int) -> int:
        now = self._clock()
        if paced.held_until > now + AHEAD:
            return 0
        if paced.line is None:
            return PLENTY
        return paced.line.calls_until(now + AHEAD, now) * pack - self._unsent(paced)

    def _plan(self, paced: _Paced, pack: int) -> None:
        """For items that there was no room for: asks for sending time, and tells when they can be claimed."""
        self._ask(paced)
        now = self._clock()
        ready_at = paced.held_until - AHEAD
        if paced.line is not None and self._room(paced, pack) <= 0:  # else it has changed since somebody looked
            until = paced.line.until(now)
            if math.isinf(until):
                if paced.asked is not None:  # the answer will tell
                    paced.ready_at = math.inf
                    return
                until = 0.0  # nothing is asked for now: it is when that pause is over
            # Some at a time: a claim for each single one would cost a transaction each.
            some = max(1, int(AHEAD / 2 / paced.line.per_call))
            some_more = self._unsent(paced) / pack + some - 1
            ready_at = max(ready_at, now + max(0.0, until) + some_more * paced.line.per_call - AHEAD)
        self._get_ready(paced, max(ready_at, now + PAUSE))

    def _get_ready(self, paced: _Paced, at: float) -> None:
        paced.ready_at = at
        self._at(paced, "ready", at, self._is_ready)

    def _is_ready(self, paced: _Paced) -> None:
        paced.ready_at = -math.inf
        self._serve(paced)
        self._on_ready()

    def _serve(self, paced: _Paced) -> None:
        """Lets those go whose turn it is."""
        while paced.turns and not self._is_stopping:
            turn = paced.turns[0]
            now = self._clock()
            wait = 0.0 if turn.granted.done() else max(paced.held_until - now, 0.0)
            if not turn.granted.done() and wait <= 0 and paced.line is not None:
                wait = paced.line.take(now, turn.expected)
            if wait > 0:
                if wait < math.inf:
                    self._at(paced, "turn", now + wait, self._serve)
                self._ask(paced)
                return
            paced.turns.popleft()
            if not turn.granted.done():  # else it was cancelled while it waited
                paced.sent += 1
                turn.granted.set_result(True)

    def _ask(self, paced: _Paced) -> None:
        if paced.line is None or paced.asked is not None or self._is_stopping:
            return
        now = self._clock()
        if paced.held_until > now + AHEAD:
            return
        if seconds := paced.line.wants(now, AHEAD):
            paced.asked = asyncio.create_task(self._get(paced, paced.line, seconds))

    async def _get(self, paced: _Paced, line: Line, seconds: float) -> None:
        began = self._clock()
        try:
            stretch = await self._lease(paced.id_ai_model, seconds)
        except DatabaseError:  # said by whoever lost the connection
            stretch = Stretch(False, AHEAD_SECONDS + AGAIN)
        paced.asked = None
        again = 0.0
        if stretch.is_leased:
            line.add(began + stretch.wait, seconds, stretch.wait)
        else:
            again = max(0.0, stretch.wait - AHEAD_SECONDS) + random.uniform(0.0, 2 * seconds)  # noqa: S311 -- jitter
            self._at(paced, "ask", began + again, self._ask)
        until = 0.0
        if line is paced.line:
            self._serve(paced)
            until = line.until(self._clock())
            if stretch.is_leased and math.isinf(until):  # earlier calls have cost more than the whole stretch is worth
                self._ask(paced)
        if paced.ready_at == math.inf and paced.asked is None:  # somebody waits for this answer, and no other is to come
            wait = again + AHEAD if math.isinf(until) else until
            self._get_ready(paced, max(self._clock() + wait, paced.held_until) - AHEAD)

    def _at(self, paced: _Paced, what: str, when: float, action: Callable[[_Paced], None]) -> None:
        if self._is_stopping or self._loop is None:
            return
        if (timer := paced.timers.pop(what, None)) is not None:
            timer.cancel()
        paced.timers[what] = self._loop.call_later(max(0.0, when - self._clock()), action, paced)
