"""The parts of one item's long text, several of them under way at once: one in the item's own slot, others in free ones."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from typing import Final, TypeVar

from ai_worker.errors import ConfigurationError, DatabaseError, ItemRejected, ModelStopped, Transient, UsageError
from ai_worker.models import Item
from ai_worker.worker.attempt import GivenBackError

T = TypeVar("T")

AT_ONCE: Final = 8  # calls of one item
FAILURES: Final = 8  # of its parts; when more have failed the others are left alone: it is not the parts

_ENDS_ALL = (GivenBackError, ModelStopped, Transient, DatabaseError, UsageError, ConfigurationError)
# How an item ends whose parts failed in several ways: as the first of these says that one of them met. What no attempt can mend
# comes first, then what says nothing of the item.
_GRAVEST = (ItemRejected, UsageError, ConfigurationError, ModelStopped)
_MILDEST = (GivenBackError, DatabaseError, Transient)


class Parts:
    """Used in the loop.

    Parameters
    ----------
    beside: a slot for one more call of an item, see `Slots.beside`.
    away: gives the slot of the running call away for as long as it waits, see `Slots.away`.
    """

    def __init__(
        self,
        beside: Callable[[Item], AbstractAsyncContextManager[None]],
        away: Callable[[], AbstractAsyncContextManager[object]],
    ) -> None:
        self._beside = beside
        self._away = away

    async def work_off(self, item: Item, parts: Sequence[T], one: Callable[[T], Awaitable[None]]) -> None:
        """Does `one` to each part, in any order. A part that fails holds up no other; then the gravest error is raised.

        After what strikes all parts alike (the model is stopped, the provider wants fewer calls, the worker is stopping) those
        under way end, and no other begins.
        """
        waiting = deque(parts)
        errors: list[Exception] = []
        busy: set[asyncio.Task[None]] = set()

        async def next_one() -> None:
            try:
                await one(waiting.popleft())
            except Exception as error:  # noqa: BLE001 -- the gravest is raised in the end
                errors.append(error)
                if isinstance(error, _ENDS_ALL) or len(errors) > FAILURES:
                    waiting.clear()

        async def help_out() -> None:
            me = asyncio.current_task()
            while waiting and me is not None:
                async with self._beside(item):
                    busy.add(me)
                    if waiting:
                        await next_one()
                    busy.discard(me)

        at_once = 1 if item.task.is_probe else min(AT_ONCE, len(parts))
        helpers = [asyncio.create_task(help_out()) for _ in range(at_once - 1)]
        try:
            while waiting:
                await next_one()
            for helper in helpers:
                if helper not in busy:  # it waits for a slot, with nothing left to do
                    helper.cancel()
            await self._until_done(busy, any(isinstance(error, GivenBackError) for error in errors))
        finally:
            for helper in helpers:
                helper.cancel()
            await asyncio.gather(*helpers, return_exceptions=True)
        if errors:
            raise min(errors, key=_rank)

    async def _until_done(self, busy: set[asyncio.Task[None]], has_no_slot: bool) -> None:
        """Waits without a slot for the last parts, which others do; and for no slot afterwards, as the item is about to end."""
        if not busy:
            return
        if has_no_slot:  # a wait between two calls was broken off
            await asyncio.wait(busy)
            return
        with suppress(_DoneError):
            async with self._away():
                await asyncio.wait(busy)
                raise _DoneError


class _DoneError(Exception):
    pass


def _rank(error: Exception) -> int:
    for rank, kind in enumerate(_GRAVEST):
        if isinstance(error, kind):
            return rank
    for rank, kind in enumerate(_MILDEST):
        if isinstance(error, kind):
            return len(_GRAVEST) + len(_MILDEST) - rank
    return len(_GRAVEST)
