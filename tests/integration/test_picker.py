"""What a worker claims next: over all tasks, with its watermarks, its room per model, and probes of stopped models."""

from __future__ import annotations

import time
from collections import defaultdict
from typing import Any

import pytest

from ai_worker.errors import DatabaseAway
from ai_worker.models import Filters, Item, TaskStatus
from ai_worker.store.queue import Queue
from ai_worker.worker import picker as picker_module
from ai_worker.worker.picker import Picker
from tests.integration.lifecycle import Application, Sql, claim, done, failed, register

pytest_plugins = ["tests.integration.lifecycle"]


@pytest.fixture
def room() -> defaultdict[int, int]:
    """How many more items each model takes; 1,000 unless a test says otherwise."""
    return defaultdict(lambda: 1000)


@pytest.fixture
def picker(queue: Queue, room: defaultdict[int, int]) -> Picker:
    return Picker(
        queue, Filters(), lambda task: room[task.id_ai_model], lambda: [each for each, left in room.items() if left <= 0]
    )


def keys(picker: Picker, id_worker: int, size: int) -> list[int]:
    return [item.id_task_item for item in picker.take(id_worker, size)]


def test_a_claim_is_filled_from_as_many_tasks_as_it_takes(
    application: Application, worker: int, model: int, picker: Picker
) -> None:
    low = application.items(application.task(model, priority=-1), 10)
    small = [application.items(application.task(model), 2) for _ in range(5)]
    high = application.items(application.task(model, priority=5), 3)
    taken = keys(picker, worker, 16)
    assert taken[:3] == high
    assert sorted(taken[3:13]) == sorted(each for items in small for each in items)
    assert taken[13:] == low[:3]
    assert keys(picker, worker, 100) == low[3:]
    assert keys(picker, worker, 100) == []


@pytest.mark.parametrize("tasks", ["two tasks", "one task, the second time from its start"])
def test_what_was_claimed_before_the_database_went_away_is_not_lost(
    application: Application, queue: Queue, worker: int, picker: Picker, tasks: str, sql: Sql, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody else would ever take it: the rescue leaves a living worker's items alone."""
    model = application.model()
    high = application.items(application.task(model, priority=1), 4)
    if tasks == "two tasks":
        low = application.items(application.task(model), 4)
        claimed_first, left = high, low
    else:
        picker.take(worker, 2)
        sql("UPDATE task_item SET status_id = 0, id_worker = NULL WHERE id_task_item = %s", [high[0]])
        claimed_first, left = high[2:], high[:1]
    claims = iter([queue.claim])

    def fails_from_the_second_on(*args: Any, **options: Any) -> list[Item]:
        claim_ = next(claims, None)
        if claim_ is None:
            raise DatabaseAway("no database server to work with")
        return claim_(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(queue, "claim", fails_from_the_second_on)
        assert keys(picker, worker, 8) == claimed_first
        with pytest.raises(DatabaseAway):
            picker.take(worker, 8)
    assert keys(picker, worker, 8) == left


def test_a_better_task_is_noticed(
    application: Application, worker: int, model: int, picker: Picker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(picker_module, "REFRESH_SECONDS", 0.0)
    items = application.items(application.task(model), 10)
    assert keys(picker, worker, 2) == items[:2]
    better = application.items(application.task(model, priority=1), 3)
    assert keys(picker, worker, 4) == [*better, items[2]]


def test_what_lies_behind_the_watermark_is_found_at_the_end(
    application: Application, queue: Queue, worker: int, task: int, picker: Picker, sql: Sql
) -> None:
    items = application.items(task, 6)
    first = picker.take(worker, 2)
    queue.commit(worker, [failed(each) for each in first])
    sql("UPDATE task_item SET status_id = 0 WHERE id_task_item = %s", [items[0]])
    assert keys(picker, worker, 2) == items[2:4]
    assert keys(picker, worker, 3) == [*items[4:6], items[0]]


def test_what_lies_behind_the_watermark_is_found_after_a_while(
    application: Application, worker: int, task: int, picker: Picker, sql: Sql, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A retried item of a big task does not wait for the task's end."""
    items = application.items(task, 10)
    picker.take(worker, 4)
    sql("UPDATE task_item SET status_id = 0, id_worker = NULL WHERE id_task_item = %s", [items[1]])
    assert keys(picker, worker, 1) == [items[4]]
    monkeypatch.setattr(picker_module, "REFRESH_SECONDS", 0.0)
    monkeypatch.setattr(picker_module, "RESET_SECONDS", 0.0)
    time.sleep(0.001)  # both are measured in time that has passed
    assert keys(picker, worker, 2) == [items[1], items[5]]


def test_a_start_from_anew_goes_on_from_there(application: Application, worker: int, task: int, picker: Picker, sql: Sql) -> None:
    items = application.items(task, 8)
    picker.take(worker, 7)
    sql("UPDATE task_item SET status_id = 0, id_worker = NULL WHERE id_task_item < %s", [items[5]])
    assert keys(picker, worker, 3) == [items[7], items[0], items[1]]
    assert keys(picker, worker, 2) == items[2:4]
    assert picker._watermarks == {task: items[3]}


def test_a_model_without_room_is_passed_over(
    application: Application, worker: int, room: defaultdict[int, int], picker: Picker
) -> None:
    full, free = application.model(), application.model()
    first, second = application.items(application.task(full), 3), application.items(application.task(free), 3)
    room[full] = 1
    assert keys(picker, worker, 9) == [first[0], *second]
    room[full] = 0
    picker.forget()
    assert keys(picker, worker, 9) == []
    room[full] = 9
    assert keys(picker, worker, 9) == first[1:]


def test_a_stopped_model_is_tried_with_one_item(application: Application, worker: int, picker: Picker) -> None:
    stopped = application.model(stopped_at="2020-01-01", stopped_kind="quota", stopped_reason="x", probe_at="2020-01-02")
    items = application.items(application.task(stopped), 5)
    assert keys(picker, worker, 5) == items[:1]
    assert keys(picker, worker, 5) == []


def test_one_named_item_is_all_that_is_taken(application: Application, queue: Queue, worker: int, task: int) -> None:
    items = application.items(task, 3)
    picker = Picker(queue, Filters(id_task=task, id_task_item=items[1]), lambda _: 9, list)
    assert keys(picker, worker, 9) == [items[1]]
    assert keys(picker, worker, 9) == []


def test_idle_workers_see_items_inserted_into_an_ended_task(
    application: Application, queue: Queue, worker: int, task: int, picker: Picker
) -> None:
    application.items(task)
    (item,) = picker.take(worker, 5)
    queue.commit(worker, [done(item)])
    assert picker.take(worker, 5) == []
    assert application.task_status(task) is TaskStatus.COMPLETED
    new = application.items(task, 2)
    assert keys(picker, worker, 5) == new


def test_two_pickers_share_a_task(application: Application, queue: Queue, task: int, picker: Picker) -> None:
    items = application.items(task, 40)
    other = Picker(queue, Filters(), lambda _: 1000, list)
    workers = [register(queue), register(queue)]
    taken = [
        key
        for _ in range(5)
        for each, id_worker in zip((picker, other), workers, strict=True)
        for key in keys(each, id_worker, 4)
    ]
    assert sorted(taken) == items
    assert claim(queue, workers[0]) == []
