"""What waits: counted where it is little, estimated where it is much, and always told from what does not wait."""

from __future__ import annotations

from typing import Any

import pytest

from ai_worker.counts import Counts
from ai_worker.db import Database
from ai_worker.log import Log
from ai_worker.models import Item, TaskStatus
from ai_worker.store import backlog as backlogs
from ai_worker.store import gauges
from ai_worker.store.backlog import Backlog, QueueBacklog
from ai_worker.store.counters import Counters
from ai_worker.store.queue import Queue
from ai_worker.worker.reporter import Reporter
from tests.conftest import Sql
from tests.integration.lifecycle import Application, claim, done, failed_once, register

pytest_plugins = ["tests.integration.lifecycle"]


@pytest.fixture
def backlog(database: Database) -> Backlog:
    return Backlog(database)


def by_queue(backlog: Backlog) -> dict[str, QueueBacklog]:
    return {each.queue: each for each in backlog.look()}


def test_nothing_waits_where_no_task_is_open(backlog: Backlog, application: Application, queue: Queue, item: int) -> None:
    worker = register(queue)
    queue.commit(worker, [done(each) for each in claim(queue, worker)])
    assert backlog.look() == []


def test_each_queue_has_its_own(backlog: Backlog, application: Application, queue: Queue, model: int, sql: Sql) -> None:
    worker = register(queue)
    first = application.task(model, queue="reply")
    application.items(first, 5)
    queue.commit(worker, [failed_once(each) for each in claim(queue, worker)])
    claim(queue, worker, 2)
    application.items(application.task(model), 3)
    paused = application.task(model, status_id=4)
    application.items(paused, 4)
    sql("UPDATE task_item SET created_at = UTC_TIMESTAMP(6) - INTERVAL 1 HOUR WHERE id_task = %s", [first])
    found = by_queue(backlog)
    reply, other = found["reply"], found["default"]
    assert (reply.pending, reply.deferred, reply.in_progress, reply.paused, reply.is_exact) == (2, 1, 2, 0, True)
    assert (other.pending, other.deferred, other.in_progress, other.paused, other.is_exact) == (3, 0, 0, 4, True)
    assert reply.tasks == {TaskStatus.IN_PROGRESS: 1}
    assert other.tasks == {TaskStatus.NEW: 1, TaskStatus.PAUSED: 1}
    assert reply.oldest_seconds is not None
    assert 3600 <= reply.oldest_seconds < 3700
    assert other.oldest_seconds is not None
    assert 0 <= other.oldest_seconds < 60


@pytest.mark.parametrize("why", ["ahead", "held", "paused"])
def test_what_cannot_be_claimed_yet_does_not_grow_old(
    backlog: Backlog, application: Application, model: int, sql: Sql, why: str
) -> None:
    task = application.task(model, **({"status_id": 4} if why == "paused" else {}))
    application.items(task, 2)
    if why == "ahead":
        sql("UPDATE task SET scheduled_at = UTC_TIMESTAMP(6) + INTERVAL 1 DAY")
    if why == "held":
        first = application.task(model, queue="first")
        sql("INSERT INTO task_dependency (id_task, after_id_task) VALUES (%s, %s)", [task, first])
    assert by_queue(backlog)["default"].oldest_seconds is None
    if why == "ahead":  # from its time on, it does
        sql("UPDATE task SET scheduled_at = UTC_TIMESTAMP(6) - INTERVAL 1 MINUTE")
        sql("UPDATE task_item SET created_at = UTC_TIMESTAMP(6) - INTERVAL 1 DAY")
        oldest = by_queue(backlog)["default"].oldest_seconds
        assert oldest is not None
        assert 60 <= oldest < 120


