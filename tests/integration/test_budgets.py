"""Budgets of tasks and of models' days: no claim takes what cannot be paid, and nothing is set aside for ever."""

from __future__ import annotations

import threading
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from ai_worker.database_url import parse_database_url
from ai_worker.db import Database
from ai_worker.errors import UsageError
from ai_worker.models import Filters, Item, ItemStatus, Lane, Outcome, TaskStatus
from ai_worker.store.budgets import Stored
from ai_worker.store.models import Models
from ai_worker.store.queue import Queue
from ai_worker.store.reports import Reports
from ai_worker.store.tasks import Tasks
from tests.conftest import Sql
from tests.integration.lifecycle import Application, assert_ledger, claim, done, failed, postponed, register
from tests.integration.test_fallback import add_fallbacks

pytest_plugins = ["tests.integration.lifecycle"]


@pytest.fixture(autouse=True)
def _ledger_at_the_end(sql: Sql) -> Any:
    """Whatever a test did, all tables agree with each other at its end."""
    yield
    assert_ledger(sql)


class Fixed:
    """Estimates that all items cost the same; those with a number in their text so many cents."""

    def __init__(self, cost: str | None = "0.10") -> None:
        self.cost = None if cost is None else Decimal(cost)

    def prepare(self, models: Collection[int], tasks: object = ()) -> None:
        """Nothing to do."""

    def __call__(self, item: Item, _: Stored) -> Decimal | None:
        return Decimal(item.text_original) / 100 if item.text_original.isdigit() else self.cost


@pytest.fixture
def queue(database: Database) -> Queue:
    queue = Queue(database)
    queue.estimate_with(Fixed())
    return queue


def paid(item: Item, cost: str = "0.10") -> Outcome:
    """A result for so many USD."""
    return done(item, cost=Decimal(cost))


def look(queue: Queue, id_worker: int, size: int = 100) -> list[Item]:
    """A claim after enough time that a task which was left alone is looked at again."""
    queue._claims._short.clear()
    return claim(queue, id_worker, size)


# ----- a task's


def test_no_more_is_claimed_than_can_be_paid(application: Application, queue: Queue, worker: int, model: int) -> None:
    task = application.task(model, budget=Decimal("0.35"))
    keys = application.items(task, 10)
    items = look(queue, worker)
    assert [item.id_task_item for item in items] == keys[:3]
    assert [application.item_row(each)["reserved"] for each in keys[:4]] == [Decimal("0.1")] * 3 + [None]
    assert look(queue, worker) == []
    assert application.task_status(task) is TaskStatus.IN_PROGRESS  # something may come back

    queue.commit(worker, [paid(items[0], "0.02"), postponed(items[1])])
    assert len(look(queue, worker)) == 2  # 0.02 spent, 0.30 set aside
    assert look(queue, worker) == []


def test_a_task_whose_money_is_spent_is_paused_and_says_why(
    application: Application, queue: Queue, worker: int, model: int
) -> None:
    task = application.task(model, budget=Decimal("1.00"))
    application.items(task, 20)
    while items := look(queue, worker):
        queue.commit(worker, [paid(each, "0.0987") for each in items])
    row = application.task_row(task)
    assert (row["status_id"], row["finished_at"], row["resume_at"]) == (TaskStatus.PAUSED, None, None)
    assert row["status_reason"] == "the budget of 1.00 USD is spent: 0.9870 USD, and the next item needs about 0.10"
    assert row["cost"] == Decimal("0.987")
    assert queue.runnable(Filters()) == []
    assert queue.waiting(Filters()).paused == {task: row["status_reason"]}
    assert queue.waiting(Filters()).pending == 0


def test_items_that_cost_less_are_taken_when_dearer_ones_do_not_fit(
    application: Application, queue: Queue, worker: int, model: int
) -> None:
    task = application.task(model, budget=Decimal("0.50"))
    keys = application.items(task, ["30", "40", "15", "10", "5"])
    assert [item.id_task_item for item in look(queue, worker)] == [keys[0], keys[2], keys[4]]


