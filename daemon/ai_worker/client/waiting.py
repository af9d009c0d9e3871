"""One look for all that wait: however many items a client waits for, the database is asked about all of them at once."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from functools import partial
from typing import Final

from ai_worker.errors import DatabaseAway, ItemMissing
from ai_worker.store.answers import Finished

Look = Callable[[Collection[int]], Awaitable[Mapping[int, Finished | None]]]

# Seconds between two looks. A tenth of how long nobody has begun to wait: who has just come is answered at once, and waiting for
# minutes costs eight statements a second.
_SHORTEST: Final = 0.03
_LONGEST: Final = 0.125
_SHARE: Final = 0.1
# However many come and go: on average no more looks a second than this, each of which is a statement, or two where something has
# ended; but whoever comes after a quiet while finds some in hand, and is looked for at once.
_PER_SECOND: Final = 8.0
_IN_HAND: Final = 10.0
_AWAY: Final = 0.5  # between two tries of a database that is away, each of which has a patience of its own


class Waiting:
    """Futures of items, filled by one task that looks for all of them, and runs only while there are any. Of one event loop.

    `look` says which of the items have ended (see `store.answers.Answers.ended`). A database that is away is asked again until
    it is back: who waits gives up by a time limit of its own. Any other error is everybody's.
    """

    def __init__(self, look: Look) -> None:
        self._look = look
        self._waiters: defaultdict[int, set[asyncio.Future[Finished]]] = defaultdict(set)
        self._latest = 0.0  # when the latest waiter came
        self._news = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._in_hand = _IN_HAND
        self._counted = time.monotonic()

    def begin(self, items: Iterable[int]) -> list[asyncio.Future[Finished]]:
        """A future for each item. It is cancelled by whoever no longer wants it, and never by us."""
        loop = asyncio.get_running_loop()
        futures = []
        for item in items:
            future: asyncio.Future[Finished] = loop.create_future()
            self._waiters[item].add(future)
            future.add_done_callback(partial(self._forget, item))
            futures.append(future)
        self._latest = time.monotonic()
        self._news.set()
        if futures and (self._task is None or self._task.done()):
            self._task = loop.create_task(self._run(), name="ai-worker-client-waiting")
        return futures

    async def close(self, error: Exception) -> None:
        """Ends all waits with an error."""
        self._fail(error)
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    def _forget(self, item: int, future: asyncio.Future[Finished]) -> None:
        if item in self._waiters:
            self._waiters[item].discard(future)
            if not self._waiters[item]:
                del self._waiters[item]

    async def _run(self) -> None:
        while self._waiters:
            self._news.clear()
            try:
                found = await self._look(list(self._waiters))
            except DatabaseAway:
                await asyncio.sleep(_AWAY)
                continue
            except Exception as error:  # noqa: BLE001 -- goes to those who wait
                self._fail(error)
                continue
            for item, finished in found.items():
                self._settle(item, finished)
            distance = self._distance()
            await asyncio.sleep(distance)  # however many come, no more looks than that
            pause = min(_LONGEST, _SHARE * (time.monotonic() - self._latest)) - distance
            if pause > 0 and self._waiters and not self._news.is_set():
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._news.wait(), pause)

    def _distance(self) -> float:
        """Takes a look out of those in hand; seconds until the next one may be taken."""
        now = time.monotonic()
        self._in_hand = min(_IN_HAND, self._in_hand + (now - self._counted) * _PER_SECOND) - 1
        self._counted = now
        return _SHORTEST if self._in_hand >= 0 else max(_SHORTEST, -self._in_hand / _PER_SECOND)

    def _settle(self, item: int, finished: Finished | None) -> None:
        for future in self._waiters.pop(item, ()):
            if future.done():
                continue
            if finished is None:
                future.set_exception(ItemMissing(f"no item {item}"))
            else:
                future.set_result(finished)

    def _fail(self, error: Exception) -> None:
        everybody = [future for futures in self._waiters.values() for future in futures]
        self._waiters.clear()
        for future in everybody:
            if not future.done():
                future.set_exception(error)
