"""What comes into a heavier queue while the worker is busy with a lighter one: heard of at once, and claimed past the claim loop.

The claim loop is busy with bulk: it gathers free slots, claims for many of them at a time, and each of its claims waits for the
disk. New items of the heavier queues are listened for beside it, as an idle worker listens for its work, and each is claimed in
a thread of its own. What only a claim of the long way can take, and what nobody has heard, is left to the looks of that loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace

from ai_worker.errors import DatabaseError
from ai_worker.models import Filters, Item
from ai_worker.worker.listener import Listener


def heavier(filters: Filters) -> Filters:
    """The same filters for all queues but the lightest ones: for none where all weigh the same."""
    least = min([queue.weight for queue in filters.queues], default=0)
    return replace(filters, queues=tuple(queue for queue in filters.queues if queue.weight > least))


class Express:
    """Used in the loop.

    Parameters
    ----------
    filters: of the heavier queues.
    listener: hears of new items.
    claim: takes a new item, if these filters want it, see `Queue.claim_new`. At any time, also while the claim loop claims.
    rooms: how many more items each queue may claim now; 0 for all that are not there.
    """

    def __init__(
        self,
        filters: Filters,
        listener: Listener,
        claim: Callable[[int, Filters], Awaitable[list[Item]]],
        rooms: Callable[[], Mapping[str, int]],
    ) -> None:
        self._filters = filters
        self._listener = listener
        self.thread = listener.thread
        self._claim = claim
        self._rooms = rooms
        self._is_wanted = asyncio.Event()
        self._woken = asyncio.Event()
        self._is_over = False

    @property
    def is_listening(self) -> bool:
        """Whether new items are heard of here at once."""
        return self._is_wanted.is_set() and self._listener.hears

    def listen(self) -> None:
        """The worker is busy from now on."""
        self._is_wanted.set()

    def rest(self) -> None:
        """Until `listen`, the worker listens for everything, or must claim nothing."""
        if self._is_wanted.is_set():
            self._is_wanted.clear()
            self._listener.leave()
            self._woken.set()

    async def run(self, begin: Callable[[list[Item]], None], look: Callable[[], None]) -> None:
        """Until `stop`. `begin` is given what was claimed, and `look` asks for a look at the heavier queues."""
        while True:
            await self._is_wanted.wait()
            self._woken.clear()
            if self._is_over:
                return
            heard = await self._listener.wait(self._woken)
            if self._is_over or not self._is_wanted.is_set():
                continue
            if heard is not None and (items := await self._claimed(heard)):
                begin(items)
                self._listener.found()
            else:
                look()

    def stop(self) -> None:
        """Claims nothing more. What is being claimed is still begun: `run` ends after that."""
        self._is_over = True
        self._is_wanted.set()
        self._woken.set()

    async def aclose(self) -> None:
        """Ends the waiting in the server."""
        await self._listener.aclose()

    async def _claimed(self, new_item: int) -> list[Item]:
        rooms = self._rooms()
        queues = tuple(queue for queue in self._filters.queues if rooms.get(queue.name, 0) > 0)
        if not queues:
            self._listener.leave()  # another worker may have room
            return []
        try:
            return await self._claim(new_item, replace(self._filters, queues=queues))
        except DatabaseError:  # which the claim loop meets too, and waits for
            return []
