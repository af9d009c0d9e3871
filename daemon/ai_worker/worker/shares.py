"""This worker's shares of the calls that models take at a time from the whole fleet."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from ai_worker.errors import DatabaseError
from ai_worker.models import Task

RENEW_SECONDS: Final = 2.0
SOON_SECONDS: Final = 0.2  # between two renewals because there was no room
PLENTY: Final = 1_000_000  # of a model without such a limit


@dataclass(slots=True)
class _Share:
    limit: int
    granted: int = 0
    asked_at: float = 0.0  # when items were last looked for
    renewed_at: float = float("-inf")
    renewing: int | None = None  # while it is renewed: how many were held then; no more may be begun until it is known
    is_given: bool = False  # room was told of since the last renewal: a claim may be using it, uncounted as yet


class Shares:
    """Used in the loop, but for `room` and `full_models`, which the claim's thread may ask.

    Parameters
    ----------
    renew: see `store.shares.Shares.renew`, without the worker: (id_ai_model, wanted, held, limit) -> granted.
    slots: how many calls this worker can have in flight.
    held: how many items of a model have a slot or wait for one.
    on_ready: told when items of a model may be claimed that could not be before.
    """

    def __init__(
        self,
        renew: Callable[[int, int, int, int], Awaitable[int]],
        *,
        slots: int,
        held: Callable[[int], int],
        on_ready: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._renew = renew
        self._slots = slots
        self._held = held
        self._on_ready = on_ready
        self._clock = clock
        self._shares: dict[int, _Share] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def keep(self) -> None:
        """Renews what is in use, and gives up what is not, every few seconds. Runs until it is cancelled."""
        self._loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(RENEW_SECONDS)
            for each in list(self._shares):
                await self._one(each)

    def room(self, task: Task) -> int:
        """How many more items of this task's model may be claimed now. Asks for a share when there is none left."""
        if task.max_in_flight is None:
            return PLENTY
        share = self._shares.get(task.id_ai_model)
        if share is None:
            share = self._shares.setdefault(task.id_ai_model, _Share(task.max_in_flight))
        share.limit, share.asked_at = task.max_in_flight, self._clock()
        granted = share.granted if (renewing := share.renewing) is None else min(share.granted, renewing)
        room = min(granted, share.limit) - self._held(task.id_ai_model)
        if room > 0:
            share.is_given = True
        elif self._loop is not None:
            self._loop.call_soon_threadsafe(self._soon, task.id_ai_model)
        return max(0, room)

    def full_models(self) -> list[int]:
        """Models that take no more items now."""
        now = self._clock()
        return [
            each
            for each, share in list(self._shares.items())
            if share.granted <= self._held(each)
            and now - share.asked_at < RENEW_SECONDS
            and now - share.renewed_at < RENEW_SECONDS
        ]

    def _soon(self, id_ai_model: int) -> None:
        share = self._shares.get(id_ai_model)
        if share is not None and share.renewing is None and self._clock() - share.renewed_at > SOON_SECONDS:
            task = asyncio.create_task(self._one(id_ai_model))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _one(self, id_ai_model: int) -> None:
        share = self._shares.get(id_ai_model)
        if share is None or share.renewing is not None:
            return
        held = self._held(id_ai_model)
        if share.is_given:  # else what is just being claimed would be somebody else's, too
            held, share.is_given = max(held, min(share.granted, share.limit)), False
        is_wanted = self._clock() - share.asked_at < 2 * RENEW_SECONDS
        wanted = min(self._slots, share.limit) if is_wanted else held
        before, share.renewing = share.granted, held
        try:
            share.granted = await self._renew(id_ai_model, wanted, held, share.limit)
        except DatabaseError:  # said by whoever lost the connection; the share stands as long as the lease
            return
        finally:
            share.renewing, share.renewed_at = None, self._clock()
        if not wanted and not held:
            del self._shares[id_ai_model]
        elif share.granted > before:
            self._on_ready()
