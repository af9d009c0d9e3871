"""How many items tasks have, where counting them takes longer than a page may: counted in the background, and remembered."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Final, NamedTuple

from ai_worker.errors import AiWorkerError
from ai_worker.models import ItemStatus
from ai_worker.store.browsed import Counted

FRESH_SECONDS: Final = 5.0  # a count is good for so long, and for so many times as long as it took
FRESH_TIMES: Final = 20.0
KEPT: Final = 500  # tasks
HEAD_START_SECONDS: Final = 0.3  # the page that wants a count is answered before the database begins to count

Counts = Mapping[ItemStatus, int]


class _Known(NamedTuple):
    counts: Counts
    at: float
    took: float


class ItemCounts:
    """The counts of one process. `count` counts a task's items, in a thread; one task is counted at a time."""

    def __init__(self, count: Callable[[int], Awaitable[Counts]]) -> None:
        self._count = count
        self._known: OrderedDict[int, _Known] = OrderedDict()
        self._wanted: dict[int, asyncio.Task[None]] = {}
        self._turn = asyncio.Semaphore(1)

    def complete(self, counted: Counted) -> Counted:
        """The task with all of its items as soon as they have been counted; until then as it is. Called in the event loop."""
        if counted.is_exact:
            return counted
        id_task = counted.task.id_task
        known = self._known.get(id_task)
        if known is None or time.monotonic() - known.at > max(FRESH_SECONDS, FRESH_TIMES * known.took):
            self._want(id_task)
        if known is None:
            return counted
        self._known.move_to_end(id_task)
        return counted.completed(known.counts)

    def _want(self, id_task: int) -> None:
        if id_task not in self._wanted:
            self._wanted[id_task] = asyncio.get_running_loop().create_task(self._look(id_task))

    async def _look(self, id_task: int) -> None:
        # Without the database there is nothing to count: whoever asks next wants it again.
        with suppress(AiWorkerError):
            await asyncio.sleep(HEAD_START_SECONDS)
            async with self._turn:
                began = time.monotonic()
                counts = await self._count(id_task)
                now = time.monotonic()
            self._known[id_task] = _Known(counts, now, now - began)
            while len(self._known) > KEPT:
                self._known.popitem(last=False)
        del self._wanted[id_task]
