"""The verbs of people on tasks: all or nothing, idempotent, and with counters that stay exact."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from ai_worker.db import Database, Transaction, statements
from ai_worker.errors import UsageError
from ai_worker.models import ItemStatus, TaskStatus
from ai_worker.store import tasks as tasks_module
from ai_worker.store.new_tasks import NewItem, NewTask
from ai_worker.store.reports import Reports
from ai_worker.store.results import Results
from ai_worker.store.tasks import Submitted, Tasks
from tests.conftest import Sql


@pytest.fixture
def model(sql: Sql) -> int:
    sql("INSERT INTO ai_model (name, provider) VALUES ('echo', 'echo')")
    return int(sql("SELECT id_ai_model FROM ai_model")[0]["id_ai_model"])


@pytest.fixture
def tasks(database: Database) -> Tasks:
    return Tasks(database)


@pytest.fixture
def reports(database: Database) -> Reports:
    return Reports(database)


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Verbs take several batches for a handful of items."""
    monkeypatch.setattr(tasks_module, "BATCH", 3)


def texts(count: int) -> Iterator[NewItem]:
    return (NewItem(f"Zdanie {number} z błędem 🙂", str(number), '{"autor": "Żaneta"}') for number in range(count))


def submit(tasks: Tasks, model: int, count: int = 10, key: str | None = None) -> Submitted:
    return tasks.submit(NewTask(model, "correction", "Popraw", {"a": ["ż"]}, submit_key=key), lambda: texts(count))


def set_items(sql: Sql, id_task: int, *statuses: tuple[ItemStatus, int]) -> None:
    """Puts the items of a task into statuses, the first so many into the first, and its counters and status to match."""
    columns: dict[ItemStatus, str] = {
        ItemStatus.PROCESSED: "finished_at = NOW(6), attempt = 1, text_corrected = 'x'",
        ItemStatus.ERROR: "finished_at = NOW(6), attempt = 3, lost_count = 1, tokens_input = 5, "
        "claim_token = 'aaaabbbbccccdddd', error_kind = 'bad_answer', error_message = 'pusta odpowiedź'",
        ItemStatus.IN_PROGRESS: "id_worker = 1, claim_token = 'aaaabbbbccccdddd', attempt = 1",
        ItemStatus.DEFERRED: "available_at = NOW(6) + INTERVAL 1 HOUR, attempt = 1, "
        "error_kind = 'rate_limited', error_message = 'za szybko'",
    }
    for status, count in statuses:
        sql(
            f"UPDATE task_item SET status_id = {int(status)}, {columns[status]} "
            f"WHERE id_task = {id_task} AND status_id = 0 ORDER BY id_task_item LIMIT {count}"
        )
    count = dict(statuses)
    sql(
        f"UPDATE task SET status_id = 1, started_at = NOW(6) - INTERVAL 10 SECOND, records_processed = "
        f"{count.get(ItemStatus.PROCESSED, 0)}, records_failed = {count.get(ItemStatus.ERROR, 0)} WHERE id_task = {id_task}"
    )


def finish(sql: Sql, id_task: int, status: TaskStatus) -> None:
    sql(f"UPDATE task SET status_id = {int(status)}, finished_at = NOW(6) WHERE id_task = {id_task}")


def row(sql: Sql, id_task: int) -> dict[str, Any]:
    return sql(f"SELECT * FROM task WHERE id_task = {id_task}")[0]


def assert_counters_equal_counts(sql: Sql, id_task: int) -> None:
    counted = sql(
        f"SELECT COALESCE(SUM(status_id = 1), 0) p, COALESCE(SUM(status_id = 3), 0) f FROM task_item WHERE id_task = {id_task}"
    )[0]
    task = row(sql, id_task)
    assert (task["records_processed"], task["records_failed"]) == (counted["p"], counted["f"])


