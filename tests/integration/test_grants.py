"""sql/grants.sql: each user can do its work with these grants, and none of what it must not."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import pymysql
import pytest
from starlette.datastructures import FormData

from ai_worker import migrate
from ai_worker.cli import COMMANDS
from ai_worker.counts import Key, Work
from ai_worker.database_url import parse_database_url
from ai_worker.db import Database, sql_folder
from ai_worker.models import Filters, ItemStatus, Need, Needs, Outcome, Result, ReviewStatus, StepResult, TaskStatus, Usage
from ai_worker.store import gauges
from ai_worker.store.browsed import ItemSearch, TaskSearch
from ai_worker.store.cache import Answer, Question, Standing
from ai_worker.store.counters import Counters, Minute
from ai_worker.store.exports import Exports
from ai_worker.store.groups import Groups
from ai_worker.store.imports import Imports
from ai_worker.store.models import Models
from ai_worker.store.new_tasks import NewItem, NewTask
from ai_worker.store.pruning import Pruning
from ai_worker.store.queue import Queue
from ai_worker.store.reports import Reports
from ai_worker.store.results import Results
from ai_worker.store.reviews import Review, Reviews
from ai_worker.store.source_table import Columns, ExportOutcome, SourceTable
from ai_worker.store.steps import Finished, Place
from ai_worker.store.tasks import Tasks
from ai_worker.web.options import WebOptions
from ai_worker.web.pages.estimating import estimated
from ai_worker.web.pages.submit import stored
from ai_worker.web.services import Services
from tests.conftest import Sql
from tests.integration.old_rows import fill_with_old_rows
from tests.integration.source_tables import shop
from tests.servers import GRANTS, ROLE_OF_COMMAND, Programs, TestServer, role_user

DENIED = {1142, 1143}  # table access, column access
PASSWORD = "Test.1-zxcvb"


@dataclass(frozen=True)
class Users:
    """The four users on the test's database, under names of the test's own."""

    server: TestServer
    database: str
    prefix: str

    def database_of(self, role: str) -> Database:
        return Database(parse_database_url(self.server.url(self.database, self.prefix + role, PASSWORD)))

    def connect(self, role: str) -> pymysql.Connection[Any]:
        return self.server.connect(self.database, self.prefix + role, PASSWORD)


@pytest.fixture
def users(server: TestServer, database_url: str) -> Iterator[Users]:
    users = Users(server, parse_database_url(database_url).database, f"ai_test_{os.getpid()}_")
    names = {role: f"{users.prefix}{role}@'%'" for role in ("worker", "web", "app", "prune")}
    text = (sql_folder() / "grants.sql").read_text(encoding="utf-8").replace(" ai_worker.", f" {users.database}.")
    originals = {"worker": "ai_worker@'%'", **{role: f"ai_worker_{role}@'%'" for role in ("web", "app", "prune")}}
    for role, original in originals.items():
        text = text.replace(f" {original}", f" {names[role]}").replace(f"CHANGE-ME-{role}-1", PASSWORD)
    statements = migrate.split(text)
    try:
        server.execute(*statements)
        server.execute(*statements)  # may be repeated
        yield users
    finally:
        server.execute(*(f"DROP USER IF EXISTS {name}" for name in names.values()))


@pytest.fixture
def id_ai_model(sql: Sql) -> int:
    sql("INSERT INTO ai_model (name, provider, api_key_encrypted) VALUES ('echo', 'echo', 'sealed')")
    key: int = sql("SELECT id_ai_model FROM ai_model")[0]["id_ai_model"]
    return key


def insert(cursor: pymysql.cursors.Cursor, id_ai_model: int, *texts: str) -> int:
    """A task with items, as an application makes it."""
    cursor.execute("INSERT INTO task (id_ai_model, description) VALUES (%s, 'popraw')", [id_ai_model])
    id_task = int(cursor.lastrowid)
    cursor.executemany("INSERT INTO task_item (id_task, text_original) VALUES (%s, %s)", [(id_task, text) for text in texts])
    return id_task


def refused(cursor: pymysql.cursors.Cursor, statement: str) -> None:
    with pytest.raises((pymysql.err.OperationalError, pymysql.err.ProgrammingError)) as caught:
        cursor.execute(statement)
    assert caught.value.args[0] in DENIED, statement


def test_the_worker_keeps_to_limits(users: Users, sql: Sql, id_ai_model: int) -> None:
    sql("INSERT INTO queue_limit (queue, max_per_minute, max_in_flight) VALUES ('default', 60000, 2)")
    with users.server.connect(users.database) as connection, connection.cursor() as cursor:
        insert(cursor, id_ai_model, "Zażółć", "gęślą", "jaźń")
    db = users.database_of("worker")
    try:
        queue = Queue(db)
        worker = queue.register(host="h", pid=1, version="1", mode="run", concurrency=4, lease_seconds=30.0)
        assert len(queue.claim(worker, queue.runnable(Filters()), 9)) == 2
    finally:
        db.close()


def test_the_worker_can_work(users: Users, sql: Sql, id_ai_model: int) -> None:
    """Every verb of the queue, and the breaker."""
    with users.server.connect(users.database) as connection, connection.cursor() as cursor:
        id_task = insert(cursor, id_ai_model, "Zażółć", "gęślą", "jaźń", "ćma", "łoś")
    db = users.database_of("worker")
    try:
        migrate.check(db)
        queue, models = Queue(db), Models(db)
        lease = {"lease_seconds": 30.0}
        worker = queue.register(host="h", pid=1, version="1", mode="run", concurrency=4, **lease)
        (task,) = queue.runnable(Filters())
        assert queue.waiting(Filters()).pending == 5
        items = queue.claim(worker, [task], 4)
        assert [item.text_original for item in items] == ["Zażółć", "gęślą", "jaźń", "ćma"]
        assert queue.beat(worker, host="h", pid=1, in_flight=4, processed=0, failed=0, **lease)
        usage, cost = Usage(10, 20), Decimal("0.001")
        assert queue.steps.begin(items[0], {Place(1, 1): bytes(32)}) == {}
        queue.steps.store(worker, Finished(items[0], Place(1, 1), bytes(32), StepResult("Zażółć.", {}), usage, cost))
        assert queue.steps.begin(items[0], {Place(1, 1): b"x" * 32}) == {}
        assert queue.steps.models().keys()
        counters = Counters(db)
        minute = Minute(counters.minute(), worker, id_ai_model)
        for _ in range(2):
            counters.write(worker, {Key("claims_total"): 1.0}, {minute: Work()})
        counters.fold([worker])
        committed = queue.commit(
            worker,
            [
                Outcome.processed(items[0], Result("Zażółć.", "kropka", {"a": 1}), usage, cost, 5)._replace(is_joined=True),
                Outcome.retry(items[1], "bad_answer", "pusto", 0.0, usage, cost, 5),
                Outcome.failed(items[2], "content_refused", "nie", usage, cost, 5),
                Outcome.released(items[3]),
            ],
        )
        assert (len(committed.stored), committed.lost, committed.ended) == (4, [], [])
        assert queue.next_due() <= 0
        assert queue.promote_due() == 1
        (lost, *_) = queue.claim(worker, [task], 1)
        sql("UPDATE worker SET lease_until = NOW(6) - INTERVAL 1 HOUR, heartbeat_at = lease_until WHERE id_worker = %s", [worker])
        assert queue.rescue().items == 1
        assert not queue.rescue_orphans().items
        late = queue.commit(worker, [Outcome.processed(lost, Result("x", None, {}), usage, cost, 5)])
        assert len(late.stored) == 1
        assert queue.reopen_for_new_items(0) == 0
        assert queue.end_forgotten() == []
        assert queue.uptime() >= 0
        assert models.stop(id_ai_model, "quota_exhausted", "pusto", 0.0)
        assert queue.take_probe(id_ai_model)
        assert models.resume(id_ai_model)
        assert models.all()[0].api_key_encrypted == b"sealed"
        second = queue.register(host="h", pid=2, version="1", mode="run", concurrency=4, **lease)
        rest = queue.claim(second, [task], 10)
        ended = queue.commit(second, [Outcome.processed(each, Result("x", None, {}), usage, cost, 5) for each in rest]).ended
        assert [(each.id_task, each.status) for each in ended] == [(id_task, TaskStatus.ERROR)]
        # the result cache: led, stored, read, abandoned, forgotten
        sql("INSERT INTO task_item (id_task, text_original) VALUES (%s, 'ość')", [id_task])
        assert queue.reopen_for_new_items(0) == 1
        (item,) = queue.claim(second, [task], 1)
        question = Question(bytes(32), item.id_task_item, 60.0)
        assert queue.cache.ask(second, [question]) == {question.key: Standing.LEADS}
        queue.cache.abandon(second, [question])
        assert queue.cache.ask(second, [question]) == {question.key: Standing.LEADS}
        answer = Outcome.processed(item, Result("ość", None, {}), usage, cost, 5)._replace(cache_key=question.key)
        assert queue.commit(second, [answer]).stored
        known = queue.cache.ask(second, [question._replace(id_task_item=1)])[question.key]
        assert isinstance(known, Answer)
        sql("DELETE FROM task_item WHERE id_task_item = %s", [item.id_task_item])
        assert queue.cache.forget(bytes(32)) == 1
        # what is drawn into prompts, and the facts that a result leaves behind
        sql("INSERT INTO task_item (id_task, text_original, context_key) VALUES (%s, 'ość', 'klient 7')", [id_task])
        assert queue.reopen_for_new_items(0) == 1
        (item,) = queue.claim(second, [task], 1)
        learnt = Result("ość", None, {}, facts=("Ma psa.",))
        assert queue.commit(second, [Outcome.processed(item, learnt, usage, cost, 5)]).stored
        later = item._replace(id_task_item=item.id_task_item + 1)
        (drawn,) = queue.backgrounds.draw([(later, Needs(results=1, facts=1, examples=1))])
        assert (drawn.results, drawn.facts) == ((("ość", "ość"),), ("Ma psa.",))
        queue.end_worker(second, processed=4, failed=0)
        _order_and_time(queue, sql, id_ai_model)
        # the named lock that idle workers wait for
        assert db.transaction(lambda tx: tx.raw("SELECT GET_LOCK('ai_worker_test_grants', 0) AS got")) == [{"got": 1}]
    finally:
        db.close()


def _order_and_time(queue: Queue, sql: Sql, id_ai_model: int) -> None:
    """What a worker does for schedules, groups, callbacks and expired results."""
    columns = "name, cron, time_zone, id_ai_model, task_type, items, next_at"
    for name, zone in (("dobry", "UTC"), ("zepsuty", "Mars/Base")):
        values = [name, "0 2 * * *", zone, id_ai_model, "correction", '[{"text": "a"}]', "2026-01-01"]
        sql(f"INSERT INTO schedule ({columns}) VALUES (%s, %s, %s, %s, %s, %s, %s)", values)
    sql("INSERT INTO task_group (name, callback_url, closed_at) VALUES ('g', 'http://127.0.0.1/', NOW(6))")
    assert queue.look_at_time().has_schedule
    assert len(queue.schedules.fire_some()) == 2
    assert [each.name for each in queue.groups.end_some()] == ["g"]
    (callback,) = queue.callbacks.take()
    assert queue.callbacks.missed(callback, 500, "nie") is not None
    queue.callbacks.delivered(callback, 204)
    sql("UPDATE task SET expire_at = NOW(6) WHERE finished_at IS NOT NULL")
    assert queue.expiry.clear_some()
    assert queue.waiting(Filters()).held == {}


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE task_item SET text_original = 'x'",
        "DELETE FROM task_item",
        "UPDATE task SET description = 'x'",
        "DELETE FROM task",
        "UPDATE task_attempt SET cost = 0",
        "UPDATE ai_model SET api_key_encrypted = NULL",
        "UPDATE ai_model SET base_url = 'http://elsewhere'",
        "UPDATE schema_migration SET checksum = NULL",
        "CREATE TABLE mine (a INT)",
        "ALTER TABLE task ADD a INT",
        "DROP TABLE task",
    ],
)
def test_the_worker_cannot(users: Users, statement: str) -> None:
    with users.connect("worker") as connection, connection.cursor() as cursor:
        refused(cursor, statement)


def test_a_person_can_handle_tasks(users: Users, sql: Sql, id_ai_model: int) -> None:
    db = users.database_of("web")
    try:
        migrate.check(db)
        tasks, reports = Tasks(db), Reports(db)
        id_task = tasks.submit(NewTask(id_ai_model, "correction"), lambda: iter([NewItem("Zażółć"), NewItem("gęślą")])).id_task
        groups = Groups(db)
        id_group = groups.add("nocne")
        order = {"id_task_group": id_group, "after": {id_task: Need.END}, "result_seconds": 60}
        tasks.submit(NewTask(id_ai_model, "correction", **order), lambda: iter([NewItem("a")]))  # type: ignore[arg-type]  # fields
        assert groups.close("nocne")
        assert groups.get("nocne").tasks == {TaskStatus.NEW: 1}
        sql("DELETE FROM task WHERE id_task_group IS NOT NULL")
        tasks.set_priority(id_task, 5)
        tasks.pause(id_task)
        tasks.resume(id_task)
        tasks.cancel(id_task)
        tasks.resume(id_task)
        sql(
            "UPDATE task_item SET status_id = 3, finished_at = NOW(6), error_kind = 'x', attempt = 1 WHERE id_task = %s",
            [id_task],
        )
        sql("UPDATE task SET records_failed = 2, status_id = 3, finished_at = NOW(6) WHERE id_task = %s", [id_task])
        assert tasks.retry(id_task) == 2
        assert reports.task(id_task).records_failed == 0
        assert len(reports.tasks()) == 1
        assert reports.workers() == []
        assert reports.stopped_models() == []
        assert gauges.look(db).tasks[TaskStatus.NEW] + gauges.look(db).tasks[TaskStatus.IN_PROGRESS] == 1
        assert Counters(db).sums() == []
        assert Counters(db).series(1).models == {}
        assert [each.api_key_encrypted for each in Models(db, keys=False).all()] == [None]
        assert len(list(Results(db).of_task(id_task))) == 2
        with users.connect("web") as connection, connection.cursor() as cursor:
            cursor.execute("UPDATE task_item SET review_status_id = 1 WHERE id_task = %s", [id_task])
    finally:
        db.close()


def test_a_person_can_import_review_and_export(users: Users, sql: Sql, id_ai_model: int, server: TestServer) -> None:
    with shop(server) as other:
        other.articles("Zażółć", "gęślą")
        for right in ("SELECT (id, body)", "UPDATE (body)"):
            server.execute(f"GRANT {right} ON {other.name}.articles TO {users.prefix}web@'%'")
        db = users.database_of("web")
        try:
            source = SourceTable.look_up(db, Columns(f"{other.name}.articles", None, "body"))
            new = NewTask(id_ai_model, "correction", submit_key="K", fallbacks=(id_ai_model,))
            id_task = Imports(db).run(new, source, "id > 0", None).id_task
            assert id_task is not None
            sql("UPDATE task_item SET status_id = 1, attempt = 1, finished_at = NOW(6), text_corrected = 'x'")
            assert len(Reviews(db).items(id_task)) == 2
            assert Reviews(db).review_rest(id_task, Review(ReviewStatus.ACCEPTED, "ja")) == 2
            assert {each.outcome for each in Exports(db).run(id_task, source, "ja")} == {ExportOutcome.WRITTEN}
            assert other.bodies() == {1: "x", 2: "x"}
        finally:
            db.close()


def test_the_web_can_show_and_submit(users: Users, sql: Sql, id_ai_model: int) -> None:
    """What the dashboard's pages about tasks and items ask for."""
    db = users.database_of("web")
    try:
        services = Services(db, WebOptions())
        rows = {"pasted": "Zażółć\ngęślą", "model": "echo"}
        submitted, _ = stored(services, FormData(rows), rows)
        id_task = submitted.id_task
        look = services.browsing
        assert estimated(services, id_task, 2).tokens_input > 0
        assert look.tasks(TaskSearch(text="x", model="echo")).tasks == []
        assert look.task(id_task).task.total == 2
        assert look.counts(id_task)[ItemStatus.PENDING] == 2
        (first, _) = look.items(id_task, ItemSearch()).items
        sql("UPDATE task_item SET status_id = 1, attempt = 1, finished_at = NOW(6), text_corrected = 'x'")
        assert look.next_to_review(id_task, 0).id_task_item == first.id_task_item
        assert look.previous_to_review(id_task, first.id_task_item) is None
        assert len(look.riskiest(id_task).items) == 2
        assert (look.left_off(id_task), look.choices()) == (0, (["correction"], ["default"]))
        assert look.item(first.id_task_item).attempts == []
        sql("UPDATE task_item SET status_id = 3, error_kind = 'x', error_message = 'y'")
        sql("UPDATE task SET records_failed = 2")
        assert look.task(id_task).task.errors[0].items == 2
        assert services.tasks.retry(id_task, kind="x") == 2
        asyncio.run(services.aclose())
    finally:
        db.close()


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT api_key_encrypted FROM ai_model",
        "SELECT * FROM ai_model",
        "UPDATE ai_model SET is_active = 0",
        "UPDATE task_item SET text_corrected = 'x'",
        "UPDATE task_item SET text_original = 'x'",
        "UPDATE task SET records_processed = 9",
        "DELETE FROM task_attempt",
        "UPDATE worker SET lease_until = NOW(6)",
        "DROP TABLE task",
    ],
)
def test_a_person_cannot(users: Users, statement: str) -> None:
    with users.connect("web") as connection, connection.cursor() as cursor:
        refused(cursor, statement)


