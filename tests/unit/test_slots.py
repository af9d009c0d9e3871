"""What a worker holds: calls in flight and items claimed ahead, and when it gives these back."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from ai_worker.models import NO_USAGE, Item, Outcome, OutcomeKind, Result, Task, TaskStatus
from ai_worker.worker import slots as module
from ai_worker.worker.claiming import Claiming
from ai_worker.worker.slots import Slots

TASK = Task(1, 1, "correction", "", {}, 3, 0, TaskStatus.IN_PROGRESS)


class Held:
    """Slots whose calls end when they are told to, and the outcomes they told of."""

    def __init__(self, slots: int) -> None:
        self.ends: dict[int, asyncio.Event] = {}
        self.outcomes: list[tuple[int, OutcomeKind]] = []
        self.may_start = True
        self.slots = Slots(slots, lambda: self.may_start)
        self.slots.serve(self._call, self._told, self._defect)

    async def _call(self, item: Item) -> Outcome:
        self.ends[item.id_task_item] = asyncio.Event()
        await self.ends[item.id_task_item].wait()
        if item.text_original == "wada":
            raise LookupError("a defect")
        return Outcome.processed(item, Result("x", None, {}), NO_USAGE, None, 0)

    def _told(self, item: Item, outcome: Outcome) -> None:
        self.outcomes.append((item.id_task_item, outcome.kind))

    @staticmethod
    def _defect(item: Item, error: BaseException) -> Outcome:
        return Outcome.failed(item, "internal", str(error), NO_USAGE, None, 0)

    async def end(self, *keys: int) -> None:
        for key in keys:
            self.ends[key].set()
        for _ in range(5):
            await asyncio.sleep(0)


def items(*keys: int, task: Task = TASK, text: str = "tekst") -> list[Item]:
    return [Item(key, task, text, {}, 1, 0, bytes(16), "") for key in keys]


def test_what_does_not_fit_waits_and_goes_on_in_the_slot_that_becomes_free() -> None:
    async def run() -> None:
        held = Held(2)
        held.slots.fill(items(1, 2, 3, 4))
        await held.end()
        assert (len(held.slots), held.slots.in_flight, list(held.ends)) == (4, 2, [1, 2])
        assert held.slots.free(0) < 0
        await held.end(1)
        assert list(held.ends) == [1, 2, 3]
        await held.end(2, 3)
        await held.end(4)
        assert held.outcomes == [(key, OutcomeKind.PROCESSED) for key in (1, 2, 3, 4)]
        assert (len(held.slots), held.slots.free(0), held.slots.free(5)) == (0, 2, -1)

    asyncio.run(run())


def test_what_waits_is_given_back_and_calls_are_not() -> None:
    async def run() -> None:
        held = Held(1)
        other = replace(TASK, id_task=2, id_ai_model=2)
        held.slots.fill([*items(1, 2), *items(3, task=other)])
        await held.end()
        held.slots.give_back([2])
        assert held.outcomes == [(3, OutcomeKind.RELEASED)]
        held.slots.give_back()
        assert held.outcomes[1:] == [(2, OutcomeKind.RELEASED)]
        held.slots.cancel()
        await held.end()
        assert held.outcomes[2:] == [(1, OutcomeKind.RELEASED)]

    asyncio.run(run())


def test_no_call_begins_once_others_may_have_the_items() -> None:
    async def run() -> None:
        held = Held(1)
        held.slots.fill(items(1, 2, 3))
        await held.end()
        held.may_start = False
        await held.end(1)
        assert list(held.ends) == [1]
        assert sorted(held.outcomes) == [(1, OutcomeKind.PROCESSED), (2, OutcomeKind.RELEASED), (3, OutcomeKind.RELEASED)]

    asyncio.run(run())


def test_items_are_claimed_ahead_of_quick_calls_and_given_back_by_slow_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)

    async def run() -> None:
        nonlocal now
        held = Held(4)
        held.slots.fill(items(1, 2, 3, 4))
        await held.end()
        assert held.slots.free(0) == 0
        now += 0.5
        await held.end(1, 2, 3)
        held.slots.fill(items(5, 6, 7))
        now += 0.5
        await held.end(4)  # four in a second: two are needed for half a second, which is half of the slots
        assert held.slots.free(0) == 3
        held.slots.fill(items(8, 9, 10))
        await held.end()
        assert (held.slots.in_flight, len(held.slots), held.slots.free(0)) == (4, 6, 0)
        held.slots.tidy()
        assert len(held.slots) == 6
        now += 2.5
        assert held.slots.free(0) == -2
        held.slots.tidy()
        assert held.outcomes[-2:] == [(9, OutcomeKind.RELEASED), (10, OutcomeKind.RELEASED)]

    asyncio.run(run())


def test_a_limited_model_is_full_with_what_waits_too() -> None:
    async def run() -> None:
        held = Held(1)
        limited = replace(TASK, max_in_flight=2)
        held.slots.fill(items(1, 2, task=limited))
        await held.end()
        assert (held.slots.room(limited), held.slots.full_models(), held.slots.has_limit(1)) == (0, [1], True)
        held.slots.give_back()
        assert (held.slots.room(limited), held.slots.full_models()) == (1, [])

    asyncio.run(run())


def test_a_defect_costs_its_item_alone() -> None:
    async def run() -> None:
        held = Held(2)
        held.slots.fill([*items(1, text="wada"), *items(2)])
        await held.end()
        await held.end(1, 2)
        assert held.outcomes == [(1, OutcomeKind.FAILED), (2, OutcomeKind.PROCESSED)]

    asyncio.run(run())


def test_room_that_goes_while_more_is_waited_for_is_no_claim_and_no_end() -> None:
    """Fewer may be ahead from one moment to the next; a claim of nothing would end the worker, or make it wait for its turn."""
    room = iter([1, 0, 30])
    claiming: Any = SimpleNamespace(
        _options=SimpleNamespace(concurrency=200),
        _draining=asyncio.Event(),
        _slots=SimpleNamespace(free=lambda _: next(room)),
        _accounts=SimpleNamespace(left=lambda: 500, in_hand=0),
        _shared=None,
    )
    assert asyncio.run(Claiming._wait_for_slots(claiming)) == 30


class Waiting(Held):
    """Calls that give their slot away until they are told to come back, and then go on until they are told to end."""

    def __init__(self, slots: int) -> None:
        super().__init__(slots)
        self.backs: dict[int, asyncio.Event] = {}

    async def _call(self, item: Item) -> Outcome:
        key = item.id_task_item
        self.backs[key] = asyncio.Event()
        async with self.slots.away():
            await self.backs[key].wait()
            if item.text_original == "wada":
                raise LookupError("a defect while away")
        return await super()._call(item)

    async def until_all_began(self) -> None:
        while len(self.backs) < len(self.slots):  # noqa: ASYNC110 -- a turn of the loop at a time
            await asyncio.sleep(0)
        await self.come_back()

    async def give_up(self) -> None:
        while self.slots:
            self.slots.give_back()
            self.slots.cancel()
            await asyncio.sleep(0)

    async def come_back(self, *keys: int) -> None:
        for key in keys:
            self.backs[key].set()
        for _ in range(5):
            await asyncio.sleep(0)


def test_a_call_that_is_away_leaves_its_slot_to_another_and_takes_one_again_before_it_goes_on() -> None:
    async def run() -> None:
        held = Waiting(1)
        held.slots.fill(items(1, 2, 3))
        await held.come_back()
        assert (len(held.slots), held.slots.in_flight, sorted(held.backs)) == (3, 0, [1, 2, 3])
        assert held.slots.free(0) == 1
        await held.come_back(1, 2)
        assert (held.slots.in_flight, list(held.ends)) == (1, [1]), "two go on in one slot"
        assert held.slots.free(0) == 0
        await held.end(1)
        assert (held.slots.in_flight, list(held.ends)) == (1, [1, 2])
        await held.end(2)
        assert held.outcomes == [(1, OutcomeKind.PROCESSED), (2, OutcomeKind.PROCESSED)]
        assert (len(held.slots), held.slots.in_flight) == (1, 0)
        await held.give_up()

    asyncio.run(run())


def test_who_comes_back_goes_before_what_is_ready() -> None:
    async def run() -> None:
        held = Waiting(1)
        held.slots.fill(items(1, 2))
        await held.come_back()
        await held.come_back(2)
        held.slots.fill(items(3))
        await held.come_back(1)
        assert (list(held.ends), sorted(held.backs)) == ([2], [1, 2]), "1 and 3 want the slot of 2"
        await held.end(2)
        assert (list(held.ends), sorted(held.backs)) == ([2, 1], [1, 2])
        await held.give_up()

    asyncio.run(run())


def test_calls_cancelled_or_failing_while_away_are_told_of_and_hold_nothing() -> None:
    async def run() -> None:
        limited = replace(TASK, max_in_flight=5)
        held = Waiting(1)
        held.slots.fill([*items(1, task=limited), *items(2, task=limited, text="wada"), *items(3, 4, task=limited)])
        await held.come_back()
        assert held.slots.room(limited) == 5, "what is away is not in flight at the model"
        await held.come_back(1, 2, 3)
        assert held.outcomes == [(2, OutcomeKind.FAILED)]
        held.slots.cancel()  # 1 has the slot, 3 waits for it, 4 is away
        for _ in range(5):
            await asyncio.sleep(0)
        assert sorted(held.outcomes) == [
            (1, OutcomeKind.RELEASED),
            (2, OutcomeKind.FAILED),
            (3, OutcomeKind.RELEASED),
            (4, OutcomeKind.RELEASED),
        ]
        assert (len(held.slots), held.slots.in_flight, held.slots.room(limited)) == (0, 0, 5)
        held.slots.fill(items(9))
        await held.come_back()
        assert 9 in held.backs, "the slot is free again"
        await held.give_up()

    asyncio.run(run())


class Retrying(Waiting):
    """Calls that are made again after a while."""

    async def _call(self, item: Item) -> Outcome:
        self.backs[item.id_task_item] = asyncio.Event()
        async with self.slots.away(keeps_place=True):
            await self.backs[item.id_task_item].wait()
        return await Held._call(self, item)


def test_who_will_call_again_keeps_its_place_at_the_model_but_not_its_slot() -> None:
    """Else all that come back together would be in flight beside those that were claimed in their places."""

    async def run() -> None:
        limited = replace(TASK, max_in_flight=3)
        held = Retrying(2)
        held.slots.fill(items(1, 2, task=limited))
        await held.come_back()
        assert (held.slots.in_flight, held.slots.free(0), held.slots.held(1), held.slots.places(1)) == (0, 2, 0, 2)
        assert held.slots.room(limited) == 1
        held.slots.fill(items(3, task=limited))
        assert held.slots.full_models() == [1]
        await held.come_back()
        await held.come_back(1, 2, 3)
        assert (held.slots.in_flight, held.slots.places(1), held.slots.room(limited)) == (2, 3, 0)
        held.slots.cancel()
        for _ in range(5):
            await asyncio.sleep(0)
        assert (len(held.slots), held.slots.places(1), held.slots.room(limited)) == (0, 0, 3)

    asyncio.run(run())


def test_too_many_away_take_slots_after_all() -> None:
    async def run() -> None:
        held = Waiting(2)
        held.slots.fill(items(*range(1, 24)))
        await held.until_all_began()
        assert held.slots.in_flight == 0
        assert held.slots.free(0) == 2 - (23 - 2 * module.AWAY_PER_SLOT)
        await held.give_up()

    asyncio.run(run())


class Asking(Waiting):
    """Calls that give their slot away for a moment, before they begin."""

    async def _call(self, item: Item) -> Outcome:
        key = item.id_task_item
        self.backs[key] = asyncio.Event()
        async with self.slots.away(soon=True) as not_so_soon:
            await self.backs[key].wait()
            if item.text_original == "długo":
                not_so_soon()
                self.ends[key] = asyncio.Event()
                await self.ends[key].wait()
        return await Held._call(self, item)


def test_what_will_be_back_soon_counts_as_ready_and_is_given_back_like_it() -> None:
    async def run() -> None:
        limited = replace(TASK, max_in_flight=9)
        held = Asking(1)
        held.slots.fill(items(1, 2, 3, task=limited))
        await held.come_back()
        assert (held.slots.in_flight, held.slots.free(0), held.slots.room(limited)) == (0, -2, 6)
        await held.come_back(1, 2, 3)
        assert (held.slots.in_flight, held.slots.free(0), held.slots.room(limited)) == (1, -2, 6)
        held.slots.give_back([99])
        await held.come_back()
        assert held.outcomes == []
        held.slots.give_back([TASK.id_ai_model])
        await held.come_back()
        assert held.outcomes == [(2, OutcomeKind.RELEASED), (3, OutcomeKind.RELEASED)], "1 has its slot, and goes on"
        assert (len(held.slots), held.slots.in_flight, held.slots.room(limited)) == (1, 1, 8)
        await held.end(1)
        assert held.slots.free(0) == 1

    asyncio.run(run())


def test_what_was_to_be_back_soon_and_is_not_leaves_its_place_to_another() -> None:
    async def run() -> None:
        limited = replace(TASK, max_in_flight=9)
        held = Asking(1)
        held.slots.fill(items(1, task=limited, text="długo"))
        await held.come_back()
        await held.come_back(1)
        assert (held.slots.in_flight, held.slots.free(0), held.slots.room(limited)) == (0, 1, 9)
        held.slots.give_back()
        await held.come_back()
        assert (held.outcomes, len(held.slots)) == ([], 1)
        await held.end(1)
        await held.end(1)
        assert held.outcomes == [(1, OutcomeKind.PROCESSED)]
        assert (held.slots.in_flight, held.slots.free(0), held.slots.room(limited)) == (0, 1, 9)

    asyncio.run(run())


class Sharing(Held):
    """Calls with two more calls beside them, each ended by its name."""

    def __init__(self, slots: int) -> None:
        super().__init__(slots)
        self.may_add = True
        self.begun: list[str] = []
        self.slots = Slots(slots, lambda: True)
        self.slots.serve(self._call, self._told, self._defect, lambda _: self.may_add)

    async def _call(self, item: Item) -> Outcome:
        helpers = [asyncio.create_task(self._help(item, name)) for name in "ab"]
        try:
            return await super()._call(item)
        finally:
            for helper in helpers:
                helper.cancel()
            await asyncio.gather(*helpers, return_exceptions=True)

    async def _help(self, item: Item, name: str) -> None:
        async with self.slots.beside(item):
            self.begun.append(f"{item.id_task_item}{name}")
            key = 10 * item.id_task_item + "ab".index(name)
            self.ends[key] = asyncio.Event()
            await self.ends[key].wait()


def test_further_calls_of_an_item_take_slots_that_nothing_else_waits_for() -> None:
    async def run() -> None:
        held = Sharing(3)
        limited = replace(TASK, max_in_flight=9)
        held.slots.fill(items(1, 2, 3, 4, task=limited))
        await held.end()
        await held.end(1)
        await held.end()
        assert (held.begun, held.slots.in_flight) == ([], 3), "4 was ready, and went first"
        await held.end(2)
        await held.end()
        (first,) = held.begun
        assert (held.slots.in_flight, held.slots.room(limited)) == (3, 6)
        held.may_add = False
        await held.end(10 * int(first[0]) + "ab".index(first[1]))
        await held.end()
        assert (held.begun, held.slots.in_flight) == ([first], 2)
        held.may_add = True
        held.slots.offer()
        await held.end()
        assert (len(held.begun), held.slots.in_flight, held.slots.room(limited)) == (2, 3, 6)
        held.slots.cancel()
        await held.end()
        await held.end()
        assert (held.slots.in_flight, len(held.slots), held.slots.free(0), held.slots.room(limited)) == (0, 0, 3, 9)
        assert {kind for _, kind in held.outcomes[2:]} == {OutcomeKind.RELEASED}

    asyncio.run(run())
