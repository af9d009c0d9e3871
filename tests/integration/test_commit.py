"""How attempts end: every outcome's effect on item, attempt, task and counters. Dead workers stand in test_rescue.py."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from ai_worker.models import NO_USAGE, Filters, Item, ItemStatus, Outcome, TaskStatus, Usage
from ai_worker.store.committing import Committed
from ai_worker.store.ledger import LATE, EndedTask, uuid_bytes
from ai_worker.store.queue import Queue
from tests.integration.lifecycle import (
    COST,
    POLISH,
    Application,
    Sql,
    assert_ledger,
    claim,
    done,
    failed,
    failed_once,
    postponed,
    register,
    snapshot,
)

pytest_plugins = ["tests.integration.lifecycle"]


@pytest.fixture(autouse=True)
def _ledger_at_the_end(sql: Sql) -> Any:
    """Whatever a test did, all tables agree with each other at its end."""
    yield
    assert_ledger(sql)


# ----- commit


def test_a_result_is_stored(application: Application, queue: Queue, worker: int, claimed_item: Item) -> None:
    outcome = done(claimed_item, "Wynik", data={"text": "Wynik", "zmiany": [1, 2]})
    report = queue.commit(worker, [outcome])
    assert (report.stored, report.lost) == ([outcome], [])
    row = application.item_row(claimed_item.id_task_item)
    assert row["status_id"] == ItemStatus.PROCESSED
    assert (row["id_worker"], row["attempt"], row["lost_count"], row["available_at"]) == (None, 1, 0, None)
    assert (row["text_corrected"], row["change_summary"]) == ("Wynik", "poprawiono")
    assert json.loads(row["result"]) == {"text": "Wynik", "zmiany": [1, 2]}
    assert (row["error_kind"], row["error_message"]) == (None, None)
    assert (row["tokens_input"], row["tokens_output"], row["cost"]) == (100, 20, COST)
    assert row["finished_at"] >= row["created_at"]
    assert row["text_original"] == claimed_item.text_original
    (attempt,) = application.attempts(claimed_item.id_task_item)
    assert attempt["operation_uuid"] == uuid_bytes(claimed_item.operation_uuid)
    assert (attempt["attempt"], attempt["id_worker"], attempt["outcome"]) == (1, worker, "processed")
    assert (attempt["tokens_cached"], attempt["tokens_reasoning"], attempt["latency_ms"]) == (40, 5, 250)
    assert attempt["id_ai_model"] == claimed_item.task.id_ai_model
    task = application.task_row(claimed_item.task.id_task)
    assert (task["records_processed"], task["records_failed"]) == (1, 0)
    assert (task["tokens_input"], task["tokens_output"], task["cost"]) == (100, 20, COST)


def test_a_failure_defers_the_item_and_the_next_attempt_is_charged(
    application: Application, queue: Queue, worker: int, claimed_item: Item, sql: Sql
) -> None:
    queue.commit(worker, [failed_once(claimed_item, delay=12.5)])
    row = application.item_row(claimed_item.id_task_item)
    assert row["status_id"] == ItemStatus.DEFERRED
    assert (row["attempt"], row["id_worker"], row["finished_at"]) == (1, None, None)
    assert (row["error_kind"], row["error_message"]) == ("bad_answer", "odpowiedź była pusta")
    delay = row["available_at"] - sql("SELECT UTC_TIMESTAMP(6) AS now")[0]["now"]
    assert timedelta(seconds=10) < delay <= timedelta(seconds=12.5)
    task = application.task_row(claimed_item.task.id_task)
    assert (task["status_id"], task["records_processed"], task["records_failed"]) == (TaskStatus.IN_PROGRESS, 0, 0)
    assert (task["tokens_input"], task["cost"]) == (100, COST)
    assert claim(queue, worker) == []
    assert 5 < (queue.next_due() or 0) <= 12.5
    assert queue.promote_due() == 0
    application.make_due()
    assert (queue.next_due() or 0) < 0
    assert queue.promote_due() == 1
    (again,) = claim(queue, worker)
    assert (again.attempt, again.tries) == (2, 2)
    queue.commit(worker, [done(again)])
    row = application.item_row(claimed_item.id_task_item)
    assert (row["attempt"], row["tokens_input"], row["cost"]) == (2, 200, 2 * COST)
    assert (row["error_kind"], row["error_message"]) == (None, None)
    assert [each["outcome"] for each in application.attempts(claimed_item.id_task_item)] == ["retry", "processed"]


def test_the_last_attempt_becomes_a_dead_letter(application: Application, queue: Queue, worker: int, model: int) -> None:
    id_task = application.task(model, max_attempts=2)
    (item,) = application.items(id_task)
    for expected in (ItemStatus.DEFERRED, ItemStatus.ERROR):
        (claimed,) = claim(queue, worker)
        report = queue.commit(worker, [failed_once(claimed)])
        assert application.item_status(item) is expected
        application.make_due()
        queue.promote_due()
    assert report.ended == [EndedTask(id_task, TaskStatus.ERROR, 0, 1)]
    row = application.item_row(item)
    assert row["finished_at"] is not None
    assert (row["error_kind"], row["attempt"], row["available_at"]) == ("bad_answer", 2, None)
    assert [each["outcome"] for each in application.attempts(item)] == ["retry", "failed"]


def test_a_failure_for_good_is_a_dead_letter_at_once(
    application: Application, queue: Queue, worker: int, claimed_item: Item
) -> None:
    queue.commit(worker, [failed(claimed_item)])
    row = application.item_row(claimed_item.id_task_item)
    assert (row["status_id"], row["error_kind"], row["error_message"]) == (ItemStatus.ERROR, "content_refused", "odmówiono")
    assert row["cost"] is None
    task = application.task_row(claimed_item.task.id_task)
    assert (task["status_id"], task["records_failed"], task["cost"]) == (TaskStatus.ERROR, 1, None)


def test_a_postponed_item_waits_uncharged(application: Application, queue: Queue, worker: int, claimed_item: Item) -> None:
    queue.commit(worker, [postponed(claimed_item)])
    row = application.item_row(claimed_item.id_task_item)
    assert (row["status_id"], row["attempt"], row["claim_token"]) == (ItemStatus.DEFERRED, 0, None)
    assert (row["error_kind"], row["error_message"]) == ("rate_limited", "429")
    application.make_due()
    queue.promote_due()
    (again,) = claim(queue, worker)
    assert (again.attempt, again.is_last_attempt) == (1, False)
    queue.commit(worker, [done(again)])
    assert {each["outcome"] for each in application.attempts(again.id_task_item)} == {"postponed", "processed"}


def test_a_released_item_is_as_if_never_claimed(application: Application, queue: Queue, worker: int, item: int, sql: Sql) -> None:
    before = application.item_row(item)
    (claimed,) = claim(queue, worker)
    queue.commit(worker, [Outcome.released(claimed)])
    assert application.item_row(item) == before
    assert application.attempts(item) == []
    assert application.task_status(claimed.task.id_task) is TaskStatus.IN_PROGRESS
    assert claim(queue, worker)[0].attempt == 1


def test_a_group_of_all_kinds_in_several_tasks(application: Application, queue: Queue, worker: int, model: int) -> None:
    first, second = application.task(model), application.task(model)
    for each in (first, second):
        application.items(each, 5)
    items = claim(queue, worker, 10)
    makers: list[Callable[[Item], Outcome]] = [done, failed_once, failed, postponed, Outcome.released]
    report = queue.commit(worker, [make(item) for item, make in zip(items, makers * 2, strict=True)])
    assert len(report.stored) == 10
    assert report.ended == []
    for id_task in (first, second):
        row = application.task_row(id_task)
        assert (row["records_processed"], row["records_failed"], row["tokens_input"]) == (1, 1, 300)
        assert row["status_id"] == TaskStatus.IN_PROGRESS
    expected = [ItemStatus.PROCESSED, ItemStatus.DEFERRED, ItemStatus.ERROR, ItemStatus.DEFERRED, ItemStatus.PENDING]
    assert [application.item_status(item.id_task_item) for item in items] == expected * 2


def test_an_empty_group_is_nothing(queue: Queue, worker: int) -> None:
    assert queue.commit(worker, []) == Committed()


def test_tasks_of_which_more_is_held_are_not_looked_at(application: Application, queue: Queue, worker: int, task: int) -> None:
    application.items(task, 2)
    one, two = claim(queue, worker, 2)
    assert queue.commit(worker, [done(one)], held_tasks=[task]).ended == []
    assert queue.commit(worker, [done(two)]).ended == [EndedTask(task, TaskStatus.COMPLETED, 2, 0)]


def test_two_hundred_results_in_one_group(application: Application, queue: Queue, worker: int, task: int) -> None:
    items = application.items(task, 200)
    report = queue.commit(worker, [done(item, f"{POLISH} {item.id_task_item}") for item in claim(queue, worker, 200)])
    assert report.ended == [EndedTask(task, TaskStatus.COMPLETED, 200, 0)]
    for item in items[::20]:
        assert application.item_row(item)["text_corrected"] == f"{POLISH} {item}"
    assert application.task_row(task)["cost"] == 200 * COST


def test_costs_are_exact_and_stay_unknown_when_unknown(application: Application, queue: Queue, worker: int, task: int) -> None:
    application.items(task, 4)
    a, b, c, d = claim(queue, worker, 4)
    queue.commit(worker, [done(a, cost=None)])
    assert application.item_row(a.id_task_item)["cost"] is None
    assert application.task_row(task)["cost"] is None
    queue.commit(worker, [done(b, cost=Decimal("0.000000001")), done(c, cost=None)])
    assert application.task_row(task)["cost"] == Decimal("0.000000001")
    queue.commit(worker, [done(d, cost=Decimal("123456789.123456789"))])
    assert application.task_row(task)["cost"] == Decimal("123456789.123456790")
    assert application.item_row(d.id_task_item)["cost"] == Decimal("123456789.123456789")


def test_a_commit_repeated_changes_nothing(application: Application, queue: Queue, worker: int, task: int, sql: Sql) -> None:
    application.items(task, 5)
    items = claim(queue, worker, 5)
    makers: list[Callable[[Item], Outcome]] = [done, failed_once, failed, postponed, Outcome.released]
    group = [make(item) for item, make in zip(items, makers, strict=True)]
    first = queue.commit(worker, group)
    before = snapshot(sql)
    second = queue.commit(worker, group)
    assert snapshot(sql) == before
    assert (len(first.stored), len(second.stored), second.lost) == (5, 5, [])


def test_the_commit_that_ended_a_task_repeated_reports_its_end_again_and_changes_nothing(
    queue: Queue, worker: int, claimed_item: Item, sql: Sql
) -> None:
    first = queue.commit(worker, [done(claimed_item)])
    before = snapshot(sql)
    assert queue.commit(worker, [done(claimed_item)]).ended == first.ended
    assert snapshot(sql) == before


# ----- claims that are over


def test_a_result_for_an_item_that_somebody_else_has_claimed_is_refused_and_paid_for(
    application: Application, queue: Queue, worker: int, claimed_item: Item
) -> None:
    application.kill_worker(worker)
    assert queue.rescue().items == 1
    other = register(queue)
    (again,) = claim(queue, other)
    late = done(claimed_item, "za późno")
    report = queue.commit(worker, [late])
    assert (report.stored, report.lost, report.ended) == ([], [late], [])
    row = application.item_row(again.id_task_item)
    assert (row["status_id"], row["id_worker"], row["text_corrected"]) == (ItemStatus.IN_PROGRESS, other, None)
    assert (row["tokens_input"], row["cost"]) == (100, COST)
    (attempt,) = application.attempts(again.id_task_item)
    assert (attempt["outcome"], attempt["error_kind"], attempt["tokens_input"], attempt["cost"]) == ("lost", LATE, 100, COST)
    assert queue.commit(other, [done(again)]).stored
    assert application.task_row(again.task.id_task)["tokens_input"] == 200


def test_a_refused_result_handed_in_again_is_paid_for_once(
    queue: Queue, application: Application, worker: int, claimed_item: Item, sql: Sql
) -> None:
    """As after a COMMIT whose answer was lost."""
    application.kill_worker(worker)
    queue.rescue()
    claim(queue, register(queue))
    late = done(claimed_item)
    queue.commit(worker, [late])
    before = snapshot(sql)
    assert queue.commit(worker, [late]).lost == [late]
    assert snapshot(sql) == before


def test_two_refused_results_of_one_item_in_one_group_are_both_paid_for(
    queue: Queue, application: Application, worker: int, claimed_item: Item
) -> None:
    application.kill_worker(worker)
    queue.rescue()
    second = register(queue)
    (again,) = claim(queue, second)
    application.kill_worker(second)
    queue.rescue()
    claim(queue, register(queue))
    assert len(queue.commit(worker, [done(claimed_item), done(again)]).lost) == 2
    assert application.item_row(again.id_task_item)["tokens_input"] == 200


def test_what_is_said_of_a_claim_that_was_released_is_not_heard(
    application: Application, queue: Queue, worker: int, claimed_item: Item, sql: Sql
) -> None:
    """The same attempt number again, but another token: the fence needs both."""
    queue.commit(worker, [Outcome.released(claimed_item)])
    (again,) = claim(queue, worker)
    assert again.attempt == claimed_item.attempt
    before = snapshot(sql)
    late = Outcome.failed(claimed_item, "invalid_request", "x", NO_USAGE, None, 1)
    assert queue.commit(worker, [late]).lost == [late]
    assert queue.commit(worker, [Outcome.released(claimed_item)]).lost == []
    assert snapshot(sql) == before
    assert queue.commit(worker, [done(again)]).stored


# ----- rows that go away, tasks that are cancelled


def test_an_item_deleted_in_mid_flight_is_paid_for_by_its_task(
    application: Application, queue: Queue, worker: int, task: int, sql: Sql
) -> None:
    application.items(task, 2)
    gone, kept = claim(queue, worker, 2)
    sql("DELETE FROM task_item WHERE id_task_item = %s", [gone.id_task_item])
    assert queue.commit(worker, [done(kept)], held_tasks=[task]).ended == []
    report = queue.commit(worker, [done(gone)])
    assert (report.stored, len(report.lost)) == ([], 1)
    assert report.ended == [EndedTask(task, TaskStatus.COMPLETED, 1, 0)]
    assert application.task_row(task)["tokens_input"] == 200


def test_a_task_deleted_in_mid_flight_harms_nobody(
    application: Application, queue: Queue, worker: int, model: int, claimed_item: Item, sql: Sql
) -> None:
    application.items(application.task(model))
    (other,) = claim(queue, worker)
    sql("DELETE FROM task WHERE id_task = %s", [claimed_item.task.id_task])
    report = queue.commit(worker, [done(claimed_item), done(other)])
    assert report.ended == [EndedTask(other.task.id_task, TaskStatus.COMPLETED, 1, 0)]
    assert application.item_status(claimed_item.id_task_item) is ItemStatus.PROCESSED


def test_a_paused_tasks_items_in_flight_are_stored_and_the_last_one_ends_it(
    application: Application, queue: Queue, worker: int, claimed_item: Item, sql: Sql
) -> None:
    id_task = claimed_item.task.id_task
    sql("UPDATE task SET status_id = 4, status_reason = 'paused' WHERE id_task = %s", [id_task])
    assert queue.commit(worker, [done(claimed_item)]).ended == [EndedTask(id_task, TaskStatus.COMPLETED, 1, 0)]
    assert application.task_row(id_task)["status_reason"] is None


def test_a_cancelled_tasks_items_in_flight_are_stored_and_the_last_one_finishes_it(
    application: Application, queue: Queue, worker: int, task: int, sql: Sql
) -> None:
    application.items(task, 2)
    one, two = claim(queue, worker, 2)
    sql("UPDATE task SET status_id = 5, status_reason = 'cancelled' WHERE id_task = %s", [task])
    assert queue.commit(worker, [done(one)]).ended == []
    assert application.task_row(task)["finished_at"] is None
    assert queue.commit(worker, [done(two)]).ended == [EndedTask(task, TaskStatus.CANCELLED, 2, 0)]
    row = application.task_row(task)
    assert (row["status_id"], row["status_reason"]) == (TaskStatus.CANCELLED, "cancelled")
    assert row["finished_at"] is not None


@pytest.mark.parametrize("make", [failed_once, postponed, Outcome.released])
def test_what_is_given_back_to_a_cancelled_task_is_cancelled_with_it(
    application: Application, queue: Queue, worker: int, claimed_item: Item, sql: Sql, make: Any
) -> None:
    id_task = claimed_item.task.id_task
    sql("UPDATE task SET status_id = 5 WHERE id_task = %s", [id_task])
    report = queue.commit(worker, [make(claimed_item)])
    assert report.ended == [EndedTask(id_task, TaskStatus.CANCELLED, 0, 0)]
    assert application.item_status(claimed_item.id_task_item) is ItemStatus.CANCELLED
    assert application.task_row(id_task)["finished_at"] is not None


def test_a_task_without_open_items_that_nobody_ended_is_ended(
    application: Application, queue: Queue, worker: int, task: int, sql: Sql
) -> None:
    application.items(task, 2)
    claimed, gone = claim(queue, worker, 2)
    queue.commit(worker, [done(claimed)])
    sql("DELETE FROM task_item WHERE id_task_item = %s", [gone.id_task_item])
    assert queue.end_forgotten() == [EndedTask(task, TaskStatus.COMPLETED, 1, 0)]
    assert queue.end_forgotten() == []


def test_what_filters_leave_open(application: Application, queue: Queue, worker: int, task: int, item: int) -> None:
    other = application.task(application.model())
    application.items(other, 3)
    for each in claim(queue, worker, 2, filters=Filters(id_task=other)):
        queue.commit(worker, [failed_once(each, 30.0)])
    everything = queue.waiting(Filters())
    assert (everything.pending, everything.deferred) == (2, 2)
    assert 20 < (everything.due_seconds or 0) <= 30
    assert queue.waiting(Filters(id_task=task)).pending == 1
    assert queue.waiting(Filters(id_task=task)).due_seconds is None
    assert queue.waiting(Filters(id_task=other, id_task_item=item)).pending == 0
    assert queue.others_at_work(worker, Filters()) == []
    claim(queue, worker, filters=Filters(id_task=task))
    (silent,) = queue.others_at_work(register(queue), Filters())
    assert 0 <= silent < 10
    assert queue.others_at_work(register(queue), Filters(id_task=other)) == []


def test_tokens_of_free_calls_are_no_tokens(application: Application, queue: Queue, worker: int, claimed_item: Item) -> None:
    queue.commit(worker, [done(claimed_item, usage=Usage(), cost=Decimal(0))])
    row = application.item_row(claimed_item.id_task_item)
    assert (row["tokens_input"], row["cost"]) == (0, Decimal(0))