def test_the_application_can_insert_rows_and_read_results(users: Users, sql: Sql, id_ai_model: int) -> None:
    with users.connect("app") as connection, connection.cursor() as cursor:
        cursor.execute("SELECT id_ai_model FROM ai_model WHERE name = 'echo'")
        assert cursor.fetchone() == {"id_ai_model": id_ai_model}
        id_task = insert(cursor, id_ai_model, "Zażółć gęślą jaźń")
        sql("UPDATE task_item SET status_id = 1, finished_at = NOW(6), text_corrected = 'Zażółć gęślą jaźń.'")
        cursor.execute(
            "SELECT text_corrected, name FROM task_item JOIN task_item_status USING (status_id) WHERE id_task = %s",
            [id_task],
        )
        assert cursor.fetchall() == [{"text_corrected": "Zażółć gęślą jaźń.", "name": "PROCESSED"}]
        cursor.execute("SELECT name FROM task JOIN task_status USING (status_id) WHERE id_task = %s", [id_task])
        assert cursor.fetchone() == {"name": "NEW"}


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT api_key_encrypted FROM ai_model",
        "SELECT * FROM ai_model",
        "SELECT options FROM ai_model",
        "UPDATE task_item SET text_corrected = 'x'",
        "INSERT INTO task_item (id_task, text_original, text_corrected) VALUES (1, 'x', 'y')",
        "INSERT INTO task_item (id_task, text_original, status_id, finished_at) VALUES (1, 'x', 1, NOW(6))",
        "INSERT INTO task (id_ai_model, records_processed) VALUES (1, 9)",
        "UPDATE task SET status_id = 2, finished_at = NOW(6)",
        "DELETE FROM task_item",
        "SELECT * FROM worker",
        "DROP TABLE task",
    ],
)
def test_the_application_cannot(users: Users, statement: str) -> None:
    with users.connect("app") as connection, connection.cursor() as cursor:
        refused(cursor, statement)


