"""What to claim next where a worker was given several queues: of each its share, and of a heavier one at once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import replace
from typing import Final

from ai_worker.errors import DatabaseError
from ai_worker.models import Filters, Item, Task
from ai_worker.store.queue import Queue
from ai_worker.worker.picker import Picker
from ai_worker.worker.sharing import parts

# Between two looks at a queue that had nothing, while the worker is busy with others.
LOOK_SECONDS: Final = 0.03
LISTENING_SECONDS: Final = 0.2  # the same, while new items are heard of at once
LOOK_SLOWEST: Final = 1.0  # where a look takes long, because there are many tasks with nothing to do
LOOK_SHARE: Final = 0.25  # of the time, for looking


class SharedPicker:
    """Claims items of several queues, each by a `Picker` of its own. `take` and what it calls are used by one thread.

    Parameters
    ----------
    rooms, held: how many more items each queue may claim now, and how many it has, see `Sharing`.
    room, busy_models, is_for_batches: as for `Picker`.
    unusable_models: of the busy ones, those that will not take another item in a moment. A heavier queue waits for the others:
        else a lighter one, which looks at the right moment, would get each place at a model that both want.
    is_listening: whether new items of the heavier queues are heard of at once, by somebody who asks for looks with `look_now`.
    """

    def __init__(
        self,
        queue: Queue,
        filters: Filters,
        rooms: Callable[[], Mapping[str, int]],
        held: Callable[[], Mapping[str, int]],
        room: Callable[[Task], int],
        busy_models: Callable[[], Iterable[int]],
        unusable_models: Callable[[], Iterable[int]],
        is_for_batches: Callable[[Task], bool],
        is_listening: Callable[[], bool] = lambda: False,
    ) -> None:
        self._queue = queue
        self._filters = filters
        self._rooms = rooms
        self._held = held
        self._busy_models = busy_models
        self._is_listening = is_listening
        shares = sorted(filters.queues, key=lambda share: -share.weight)
        self._weights = {share.name: share.weight for share in shares}  # the heaviest first
        self._pickers: dict[str, Picker] = {}
        for share in shares:
            is_heavier = share.weight > shares[-1].weight
            self._pickers[share.name] = Picker(
                queue,
                replace(filters, queues=(share,)),
                room,
                busy_models,
                is_for_batches,
                patient_with=unusable_models if is_heavier else None,
            )
        self._looked_at = float("-inf")
        self._pace = LOOK_SECONDS
        self._took = 0.0  # the latest look, in seconds
        self._is_asked_to_look = False
        self.has_waiting = False  # whether the latest `take` has left a queue out because there was no room for it

    def forget(self) -> None:
        """The next claim looks at the tasks anew: something has changed. Callable from any thread."""
        self._looked_at = float("-inf")
        for picker in self._pickers.values():
            picker.forget()

    def look_now(self) -> None:
        """The next claim looks at the queues that had nothing a moment ago, too. Callable from any thread."""
        self._is_asked_to_look = True

    def taken_for_batches(self) -> list[Task]:
        """As `Picker.taken_for_batches`."""
        return [task for picker in self._pickers.values() for task in picker.taken_for_batches()]

    async def overtakes(self, changed: Callable[[], Awaitable[None]]) -> bool:
        """Waits for `changed`, but no longer than until the next look at the heavier queues; whether it is time for that."""
        try:
            async with asyncio.timeout(max(0.0, self._next_look_at - time.monotonic())):
                await changed()
        except TimeoutError:
            if max(self._rooms().values()) > 0:
                return True
            await changed()  # there is no slot for anybody
        return False

    def take(self, id_worker: int, size: int, new_item: int | None = None) -> list[Item]:
        """Claims up to `size` items, of each queue as its weight and its room allow; or `new_item` alone, when it is for us."""
        if new_item is not None and (items := self._queue.claim_new(id_worker, new_item, self._filters, self._busy_models())):
            return items
        taken: list[Item] = []
        rooms = dict(self._rooms())
        self.has_waiting = any(rooms[name] <= 0 for name in self._pickers)
        held = dict(self._held())
        open_ones = self._worth_asking(held)
        try:
            while len(taken) < size and open_ones:
                shares = parts(size - len(taken), held, rooms, {name: self._weights[name] for name in open_ones})
                if not any(shares.values()):
                    break
                for name, share in shares.items():
                    items = self._pickers[name].take(id_worker, share) if share else []
                    taken += items
                    held[name] = held.get(name, 0) + len(items)
                    for other, weight in self._weights.items():
                        if weight <= self._weights[name]:  # see `Sharing.rooms`: to a heavier one they are not in the way
                            rooms[other] -= len(items)
                    if len(items) < share:
                        open_ones.remove(name)
        except DatabaseError:
            if not taken:
                raise
        return taken

    @property
    def _next_look_at(self) -> float:
        return float("-inf") if self._is_asked_to_look else self._looked_at + self._pace

    def _worth_asking(self, held: Mapping[str, int]) -> list[str]:
        """The queues that may have something. One that had nothing a moment ago is left alone as long as there is other work."""
        began = time.monotonic()
        is_at_work = any(held.values()) and any(picker.has_tasks for picker in self._pickers.values())
        if not is_at_work or began >= self._next_look_at:
            self._is_asked_to_look = False  # what is asked for from here on may be missed by this look, and leads to another
            for picker in self._pickers.values():
                picker.look()
            self._looked_at = time.monotonic()
            before, self._took = self._took, self._looked_at - began  # one that took long alone was held up by something else
            pace = LISTENING_SECONDS if self._is_listening() else LOOK_SECONDS
            self._pace = min(max(pace, min(before, self._took) / LOOK_SHARE), LOOK_SLOWEST)
        return [name for name, picker in self._pickers.items() if picker.has_tasks]