def test_a_task_all_of_whose_money_is_set_aside_is_left_alone_for_a_moment(
    application: Application, queue: Queue, worker: int, model: int
) -> None:
    application.items(application.task(model, budget=Decimal("0.15")), 5)
    (item,) = claim(queue, worker, 5)
    assert claim(queue, worker, 5) == []
    assert queue.runnable(Filters()) == []
    queue.commit(worker, [paid(item, "0.01")])
    assert len(queue.runnable(Filters())) == 1  # at once: some of it has come back
    assert len(claim(queue, worker, 5)) == 1


@pytest.mark.parametrize("end", [failed, postponed, Outcome.released])
def test_what_is_set_aside_comes_back_however_the_item_ends(
    application: Application, queue: Queue, worker: int, model: int, end: Any
) -> None:
    application.items(application.task(model, budget=Decimal("0.10")), 5)
    (item,) = look(queue, worker)
    queue.commit(worker, [end(item)])
    assert len(look(queue, worker)) == 1


def test_what_is_set_aside_comes_back_when_the_worker_dies(
    application: Application, queue: Queue, worker: int, model: int
) -> None:
    application.items(application.task(model, budget=Decimal("0.10")), 5)
    assert len(look(queue, worker)) == 1
    application.kill_worker(worker)
    queue.rescue()
    assert len(look(queue, register(queue))) == 1


def test_a_result_that_comes_after_another_claim_is_paid_all_the_same(
    application: Application, queue: Queue, worker: int, model: int
) -> None:
    task = application.task(model, budget=Decimal("0.25"))
    application.items(task, 1)
    (first,) = look(queue, worker)
    application.kill_worker(worker)
    queue.rescue()
    other = register(queue)
    (second,) = look(queue, other)
    queue.commit(worker, [paid(first)])
    queue.commit(other, [paid(second)])
    assert application.task_row(task)["cost"] == Decimal("0.20")


def test_without_a_price_nothing_is_sent(application: Application, queue: Queue, worker: int) -> None:
    task = application.task(application.model("tajny"), budget=Decimal("5"))
    application.items(task, 3)
    queue.estimate_with(Fixed(None))
    assert look(queue, worker) == []
    row = application.task_row(task)
    assert (row["status_id"], row["cost"]) == (TaskStatus.PAUSED, None)
    assert row["status_reason"] == "it has a budget, and the price of model tajny is not known"


def test_tasks_without_a_budget_need_no_price(application: Application, queue: Queue, worker: int, model: int) -> None:
    queue.estimate_with(Fixed(None))
    application.items(application.task(model), 3)
    assert len(look(queue, worker)) == 3


def test_a_new_item_of_a_task_with_a_budget_is_claimed_the_long_way(
    application: Application, queue: Queue, worker: int, model: int
) -> None:
    (key,) = application.items(application.task(model, budget=Decimal("0.10")))
    assert queue.claim_new(worker, key, Filters()) == []
    assert [item.id_task_item for item in look(queue, worker)] == [key]


def test_claims_of_eight_workers_at_once_keep_to_the_budget(
    application: Application, database_url: str, sql: Sql, model: int
) -> None:
    task = application.task(model, budget=Decimal("2.50"), max_attempts=1)
    application.items(task, 200)
    barrier, stopped = threading.Barrier(8), threading.Event()

    def work(_: int) -> int:
        with closing(Database(parse_database_url(database_url))) as database:
            queue = Queue(database)
            queue.estimate_with(Fixed())
            id_worker = register(queue)
            barrier.wait(20)
            count = 0
            while not stopped.is_set():
                items = look(queue, id_worker, 7)
                queue.commit(id_worker, [paid(each, "0.09") for each in items])
                count += len(items)
            return count

    with ThreadPoolExecutor(8) as pool:
        counts = [pool.submit(work, each) for each in range(8)]
        for _ in range(600):
            (row,) = sql(
                "SELECT t.status_id, COALESCE(t.cost, 0) + COALESCE((SELECT SUM(reserved) FROM task_item i WHERE"
                " i.id_task = t.id_task AND i.status_id = 2), 0) AS used FROM task t WHERE t.id_task = %s",
                [task],
            )
            assert row["used"] <= Decimal("2.50")
            if row["status_id"] == TaskStatus.PAUSED:
                break
            stopped.wait(0.02)
        stopped.set()
        processed = sum(each.result(30) for each in counts)
    row = application.task_row(task)
    assert (row["status_id"], row["records_processed"], row["cost"]) == (
        TaskStatus.PAUSED,
        processed,
        processed * Decimal("0.09"),
    )
    assert processed == 27  # 27 * 0.09 = 2.43: the next one would need 0.10