def test_who_prunes_can_prune(users: Users, sql: Sql, id_ai_model: int) -> None:
    """Every verb of it; that nothing is left of what was old shows that each has done its work."""
    id_task = fill_with_old_rows(sql, id_ai_model)
    db = users.database_of("prune")
    try:
        migrate.check(db)
        assert Pruning(db).run(3600, dry_run=True).rows["task_item"] == 1
        assert Pruning(db).run(3600).rows["task"] == 1
    finally:
        db.close()
    assert not sql("SELECT id_task FROM task WHERE id_task = %s", [id_task])


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT api_key_encrypted FROM ai_model",
        "SELECT token_hash FROM api_token",
        "SELECT body FROM web_request",
        "SELECT secret_encrypted FROM task_group",
        "UPDATE task SET status_id = 2, finished_at = NOW(6)",
        "UPDATE task_item SET text_corrected = 'x'",
        "DELETE FROM ai_model_day",
        "DELETE FROM ai_model",
        "DELETE FROM prompt",
        "DROP TABLE task",
    ],
)
def test_who_prunes_cannot(users: Users, statement: str) -> None:
    with users.connect("prune") as connection, connection.cursor() as cursor:
        refused(cursor, statement)


def test_nobody_reaches_another_database(users: Users) -> None:
    with users.server.new_database() as other:
        for role in ("worker", "web", "app", "prune"):
            with users.connect(role) as connection, connection.cursor() as cursor:
                cursor.execute("SHOW DATABASES")
                assert other not in {row["Database"] for row in cursor.fetchall()}


