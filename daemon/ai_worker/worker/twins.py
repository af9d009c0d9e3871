"""Identical work is paid for once: items that are answered from the result of another, or wait while another makes the call.

Of the items with one key, in the whole fleet, one *leads*: it makes the call. Those of its worker wait for it in memory, those of
others ask the database now and then. When the leader ends without a result, the next one leads.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from hashlib import sha256
from typing import Final

from ai_worker import prices
from ai_worker.errors import DatabaseAway, DatabaseError
from ai_worker.log import ERROR, Event, Log
from ai_worker.models import Item, Model, Outcome, Prompt, Result, Usage
from ai_worker.store.cache import Answer, Question, Standing
from ai_worker.store.committing import Committed
from ai_worker.worker.attempt import GivenBackError

GATHER_SECONDS: Final = 0.003  # for more questions, which then share their statements
QUESTIONS: Final = 500  # in one statement
LOOK_SECONDS: Final = 0.1  # until the first look whether other workers are done; where none is, each comes later than the last
LOOK_GROWTH: Final = 1.5
LOOK_SECONDS_MOST: Final = 1.0
WAITING_PER_SLOT: Final = 8  # below `slots.AWAY_PER_SLOT`, so that waiting twins do not keep other items from being claimed
TURN: Final = 4  # times as many as may wait come back at a time, of those that were turned away
MILLION: Final = Usage(tokens_input=1_000_000, tokens_output=1_000_000)


class TooManyTwinsError(Exception):
    """So many items wait for others here that this one had better wait in the database.

    `turn` is 1 for the first ones that were told so, 2 for as many again, and so on.
    """

    def __init__(self, turn: int) -> None:
        super().__init__()
        self.turn = turn


class Twins:
    """Used in the loop.

    Parameters
    ----------
    ask: the standing of pieces of work, see `Cache.ask`.
    abandon: gives up leading them, see `Cache.abandon`.
    away: gives the slot of the running call away for as long as it waits, see `Slots.away`.
    most: how many items may wait for others.
    """

    def __init__(
        self,
        ask: Callable[[Sequence[Question]], Awaitable[dict[bytes, Answer | Standing]]],
        abandon: Callable[[Sequence[Question]], Awaitable[None]],
        away: Callable[..., AbstractAsyncContextManager[Callable[[], None]]],
        most: int,
        log: Log,
    ) -> None:
        self._ask = ask
        self._abandon = abandon
        self._away = away
        self._most = most
        self._log = log
        self._works: dict[bytes, _Work] = {}  # in hand: being asked about, led from here, or under way elsewhere
        self._new: deque[_Work] = deque()  # to be asked about now
        self._elsewhere: set[_Work] = set()  # to be asked about again
        self._leading: dict[str, _Work] = {}  # by the leader's operation_uuid
        self._waiting = 0
        self._turned_away = 0  # since there was much room to wait in
        self._is_draining = False
        self._asking: asyncio.Task[None] | None = None
        self._has_new = asyncio.Event()
        self._look_seconds, self._look_at = LOOK_SECONDS, 0.0
        self._digests: dict[int, tuple[Model, bytes | None]] = {}

    def key(self, item: Item, model: Model, prompt: Prompt) -> bytes | None:
        """What identifies the work: all that determines its answer. None when it is done whatever others have done."""
        if not item.task.cache_seconds or prompt.fingerprint is None or item.task.is_probe:
            return None
        known = self._digests.get(model.id_ai_model)
        if known is None or known[0] is not model:
            known = self._digests[model.id_ai_model] = model, _digest(model)
        return None if known[1] is None else sha256(known[1] + prompt.fingerprint).digest()

    async def answer(self, item: Item, key: bytes) -> Result | None:
        """The result of identical work; None when this item has to make the call, and then leads until its outcome is stored.

        Waits without a slot while another item makes the call. Raises GivenBackError when the worker is stopping, DatabaseAway,
        TooManyTwinsError.
        """
        work = self._works.get(key)
        if work is not None and work.leader == item.operation_uuid:
            return None
        if self._is_draining:
            raise GivenBackError("drained")
        is_first = work is None
        if work is None:
            work = self._works[key] = _Work(key)
            self._question(work)
        twin = _Twin(item, is_away=not is_first)
        work.twins.append(twin)
        if is_first and item.task.pack > 1:  # in its slot: of those that go into packs there are more than slots
            verdict = await self._verdict(work, twin)
            if verdict is not Standing.UNDER_WAY:
                return verdict.result if isinstance(verdict, Answer) else None
            is_first = False
        try:
            async with self._away(soon=is_first) as not_so_soon:  # also for the question: another call can be made meanwhile
                verdict = await (self._verdict if is_first else self._patiently)(work, twin)
                if verdict is Standing.UNDER_WAY:
                    not_so_soon()
                    verdict = await self._patiently(work, twin)
                _leave_with(verdict)
        except _AnsweredError as answered:
            return answered.result
        return None

    def keyed(self, outcome: Outcome) -> Outcome:
        """The outcome of an item that leads, with its key, so that its commit stores the answer or frees the work."""
        work = self._leading.get(outcome.item.operation_uuid)
        return outcome if work is None else outcome._replace(cache_key=work.key)

    def settled(self, committed: Committed) -> None:
        """Outcomes are stored: those that wait for their items have an answer, or lead in their turn."""
        if not self._leading:
            return
        for outcome in committed.stored:
            self._settle(outcome, Answer(outcome.result, 0.0) if outcome.is_answer and outcome.result is not None else None)
        for outcome in committed.lost:
            self._settle(outcome, None)

    def drain(self) -> None:
        """Nobody waits any longer: who does is given back."""
        self._is_draining = True
        for work in self._works.values():
            work.fail(GivenBackError("drained"))

    async def aclose(self) -> None:
        """Asks nothing more. What is still led from here is free once the worker's row has ended."""
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.gather(self._asking, return_exceptions=True)

    async def _verdict(self, work: _Work, twin: _Twin) -> Answer | Standing:
        try:
            return await twin.verdict
        except BaseException:  # most of all, being cancelled
            work.forget(twin)
            raise

    async def _patiently(self, work: _Work, twin: _Twin) -> Answer | Standing:
        """The same, where another item makes the call."""
        if self._waiting >= self._most:
            work.forget(twin)
            self._turned_away += 1
            raise TooManyTwinsError(1 + self._turned_away // (TURN * max(1, self._most)))
        self._waiting += 1
        try:
            return await self._verdict(work, twin)
        finally:
            self._waiting -= 1
            if self._waiting < self._most / 2:
                self._turned_away = 0

    def _question(self, work: _Work) -> None:
        self._new.append(work)
        self._has_new.set()
        if self._asking is None or self._asking.done():
            self._asking = asyncio.get_running_loop().create_task(self._keep_asking())

    def _settle(self, outcome: Outcome, answer: Answer | None) -> None:
        if outcome.cache_key is None or (work := self._leading.pop(outcome.item.operation_uuid, None)) is None:
            return
        work.leader = None
        if answer is not None:
            work.answer(answer)
        self._go_on(work)

    def _go_on(self, work: _Work) -> None:
        """Nobody leads this work, and nobody is known to: those who still want it ask anew."""
        if work.twins:
            self._question(work)
        else:
            del self._works[work.key]

    # ----- asking

    async def _keep_asking(self) -> None:
        """As long as there is anything to ask."""
        while self._new or self._elsewhere:
            if not self._new:
                self._has_new.clear()
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._has_new.wait(), max(0.0, self._look_at - time.monotonic()))
            await asyncio.sleep(GATHER_SECONDS)
            looked: set[_Work] = set()
            if self._elsewhere and time.monotonic() >= self._look_at:
                looked, self._elsewhere = self._elsewhere, set()
            works = [*self._new, *looked]
            self._new.clear()
            for work in works:
                if not work.twins:  # all have been given back
                    del self._works[work.key]
            works = [work for work in works if work.twins]
            for start in range(0, len(works), QUESTIONS):
                await self._ask_about(works[start : start + QUESTIONS])
            if looked:
                has_news = not looked <= self._elsewhere
                self._look_seconds = LOOK_SECONDS if has_news else min(LOOK_SECONDS_MOST, LOOK_GROWTH * self._look_seconds)
                self._look_at = time.monotonic() + self._look_seconds

    async def _ask_about(self, works: Sequence[_Work]) -> None:
        candidates = [work.twins[0] for work in works]
        questions = [
            Question(work.key, candidate.item.id_task_item, min(twin.item.task.cache_seconds for twin in work.twins))
            for work, candidate in zip(works, candidates, strict=True)
        ]
        try:
            answers = await self._ask(questions)
        except DatabaseAway as error:
            for work in works:
                work.fail(error)
                del self._works[work.key]
            return
        except Exception as error:  # noqa: BLE001 -- a right that was not granted, say: dearer work is better than none
            self._log(Event.LIBRARY, level=ERROR, exc_info=error, logger="result cache", message=str(error))
            for work in works:
                while work.twins:
                    work.twins.popleft().tell(Standing.LEADS)
                del self._works[work.key]
            return
        for work, candidate, question in zip(works, candidates, questions, strict=True):
            await self._tell(work, candidate, question, answers[work.key])

    async def _tell(self, work: _Work, candidate: _Twin, question: Question, answer: Answer | Standing) -> None:
        if isinstance(answer, Answer):
            work.answer(answer)
            self._go_on(work)
        elif answer is Standing.UNDER_WAY:
            if not self._elsewhere:
                self._look_seconds, self._look_at = LOOK_SECONDS, time.monotonic() + LOOK_SECONDS
            self._elsewhere.add(work)
            candidate.send_away()
        elif candidate in work.twins:
            work.twins.remove(candidate)
            work.leader = candidate.item.operation_uuid
            self._leading[work.leader] = work
            candidate.tell(answer)
        else:  # it was given back meanwhile; the next one takes the row over
            if not work.twins:
                with suppress(DatabaseError):  # then it stands until the worker ends, or asks for this again
                    await self._abandon([question])
            self._go_on(work)


