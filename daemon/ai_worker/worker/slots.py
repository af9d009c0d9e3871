"""The items that a worker holds: those whose calls are under way, one in each slot, and a few claimed ahead for the next ones.

A call that waits for something else than its provider (for its retry, for another item's answer) is *away*: its slot is free for
another, and it gets one again before it goes on. One that will be back *soon* counts as an item that is ready.

An item may have more calls under way than its own, *beside* it: each of these takes a slot too, one that nothing else waits for.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Iterable, Iterator
from contextlib import asynccontextmanager
from itertools import chain
from typing import Any, Final, NamedTuple

from ai_worker.models import Item, Outcome, Task
from ai_worker.worker.sharing import Sharing

# A slot that has become free must not wait for a claim, nor all that became free together for the same one: calls of equal length
# would go on in step. What is needed for so long, by the rate of the last seconds, is claimed ahead, but no more than a share of
# the slots. Of slow calls, where an item claimed ahead would wait for long while another worker is idle, that is next to none.
AHEAD_SECONDS: Final = 0.5
AHEAD_SHARE: Final = 0.5
RATE_SECONDS: Final = 1.0  # over which the rate is taken
QUICK_RATE: Final = 40.0  # calls that end in a second: with so many, slots become free all the time
AWAY_PER_SLOT: Final = 10  # more of them take slots after all: a provider that fails every call must not have all items claimed


_Call = asyncio.Task[Any]


class _Waiter(NamedTuple):
    """A further call of an item, until it has a slot."""

    call: _Call
    item: Item
    place: asyncio.Future[None]


class Slots:
    """Used in the loop, but for `room` and `full_models`, which the claim's thread may ask.

    Parameters
    ----------
    slots: how many calls may be in flight.
    may_start: whether a call may begin now; what is ready is given back when not.
    sharing: what is ready, where several queues share the slots.
    """

    _call: Callable[[Item], Coroutine[Any, Any, Outcome]]
    _on_outcome: Callable[[Item, Outcome], None]
    _on_defect: Callable[[Item, BaseException], Outcome]
    _may_add: Callable[[Task], bool]

    def __init__(self, slots: int, may_start: Callable[[], bool], sharing: Sharing | None = None) -> None:
        self._slots = self._most = slots
        self._may_start = may_start
        self._calls: dict[_Call, Item] = {}
        self._away: dict[_Call, asyncio.Future[None] | None] = {}  # what it waits by, once it wants a slot again
        self._returning: deque[_Call] = deque()
        self._soon: set[_Call] = set()  # of those away: back in a moment, their first call still to be made
        self._beside: deque[_Waiter] = deque()  # further calls of items, each of which waits for a slot
        self._sharing = sharing
        self._ready: Any = deque() if sharing is None else sharing
        self._needed = 0  # ahead, by the latest rate
        self._per_second = 0.0  # calls that end, by the same
        self._rate_since, self._ended_since = time.monotonic(), 0
        self._held: Counter[int] = Counter()  # by model
        self._limits: dict[int, int] = {}  # of it, by model, where there is one
        self._keeping: set[_Call] = set()  # of those away, who will make their call again
        self._kept: Counter[int] = Counter()  # how many these are, by model
        self._has_room = asyncio.Event()

    def serve(
        self,
        call: Callable[[Item], Coroutine[Any, Any, Outcome]],
        on_outcome: Callable[[Item, Outcome], None],
        on_defect: Callable[[Item, BaseException], Outcome],
        may_add: Callable[[Task], bool] = lambda _: True,
    ) -> None:
        """Says what is to be done with items, before the first ones come. Who does it is made of the slots, so after them.

        Parameters
        ----------
        call: one item's way through its call; cancelled when there is no time left for it.
        on_outcome: told how each item ended, given back ones included.
        on_defect: makes an outcome of an error that `call` should not have let out.
        may_add: whether there may be one more call for an item that has one.
        """
        self._call, self._on_outcome, self._on_defect, self._may_add = call, on_outcome, on_defect, may_add

    def __len__(self) -> int:
        """How many items are held."""
        return len(self._calls) + len(self._ready)

    def __iter__(self) -> Iterator[Item]:
        """These items."""
        return chain(self._calls.values(), self._ready)

    @property
    def in_flight(self) -> int:
        """How many calls are."""
        return len(self._calls) - len(self._away)

    def free(self, in_hand: int) -> int:
        """How many more items may be claimed; where queues share the slots, of any of them. Results in hand take no slots, until
        there are as many of them as slots: then it is the database that is slow."""
        return self._free(in_hand) if self._sharing is None else min(self.rooms(in_hand).values())

    def rooms(self, in_hand: int) -> dict[str, int]:
        """How many more items each of the queues that share the slots may claim."""
        if self._sharing is None:
            raise RuntimeError("the slots are not shared")
        return self._sharing.rooms(self._free(in_hand), is_quick=self._is_quick)

    @property
    def _is_quick(self) -> bool:
        return self._per_second >= QUICK_RATE and not self._is_slow

    def _free(self, in_hand: int) -> int:
        too_many_away = max(0, len(self._away) - AWAY_PER_SLOT * self._slots)
        ready = len(self._ready) + len(self._soon)
        return self._slots + self._ahead - self.in_flight - ready - too_many_away - max(0, in_hand - self._slots)

    @property
    def _ahead(self) -> int:
        """How many items may be ready: none when no call has ended for a while, for then they would wait for one that is slow."""
        return 0 if self._is_slow else self._needed

    @property
    def _is_slow(self) -> bool:
        return time.monotonic() - self._rate_since > 2 * RATE_SECONDS

    def tidy(self) -> None:
        """Gives back what is ready while no call ends: another worker may have free slots; keeps none for what came long ago.
        Call it every few seconds."""
        if (self._ready or self._soon) and self._is_slow:
            self.give_back()
        if self._sharing is not None and self._sharing.turn_minute():
            self._start()
            self._has_room.set()

    async def changed(self) -> None:
        """Returns when an item has ended, or `wake` was called."""
        self._has_room.clear()
        await self._has_room.wait()

    def resize(self, slots: int) -> None:
        """From now on so many calls may be in flight; those that are too many go on. No more than it was made with: pools of
        connections and shares of the fleet's limits are made for that many."""
        self._slots = min(slots, self._most)
        self._start()
        self._has_room.set()

    def wake(self) -> None:
        """Something that `free` depends on has changed."""
        self._has_room.set()

    def room(self, task: Task) -> int:
        """How many more items of this task's model may be held now."""
        limit = task.max_in_flight
        return self._slots + self._ahead if limit is None else limit - self.places(task.id_ai_model)

    def held(self, id_ai_model: int) -> int:
        """How many of its items have a slot, or wait for their first."""
        return self._held[id_ai_model]

    def places(self, id_ai_model: int) -> int:
        """The same, with those whose call will be made again: so many may be in flight at the model, all at once."""
        return self._held[id_ai_model] + self._kept[id_ai_model]

    def full_models(self) -> list[int]:
        """Models that take no more items now."""
        return [each for each, limit in list(self._limits.items()) if self.places(each) >= limit]

    def has_limit(self, id_ai_model: int) -> bool:
        """Whether one of the model's items having ended may make room for another that could not be claimed."""
        return id_ai_model in self._limits

    def fill(self, items: Collection[Item]) -> None:
        """Starts the calls of claimed items, or keeps these ready for the next free slots."""
        if not self:
            self._rate_since, self._ended_since = time.monotonic(), 0  # the time without work is no measure
        for task in {item.task.id_task: item.task for item in items}.values():
            if task.max_in_flight is None:
                self._limits.pop(task.id_ai_model, None)
            else:
                self._limits[task.id_ai_model] = task.max_in_flight
        self._held.update([item.task.id_ai_model for item in items])
        self._ready.extend(items)
        self._start()

    def give_back(self, models: Iterable[int] | None = None) -> None:
        """Gives back what is ready, of these models or of all: their calls have not begun."""
        wanted = None if models is None else set(models)
        ready = list(self._ready)
        self._ready.clear()
        for item in ready:
            if wanted is None or item.task.id_ai_model in wanted:
                self._end(item, Outcome.released(item))
            else:
                self._ready.append(item)
        for call in self._returning if self._sharing is None else self._sharing.returning:
            if call in self._soon and (wanted is None or self._calls[call].task.id_ai_model in wanted):
                call.cancel()

    def cancel(self) -> None:
        """Breaks off all calls; their items are given back."""
        for call in self._calls:
            call.cancel()

    @asynccontextmanager
    async def away(self, *, soon: bool = False, keeps_place: bool = False) -> AsyncIterator[Callable[[], None]]:
        """For a call's own task: the slot is another's inside the block, and one is waited for at its end.

        `soon` says that the wait is short, and before the first call; the value is a function that says that it is not short
        after all. `keeps_place` says that the wait is between two calls: nobody else's takes its
        place at the model. When the block is left by an exception the call goes on without a slot: it is about to end.
        """
        call = asyncio.current_task()
        item = self._calls.get(call) if call is not None else None
        if call is None or item is None or call in self._away:
            raise RuntimeError("only a call that has a slot can give it away")
        self._away[call] = None
        if soon:
            self._soon.add(call)
        else:
            self._held[item.task.id_ai_model] -= 1
        if keeps_place:
            self._keeping.add(call)
            self._kept[item.task.id_ai_model] += 1
        if self._sharing is not None:
            self._sharing.left(item, soon=soon)
        self._start()
        self._has_room.set()

        def not_so_soon() -> None:
            self._soon.remove(call)
            self._held[item.task.id_ai_model] -= 1
            if self._sharing is not None:
                self._sharing.not_so_soon(item)
            self._has_room.set()

        yield not_so_soon
        if self._sharing is None and not self._returning and self.in_flight < self._slots:
            self._come_back(call)
            return
        place = self._away[call] = asyncio.get_running_loop().create_future()
        if self._sharing is None:
            self._returning.append(call)
        else:
            self._sharing.lane(item).returning.append(call)
            self._start()
        await place

    @asynccontextmanager
    async def beside(self, item: Item) -> AsyncIterator[None]:
        """A slot for one more call of an item that has one, in a task of its own. Inside the block it is a call like others.

        Waits for a slot that nothing else waits for: what is ready and what comes back go first.
        """
        call = asyncio.current_task()
        if call is None or call in self._calls:
            raise RuntimeError("a further call of an item is made in a task of its own")
        waiter = _Waiter(call, item, asyncio.get_running_loop().create_future())
        self._beside.append(waiter)
        self.offer()
        try:
            await waiter.place
            yield
        finally:
            if self._calls.pop(call, None) is None:
                self._beside.remove(waiter)
            else:
                if call in self._away:
                    del self._away[call]
                    self._hold_again(call, item)
                if self._sharing is not None:
                    self._sharing.ended(item)
                self._held[item.task.id_ai_model] -= 1
                self._start()
                self._has_room.set()

    def turn_to(self, item: Item) -> bool:
        """Whether the running call may be one of this item's model from here on; from then on it is."""
        call = asyncio.current_task()
        before = self._calls.get(call) if call is not None else None
        if call is None or before is None or call in self._away:
            raise RuntimeError("only a call that has a slot can turn to another model")
        if item.task.id_ai_model != before.task.id_ai_model:
            if not self._may_add(item.task):
                return False
            self._held[before.task.id_ai_model] -= 1
            self._held[item.task.id_ai_model] += 1
            if item.task.max_in_flight is not None:
                self._limits[item.task.id_ai_model] = item.task.max_in_flight
            self._has_room.set()
        self._calls[call] = item
        return True

    def offer(self) -> None:
        """Lets further calls of items begin, as far as there is room. Call it when what `may_add` says has changed."""
        for _ in range(len(self._beside)):
            if self.in_flight >= self._slots or not self._may_start():
                return
            waiter = self._beside.popleft()
            free, sharing = self._slots - self.in_flight, self._sharing
            is_free = sharing is None or sharing.may_begin(waiter.item, free, is_quick=self._is_quick)
            if waiter.place.done():  # cancelled, and about to say so
                self._beside.append(waiter)
            elif is_free and self._may_add(waiter.item.task):
                if self._sharing is not None:
                    self._sharing.began(self._sharing.lane(waiter.item))
                self._calls[waiter.call] = waiter.item
                self._held[waiter.item.task.id_ai_model] += 1
                waiter.place.set_result(None)
            else:
                self._beside.append(waiter)

    def _come_back(self, call: _Call) -> None:
        del self._away[call]
        self._hold_again(call, self._calls[call])

    def _hold_again(self, call: _Call, item: Item) -> None:
        if call in self._keeping:
            self._keeping.remove(call)
            self._kept[item.task.id_ai_model] -= 1
        if self._sharing is not None:
            self._sharing.came_back(item, soon=call in self._soon)
        if call in self._soon:
            self._soon.remove(call)
        else:
            self._held[item.task.id_ai_model] += 1

    def _start(self) -> None:
        if not self._may_start():
            self.give_back()
        if self._sharing is not None:
            self._start_by_shares(self._sharing)
            return
        while self._returning and self.in_flight < self._slots:
            self._go_on(self._returning.popleft())
        while self._ready and self.in_flight < self._slots:
            self._begin(self._ready.popleft())
        if self._beside:
            self.offer()

    def _start_by_shares(self, sharing: Sharing) -> None:
        while (free := self._slots - self.in_flight) > 0 and (lane := sharing.next(free, is_quick=self._is_quick)) is not None:
            if lane.returning:
                self._go_on(lane.returning.popleft())
            else:
                sharing.began(lane)
                self._begin(lane.ready.popleft())
        if self._beside:
            self.offer()

    def _go_on(self, call: _Call) -> None:
        place = self._away.get(call)
        if place is not None and not place.done():  # else it was cancelled while it waited
            self._come_back(call)
            place.set_result(None)

    def _begin(self, item: Item) -> None:
        call = asyncio.get_running_loop().create_task(self._call(item))
        self._calls[call] = item
        call.add_done_callback(self._ended)

    def _ended(self, call: asyncio.Task[Outcome]) -> None:
        item = self._calls.pop(call)
        if call in self._away:
            del self._away[call]
            self._hold_again(call, item)  # for `_end`, which takes it off
        if self._sharing is not None:
            self._sharing.ended(item)
        if self._ready or self._returning or self._beside or self._sharing is not None:
            self._start()
        if call.cancelled():
            outcome = Outcome.released(item)
        elif (error := call.exception()) is None:
            outcome = call.result()
        else:
            outcome = self._on_defect(item, error)
        self._end(item, outcome)
        self._ended_since += 1
        if (elapsed := time.monotonic() - self._rate_since) >= RATE_SECONDS:
            self._per_second = self._ended_since / elapsed
            needed = self._per_second * AHEAD_SECONDS
            self._needed = int(min(needed, self._slots * AHEAD_SHARE))
            self._rate_since, self._ended_since = time.monotonic(), 0

    def _end(self, item: Item, outcome: Outcome) -> None:
        self._held[item.task.id_ai_model] -= 1
        self._on_outcome(item, outcome)
        self._has_room.set()