def test_a_report_tells_budget_reserve_and_models(
    application: Application, queue: Queue, database: Database, worker: int, model: int, sql: Sql
) -> None:
    task = application.task(model, budget=Decimal("0.35"))
    add_fallbacks(sql, task, application.model("następny"))
    application.items(task, 10)
    items = look(queue, worker)
    queue.commit(worker, [paid(items[0])])
    reports = Reports(database)
    report = reports.task(task)
    assert (report.budget, report.reserved, report.cost) == (Decimal("0.35"), Decimal("0.20"), Decimal("0.10"))
    assert (report.fallbacks, report.resume_at) == (("następny",), None)
    assert reports.tasks()[0].reserved == Decimal("0.20")
    (today,) = reports.model_days()
    assert (today.id_ai_model, today.is_today, today.attempts, today.cost) == (model, True, 1, Decimal("0.10"))


# ----- resume


def test_resume_needs_more_money(application: Application, queue: Queue, database: Database, worker: int, model: int) -> None:
    task = application.task(model, budget=Decimal("0.25"))
    application.items(task, 5)
    items = look(queue, worker)
    queue.commit(worker, [paid(each, "0.12") for each in items])
    assert look(queue, worker) == []
    tasks = Tasks(database)
    with pytest.raises(UsageError, match=rf"has spent 0.24 of its budget of 0.25 USD; `ai-worker resume {task} --budget 0.50`"):
        tasks.resume(task)
    for too_little, enough in (("0.26", "0.52"), ("0.10", "0.48")):
        with pytest.raises(UsageError, match=f"has spent 0.24 of its budget of {too_little} USD; .* --budget {enough}`"):
            tasks.resume(task, Decimal(too_little))
    assert application.task_status(task) is TaskStatus.PAUSED
    assert application.task_row(task)["budget"] == Decimal("0.25")
    change = tasks.resume(task, Decimal("0.60"))
    assert (change.before, change.after) == (TaskStatus.PAUSED, TaskStatus.IN_PROGRESS)
    row = application.task_row(task)
    assert (row["budget"], row["status_reason"]) == (Decimal("0.60"), None)
    items = look(queue, worker)
    assert len(items) == 3
    queue.commit(worker, [paid(each) for each in items])
    assert application.task_status(task) is TaskStatus.COMPLETED


# ----- a model's day


@pytest.fixture
def limited(application: Application) -> int:
    """A model that may cost 0.50 a day."""
    return application.model("dzienny", budget_per_day=Decimal("0.50"))


def test_all_tasks_of_a_model_share_its_day(application: Application, queue: Queue, worker: int, limited: int) -> None:
    tasks = [application.task(limited) for _ in range(3)]
    for task in tasks:
        application.items(task, 3)
    items = look(queue, worker)
    assert len(items) == 5
    assert look(queue, worker) == []
    assert TaskStatus.PAUSED not in {application.task_status(task) for task in tasks}  # something may come back
    queue.commit(worker, [paid(each, "0.09") for each in items])
    assert look(queue, worker) == []
    paused = [application.task_row(task) for task in tasks if application.task_status(task) is TaskStatus.PAUSED]
    assert len(paused) == 2
    for row in paused:
        assert row["status_reason"].startswith("the budget of model dzienny for the UTC day of 0.50 USD is spent: 0.45 USD, and")
        assert row["status_reason"].endswith("; it goes on by itself at 00:00 UTC")


