"""Outcomes on their way into the database: kept as long as it does not take them now, taken apart when it never will."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Sequence

import pytest

from ai_worker.errors import DatabaseAway, DatabaseError, ValueRefused
from ai_worker.models import Item, Outcome, OutcomeKind, Task, TaskStatus
from ai_worker.store.committing import Committed
from ai_worker.worker import commits as commits_module
from ai_worker.worker.commits import UNSTORABLE, Commits
from tests.integration.lifecycle import COST, POLISH, USAGE, done, failed, failed_once, postponed


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commits_module, "AWAY_SECONDS", 0.001)


class Store:
    """Stands for the database: `refuse(group, call)` returns the error of the call with this number, or None."""

    def __init__(self, refuse: Callable[[Sequence[Outcome], int], Exception | None]) -> None:
        self._refuse = refuse
        self.calls: list[list[int]] = []
        self.stored: dict[int, Outcome] = {}

    async def __call__(self, group: Sequence[Outcome]) -> Committed:
        self.calls.append([outcome.item.id_task_item for outcome in group])
        if (error := self._refuse(group, len(self.calls))) is not None:
            raise error
        for outcome in group:
            assert outcome.item.id_task_item not in self.stored
            self.stored[outcome.item.id_task_item] = outcome
        return Committed(stored=list(group))


class Told:
    """What the owner of the commits was told."""

    def __init__(self) -> None:
        self.refused: list[tuple[int, str]] = []
        self.kept: list[DatabaseError] = []


def item(number: int) -> Item:
    task = Task(1, 1, "correction", "Popraw", {}, 3, 0, TaskStatus.IN_PROGRESS, None, False)
    return Item(number, task, POLISH, {}, 1, 0, bytes(16), uuid.UUID(int=number))


def put(store: Store, *outcomes: Outcome) -> Told:
    """Puts the outcomes in hand at once, and waits until all are stored. Raises what ends the commits."""
    told = Told()

    async def work() -> None:
        all_stored = asyncio.Event()

        def on_stored(_: Committed) -> None:
            if not commits:
                all_stored.set()

        def on_refused(outcome: Outcome, message: str) -> None:
            told.refused.append((outcome.item.id_task_item, message))

        commits = Commits(store, on_stored, on_refused, told.kept.append)
        for outcome in outcomes:
            commits.put(outcome)
        running = asyncio.create_task(commits.run())
        waiting = asyncio.create_task(all_stored.wait())
        await asyncio.wait([running, waiting], timeout=10, return_when=asyncio.FIRST_COMPLETED)
        assert waiting.done() or running.done(), f"still {len(commits)} in hand after {store.calls}"
        if not running.cancel():
            await running

    asyncio.run(work())
    return told


@pytest.mark.parametrize(
    "error",
    [
        DatabaseAway("no database server to work with"),
        DatabaseAway("gave up after 20 conflicts", 1205),
        DatabaseError("UPDATE command denied to user", 1142),
        DatabaseError("The table 'task_item' is full", 1114),
    ],
    ids=["away", "locked for long", "a privilege revoked", "full"],
)
def test_results_are_kept_until_they_are_stored(error: DatabaseError) -> None:
    store = Store(lambda _, call: error if call <= 5 else None)
    outcomes = [done(item(number)) for number in (1, 2, 3)]
    told = put(store, *outcomes)
    assert store.calls == [[1, 2, 3]] * 6
    assert list(store.stored.values()) == outcomes
    assert told.kept == [error] * 5
    assert told.refused == []


def test_results_are_kept_also_when_the_database_goes_away_between_two_of_a_group() -> None:
    errors = {1: ValueRefused("Data too long", 1406), 3: DatabaseAway("gone")}
    store = Store(lambda _, call: errors.get(call))
    outcomes = [done(item(number)) for number in (1, 2, 3)]
    told = put(store, *outcomes)
    assert store.calls == [[1, 2, 3], [1], [2], [2, 3]]
    assert store.stored == dict(zip((1, 2, 3), outcomes, strict=True))
    assert (len(told.kept), told.refused) == (1, [])


@pytest.mark.parametrize(
    "error",
    [ValueRefused("Data too long for column", 1406), TypeError("Object of type set is not JSON serializable"), ValueError("x")],
    ids=["by the database", "no JSON", "a circular reference"],
)
def test_one_refused_result_does_not_keep_the_others(error: Exception) -> None:
    def refuse(group: Sequence[Outcome], _: int) -> Exception | None:
        return error if any(each.item.id_task_item == 2 and each.kind is OutcomeKind.PROCESSED for each in group) else None

    store = Store(refuse)
    first, second, third = (done(item(number)) for number in (1, 2, 3))
    told = put(store, first, second, third)
    assert (store.stored[1], store.stored[3]) == (first, third)
    buried = store.stored[2]
    assert (buried.kind, buried.error_kind, buried.result) == (OutcomeKind.FAILED, UNSTORABLE, None)
    assert (buried.item, buried.usage, buried.cost, buried.latency_ms) == (second.item, USAGE, COST, 250)
    assert str(error) in str(buried.error_message)
    assert [number for number, _ in told.refused] == [2]
    assert told.kept == []


@pytest.mark.parametrize("make", [failed, failed_once, postponed])
def test_a_refused_failure_becomes_one_without_anything_from_outside(make: Callable[[Item], Outcome]) -> None:
    store = Store(lambda group, _: None if group[0].error_kind == UNSTORABLE else ValueRefused("Incorrect string value", 1366))
    outcome = make(item(1))
    put(store, outcome)
    buried = store.stored[1]
    assert (buried.kind, buried.error_kind, buried.usage) == (OutcomeKind.FAILED, UNSTORABLE, outcome.usage)
    assert str(outcome.error_message) not in str(buried.error_message)


def test_what_is_refused_although_nothing_in_it_came_from_outside_is_kept() -> None:
    """A constraint that somebody has added, say: the worker says so until it is mended, and drops nothing."""
    error = ValueRefused("Check constraint 'c_task_item_ours' is violated", 3819)
    store = Store(lambda _, call: error if call <= 6 else None)
    told = put(store, done(item(1)))
    assert told.kept == [error] * 3  # after a result and its dead letter each
    assert store.stored[1].result is not None