class _Work:
    """One piece of work, and the items that wait for it. `leader` is the operation_uuid of the one here that makes the call."""

    __slots__ = ("key", "leader", "twins")

    def __init__(self, key: bytes) -> None:
        self.key = key
        self.leader: str | None = None
        self.twins: deque[_Twin] = deque()

    def answer(self, answer: Answer) -> None:
        """Tells the answer to those for whom it is new enough."""
        for _ in range(len(self.twins)):
            twin = self.twins.popleft()
            if answer.age <= twin.item.task.cache_seconds:
                twin.tell(answer)
            else:
                self.twins.append(twin)

    def fail(self, error: Exception) -> None:
        """Nobody waits for it any more."""
        while self.twins:
            self.twins.popleft().fail(error)

    def forget(self, twin: _Twin) -> None:
        with suppress(ValueError):
            self.twins.remove(twin)


class _Twin:
    """An item that waits to be told what to do."""

    __slots__ = ("is_away", "item", "verdict")

    def __init__(self, item: Item, *, is_away: bool) -> None:
        self.item = item
        self.is_away = is_away  # waits for another item's call, or has been told to
        self.verdict: asyncio.Future[Answer | Standing] = asyncio.get_running_loop().create_future()

    def tell(self, verdict: Answer | Standing) -> None:
        if not self.verdict.done():  # as it is when its call was cancelled
            self.verdict.set_result(verdict)

    def send_away(self) -> None:
        """Another worker is at it: that is no verdict but to one that knows of no other item. The next one is the last."""
        if not self.is_away:
            self.is_away = True
            self.tell(Standing.UNDER_WAY)
            self.verdict = asyncio.get_running_loop().create_future()

    def fail(self, error: Exception) -> None:
        if not self.verdict.done():
            self.verdict.set_exception(error)


class _AnsweredError(Exception):
    """Ends the wait of a twin that has its answer, and needs no slot for it."""

    def __init__(self, result: Result) -> None:
        self.result = result


def _leave_with(verdict: Answer | Standing) -> None:
    if isinstance(verdict, Answer):
        raise _AnsweredError(verdict.result)


def _digest(model: Model) -> bytes | None:
    """What of a model determines its answers, whatever it is called here; None where they cost nothing."""
    if prices.cost(model, MILLION) == 0:
        return None
    determining = [model.provider, model.model, model.base_url, dict(model.options)]
    return sha256(json.dumps(determining, sort_keys=True, default=repr).encode()).digest()
