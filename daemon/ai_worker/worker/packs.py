"""Several short items in one call.

Items that reach their calls at about the same time wait for each other, their slots given away. The first of them leads: when
enough are there, or a moment has passed, it makes one call for all, in the way in which it would make its own. Each item then
reads its own part of the answer, and ends with its share of what the call cost. An item whose part is missing or of no use goes
on by itself, within the same attempt: it ends as if there had been no pack.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from contextlib import AbstractAsyncContextManager
from typing import Final, NamedTuple

from ai_worker import prices
from ai_worker.errors import ModelStopped, Transient
from ai_worker.models import NO_USAGE, Completion, Model, Prompt, Result
from ai_worker.task_types import TaskType
from ai_worker.task_types.pack import companions_key, packed, shared, shared_cost, size, unpacked
from ai_worker.text import estimate_tokens
from ai_worker.worker.attempt import Attempt, GivenBackError
from ai_worker.worker.endpoints import Endpoint

COLLECT_SECONDS: Final = 0.02  # for more items to come: little beside a call, and enough for a claim or two
PACK_TOKENS: Final = 8_000  # of text and expected answer, see `task_types.pack.ITEM_TOKENS`


class Packs:
    """The packs of one worker.

    Parameters
    ----------
    call: makes one call, again and again as the retry policy says, and puts what it costs on the attempt's books.
    away: gives the slot of the running call away for as long as it waits, see `Slots.away`.
    """

    def __init__(
        self,
        call: Callable[[Attempt, Endpoint, Prompt], Awaitable[Completion]],
        away: Callable[[], AbstractAsyncContextManager[object]],
    ) -> None:
        self._call = call
        self._away = away
        self._open: dict[Hashable, _Pack] = {}

    async def result(self, attempt: Attempt, endpoint: Endpoint, kind: TaskType, prompt: Prompt) -> Result | None:
        """The item's result out of a pack; None when it is to be sent alone. Its share of a pack's cost is on its books by then.

        Raises what says nothing about the item (Transient, ModelStopped, GivenBackError), as a call of its own would.
        """
        key = companions_key(attempt.item, endpoint.model.provider in prices.FREE_PROVIDERS, prompt)
        if key is None:
            return None
        member = _Member(attempt, prompt, asyncio.get_running_loop().create_future())
        pack = self._open.get(key)
        if pack is None or not pack.add(member):
            pack = self._open[key] = _Pack(member, endpoint.model)
            return await self._led(pack, key, endpoint, kind)
        try:
            async with self._away():
                await member.answer
                _leave_with(_read(kind, member))
        except _HasResult as done:
            return done.result
        return None

    async def _led(self, pack: _Pack, key: Hashable, endpoint: Endpoint, kind: TaskType) -> Result | None:
        try:
            try:
                async with self._away():
                    await pack.collected()
            finally:  # not before there is a slot for the call: until then more may join
                if self._open.get(key) is pack:
                    del self._open[key]
            if len(pack.members) > 1:
                await self._answered(pack.members, endpoint)
        except (Transient, ModelStopped, GivenBackError) as error:
            pack.end(error)
            raise
        finally:
            pack.end(None)
        return _read(kind, pack.members[0])

    async def _answered(self, members: list[_Member], endpoint: Endpoint) -> None:
        """One call for all: each member gets its answer, as far as there is one, and its share of what was billed."""
        first = members[0].attempt
        common = Attempt(first.item, first.log)
        common.model, common.companions = endpoint.model, len(members) - 1
        answers: dict[int, str] = {}
        try:
            completion = await self._call(common, endpoint, packed([member.prompt for member in members]))
            answers = unpacked(completion, len(members))
        except (Transient, ModelStopped, GivenBackError):
            raise
        except Exception:  # noqa: BLE001, S110 -- one item's fault, and nobody can say whose: it will come out when each is sent alone
            pass
        finally:
            _share_out(common, members)
        for position, text in answers.items():
            if not members[position].answer.done():  # else it was cancelled
                members[position].answer.set_result(text)


class _Member(NamedTuple):
    """An item in a pack. `answer` is the JSON of its own answer, None for none."""

    attempt: Attempt
    prompt: Prompt
    answer: asyncio.Future[str | None]


class _Pack:
    """Items that will share a call, the one that makes it first."""

    def __init__(self, leader: _Member, model: Model) -> None:
        self.members = [leader]
        self._most = leader.attempt.item.task.pack
        self._room = PACK_TOKENS - size(leader.prompt)
        longest = model.options.get("max_output_tokens")
        self._answer_room = (longest if isinstance(longest, int) else PACK_TOKENS) - leader.prompt.tokens_output_expected
        self._is_full = asyncio.Event()

    def add(self, member: _Member) -> bool:
        """Whether there was room for it. When there is none, or no more, the pack does not wait any longer."""
        room = self._room - size(member.prompt)
        answer_room = self._answer_room - member.prompt.tokens_output_expected
        fits = len(self.members) < self._most and room >= 0 and answer_room >= 0
        if fits:
            self.members.append(member)
            self._room, self._answer_room = room, answer_room
        if not fits or len(self.members) == self._most:
            self._is_full.set()
        return fits

    async def collected(self) -> None:
        """Returns when the pack is full, or has waited long enough."""
        timer = asyncio.get_running_loop().call_later(COLLECT_SECONDS, self._is_full.set)
        try:
            await self._is_full.wait()
        finally:
            timer.cancel()

    def end(self, error: BaseException | None) -> None:
        """Lets those go that have no answer: to end with the error, or without one to be sent alone."""
        leader, *others = self.members
        for member in others:
            if not member.answer.done():
                if error is None:
                    member.answer.set_result(None)
                else:
                    member.answer.set_exception(error)
        if not leader.answer.done():
            leader.answer.set_result(None)


class _HasResult(Exception):
    def __init__(self, result: Result) -> None:
        self.result = result


def _leave_with(result: Result | None) -> None:
    """Out of the block without waiting for a slot again: an item that has its result needs none."""
    if result is not None:
        raise _HasResult(result)


def _share_out(common: Attempt, members: list[_Member]) -> None:
    """Puts what a pack's calls cost on the books of its items, by the lengths of their texts; and how they ended."""
    for member in members:
        member.attempt.is_spared = common.is_spared
    if common.usage == NO_USAGE:
        return
    weights = [estimate_tokens(member.prompt.text) for member in members]
    shares = zip(members, shared(common.usage, weights), shared_cost(common.cost, weights), strict=True)
    for member, usage, cost in shares:
        member.attempt.book(usage, cost, common.lane)


def _read(kind: TaskType, member: _Member) -> Result | None:
    if (text := member.answer.result()) is None:
        return None
    try:
        return kind.parse(member.attempt.item, Completion(text))
    except Exception:  # noqa: BLE001 -- whatever is wrong with it: the item's own call decides how it ends
        return None
