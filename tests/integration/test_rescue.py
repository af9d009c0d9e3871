"""Dead workers: their items are given back, counted apart from failures, and a result that comes late still counts once."""

from __future__ import annotations

from typing import Any

import pymysql
import pytest

from ai_worker.db import Database
from ai_worker.models import NO_USAGE, Filters, Item, ItemStatus, Outcome, TaskStatus
from ai_worker.store.ledger import MAX_LOSSES, EndedTask, give_back, uuid_bytes
from ai_worker.store.queue import RESCUE_ROWS, Queue
from tests.integration.lifecycle import (
    COST,
    PROCESS,
    Application,
    Sql,
    assert_ledger,
    claim,
    done,
    failed,
    failed_once,
    register,
    snapshot,
)
from tests.servers import TestServer

pytest_plugins = ["tests.integration.lifecycle"]


@pytest.fixture(autouse=True)
def _ledger_at_the_end(sql: Sql) -> Any:
    """Whatever a test did, all tables agree with each other at its end."""
    yield
    assert_ledger(sql)


@pytest.fixture
def lost_item(application: Application, queue: Queue, worker: int, claimed_item: Item) -> Item:
    """An item whose worker is thought dead, given back and not yet claimed again."""
    application.kill_worker(worker)
    assert queue.rescue().items == 1
    return claimed_item


def test_a_live_worker_keeps_its_items(queue: Queue, claimed_item: Item) -> None:
    report = queue.rescue()
    assert (report.id_worker, report.items, report.more) == (None, 0, False)


def test_items_of_a_dead_worker_are_given_back_uncharged(
    application: Application, queue: Queue, worker: int, lost_item: Item
) -> None:
    row = application.item_row(lost_item.id_task_item)
    assert row["status_id"] == ItemStatus.PENDING
    assert (row["id_worker"], row["attempt"], row["lost_count"], row["error_kind"]) == (None, 1, 1, "lost")
    (attempt,) = application.attempts(lost_item.id_task_item)
    assert attempt["operation_uuid"] == uuid_bytes(lost_item.operation_uuid)
    assert (attempt["outcome"], attempt["id_worker"], attempt["tokens_input"], attempt["cost"]) == ("lost", worker, 0, None)
    dead = application.row("worker", worker)
    assert dead["lost_at"] is not None
    assert dead["ended_at"] is not None
    assert not queue.beat(worker, **PROCESS, lease_seconds=30, in_flight=0, processed=0, failed=0)
    assert not queue.rescue().more
    (again,) = claim(queue, register(queue))
    assert (again.attempt, again.lost_count, again.tries, again.is_last_attempt) == (2, 1, 1, False)


def test_losses_cost_no_attempt(application: Application, queue: Queue, model: int) -> None:
    (item,) = application.items(application.task(model, max_attempts=1))
    for _ in range(MAX_LOSSES - 1):
        worker = register(queue)
        (claimed,) = claim(queue, worker)
        assert claimed.is_last_attempt
        application.kill_worker(worker)
        queue.rescue()
    worker = register(queue)
    (claimed,) = claim(queue, worker)
    assert claimed.lost_count == MAX_LOSSES - 1
    queue.commit(worker, [done(claimed)])
    assert application.item_status(item) is ItemStatus.PROCESSED


def test_an_item_lost_too_often_is_set_aside(application: Application, queue: Queue, task: int, item: int) -> None:
    claimed = None
    for _ in range(MAX_LOSSES):
        worker = register(queue)
        (claimed,) = claim(queue, worker)
        application.kill_worker(worker)
        report = queue.rescue()
    assert report.ended == [EndedTask(task, TaskStatus.ERROR, 0, 1)]
    row = application.item_row(item)
    assert (row["status_id"], row["error_kind"], row["lost_count"]) == (ItemStatus.ERROR, "lost", MAX_LOSSES)
    assert f"{MAX_LOSSES} times" in row["error_message"]
    # It was not dead after all: the result counts, and the failure is taken back.
    assert claimed is not None
    assert queue.commit(worker, [done(claimed)]).ended == [EndedTask(task, TaskStatus.COMPLETED, 1, 0)]