def test_many_items_are_estimated(
    backlog: Backlog, application: Application, model: int, sql: Sql, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A third of them is done, and the keys of one in two of the others belong to another task."""
    monkeypatch.setattr(backlogs, "COUNTED", 50)
    monkeypatch.setattr(backlogs, "SAMPLE", 100)
    monkeypatch.setattr(backlogs, "SAMPLED", 1)
    big, beside = application.task(model), application.task(model, queue="beside")
    small = application.task(model, queue="small")
    application.items(small, 20)
    items = application.items(big, 3000)
    sql("UPDATE task_item SET id_task = %s WHERE id_task = %s AND id_task_item %% 2 = 1", [beside, big])
    sql(
        "UPDATE task_item SET status_id = 1, attempt = 1, finished_at = UTC_TIMESTAMP(6)"
        " WHERE id_task = %s AND id_task_item < %s",
        [big, items[1000]],
    )
    found = by_queue(backlog)
    assert found["default"].pending == pytest.approx(1000, rel=0.05)
    assert found["beside"].pending == pytest.approx(1500, rel=0.05)
    assert not found["default"].is_exact
    assert not found["beside"].is_exact
    assert (found["small"].pending, found["small"].is_exact) == (20, True)


def test_many_tasks_are_estimated_by_those_first_in_line(
    backlog: Backlog, application: Application, model: int, sql: Sql
) -> None:
    count = backlogs.OPEN_TASKS + 40
    rows = ", ".join(["(%s, 'many')"] * count)
    sql(f"INSERT INTO task (id_ai_model, queue) VALUES {rows}", [model] * count)
    sql("INSERT INTO task_item (id_task, text_original) SELECT id_task, 'tekst' FROM task")
    sql("INSERT INTO task_item (id_task, text_original) SELECT id_task, 'tekst' FROM task")
    application.items(application.task(model, queue="late", priority=-5), 7)
    found = by_queue(backlog)
    assert found["many"].pending == pytest.approx(2 * count, rel=0.1)
    assert not found["many"].is_exact
    assert (found["late"].pending, found["late"].is_exact) == (1, False)


def test_how_the_fleet_stands(database: Database, application: Application, queue: Queue, sql: Sql) -> None:
    model = application.model("m", max_in_flight=7, max_requests_per_minute=60)
    application.items(application.task(model), 3)
    worker = register(queue)
    items = claim(queue, worker, 2)
    queue.commit(worker, [failed_once(items[0])])
    application.kill_worker(register(queue))
    sql("UPDATE worker SET draining_at = UTC_TIMESTAMP(6) WHERE id_worker = %s", [register(queue)])
    sql("UPDATE task SET budget = 2, cost = 1.5")
    sql("UPDATE ai_model SET budget_per_day = 3")
    sql(
        "INSERT INTO schedule (name, cron, id_ai_model, task_type, items, next_at)"
        " VALUES ('s', '* * * * *', %s, 'correction', '[]', UTC_TIMESTAMP(6) - INTERVAL 90 SECOND)",
        [model],
    )
    seen = gauges.look(database)
    assert seen.workers == {"alive": 1, "draining": 1, "lost": 1}
    assert seen.tasks == {TaskStatus.NEW: 0, TaskStatus.IN_PROGRESS: 1, TaskStatus.PAUSED: 0}
    assert seen.budget_used == 0.75
    assert 90 <= seen.schedule_overdue < 150
    assert seen.schema_version >= 4
    (report,) = seen.models
    assert (report.in_flight, report.max_in_flight, report.requests_per_minute, report.budget_per_day) == (1, 7, 60, 3)
    assert [each.in_progress for each in seen.queues] == [1]


def test_charts_have_a_place_for_each_minute(database: Database, sql: Sql, claimed_item: Item) -> None:
    counters, counts = Counters(database), Counts()
    reporter = Reporter(counts, counters, lambda: 1, Log())
    counts.attempted([done(claimed_item), failed_once(claimed_item)])
    reporter.report()
    model = sql("SELECT name FROM ai_model")[0]["name"]
    sql("UPDATE worker_minute SET minute_at = minute_at - INTERVAL 3 MINUTE")
    _minute(sql, "INTERVAL 3 MINUTE", id_worker=2, processed=5)
    _minute(sql, "INTERVAL 100 MINUTE", id_worker=2, processed=9)
    _minute(sql, "INTERVAL 2 MINUTE", id_worker=2, id_ai_model=999, failed=4)
    series = counters.series(5)
    if series.minutes[-1] != sql("SELECT MAX(minute_at) + INTERVAL 2 MINUTE AS m FROM worker_minute")[0]["m"]:
        pytest.skip("a minute has begun in the middle of the test")
    assert len(series.minutes) == len(series.fleet) == 5
    assert [work.processed for work in series.fleet] == [0, 6, 0, 0, 0]
    assert [work.retried for work in series.fleet] == [0, 1, 0, 0, 0]
    assert [work.failed for work in series.fleet] == [0, 0, 4, 0, 0]
    assert series.models.keys() == {model, "#999"}
    assert sum(series.models[model][1].latencies) == 2
    totals = {total.key: total for total in counters.sums()}
    assert {total.model for total in totals.values() if total.key.name == "tokens_total"} == {model}


def _minute(sql: Sql, ago: str, **columns: Any) -> None:
    columns = {"id_ai_model": sql("SELECT id_ai_model FROM ai_model")[0]["id_ai_model"], **columns}
    names, places = ", ".join(columns), ", ".join(["%s"] * len(columns))
    sql(
        f"INSERT INTO worker_minute (minute_at, {names})"
        f" VALUES (DATE_FORMAT(UTC_TIMESTAMP(), '%%Y-%%m-%%d %%H:%%i:00') - {ago}, {places})",
        [*columns.values()],
    )
