"""Items that are this worker's in the database, and of which it knows nothing: nobody would work on them as long as it lives.

There are two ways to such items, both by a connection that was lost. After a fail-over to a replica that lacked the last commits,
the database has items in progress whose results the worker has stored, as it believes. And a claim's COMMIT may be carried out
long after its connection broke, where the server had to wait with it, and after its client has looked for it in vain.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress

from ai_worker.errors import DatabaseError
from ai_worker.log import Event, Log
from ai_worker.store.strays import Held


class Strays:
    """Gives such items back once they have been unknown for a whole lease: what is only on its way to the loop is known before.

    Parameters
    ----------
    find: all that is this worker's in the database.
    give_back: makes items claimable again, and says how many.
    known: items with their claims that the worker holds, or whose results it has in hand. Asked in the loop.
    losses: how many connections were lost so far.
    on_work: told when items have become claimable.
    """

    def __init__(
        self,
        find: Callable[[], Awaitable[list[Held]]],
        give_back: Callable[[Collection[Held]], Awaitable[int]],
        known: Callable[[], set[tuple[int, bytes]]],
        losses: Callable[[], int],
        *,
        lease_seconds: float,
        on_work: Callable[[], None],
        log: Log,
    ) -> None:
        self._find = find
        self._give_back = give_back
        self._known = known
        self._losses = losses
        self._seconds = lease_seconds
        self._on_work = on_work
        self._log = log
        self._unknown: dict[Held, float] = {}  # since when, without a look at which they were known

    async def keep(self) -> None:
        """Looks some times after a connection was lost; else it costs nothing. Runs until it is cancelled."""
        seen, until = self._losses(), 0.0
        while True:
            await asyncio.sleep(self._seconds / 4)
            if (losses := self._losses()) != seen:
                seen, until = losses, time.monotonic() + 2 * self._seconds
            if self._unknown or time.monotonic() < until:
                with suppress(DatabaseError):  # said by whoever lost the connection, and another reason to look
                    await self._look()

    async def _look(self) -> None:
        found = await self._find()
        known, now = self._known(), time.monotonic()
        self._unknown = {
            each: self._unknown.get(each, now) for each in found if (each.id_task_item, each.claim_token) not in known
        }
        strays = [each for each, since in self._unknown.items() if now - since >= self._seconds]
        if strays:
            count = await self._give_back(strays)
            self._log(Event.STRAYS, count=count)
            self._on_work()