def test_an_item_lost_too_often_is_set_aside_in_a_cancelled_task_too(
    application: Application, queue: Queue, task: int, item: int, sql: Sql
) -> None:
    """Whether the task stays cancelled is known under its lock alone: resumed meanwhile, the item would get one try too many."""
    for losses in range(1, MAX_LOSSES + 1):
        worker = register(queue)
        assert claim(queue, worker)
        if losses == MAX_LOSSES:
            sql("UPDATE task SET status_id = 5 WHERE id_task = %s", [task])
        application.kill_worker(worker)
        report = queue.rescue()
    assert report.ended == [EndedTask(task, TaskStatus.CANCELLED, 0, 1)]
    row = application.item_row(item)
    assert (row["status_id"], row["error_kind"], row["lost_count"]) == (ItemStatus.ERROR, "lost", MAX_LOSSES)


def test_a_late_result_is_accepted_once(application: Application, queue: Queue, worker: int, lost_item: Item, sql: Sql) -> None:
    outcome = done(lost_item)
    report = queue.commit(worker, [outcome])
    assert report.stored == [outcome]
    assert report.ended == [EndedTask(lost_item.task.id_task, TaskStatus.COMPLETED, 1, 0)]
    row = application.item_row(lost_item.id_task_item)
    assert (row["status_id"], row["attempt"], row["lost_count"], row["cost"]) == (ItemStatus.PROCESSED, 1, 0, COST)
    (attempt,) = application.attempts(lost_item.id_task_item)
    assert (attempt["outcome"], attempt["tokens_input"]) == ("processed", 100)
    before = snapshot(sql)
    assert queue.commit(worker, [outcome]).stored == [outcome]
    assert snapshot(sql) == before


@pytest.mark.parametrize("make", [failed, failed_once])
def test_a_late_failure_is_refused_but_paid_for(
    application: Application, queue: Queue, worker: int, lost_item: Item, make: Any
) -> None:
    """The item is free already and better off with another try."""
    outcome = make(lost_item)
    report = queue.commit(worker, [outcome])
    assert (report.stored, report.lost) == ([], [outcome])
    row = application.item_row(lost_item.id_task_item)
    assert (row["status_id"], row["lost_count"], row["tokens_input"]) == (ItemStatus.PENDING, 1, 100)
    (attempt,) = application.attempts(lost_item.id_task_item)
    assert (attempt["outcome"], attempt["tokens_input"]) == ("lost", 100)
    assert claim(queue, worker)


@pytest.mark.parametrize("free", [Outcome.released, lambda item: Outcome.failed(item, "x", "y", NO_USAGE, None, 1)])
def test_what_comes_late_and_cost_nothing_leaves_the_rescues_record(
    queue: Queue, worker: int, lost_item: Item, sql: Sql, free: Any
) -> None:
    before = snapshot(sql)
    queue.commit(worker, [free(lost_item)])
    assert snapshot(sql) == before


def test_many_items_are_given_back_in_batches(application: Application, queue: Queue, worker: int, task: int, sql: Sql) -> None:
    items = application.items(task, 1200)
    for _ in range(5):
        claim(queue, worker, 250)
    application.kill_worker(worker)
    batches = []
    while (report := queue.rescue()).more:
        assert report.id_worker == worker
        batches.append(report.items)
    assert batches == [500, 500, 200]
    assert sql("SELECT DISTINCT status_id, lost_count FROM task_item") == [{"status_id": 0, "lost_count": 1}]
    again = []
    second = register(queue)
    while found := claim(queue, second, 500):
        again += found
    assert sorted(each.id_task_item for each in again) == items


def test_a_worker_that_holds_nothing_ends_in_one_step(application: Application, queue: Queue, worker: int) -> None:
    application.kill_worker(worker)
    assert (queue.rescue().items, queue.rescue().more) == (0, False)
    assert application.row("worker", worker)["ended_at"] is not None


