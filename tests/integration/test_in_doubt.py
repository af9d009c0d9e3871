"""Every verb has one effect, also when its connection breaks before COMMIT, or after it and before the answer (invariant 6)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Literal

import pytest

from ai_worker.database_url import parse_database_url
from ai_worker.db import Database
from ai_worker.errors import DatabaseAway
from ai_worker.models import Filters, Item, ItemStatus, Outcome, TaskStatus
from ai_worker.store.new_tasks import NewItem, NewTask
from ai_worker.store.queue import Queue
from ai_worker.store.tasks import Tasks
from tests.integration.lifecycle import (
    PROCESS,
    Application,
    Sql,
    assert_ledger,
    claim,
    done,
    failed,
    failed_once,
    postponed,
    register,
)
from tests.integration.proxy import Proxy

pytest_plugins = ["tests.integration.lifecycle", "tests.integration.proxy"]

When = Literal["before", "after"]
both = pytest.mark.parametrize("when", ["before", "after"])


@pytest.fixture
def far_database(database_url: str, proxy: Proxy) -> Iterator[Database]:
    """A Database behind the proxy."""
    url = replace(parse_database_url(database_url), hosts=(("127.0.0.1", proxy.port),))
    database = Database(url, patience=0.5)
    database.connect()
    yield database
    database.close()


@pytest.fixture
def far(far_database: Database) -> Queue:
    """A Queue behind the proxy; `queue` has a way of its own."""
    return Queue(far_database)


@both
def test_register(far: Queue, proxy: Proxy, when: When, sql: Sql) -> None:
    proxy.break_at("COMMIT", when)
    id_worker = register(far)
    assert proxy.broken == 1
    assert [row["id_worker"] for row in sql("SELECT id_worker FROM worker")] == [id_worker]
    assert far.beat(id_worker, **PROCESS, lease_seconds=30, in_flight=1, processed=0, failed=0)


@both
def test_beat_and_end(far: Queue, proxy: Proxy, when: When, worker: int, application: Application) -> None:
    proxy.break_at("UPDATE worker", when, times=1)
    assert far.beat(worker, **PROCESS, lease_seconds=30, in_flight=1, processed=2, failed=3)
    proxy.break_at("UPDATE worker", when, times=1)
    far.end_worker(worker, processed=4, failed=5)
    assert proxy.broken == 2
    row = application.row("worker", worker)
    assert (row["items_processed"], row["items_failed"], row["ended_at"] is None) == (4, 5, False)


@both
def test_claim(far: Queue, proxy: Proxy, when: When, worker: int, application: Application, task: int, sql: Sql) -> None:
    application.items(task, 5)
    tasks = far.runnable(Filters())
    proxy.break_at("COMMIT", when)
    items = far.claim(worker, tasks, 3)
    assert proxy.broken == 1
    rows = sql("SELECT id_task_item, claim_token, attempt FROM task_item WHERE status_id = 2 ORDER BY id_task_item")
    assert [(item.id_task_item, item.claim_token, item.attempt) for item in items] == [
        (row["id_task_item"], row["claim_token"], row["attempt"]) for row in rows
    ]
    assert len(items) == 3
    assert_ledger(sql)


@both
def test_a_claim_that_is_never_answered_is_given_back(
    far: Queue, proxy: Proxy, when: When, worker: int, application: Application, task: int, sql: Sql
) -> None:
    """The database goes away for good in the COMMIT: what landed would stay claimed as long as this worker lives."""
    items = application.items(task, 5)
    tasks = far.runnable(Filters())
    proxy.break_at("COMMIT", when, then_down=True)
    with pytest.raises(DatabaseAway):
        far.claim(worker, tasks, 3)
    landed = sql("SELECT COUNT(*) AS n FROM task_item WHERE status_id = 2")[0]["n"]
    assert landed == (3 if when == "after" else 0)
    proxy.up()
    (first,) = far.claim(worker, tasks, 1)
    assert (first.id_task_item, first.attempt) == (items[0], 1)
    assert [row["n"] for row in sql("SELECT COUNT(*) AS n FROM task_item WHERE status_id = 2")] == [1]
    assert_ledger(sql)


def test_what_a_claim_in_doubt_took_from_a_task_cancelled_since_is_cancelled(
    far: Queue, proxy: Proxy, worker: int, application: Application, task: int, sql: Sql
) -> None:
    (item,) = application.items(task)
    tasks = far.runnable(Filters())
    proxy.break_at("COMMIT", "after", then_down=True)
    with pytest.raises(DatabaseAway):
        far.claim(worker, tasks, 3)
    proxy.up()
    sql("UPDATE task SET status_id = 5 WHERE id_task = %s", [task])
    assert far.claim(worker, tasks, 3) == []
    assert application.item_status(item) is ItemStatus.CANCELLED
    assert application.task_row(task)["finished_at"] is not None


@both
def test_commit(far: Queue, proxy: Proxy, when: When, worker: int, application: Application, task: int, sql: Sql) -> None:
    application.items(task, 5)
    items = claim(far, worker, 5)
    makers: list[Callable[[Item], Outcome]] = [done, failed_once, failed, postponed, Outcome.released]
    proxy.break_at("COMMIT", when)
    report = far.commit(worker, [make(item) for item, make in zip(items, makers, strict=True)])
    assert proxy.broken == 1
    assert (len(report.stored), report.lost) == (5, [])
    assert [application.item_status(item.id_task_item) for item in items] == [
        ItemStatus.PROCESSED,
        ItemStatus.DEFERRED,
        ItemStatus.ERROR,
        ItemStatus.DEFERRED,
        ItemStatus.PENDING,
    ]
    row = application.task_row(task)
    assert (row["records_processed"], row["records_failed"], row["tokens_input"]) == (1, 1, 300)
    assert_ledger(sql)


@both
def test_the_commit_that_ends_a_task(
    far: Queue, proxy: Proxy, when: When, worker: int, claimed_item: Item, application: Application, sql: Sql
) -> None:
    proxy.break_at("COMMIT", when)
    (ended,) = far.commit(worker, [done(claimed_item)]).ended
    assert (ended.status, ended.records_processed) == (TaskStatus.COMPLETED, 1)
    assert_ledger(sql)


@both
def test_a_commit_that_is_never_answered_is_handed_in_again(
    far: Queue, proxy: Proxy, when: When, worker: int, claimed_item: Item, sql: Sql
) -> None:
    proxy.break_at("COMMIT", when, then_down=True)
    with pytest.raises(DatabaseAway):
        far.commit(worker, [done(claimed_item)])
    proxy.up()
    report = far.commit(worker, [done(claimed_item)])
    assert (len(report.stored), len(report.ended)) == (1, 1)
    assert_ledger(sql)


@both
def test_a_refused_result_is_charged_once(
    far: Queue, proxy: Proxy, when: When, worker: int, claimed_item: Item, application: Application, sql: Sql
) -> None:
    application.kill_worker(worker)
    far.rescue()
    claim(far, register(far))
    proxy.break_at("COMMIT", when)
    assert len(far.commit(worker, [done(claimed_item)]).lost) == 1
    assert application.item_row(claimed_item.id_task_item)["tokens_input"] == 100
    assert_ledger(sql)


@both
def test_rescue(
    far: Queue, proxy: Proxy, when: When, worker: int, claimed_item: Item, application: Application, sql: Sql
) -> None:
    application.kill_worker(worker)
    proxy.break_at("COMMIT", when)
    far.rescue()
    assert proxy.broken == 1
    row = application.item_row(claimed_item.id_task_item)
    assert (row["status_id"], row["lost_count"]) == (ItemStatus.PENDING, 1)
    assert application.row("worker", worker)["ended_at"] is not None
    assert_ledger(sql)


@both
def test_promote(far: Queue, proxy: Proxy, when: When, worker: int, claimed_item: Item, application: Application) -> None:
    far.commit(worker, [failed_once(claimed_item)])
    application.make_due()
    proxy.break_at("COMMIT", when)
    far.promote_due()
    assert application.item_status(claimed_item.id_task_item) is ItemStatus.PENDING


@both
@pytest.mark.parametrize("key", [None, "zamówienie-7"])
def test_submit(far_database: Database, proxy: Proxy, when: When, model: int, sql: Sql, key: str | None) -> None:
    tasks = Tasks(far_database)
    proxy.break_at("COMMIT", when)
    submitted = tasks.submit(NewTask(model, "correction", submit_key=key), lambda: iter([NewItem("raz"), NewItem("dwa")]))
    assert proxy.broken == 1
    assert submitted.items == 2
    assert [row["id_task"] for row in sql("SELECT id_task FROM task")] == [submitted.id_task]
    assert sql("SELECT id_task, COUNT(*) AS n FROM task_item GROUP BY id_task") == [{"id_task": submitted.id_task, "n": 2}]


@both
@pytest.mark.parametrize("verb", ["retry", "cancel", "pause"])
def test_peoples_verbs(
    far_database: Database,
    proxy: Proxy,
    when: When,
    verb: str,
    application: Application,
    queue: Queue,
    worker: int,
    task: int,
    sql: Sql,
) -> None:
    application.items(task, 2)
    (item, _) = claim(queue, worker, 2)
    queue.commit(worker, [failed(item)])
    proxy.break_at("COMMIT", when)
    getattr(Tasks(far_database), verb)(task)
    assert proxy.broken == 1
    row: dict[str, Any] = application.task_row(task)
    expected = {"retry": (1, 0), "cancel": (5, 1), "pause": (4, 1)}[verb]
    assert (row["status_id"], row["records_failed"]) == expected
