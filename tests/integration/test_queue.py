"""What workers see of rows that applications insert, and how they claim them. Races stand in test_queue_races.py."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from typing import Any

import pymysql
import pytest

from ai_worker.db import statements
from ai_worker.models import Filters, Item, ItemStatus, TaskStatus
from ai_worker.store.ledger import EndedTask, operation_uuid
from ai_worker.store.queue import Queue
from tests.integration.lifecycle import (
    POLISH,
    Application,
    Sql,
    assert_ledger,
    claim,
    done,
    register,
    snapshot,
)

pytest_plugins = ["tests.integration.lifecycle"]


@pytest.fixture(autouse=True)
def _ledger_at_the_end(sql: Sql) -> Any:
    """Whatever a test did, all tables agree with each other at its end."""
    yield
    assert_ledger(sql)


# ----- rows from another application


def test_a_task_with_a_description_and_an_item_with_a_text_are_enough(
    application: Application, queue: Queue, worker: int, model: int
) -> None:
    id_task = application.task(model)
    assert application.task_row(id_task)["task_type"] == "correction"
    first, second = application.items(id_task, [POLISH, "two"])
    items = claim(queue, worker, 10)
    assert [(item.id_task_item, item.text_original) for item in items] == [(first, POLISH), (second, "two")]
    assert items[0].task.description == "Popraw błędy"
    assert items[0].context == items[0].task.parameters == {}
    report = queue.commit(worker, [done(item) for item in items])
    assert report.ended == [EndedTask(id_task, TaskStatus.COMPLETED, 2, 0)]
    row = application.task_row(id_task)
    assert row["created_at"] <= row["started_at"] <= row["finished_at"]


def test_an_item_may_come_before_its_task(application: Application, queue: Queue, worker: int, model: int, sql: Sql) -> None:
    later = sql("SELECT COALESCE(MAX(id_task), 0) + 1000 AS id FROM task")[0]["id"]
    (item,) = application.items(later)
    assert claim(queue, worker) == []
    application.task(model, id_task=later)
    assert [each.id_task_item for each in claim(queue, worker)] == [item]


def test_items_inserted_into_a_completed_task_reopen_it_and_it_completes_again(
    application: Application, queue: Queue, worker: int, processed_item: Item
) -> None:
    id_task = processed_item.task.id_task
    before = application.task_row(id_task)
    assert before["status_id"] == TaskStatus.COMPLETED
    newest = queue.newest_item()
    (new,) = application.items(id_task)
    assert claim(queue, worker) == []
    assert queue.reopen_for_new_items(newest) == 1
    reopened = application.task_row(id_task)
    assert (reopened["status_id"], reopened["finished_at"]) == (TaskStatus.IN_PROGRESS, None)
    (item,) = claim(queue, worker)
    assert item.id_task_item == new
    assert queue.commit(worker, [done(item)]).ended == [EndedTask(id_task, TaskStatus.COMPLETED, 2, 0)]
    after = application.task_row(id_task)
    assert after["started_at"] == before["started_at"]
    assert after["finished_at"] > before["finished_at"]


def test_a_claim_from_a_completed_task_reopens_it_too(
    application: Application, queue: Queue, worker: int, processed_item: Item
) -> None:
    """A worker may still have it on its list from a moment ago."""
    application.items(processed_item.task.id_task)
    (item,) = queue.claim(worker, [processed_item.task], 5)
    row = application.task_row(item.task.id_task)
    assert (row["status_id"], row["finished_at"]) == (TaskStatus.IN_PROGRESS, None)


def test_context_and_parameters_come_along(application: Application, queue: Queue, worker: int, model: int, sql: Sql) -> None:
    id_task = application.task(model, task_type="translation", parameters='{"to": "pl", "ton": "życzliwy"}', max_attempts=7)
    (item,) = application.items(id_task)
    sql("UPDATE task_item SET context = %s WHERE id_task_item = %s", ['{"klucz": ["ą", 1, null]}', item])
    (claimed,) = claim(queue, worker)
    assert claimed.task.parameters == {"to": "pl", "ton": "życzliwy"}
    assert claimed.context == {"klucz": ["ą", 1, None]}
    assert (claimed.task.task_type, claimed.task.max_attempts) == ("translation", 7)


# ----- claim


def test_a_claim_marks_owner_token_and_attempt_before_work_starts(
    application: Application, worker: int, claimed_item: Item
) -> None:
    row = application.item_row(claimed_item.id_task_item)  # read over another connection: committed
    assert row["status_id"] == ItemStatus.IN_PROGRESS
    assert (row["id_worker"], row["claim_token"], row["attempt"]) == (worker, claimed_item.claim_token, 1)
    assert (claimed_item.attempt, claimed_item.lost_count, claimed_item.tries) == (1, 0, 1)
    assert claimed_item.operation_uuid == operation_uuid(row["claim_token"], row["id_task_item"])
    parsed = uuid.UUID(claimed_item.operation_uuid)
    assert (str(parsed), parsed.version, parsed.variant) == (claimed_item.operation_uuid, 8, uuid.RFC_4122)
    assert application.attempts(claimed_item.id_task_item) == []
    task = application.task_row(claimed_item.task.id_task)
    assert (task["status_id"], task["finished_at"]) == (TaskStatus.IN_PROGRESS, None)
    assert task["started_at"] is not None


def test_what_is_claimed_is_not_claimed_again(application: Application, queue: Queue, worker: int, task: int) -> None:
    application.items(task, 5)
    first = claim(queue, worker, 3)
    second = claim(queue, register(queue), 9)
    assert len(first) == 3
    assert len(second) == 2
    assert not {each.id_task_item for each in first} & {each.id_task_item for each in second}
    assert len({each.operation_uuid for each in first + second}) == 5


@pytest.mark.parametrize(
    "columns", [{"status_id": 4}, {"status_id": 5}, {"scheduled_at": "2999-01-01"}], ids=["paused", "cancelled", "scheduled"]
)
def test_tasks_that_are_held_back_are_not_claimed_from(
    application: Application, queue: Queue, worker: int, model: int, columns: dict[str, Any]
) -> None:
    application.items(application.task(model, **columns))
    assert queue.runnable(Filters()) == []


@pytest.mark.parametrize("status", [TaskStatus.PAUSED, TaskStatus.CANCELLED])
def test_a_task_held_back_a_moment_ago_is_not_claimed_from(
    application: Application, queue: Queue, worker: int, task: int, item: int, sql: Sql, status: TaskStatus
) -> None:
    known = queue.runnable(Filters())
    sql("UPDATE task SET status_id = %s WHERE id_task = %s", [status, task])
    assert queue.claim(worker, known, 5) == []
    assert application.item_status(item) is ItemStatus.PENDING


def test_of_many_tasks_only_those_not_held_back_are_claimed_from(
    application: Application, queue: Queue, worker: int, model: int, sql: Sql
) -> None:
    tasks = [application.task(model) for _ in range(4)]
    items = {id_task: application.items(id_task, 2) for id_task in tasks}
    known = queue.runnable(Filters())
    sql("UPDATE task SET status_id = 4 WHERE id_task = %s", [tasks[1]])
    claimed = {each.id_task_item for each in queue.claim(worker, known, 100)}
    assert claimed == {*items[tasks[0]], *items[tasks[2]], *items[tasks[3]]}


def test_a_scheduled_task_is_claimed_from_when_its_time_has_come(
    application: Application, queue: Queue, worker: int, model: int
) -> None:
    application.items(application.task(model, scheduled_at="2020-01-01"))
    assert len(claim(queue, worker)) == 1


def test_a_stopped_or_inactive_model_is_not_claimed_for(application: Application, queue: Queue, sql: Sql) -> None:
    for columns in (
        {"is_active": 0},
        {"stopped_at": "2020-01-01", "stopped_kind": "quota_exhausted", "stopped_reason": "x", "probe_at": "2999-01-01"},
    ):
        application.items(application.task(application.model(**columns)))
    assert queue.runnable(Filters()) == []


def test_a_stopped_model_is_probed_by_one_worker_only(application: Application, queue: Queue, sql: Sql) -> None:
    id_ai_model = application.model(stopped_at="2020-01-01", stopped_kind="quota", stopped_reason="x", probe_at="2020-01-02")
    application.items(application.task(id_ai_model), 3)
    (task,) = queue.runnable(Filters())
    assert task.is_probe
    assert [queue.take_probe(id_ai_model) for _ in range(3)] == [True, False, False]
    assert queue.runnable(Filters()) == []
    seconds = sql(
        "SELECT TIMESTAMPDIFF(SECOND, UTC_TIMESTAMP(6), probe_at) AS s FROM ai_model WHERE id_ai_model = %s", [id_ai_model]
    )
    assert 50 <= seconds[0]["s"] <= 60
    assert not queue.take_probe(application.model())  # one that runs needs no probe


def test_busy_models_are_left_out(application: Application, queue: Queue) -> None:
    one, two = application.model(), application.model()
    first, second = application.task(one), application.task(two)
    for each in (first, second):
        application.items(each)
    assert [task.id_task for task in queue.runnable(Filters(), busy_models=[one])] == [second]


def test_the_highest_priority_comes_first_then_the_oldest(
    application: Application, queue: Queue, worker: int, model: int
) -> None:
    tasks = [application.task(model, priority=priority) for priority in (0, 7, -3, 7, 0)]
    for id_task in reversed(tasks):
        application.items(id_task)
    claim_one = queue.runnable(Filters())[1]  # a task in progress has no advantage over a new one
    queue.claim(worker, [claim_one], 1)
    application.items(claim_one.id_task)
    order = [task.id_task for task in queue.runnable(Filters())]
    assert order == [tasks[1], tasks[3], tasks[0], tasks[4], tasks[2]]
    assert [item.task.id_task for item in claim(queue, worker, 9)] == order


def test_filters(application: Application, queue: Queue, worker: int) -> None:
    polish, other = application.model("Łódź"), application.model()
    a = application.task(polish)
    b = application.task(polish, task_type="summary")
    c = application.task(other)
    items = {each: application.items(each, 3) for each in (a, b, c)}

    def found(**filters: Any) -> list[int]:
        return [task.id_task for task in queue.runnable(Filters(**filters))]

    assert found() == [a, b, c]
    assert found(id_task=b) == [b]
    assert found(task_types=("summary",)) == [b]
    assert found(task_types=("summary", "correction")) == [a, b, c]
    assert found(models=("Łódź",)) == [a, b]
    assert found(models=("Łódź",), task_types=("correction",)) == [a]
    assert found(id_task=c, models=("Łódź",)) == []
    (only,) = claim(queue, worker, 9, filters=Filters(id_task=b, id_task_item=items[b][1]))
    assert only.id_task_item == items[b][1]
    assert claim(queue, worker, 9, filters=Filters(id_task=b, id_task_item=items[b][1])) == []


def test_the_watermark_passes_over_what_lies_behind_it(application: Application, queue: Queue, worker: int, task: int) -> None:
    items = application.items(task, 6)
    (known,) = queue.runnable(Filters())
    assert [each.id_task_item for each in queue.claim(worker, [known], 2, after=items[2])] == items[3:5]
    assert queue.claim(worker, [known], 2, after=items[5]) == []
    assert [each.id_task_item for each in queue.claim(worker, [known], 9)] == [*items[:3], items[5]]


def test_a_preview_shows_what_a_claim_would_get_and_changes_nothing(
    application: Application, queue: Queue, worker: int, task: int, sql: Sql
) -> None:
    items = application.items(task, 3)
    before = snapshot(sql)
    (known,) = queue.runnable(Filters())
    preview = list(queue.preview(known))
    assert snapshot(sql) == before
    claimed = claim(queue, worker, 9)
    for seen, got in zip(preview, claimed, strict=True):
        assert (seen.id_task_item, seen.text_original, seen.attempt) == (got.id_task_item, got.text_original, got.attempt)
    assert [each.id_task_item for each in preview] == items


# ----- claims in a crowd


def test_a_slow_claim_is_taken_for_a_crowd_and_claims_then_go_one_at_a_time(
    application: Application, queue: Queue, worker: int, task: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    application.items(task, 3)
    monkeypatch.setattr("ai_worker.store.crowd.CROWD_SECONDS", 0.0)
    assert len(claim(queue, worker)) == 1
    assert queue._claims._crowd._lasts_until > time.monotonic()
    monkeypatch.setattr("ai_worker.store.crowd.CROWD_SECONDS", 60.0)
    with holding_the_claims_turn(queue) as free:
        began = time.monotonic()
        threading.Timer(0.5, free).start()
        assert len(claim(queue, worker)) == 1
        assert time.monotonic() - began > 0.4
    assert len(claim(queue, worker)) == 1
    with holding_the_claims_turn(queue):  # it was given back
        pass


def test_a_turn_whose_holder_is_dead_is_waited_for_once(
    application: Application, queue: Queue, worker: int, task: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    application.items(task, 2)
    monkeypatch.setattr("ai_worker.store.crowd.CROWD_PATIENCE", 1)
    monkeypatch.setattr("ai_worker.store.crowd.CROWD_SECONDS", 60.0)  # nor is there a new one, however slow this machine
    queue._claims._crowd._lasts_until = float("inf")
    with holding_the_claims_turn(queue):
        assert len(claim(queue, worker)) == 1
        began = time.monotonic()
        assert len(claim(queue, worker)) == 1
        assert time.monotonic() - began < 0.9


def test_where_turns_are_refused_a_claim_goes_ahead(
    application: Application, queue: Queue, worker: int, task: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    application.items(task, 1)
    monkeypatch.setitem(statements(), "take_claim_turn", "SELECT no_such_function(%(name)s, %(seconds)s) AS turn")  # type: ignore[arg-type]  # a dict, though nobody is to write to it
    queue._claims._crowd._lasts_until = float("inf")
    assert len(claim(queue, worker)) == 1
    assert queue._claims._crowd._lasts_until == 0.0


@contextmanager
def holding_the_claims_turn(queue: Queue) -> Iterator[Callable[[], None]]:
    """Another session has the turn; call what it yields to end that."""
    url = queue._db.url
    name = f"ai_worker.claim.{sha256(url.database.encode()).hexdigest()[:40]}"
    host, port = url.hosts[0]
    other = pymysql.connect(host=host, port=port, user=url.user, password=url.password.reveal(), ssl_disabled=True)
    with other.cursor() as cursor:
        assert cursor.execute("SELECT GET_LOCK(%s, 1)", [name])
        assert cursor.fetchone() == (1,)
    try:
        yield other.close
    finally:
        if other.open:
            other.close()
