"""How slots are shared among queues: by weight, with nothing idle, and with some kept for a heavier one that had work lately."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from ai_worker.models import NO_USAGE, Filters, Item, Outcome, QueueShare, Result, Task, TaskStatus
from ai_worker.store.limits import QueueLimits
from ai_worker.worker import shared_picker
from ai_worker.worker.shared_picker import SharedPicker
from ai_worker.worker.sharing import Sharing, parts
from ai_worker.worker.slots import Slots

QUEUES = (QueueShare("reply", 5), QueueShare("batch"))
TASK = Task(1, 1, "correction", "", {}, 3, 0, TaskStatus.IN_PROGRESS)
WEIGHTS = {"reply": 5, "batch": 1}


def items(queue: str, *keys: int) -> list[Item]:
    return [Item(key, replace(TASK, queue=queue), "tekst", {}, 1, 0, bytes(16), "") for key in keys]


@pytest.mark.parametrize(
    ("count", "held", "rooms", "given"),
    [
        (12, {}, {"reply": 99, "batch": 99}, {"reply": 10, "batch": 2}),
        (6, {"batch": 50}, {"reply": 99, "batch": 99}, {"reply": 6, "batch": 0}),
        (6, {"reply": 41, "batch": 3}, {"reply": 99, "batch": 99}, {"reply": 0, "batch": 6}),
        (12, {}, {"reply": 3, "batch": 99}, {"reply": 3, "batch": 9}),
        (12, {}, {"reply": 3, "batch": 0}, {"reply": 3, "batch": 0}),
        (12, {}, {}, {"reply": 0, "batch": 0}),
        (1, {}, {"reply": 1, "batch": 1}, {"reply": 1, "batch": 0}),
    ],
)
def test_places_go_to_whoever_has_the_fewest_for_its_weight(
    count: int, held: dict[str, int], rooms: dict[str, int], given: dict[str, int]
) -> None:
    assert parts(count, held, rooms, WEIGHTS) == given


class Held:
    """Shared slots whose calls end when they are told to."""

    def __init__(self, slots: int, now: Callable[[], float] = lambda: 0.0) -> None:
        self.began: list[int] = []
        self._ends: dict[int, asyncio.Event] = {}
        self.sharing = Sharing(QUEUES, slots, now)
        self.slots = Slots(slots, lambda: True, self.sharing)
        self.slots.serve(self._call, lambda _item, _outcome: None, self._defect)

    async def _call(self, item: Item) -> Outcome:
        self.began.append(item.id_task_item)
        self._ends[item.id_task_item] = asyncio.Event()
        await self._ends[item.id_task_item].wait()
        return Outcome.processed(item, Result("x", None, {}), NO_USAGE, None, 0)

    @staticmethod
    def _defect(item: Item, error: BaseException) -> Outcome:
        return Outcome.failed(item, "internal", str(error), NO_USAGE, None, 0)

    async def fill(self, queue: str, *keys: int) -> None:
        self.slots.fill(items(queue, *keys))
        await self.end()

    async def end(self, *keys: int) -> None:
        for key in keys:
            self._ends[key].set()
        for _ in range(5):
            await asyncio.sleep(0)


def test_a_reply_goes_before_the_bulk_that_is_ready() -> None:
    async def run() -> None:
        held = Held(2)
        await held.fill("batch", 1, 2, 3, 4)
        assert held.began == [1, 2]
        await held.fill("reply", 9)
        await held.end(1)
        assert held.began == [1, 2, 9]
        held.slots.cancel()
        held.slots.give_back()
        await held.end()
        assert (len(held.slots), held.sharing.held()) == (0, {"reply": 0, "batch": 0})

    asyncio.run(run())


def test_where_both_have_work_calls_are_in_proportion_to_the_weights() -> None:
    async def run() -> None:
        held = Held(6)
        await held.fill("batch", *range(100, 130))
        await held.fill("reply", *range(130))
        replies = bulk = 0
        for _ in range(24):  # one at a time ends, the longest one first
            await held.end(held.began[replies + bulk])
            is_reply = held.began[replies + bulk] < 100
            replies, bulk = replies + is_reply, bulk + (not is_reply)
        running = Counter("reply" if key < 100 else "batch" for key in held.began[-6:])
        assert running == {"reply": 5, "batch": 1}
        held.slots.give_back()
        held.slots.cancel()
        await held.end()

    asyncio.run(run())


def test_ready_bulk_is_not_in_the_way_of_a_heavier_queues_claim() -> None:
    async def run() -> None:
        held = Held(4)
        await held.fill("batch", *range(6))
        assert held.slots.rooms(0) == {"reply": 0, "batch": -2}
        assert held.slots.free(0) == -2
        held.slots.cancel()
        await held.end()

    asyncio.run(run())


def test_slots_are_kept_for_a_heavier_queue_that_had_work_lately_and_then_no_more() -> None:
    now = 0.0

    async def run() -> None:
        nonlocal now
        held = Held(12, lambda: now)
        assert held.slots.rooms(0) == {"reply": 12, "batch": 12}, "nothing is kept for what never came"
        await held.fill("reply", 1, 2, 3)
        assert held.slots.rooms(0) == {"reply": 9, "batch": 8}, "one more than it has"
        await held.end(1, 2, 3)
        assert held.slots.rooms(0) == {"reply": 12, "batch": 8}
        await held.fill("batch", *range(100, 112))
        assert held.began[3:] == [*range(100, 108)], "also of what is ready"
        await held.fill("reply", 4)
        assert held.began[-1] == 4
        await held.end(4)
        now = 61.0
        held.sharing.turn_minute()
        assert held.slots.rooms(0) == {"reply": 4 + 4 - 4, "batch": -4}
        now = 130.0
        held.sharing.turn_minute()
        assert held.slots.rooms(0)["batch"] == 0
        await held.end(100)
        assert held.began[-4:] == [108, 109, 110, 111], "the whole of it is used again"
        held.slots.cancel()
        await held.end()

    asyncio.run(run())


def test_no_more_than_the_share_is_kept_and_a_few_where_calls_are_quick() -> None:
    sharing = Sharing(QUEUES, 32)
    sharing.extend(items("reply", *range(100)))
    sharing.clear()
    assert sharing.rooms(32, is_quick=False) == {"reply": 32, "batch": 32 - 26}
    assert sharing.rooms(32, is_quick=True) == {"reply": 32, "batch": 30}
    single = Sharing(QUEUES, 1)
    single.extend(items("reply", 1))
    single.clear()
    assert single.rooms(1, is_quick=False) == {"reply": 1, "batch": 1}, "one slot is kept for nobody"


def test_a_call_that_comes_back_waits_for_its_queues_turn() -> None:
    async def run() -> None:
        back = asyncio.Event()
        began: list[int] = []
        ends = asyncio.Event()

        async def call(item: Item) -> Outcome:
            async with slots.away(soon=True):
                if item.task.queue == "batch":
                    await back.wait()
            began.append(item.id_task_item)
            await ends.wait()
            return Outcome.processed(item, Result("x", None, {}), NO_USAGE, None, 0)

        sharing = Sharing(QUEUES, 1)
        slots = Slots(1, lambda: True, sharing)
        slots.serve(call, lambda _item, _outcome: None, Held._defect)
        slots.fill(items("batch", 1))
        await asyncio.sleep(0)
        assert slots.rooms(0) == {"reply": 1, "batch": 0}, "it is as good as ready"
        slots.fill(items("reply", 9))
        for _ in range(5):
            await asyncio.sleep(0)
        assert began == [9]
        back.set()
        for _ in range(5):
            await asyncio.sleep(0)
        assert (began, slots.in_flight) == ([9], 1)
        ends.set()
        for _ in range(10):
            await asyncio.sleep(0)
        assert (began, len(slots), sharing.held()) == ([9, 1], 0, {"reply": 0, "batch": 0})

    asyncio.run(run())


class Tasks:
    """Stands in for the store: so many items per queue; counts the looks."""

    def __init__(self, **items: int) -> None:
        self.items = items
        self.looks: Counter[str] = Counter()
        self.limits = QueueLimits(None)  # type: ignore[arg-type]  # none are ever read
        self._keys: Iterator[int] = iter(range(1, 10_000))

    def runnable(self, filters: Filters, _busy: Any) -> list[Task]:
        name = filters.queues[0].name
        self.looks[name] += 1
        return [replace(TASK, id_task=1 + (name == "batch"), queue=name)] if self.items.get(name) else []

    def claim(self, _worker: int, tasks: list[Task], size: int, **_: Any) -> list[Item]:
        name = tasks[0].queue
        count = min(size, self.items[name])
        self.items[name] -= count
        return items(name, *(next(self._keys) for _ in range(count)))

    def newest_item(self) -> int:
        return 0


def picker(tasks: Any, rooms: dict[str, int], held: dict[str, int], **given: Any) -> SharedPicker:
    return SharedPicker(
        tasks,
        Filters(queues=QUEUES),
        lambda: rooms,
        lambda: held,
        lambda _: 1000,
        list,
        list,
        lambda _: False,
        **given,
    )


def queues_of(taken: list[Item]) -> Counter[str]:
    return Counter(item.task.queue for item in taken)


def test_a_claim_is_shared_by_weight_and_what_one_lacks_goes_to_the_other() -> None:
    free = {"reply": 100, "batch": 100}
    assert queues_of(picker(Tasks(reply=99, batch=99), free, {}).take(1, 12)) == {"reply": 10, "batch": 2}
    assert queues_of(picker(Tasks(reply=3, batch=99), free, {}).take(1, 12)) == {"reply": 3, "batch": 9}
    assert queues_of(picker(Tasks(reply=99, batch=1), free, {}).take(1, 12)) == {"reply": 11, "batch": 1}
    assert queues_of(picker(Tasks(reply=2, batch=2), free, {}).take(1, 12)) == {"reply": 2, "batch": 2}
    assert picker(Tasks(), free, {}).take(1, 12) == []


def test_a_queue_without_room_is_left_out_and_remembered() -> None:
    shared = picker(Tasks(reply=4, batch=9), {"reply": 5, "batch": 0}, {"batch": 50})
    assert queues_of(shared.take(1, 9)) == {"reply": 4}
    assert shared.has_waiting


def test_while_there_is_other_work_an_empty_queue_is_looked_at_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(shared_picker.time, "monotonic", lambda: now)
    tasks = Tasks(batch=1000)
    shared = picker(tasks, {"reply": 99, "batch": 99}, {"batch": 50})
    for _ in range(10):
        shared.take(1, 2)
        now += shared_picker.LOOK_SECONDS / 5
    assert tasks.looks["reply"] == 2
    tasks.items["reply"] = 1
    now += shared_picker.LOOK_SECONDS
    assert queues_of(shared.take(1, 2)) == {"reply": 1, "batch": 1}


def test_looks_are_rare_where_new_items_are_heard_of_but_made_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(shared_picker.time, "monotonic", lambda: now)
    tasks = Tasks(batch=1000)
    shared = picker(tasks, {"reply": 99, "batch": 99}, {"batch": 50}, is_listening=lambda: True)
    for _ in range(10):
        shared.take(1, 2)
        now += shared_picker.LISTENING_SECONDS / 5
    assert tasks.looks["reply"] == 2
    shared.take(1, 2)
    tasks.items["reply"] = 1
    assert queues_of(shared.take(1, 2)) == {"batch": 2}
    shared.look_now()
    assert queues_of(shared.take(1, 2)) == {"reply": 1, "batch": 1}


def test_looks_become_rarer_where_they_take_long_but_not_for_one_that_did(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(shared_picker.time, "monotonic", lambda: now)

    class Slow(Tasks):
        """Looks at its heavier queue take so many seconds."""

        seconds = 0.0

        def runnable(self, filters: Filters, busy: Any) -> list[Task]:
            nonlocal now
            if filters.queues[0].name == "reply":
                now += self.seconds
            return super().runnable(filters, busy)

    tasks = Slow(batch=100_000)
    shared = picker(tasks, {"reply": 99, "batch": 99}, {"batch": 50})

    def looks_within(seconds: float) -> int:
        nonlocal now
        before, end = tasks.looks["reply"], now + seconds
        while now < end:
            shared.take(1, 2)
            now += 0.001
        return tasks.looks["reply"] - before

    assert looks_within(0.1) >= 3
    tasks.seconds = 0.1
    assert looks_within(0.1) == 1
    tasks.seconds = 0.0
    assert looks_within(0.1) >= 3, "a moment's load is no reason"
    tasks.seconds = 0.1
    assert looks_within(2.0) <= 6


def test_an_idle_worker_looks_at_every_queue_each_time() -> None:
    tasks = Tasks()
    shared = picker(tasks, {"reply": 9, "batch": 9}, {})
    for _ in range(3):
        assert shared.take(1, 5) == []
    assert tasks.looks == {"reply": 3, "batch": 3}
