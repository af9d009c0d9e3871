"""How a worker's slots are shared among the queues that it was given, in proportion to their weights.

Each slot that becomes free goes to the queue that has the fewest for its weight, of those that have work: what one does not use
the others do. A call that is under way is never broken off for a heavier queue. Instead, the lighter ones leave some slots free
for a heavier one that had work lately: one more than it has used at a time, and no more than its share; where slots become free
all the time, and to wait for one is not to wait long, no more than a few.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from ai_worker.models import Item, QueueShare

LATELY_SECONDS: Final = 60.0  # so long, and up to twice as long, slots are left free for a heavier queue without work
FEW_SHARE: Final = 1 / 16  # of the slots. Calls of equal length end in waves, so that the next free one may still take a while


@dataclass(slots=True)
class Lane:
    """One queue's items: those that are ready, those that have begun, and how many it had at a time lately."""

    weight: int
    ready: deque[Item] = field(default_factory=deque)
    returning: deque[Any] = field(default_factory=deque)  # calls that want a slot again
    begun: int = 0  # and not ended
    in_flight: int = 0  # of these, how many have a slot
    soon: int = 0  # ... and will have one again in a moment
    most: int = 0  # held at a time, since the last turn of the minute
    most_before: int = 0

    @property
    def held(self) -> int:
        return self.begun + len(self.ready)


class Sharing:
    """The items that are ready, of all queues, and the calls that want a slot again; which is next, and how many each may claim.

    Used in the loop, but for `rooms` and `held`, which the claim's thread may ask. As a container of what is ready it stands in
    for the deque of a worker without queues.
    """

    def __init__(self, queues: Sequence[QueueShare], slots: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._lanes = {queue.name: Lane(queue.weight) for queue in sorted(queues, key=lambda queue: -queue.weight)}
        self._slots = slots
        self._clock = clock
        self._minute_began = clock()

    # ----- what is ready

    def __len__(self) -> int:
        return sum(len(lane.ready) for lane in self._lanes.values())

    def __iter__(self) -> Iterator[Item]:
        for lane in self._lanes.values():
            yield from lane.ready

    def append(self, item: Item) -> None:
        self.lane(item).ready.append(item)

    def extend(self, items: Iterable[Item]) -> None:
        for item in items:
            self.append(item)
        for lane in self._lanes.values():
            lane.most = max(lane.most, lane.held)

    def clear(self) -> None:
        for lane in self._lanes.values():
            lane.ready.clear()

    # ----- who has a slot

    def lane(self, item: Item) -> Lane:
        """The item's queue."""
        lane = self._lanes.get(item.task.queue)
        if lane is None:  # somebody has moved the task to another queue between the claim and the look at what it got
            lane = self._lanes[item.task.queue] = Lane(1)
        return lane

    def next(self, free: int, *, is_quick: bool) -> Lane | None:
        """The queue that gets one of so many `free` slots: the one that has the fewest for its weight, of those that want one.

        None where all that are free are kept for a heavier one.
        """
        wanting = [lane for lane in self._lanes.values() if lane.ready or lane.returning]
        lanes = [lane for lane in wanting if free > self._kept_from(lane, is_quick)]
        return min(lanes, key=lambda lane: (lane.in_flight / lane.weight, -lane.weight), default=None)

    def may_begin(self, item: Item, free: int, *, is_quick: bool) -> bool:
        """Whether one more call of the item's queue may begin in one of so many free slots."""
        return free > self._kept_from(self.lane(item), is_quick)

    @property
    def returning(self) -> list[Any]:
        """The calls that want a slot again."""
        return [call for lane in self._lanes.values() for call in lane.returning]

    def began(self, lane: Lane) -> None:
        """A call of the queue has begun."""
        lane.begun += 1
        lane.in_flight += 1

    def left(self, item: Item, *, soon: bool) -> None:
        """The item's call has given its slot away."""
        lane = self.lane(item)
        lane.in_flight -= 1
        lane.soon += soon

    def not_so_soon(self, item: Item) -> None:
        """The item's call will not be back soon after all."""
        self.lane(item).soon -= 1

    def came_back(self, item: Item, *, soon: bool) -> None:
        """The item's call has a slot again."""
        lane = self.lane(item)
        lane.in_flight += 1
        lane.soon -= soon

    def ended(self, item: Item) -> None:
        """A call that had a slot has ended."""
        lane = self.lane(item)
        lane.begun -= 1
        lane.in_flight -= 1

    def turn_minute(self) -> bool:
        """Forgets what was long ago; whether it was time to, and slots may be free that were kept. Call it every few seconds."""
        passed = self._clock() - self._minute_began
        if passed < LATELY_SECONDS:
            return False
        for lane in self._lanes.values():
            lane.most_before, lane.most = (lane.most if passed < 2 * LATELY_SECONDS else 0), lane.held
        self._minute_began = self._clock()
        return True

    # ----- what may be claimed

    def held(self) -> dict[str, int]:
        """How many items each queue has, ready or under way."""
        return {name: lane.held for name, lane in list(self._lanes.items())}

    def rooms(self, free: int, *, is_quick: bool) -> dict[str, int]:
        """How many more items each queue may claim, where `free` are left in all.

        A lighter queue's items that are only ready do not stand in the way of a heavier one's. `is_quick` says that slots become
        free all the time.
        """
        lanes = list(self._lanes.items())
        rooms = {}
        for name, lane in lanes:
            ready = sum(len(other.ready) + other.soon for _, other in lanes if other.weight < lane.weight)
            rooms[name] = free + ready - self._kept_from(lane, is_quick)
        return rooms

    def _kept_from(self, lane: Lane, is_quick: bool) -> int:
        """How many slots are left free for heavier queues than this one."""
        lanes = list(self._lanes.values())
        total = sum(each.weight for each in lanes)
        few = max(1, int(self._slots * FEW_SHARE))
        kept = 0
        for other in lanes:
            if other.weight > lane.weight:
                share = few if is_quick else max(1, self._slots * other.weight // total)
                most = max(other.most, other.most_before)
                kept += max(0, min(share, most + 1 if most else 0) - other.held)
        return min(kept, self._slots - 1)


def parts(count: int, held: Mapping[str, int], rooms: Mapping[str, int], weights: Mapping[str, int]) -> dict[str, int]:
    """Divides the next `count` places among the queues of `weights`: each goes to the one that has the fewest for its weight.

    None gets more than its room, and what it has `held` already counts.
    """
    given = dict.fromkeys(weights, 0)
    for _ in range(count):
        open_ones = [name for name in weights if given[name] < rooms.get(name, 0)]
        if not open_ones:
            break
        given[min(open_ones, key=lambda name: ((held.get(name, 0) + given[name]) / weights[name], -weights[name]))] += 1
    return given