def test_items_of_cancelled_and_paused_tasks_are_given_back_too(
    application: Application, queue: Queue, worker: int, model: int, sql: Sql
) -> None:
    cancelled, paused = application.task(model), application.task(model)
    for each in (cancelled, paused):
        application.items(each)
    claim(queue, worker, 2)
    sql("UPDATE task SET status_id = 5 WHERE id_task = %s", [cancelled])
    sql("UPDATE task SET status_id = 4 WHERE id_task = %s", [paused])
    application.kill_worker(worker)
    report = queue.rescue()
    assert report.items == 2
    assert report.ended == [EndedTask(cancelled, TaskStatus.CANCELLED, 0, 0)]
    statuses = {row["id_task"]: row["status_id"] for row in sql("SELECT id_task, status_id FROM task_item")}
    assert statuses == {cancelled: ItemStatus.CANCELLED, paused: ItemStatus.PENDING}


def test_a_late_result_for_an_item_cancelled_by_a_rescue_is_stored(
    application: Application, queue: Queue, worker: int, claimed_item: Item, sql: Sql
) -> None:
    sql("UPDATE task SET status_id = 5 WHERE id_task = %s", [claimed_item.task.id_task])
    application.kill_worker(worker)
    queue.rescue()
    before = application.task_row(claimed_item.task.id_task)["finished_at"]
    assert queue.commit(worker, [done(claimed_item)]).stored
    row = application.task_row(claimed_item.task.id_task)
    assert (row["status_id"], row["records_processed"], row["finished_at"]) == (TaskStatus.CANCELLED, 1, before)


def test_orphans_are_given_back(application: Application, queue: Queue, worker: int, claimed_item: Item, sql: Sql) -> None:
    """A claim that landed after its worker had been given up for dead."""
    assert queue.rescue_orphans().items == 0
    queue.end_worker(worker, processed=0, failed=0)
    assert queue.rescue_orphans().items == 1
    assert application.item_status(claimed_item.id_task_item) is ItemStatus.PENDING
    other = register(queue)
    assert claim(queue, other)
    sql("DELETE FROM worker WHERE id_worker = %s", [other])
    assert queue.rescue_orphans().items == 1


def test_a_row_that_is_being_committed_is_stepped_over(
    application: Application, queue: Queue, worker: int, claimed_item: Item, server: Any, database_url: str
) -> None:
    """Its owner was not dead after all; waiting for it would hold up the rescue of the others."""
    application.kill_worker(worker)
    with server.connect(database_url.rsplit("/", 1)[1].partition("?")[0]) as slow, slow.cursor() as cursor:
        slow.begin()
        cursor.execute("SELECT 1 FROM task_item WHERE id_task_item = %s FOR UPDATE", [claimed_item.id_task_item])
        assert queue.rescue().items == 0
        slow.rollback()
    assert application.item_status(claimed_item.id_task_item) is ItemStatus.IN_PROGRESS
    assert queue.rescue_orphans().items == 1


def test_what_a_living_worker_has_claimed_since_is_left_to_it(
    application: Application, queue: Queue, worker: int, claimed_item: Item, database: Database, sql: Sql
) -> None:
    """Between listing the items of the dead and locking them, another rescue and a new claim may have come."""
    listed = {claimed_item.id_task_item: worker}
    application.kill_worker(worker)
    assert queue.rescue().items == 1
    living = register(queue)
    (again,) = claim(queue, living)
    before = snapshot(sql)
    assert database.transaction(lambda tx: give_back(tx, listed)) == ({}, [])
    assert snapshot(sql) == before
    assert queue.commit(living, [done(again)]).stored
    assert application.item_row(claimed_item.id_task_item)["lost_count"] == 1