class TestSubmit:
    def test_all_columns_arrive(self, tasks: Tasks, model: int, sql: Sql) -> None:
        submitted = submit(tasks, model, 2500)
        assert (submitted.items, submitted.is_new) == (2500, True)
        task = row(sql, submitted.id_task)
        assert (task["id_ai_model"], task["task_type"], task["description"], task["status_id"]) == (
            model,
            "correction",
            "Popraw",
            0,
        )
        items = sql("SELECT text_original, external_key, context FROM task_item ORDER BY id_task_item")
        assert [(i["text_original"], i["external_key"]) for i in items] == [
            (t.text_original, t.external_key) for t in texts(2500)
        ]
        assert items[0]["context"] == '{"autor": "Żaneta"}'

    def test_long_and_awkward_texts_arrive_unchanged(self, tasks: Tasks, model: int, sql: Sql) -> None:
        awkward = ["'\"\\\n\r\x1a%s %(a)s {}", "ż" * 150_000, "\\" * 3_000_000, "x" * 8_000_000]
        id_task = tasks.submit(NewTask(model, "correction"), lambda: map(NewItem, awkward)).id_task
        items = sql(f"SELECT text_original FROM task_item WHERE id_task = {id_task} ORDER BY id_task_item")
        assert [item["text_original"] for item in items] == awkward

    def test_an_error_half_way_leaves_nothing(self, tasks: Tasks, model: int, sql: Sql) -> None:
        def broken() -> Iterator[NewItem]:
            yield from texts(5000)
            raise UsageError("line 5001 is no good")

        with pytest.raises(UsageError, match="5001"):
            tasks.submit(NewTask(model, "correction"), broken)
        assert sql("SELECT COUNT(*) n FROM task")[0]["n"] == 0
        assert sql("SELECT COUNT(*) n FROM task_item")[0]["n"] == 0

    def test_nothing_is_seen_before_the_end_and_the_model_is_not_locked(self, tasks: Tasks, model: int, sql: Sql) -> None:
        seen: list[int] = []

        def looking() -> Iterator[NewItem]:
            yield from texts(3000)
            seen.append(sql("SELECT COUNT(*) n FROM task_item")[0]["n"] + sql("SELECT COUNT(*) n FROM task")[0]["n"])
            sql("SET innodb_lock_wait_timeout = 1")
            sql("UPDATE ai_model SET max_in_flight = 7")  # a worker that stops the model must not wait for us

        tasks.submit(NewTask(model, "correction"), looking)
        assert seen == [0]

    def test_the_same_key_makes_one_task(self, tasks: Tasks, model: int, sql: Sql) -> None:
        first = submit(tasks, model, 4, key="faktura-17")
        again = submit(tasks, model, 9, key="faktura-17")
        assert again == Submitted(first.id_task, 4, is_new=False)
        assert submit(tasks, model, 1, key="FAKTURA-17").is_new
        assert sql("SELECT COUNT(*) n FROM task_item")[0]["n"] == 5

    def test_the_same_key_from_many_hosts_at_once_makes_one_task(self, database: Database, model: int, sql: Sql) -> None:
        hosts = 6
        together = threading.Barrier(hosts)

        def rows() -> Iterator[NewItem]:
            together.wait(30)  # all of them have found that there is no such task yet
            return texts(1500)

        with ThreadPoolExecutor(hosts) as pool:
            calls = [
                pool.submit(Tasks(database).submit, NewTask(model, "correction", submit_key="k"), rows) for _ in range(hosts)
            ]
            done = [call.result(60) for call in calls]
        assert len({each.id_task for each in done}) == 1
        assert [each.items for each in done] == [1500] * hosts
        assert sum(each.is_new for each in done) == 1
        assert sql("SELECT COUNT(*) n FROM task_item")[0]["n"] == 1500

    def test_a_commit_whose_answer_was_lost_is_looked_up(
        self, tasks: Tasks, database: Database, model: int, sql: Sql, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        database.connect()
        connection = database._session().connection
        real = connection.commit
        lost = itertools.count()

        def commit() -> None:
            real()
            if next(lost) == 0:
                raise OSError("connection reset by peer")

        monkeypatch.setattr(connection, "commit", commit)
        submitted = submit(tasks, model, 1200)
        assert next(lost) == 1
        assert (submitted.items, submitted.is_new) == (1200, True)
        assert sql("SELECT COUNT(*) n FROM task")[0]["n"] == 1
        assert sql("SELECT COUNT(*) n FROM task_item")[0]["n"] == 1200

    def test_a_connection_lost_half_way_begins_again(self, tasks: Tasks, database: Database, model: int, sql: Sql) -> None:
        runs = itertools.count()

        def rows() -> Iterator[NewItem]:
            if next(runs) == 0:
                yield from texts(2000)
                sql(f"KILL {database._session().connection.thread_id()}")
            yield from texts(1300)

        assert tasks.submit(NewTask(model, "correction"), rows).items == 1300
        assert sql("SELECT COUNT(*) n FROM task_item")[0]["n"] == 1300


class TestRetry:
    @pytest.mark.usefixtures("small_batches")
    @pytest.mark.parametrize("end", [TaskStatus.ERROR, TaskStatus.PAUSED])
    def test_all(self, tasks: Tasks, model: int, sql: Sql, end: TaskStatus) -> None:
        id_task = submit(tasks, model).id_task
        set_items(sql, id_task, (ItemStatus.ERROR, 7), (ItemStatus.PROCESSED, 3))
        if end is TaskStatus.ERROR:
            finish(sql, id_task, end)
        else:
            tasks.pause(id_task)
        assert tasks.retry(id_task) == 7
        task = row(sql, id_task)
        assert (task["records_processed"], task["records_failed"], task["finished_at"]) == (3, 0, None)
        assert task["status_id"] == (TaskStatus.IN_PROGRESS if end is TaskStatus.ERROR else TaskStatus.PAUSED)
        columns = "attempt, lost_count, claim_token, error_kind, error_message, finished_at, tokens_input"
        for item in sql(f"SELECT {columns} FROM task_item WHERE id_task = {id_task} AND status_id = 0"):
            assert list(item.values()) == [0, 0, None, None, None, None, 5]
        assert tasks.retry(id_task) == 0

    def test_one(self, tasks: Tasks, model: int, sql: Sql) -> None:
        id_task, other = submit(tasks, model).id_task, submit(tasks, model).id_task
        set_items(sql, id_task, (ItemStatus.ERROR, 2), (ItemStatus.PROCESSED, 8))
        finish(sql, id_task, TaskStatus.ERROR)
        failed, _, processed = (
            i["id_task_item"] for i in sql(f"SELECT id_task_item FROM task_item WHERE id_task = {id_task} ORDER BY 1 LIMIT 3")
        )
        assert tasks.retry(id_task, failed) == 1
        assert row(sql, id_task)["records_failed"] == 1
        with pytest.raises(UsageError, match=f"item {failed} is PENDING"):
            tasks.retry(id_task, failed)
        with pytest.raises(UsageError, match=f"item {processed} is PROCESSED"):
            tasks.retry(id_task, processed)
        with pytest.raises(UsageError, match=f"task {other} has no item {failed}"):
            tasks.retry(other, failed)
        assert_counters_equal_counts(sql, id_task)

    def test_of_a_cancelled_task_is_refused(self, tasks: Tasks, model: int, sql: Sql) -> None:
        id_task = submit(tasks, model).id_task
        set_items(sql, id_task, (ItemStatus.ERROR, 2))
        tasks.cancel(id_task)
        with pytest.raises(UsageError, match=f"ai-worker resume {id_task}"):
            tasks.retry(id_task)
        assert row(sql, id_task)["records_failed"] == 2

    @pytest.mark.usefixtures("small_batches")
    def test_by_several_people_at_once_counts_each_item_once(self, database: Database, model: int, sql: Sql) -> None:
        id_task = submit(Tasks(database), model, 60).id_task
        set_items(sql, id_task, (ItemStatus.ERROR, 50), (ItemStatus.PROCESSED, 10))
        finish(sql, id_task, TaskStatus.ERROR)
        with ThreadPoolExecutor(4) as pool:
            assert sum(pool.map(lambda _: Tasks(database).retry(id_task), range(4))) == 50
        assert row(sql, id_task)["records_failed"] == 0
        assert_counters_equal_counts(sql, id_task)


class TestPauseAndResume:
    def test_there_and_back(self, tasks: Tasks, model: int, sql: Sql) -> None:
        id_task = submit(tasks, model).id_task
        assert tasks.pause(id_task).before is TaskStatus.NEW
        assert tasks.pause(id_task).before is TaskStatus.PAUSED
        assert row(sql, id_task)["status_reason"]
        change = tasks.resume(id_task)
        assert (change.before, change.after) == (TaskStatus.PAUSED, TaskStatus.NEW)
        assert tasks.resume(id_task).before is TaskStatus.NEW
        assert row(sql, id_task)["status_reason"] is None
        set_items(sql, id_task, (ItemStatus.PROCESSED, 1))
        tasks.pause(id_task)
        assert tasks.resume(id_task).after is TaskStatus.IN_PROGRESS

    def test_a_finished_task_is_not_paused(self, tasks: Tasks, model: int, sql: Sql) -> None:
        id_task = submit(tasks, model).id_task
        set_items(sql, id_task, (ItemStatus.PROCESSED, 10))
        finish(sql, id_task, TaskStatus.COMPLETED)
        for verb in (tasks.pause, tasks.resume, tasks.cancel):
            with pytest.raises(UsageError, match=f"task {id_task} is COMPLETED"):
                verb(id_task)
        sql(f"INSERT INTO task_item (id_task, text_original) VALUES ({id_task}, 'nowy')")
        assert tasks.pause(id_task).after is TaskStatus.PAUSED  # somebody put an item into it that no worker has seen yet

    @pytest.mark.parametrize(("failed", "end"), [(0, TaskStatus.COMPLETED), (2, TaskStatus.ERROR)])
    def test_resuming_a_task_without_open_items_ends_it(
        self, tasks: Tasks, model: int, sql: Sql, failed: int, end: TaskStatus
    ) -> None:
        id_task = submit(tasks, model).id_task
        set_items(sql, id_task, (ItemStatus.PROCESSED, 10 - failed), (ItemStatus.ERROR, failed))
        tasks.pause(id_task)
        assert tasks.resume(id_task).after is end
        assert row(sql, id_task)["finished_at"] is not None

    def test_a_task_without_items_waits_for_them(self, tasks: Tasks, model: int, sql: Sql) -> None:
        sql(f"INSERT INTO task (id_ai_model, description) VALUES ({model}, 'pusty')")
        id_task = int(sql("SELECT id_task FROM task")[0]["id_task"])
        tasks.pause(id_task)
        assert tasks.resume(id_task).after is TaskStatus.NEW


class TestCancel:
    @pytest.mark.usefixtures("small_batches")
    def test_what_waits_is_cancelled_and_what_is_in_flight_is_not(
        self, tasks: Tasks, model: int, sql: Sql, reports: Reports
    ) -> None:
        id_task = submit(tasks, model, 20).id_task
        set_items(
            sql, id_task, (ItemStatus.PROCESSED, 3), (ItemStatus.IN_PROGRESS, 2), (ItemStatus.DEFERRED, 5), (ItemStatus.ERROR, 1)
        )
        assert tasks.cancel(id_task).items == 14
        assert {status: n for status, n in reports.task(id_task).items.items() if n} == {
            ItemStatus.PROCESSED: 3,
            ItemStatus.IN_PROGRESS: 2,
            ItemStatus.ERROR: 1,
            ItemStatus.CANCELLED: 14,
        }
        assert row(sql, id_task)["status_id"] == TaskStatus.CANCELLED
        assert row(sql, id_task)["finished_at"] is None  # the last item in flight ends it
        assert_counters_equal_counts(sql, id_task)

    @pytest.mark.usefixtures("small_batches")
    def test_and_back(self, tasks: Tasks, model: int, sql: Sql, reports: Reports) -> None:
        id_task = submit(tasks, model, 10).id_task
        set_items(sql, id_task, (ItemStatus.PROCESSED, 1), (ItemStatus.DEFERRED, 4))
        tasks.cancel(id_task)
        assert row(sql, id_task)["finished_at"] is not None
        again = tasks.cancel(id_task)
        assert (again.before, again.items) == (TaskStatus.CANCELLED, 0)
        change = tasks.resume(id_task)
        assert (change.after, change.items) == (TaskStatus.IN_PROGRESS, 9)
        assert reports.task(id_task).items[ItemStatus.PENDING] == 9
        assert row(sql, id_task)["finished_at"] is None

    def test_waits_for_a_claim_that_was_under_way(self, tasks: Tasks, database: Database, model: int, sql: Sql) -> None:
        id_task = submit(tasks, model, 2).id_task
        claimed, go_on = threading.Event(), threading.Event()

        def claim(tx: Transaction) -> None:
            tx.raw(
                "UPDATE task_item SET status_id = 2, id_worker = 1, claim_token = 'aaaabbbbccccdddd', attempt = 1 "
                f"WHERE id_task = {id_task} ORDER BY id_task_item LIMIT 1"
            )
            claimed.set()
            assert go_on.wait(20)

        with ThreadPoolExecutor(2) as pool:
            worker = pool.submit(database.transaction, claim)
            assert claimed.wait(20)
            person = pool.submit(tasks.cancel, id_task)
            while row(sql, id_task)["status_id"] != TaskStatus.CANCELLED:
                assert not person.done()
            go_on.set()
            worker.result(20)
            assert person.result(20).items == 1
        assert row(sql, id_task)["finished_at"] is None  # one item is in flight


def test_priority(tasks: Tasks, model: int, sql: Sql) -> None:
    id_task = submit(tasks, model).id_task
    tasks.set_priority(id_task, -32767)
    tasks.set_priority(id_task, -32767)
    assert row(sql, id_task)["priority"] == -32767


def test_a_task_that_is_not_there(tasks: Tasks) -> None:
    verbs = (tasks.retry, tasks.pause, tasks.resume, tasks.cancel, lambda id_task: tasks.set_priority(id_task, 1))
    for verb in verbs:
        with pytest.raises(UsageError, match="no task 77; `ai-worker status` lists them"):
            verb(77)


class TestReports:
    def test_numbers_and_errors_by_kind(self, tasks: Tasks, model: int, sql: Sql, reports: Reports) -> None:
        id_task = submit(tasks, model, 20).id_task
        set_items(sql, id_task, (ItemStatus.PROCESSED, 6), (ItemStatus.ERROR, 4), (ItemStatus.DEFERRED, 2))
        task = reports.task(id_task)
        assert (task.total, task.open, task.records_processed, task.records_failed) == (20, 10, 6, 4)
        assert task.rate == pytest.approx(1.0, rel=0.3)
        assert [(e.status, e.kind, e.items, e.message) for e in task.errors] == [
            (ItemStatus.ERROR, "bad_answer", 4, "pusta odpowiedź"),
            (ItemStatus.DEFERRED, "rate_limited", 2, "za szybko"),
        ]
        assert task.errors[1].due_seconds == pytest.approx(3600, abs=60)
        (listed,) = reports.tasks()
        assert listed.items == task.items

    def test_pages_of_tasks_newest_first(self, tasks: Tasks, model: int, reports: Reports) -> None:
        ids = [submit(tasks, model, 1).id_task for _ in range(5)]
        assert [task.id_task for task in reports.tasks(3)] == ids[:1:-1]
        assert [task.id_task for task in reports.tasks(3, before=ids[2])] == ids[1::-1]

    def test_results_in_the_order_of_the_key_whatever_their_status(
        self, tasks: Tasks, model: int, sql: Sql, database: Database
    ) -> None:
        id_task, _ = submit(tasks, model, 700).id_task, submit(tasks, model, 5)
        sql(f"UPDATE task_item SET status_id = 1, finished_at = NOW(6) WHERE id_task = {id_task} AND id_task_item % 3 = 0")
        sql(f"UPDATE task_item SET status_id = 5 WHERE id_task = {id_task} AND id_task_item % 7 = 1 AND status_id = 0")
        results = Results(database)
        everything = list(results.of_task(id_task))
        assert [item.external_key for item in everything] == [str(number) for number in range(700)]
        assert everything[0].context == {"autor": "Żaneta"}
        processed = list(results.of_task(id_task, ItemStatus.PROCESSED))
        assert processed == [item for item in everything if item.status is ItemStatus.PROCESSED]

    def test_workers_by_the_servers_clock(self, sql: Sql, reports: Reports) -> None:
        columns = "host, pid, version, mode, concurrency, heartbeat_at, lease_until, lost_at, ended_at"
        for heartbeat, lease, lost, ended in (
            ("- INTERVAL 1 SECOND", "+ INTERVAL 29 SECOND", "NULL", "NULL"),
            ("- INTERVAL 20 SECOND", "+ INTERVAL 10 SECOND", "NULL", "NULL"),
            ("- INTERVAL 40 SECOND", "- INTERVAL 10 SECOND", "NULL", "NULL"),
            ("- INTERVAL 40 SECOND", "- INTERVAL 10 SECOND", "NOW(6)", "NOW(6)"),
            ("", "+ INTERVAL 30 SECOND", "NULL", "NOW(6)"),
        ):
            sql("SET time_zone = '+00:00'")
            sql(
                f"INSERT INTO worker ({columns}) "
                f"VALUES ('h', 1, '1', 'run', 5, NOW(6) {heartbeat}, NOW(6) {lease}, {lost}, {ended})"
            )
        assert [worker.state for worker in reports.workers()] == ["alive", "late", "lost"]
        assert [worker.state for worker in reports.workers(with_ended=True)] == ["alive", "late", "lost", "lost", "ended"]

    def test_stopped_models(self, model: int, sql: Sql, reports: Reports) -> None:
        assert reports.stopped_models() == []
        sql(
            "UPDATE ai_model SET stopped_at = UTC_TIMESTAMP(6), stopped_kind = 'quota_exhausted', "
            "stopped_reason = 'brak środków', probe_at = UTC_TIMESTAMP(6) + INTERVAL 60 SECOND"
        )
        (stopped,) = reports.stopped_models()
        assert (stopped.name, stopped.kind, stopped.reason) == ("echo", "quota_exhausted", "brak środków")
        assert stopped.probe_seconds == pytest.approx(60, abs=10)


@pytest.mark.parametrize("name", ["results_of_task", "results_of_status", "task_counts", "items_in_status"])
def test_plans_read_the_claim_index_alone(name: str, tasks: Tasks, database: Database, model: int) -> None:
    id_task = submit(tasks, model, 500).id_task
    sql_text = statements()[name] % {"id_task": id_task, "status_id": 0, "after": 0, "size": 100}
    plan = database.transaction(lambda tx: tx.raw(f"EXPLAIN FORMAT=TRADITIONAL {sql_text}"))
    read = [step for step in plan if step["table"] == "task_item"]
    assert read
    for step in read:
        assert step["key"] == "k_task_item_claim", plan
        assert "filesort" not in (step["Extra"] or ""), plan