def test_a_new_day_brings_new_money(
    application: Application, queue: Queue, database: Database, worker: int, limited: int, sql: Sql
) -> None:
    task, another = application.task(limited), application.task(limited)
    for each in (task, another):
        application.items(each, 9)
    queue.commit(worker, [paid(each) for each in look(queue, worker)])
    assert look(queue, worker) == []
    (now,) = sql("SELECT UTC_TIMESTAMP(6) AS now, UTC_DATE() AS today")
    row = application.task_row(task)
    assert row["resume_at"].date() == now["today"] + timedelta(days=1)
    assert row["resume_at"] > now["now"]
    assert queue.resume_due() == 0
    Tasks(database).pause(another)  # a person's word holds longer

    sql("UPDATE task SET resume_at = UTC_TIMESTAMP(6) - INTERVAL 1 SECOND WHERE resume_at IS NOT NULL")
    sql("UPDATE ai_model_day SET day = day - INTERVAL 1 DAY")
    assert queue.resume_due() == 1
    row = application.task_row(task)
    assert (row["status_id"], row["status_reason"], row["resume_at"]) == (TaskStatus.IN_PROGRESS, None, None)
    assert len(look(queue, worker)) == 4
    assert application.task_status(another) is TaskStatus.PAUSED


def test_raising_the_days_budget_is_enough_to_resume(
    application: Application, queue: Queue, database: Database, worker: int, limited: int
) -> None:
    task = application.task(limited)
    application.items(task, 9)
    queue.commit(worker, [paid(each) for each in look(queue, worker)])
    assert look(queue, worker) == []
    Models(database).set(limited, budget_per_day=Decimal("0.70"))
    Tasks(database).resume(task)
    assert application.task_row(task)["resume_at"] is None
    assert len(look(queue, worker)) == 2


def test_a_fallback_takes_what_the_day_of_the_first_model_cannot_pay(
    application: Application, queue: Queue, worker: int, limited: int, sql: Sql
) -> None:
    second = application.model("zapasowy", budget_per_day=Decimal("0.20"))
    task = application.task(limited)
    add_fallbacks(sql, task, second)
    application.items(task, 20)
    asked = []
    for _ in range(10):
        items = look(queue, worker)
        asked += [item.task.id_ai_model for item in items]
        queue.commit(worker, [paid(each) for each in items])
    assert asked == [limited] * 5 + [second] * 2
    row = application.task_row(task)
    assert (row["status_id"], row["cost"]) == (TaskStatus.PAUSED, Decimal("0.70"))
    assert "zapasowy" in row["status_reason"]


def test_a_day_that_is_spent_does_not_pause_what_a_stopped_model_may_yet_take(
    application: Application, queue: Queue, database: Database, worker: int, limited: int, sql: Sql
) -> None:
    first = application.model("pierwszy")
    task = application.task(first)
    add_fallbacks(sql, task, limited)
    application.items(task, 20)
    Models(database).stop(first, "quota_exhausted", "spent", 300)
    queue.commit(worker, [paid(each) for each in look(queue, worker)])
    assert look(queue, worker) == []
    assert application.task_status(task) is TaskStatus.IN_PROGRESS
    waiting = queue.waiting(Filters())
    assert (waiting.pending, waiting.blocked) == (15, 15)  # a run ends, and does not spin
    Models(database).resume(first)
    assert len(look(queue, worker)) == 15


def test_both_budgets_count(application: Application, queue: Queue, worker: int, limited: int) -> None:
    task = application.task(limited, budget=Decimal("0.30"))
    application.items(task, 9)
    items = look(queue, worker)
    assert len(items) == 3
    queue.commit(worker, [paid(each) for each in items])
    assert look(queue, worker) == []
    assert application.task_row(task)["status_reason"].startswith("the budget of 0.30 USD is spent: 0.30 USD")
    assert application.item_status(items[0].id_task_item) is ItemStatus.PROCESSED
    assert items[0].task.lane is Lane.ONLINE