# What a person gives who may do everything, or what needs no database.
BY_A_PERSON = {
    *("migrate", "model", "prompt", "submit", "import", "export", "token", "group", "schedule", "queue", "rekey", "doctor"),
    *("quickstart", "service", "keygen", "completion"),
}


def test_each_command_runs_as_whom_it_is_for(
    programs: Programs, database_url: str, sql: Sql, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What AI_WORKER_TEST_GRANTS does for every test that starts programs: what goes beyond the grants fails it."""
    monkeypatch.setenv(GRANTS, "1")
    assert ROLE_OF_COMMAND.keys() | BY_A_PERSON == COMMANDS.keys()
    assert not ROLE_OF_COMMAND.keys() & BY_A_PERSON
    daemon = programs.start("daemon")
    daemon.wait_for("START")
    database = parse_database_url(database_url).database
    (mine,) = sql("SELECT USER() AS name")
    rows = sql("SELECT DISTINCT USER AS name FROM information_schema.processlist WHERE DB = %s", [database])
    assert {row["name"] for row in rows} == {role_user(database, "worker"), mine["name"].partition("@")[0]}
    daemon.process.terminate()
    assert daemon.wait() == 0
    assert programs.run("status", "--json").returncode == 0
    assert programs.run("prune", "--older-than", "1d").returncode == 0