def test_a_list_of_orphans_that_is_out_of_date_takes_nothing_from_the_living(
    application: Application, queue: Queue, worker: int, task: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same with two workers' items in one list, through the verb itself: one is claimed anew meanwhile, one is not."""
    taken, left = application.items(task, 2)
    claim(queue, worker)
    gone = register(queue)
    claim(queue, gone)
    queue.end_worker(worker, processed=0, failed=0)
    queue.end_worker(gone, processed=0, failed=0)
    living = register(queue)
    query = Database.query

    def while_others_are_faster(self: Database, name: str, parameters: Any = None) -> Any:
        rows = query(self, name, parameters)
        if name == "orphaned_items":
            assert {row["id_task_item"] for row in rows} == {taken, left}
            listed = {taken: worker}
            assert sum(self.transaction(lambda tx: give_back(tx, listed))[0].values()) == 1
            assert [item.id_task_item for item in claim(queue, living)] == [taken]
        return rows

    monkeypatch.setattr(Database, "query", while_others_are_faster)
    assert queue.rescue_orphans().items == 1
    assert application.item_status(left) is ItemStatus.PENDING
    row = application.item_row(taken)
    assert (row["status_id"], row["id_worker"], row["lost_count"]) == (ItemStatus.IN_PROGRESS, living, 1)


def test_what_a_lost_worker_had_done_stays_on_its_row(application: Application, queue: Queue, worker: int) -> None:
    queue.beat(worker, **PROCESS, lease_seconds=30, in_flight=3, processed=41, failed=2)
    application.kill_worker(worker)
    assert queue.rescue().id_worker == worker
    row = application.row("worker", worker)
    assert (row["items_processed"], row["items_failed"], row["in_flight"]) == (41, 2, 0)
    assert row["ended_at"] is not None


def hold(connection: pymysql.Connection[Any], first: int) -> None:
    """Lock the items from this one on, and no others: a plan of the server's own choice may scan and lock the whole table."""
    with connection.cursor() as cursor:
        cursor.execute("SET TRANSACTION ISOLATION LEVEL READ COMMITTED")
        connection.begin()
        cursor.execute("SELECT 1 FROM task_item FORCE INDEX (PRIMARY) WHERE id_task_item >= %s FOR UPDATE", [first])


@pytest.mark.parametrize("free", [0, 7])
def test_a_rescue_that_others_hold_up_does_not_go_round_in_circles(
    application: Application, queue: Queue, worker: int, task: int, server: TestServer, database_url: str, free: int
) -> None:
    """It tries again later, unless it has got ahead: a full batch whose rows are all being committed stays as it is."""
    items = application.items(task, RESCUE_ROWS)
    claim(queue, worker, RESCUE_ROWS)
    application.kill_worker(worker)
    with server.connect(database_url.rsplit("/", 1)[1].partition("?")[0]) as slow:
        hold(slow, items[free])
        report = queue.rescue()
        # A server may lock a row more than it was asked to; what counts is whether there was progress.
        assert (report.id_worker, report.more) == (worker, free > 0)
        assert free - 1 <= report.items <= free
        assert application.row("worker", worker)["ended_at"] is None
        slow.rollback()
    assert queue.rescue().items == RESCUE_ROWS - report.items


def test_orphans_that_others_hold_up_do_not_go_round_in_circles(
    application: Application, queue: Queue, worker: int, task: int, server: TestServer, database_url: str
) -> None:
    items = application.items(task, RESCUE_ROWS + 1)
    claim(queue, worker, RESCUE_ROWS + 1)
    queue.end_worker(worker, processed=0, failed=0)
    with server.connect(database_url.rsplit("/", 1)[1].partition("?")[0]) as slow:
        hold(slow, items[0])
        report = queue.rescue_orphans()
        assert (report.items, report.more) == (0, False)
        slow.rollback()
    assert (queue.rescue_orphans().more, queue.rescue_orphans().items) == (True, 1)


def test_the_rescued_are_claimed_again_under_new_fences(queue: Queue, worker: int, lost_item: Item) -> None:
    (again,) = claim(queue, register(queue))
    assert again.claim_token != lost_item.claim_token
    assert again.operation_uuid != lost_item.operation_uuid
    assert queue.runnable(Filters()) == []
