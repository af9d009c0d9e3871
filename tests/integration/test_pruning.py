"""`prune`: what ended long ago goes with all that hangs on it, and nothing else does."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from ai_worker.database_url import parse_database_url
from ai_worker.db import Database, Transaction
from ai_worker.models import Filters
from ai_worker.store.pruning import ITEMS, Pruned, Pruning
from ai_worker.store.queue import Queue
from tests.conftest import Sql
from tests.integration.commands import Commands
from tests.integration.lifecycle import Application
from tests.integration.old_rows import ALL_GONE, ended_task, fill_with_old_rows, insert

DAY = 86_400


@pytest.fixture
def id_ai_model(sql: Sql) -> int:
    return Application(sql).model()


def prune(database: Database, days: int = 30, folder: Path | None = None, **options: Any) -> Pruned:
    return Pruning(database, folder, pause=lambda _: None).run(days * DAY, **options)


def left(sql: Sql, *tables: str) -> dict[str, int]:
    return {table: sql(f"SELECT COUNT(*) AS n FROM {table}")[0]["n"] for table in tables}


def counters(sql: Sql, id_task: int) -> dict[str, Any]:
    return sql(
        "SELECT records_processed, records_failed, tokens_input, tokens_output, cost FROM task WHERE id_task = %s", [id_task]
    )[0]


def counted(sql: Sql, id_task: int) -> dict[str, Any]:
    """The same, off the items."""
    (row,) = sql(
        "SELECT COALESCE(SUM(status_id = 1), 0) AS records_processed, COALESCE(SUM(status_id = 3), 0) AS records_failed,"
        " SUM(tokens_input) AS tokens_input, SUM(tokens_output) AS tokens_output, SUM(cost) AS cost"
        " FROM task_item WHERE id_task = %s",
        [id_task],
    )
    return row


def test_everything_old_goes_and_a_dry_run_foretells_it(database: Database, sql: Sql, id_ai_model: int) -> None:
    fill_with_old_rows(sql, id_ai_model)
    before = left(sql, *ALL_GONE)
    assert all(before.values())
    foretold = prune(database, dry_run=True).rows
    assert left(sql, *ALL_GONE) == before
    gone = prune(database).rows
    assert not any(left(sql, *ALL_GONE).values())
    tables = ("task", "task_item", "task_item_step", "worker", "web_session", "schedule_fire")
    assert {table: gone[table] for table in tables} == {table: foretold[table] for table in tables}
    assert gone["task_attempt"] == 2  # and the one whose item had gone before
    assert sql("SELECT id_worker, value FROM worker_counter") == [{"id_worker": 0, "value": 7.0}]
    assert sum(prune(database).rows.values()) == 0


def test_counters_of_old_workers_are_added_up(database: Database, sql: Sql, id_ai_model: int) -> None:
    for value in (3, 4):
        worker = {"host": "h", "pid": 1, "version": "1", "mode": "run", "concurrency": 1}
        id_worker = insert(sql, "worker", **worker, old=("lease_until", "ended_at"))
        insert(sql, "worker_counter", id_worker=id_worker, name="claims_total", value=value)
        assert prune(database).rows["worker"] == 1
    assert sql("SELECT id_worker, value FROM worker_counter") == [{"id_worker": 0, "value": 7.0}]


def test_what_is_young_or_open_or_running_stays(database: Database, sql: Sql, id_ai_model: int) -> None:
    ended_task(sql, id_ai_model, days=20)
    for status in (0, 1, 4):
        sql(
            "INSERT INTO task (id_ai_model, status_id, created_at) VALUES (%s, %s, NOW(6) - INTERVAL 90 DAY)",
            [id_ai_model, status],
        )
        sql("INSERT INTO task_item (id_task, text_original) VALUES (LAST_INSERT_ID(), 'x')")
    Queue(database).register(host="h", pid=1, version="1", mode="run", concurrency=1, lease_seconds=30.0)
    sql("INSERT INTO worker_minute (minute_at, id_worker, id_ai_model) VALUES (NOW() - INTERVAL 7 DAY, 1, 1)")
    tables = ("task", "task_item", "task_attempt", "worker", "worker_minute")
    before = left(sql, *tables)
    assert sum(prune(database).rows.values()) == 0
    assert prune(database, 2, task_types=["correction"]).rows["task"] == 1  # the one of twenty days ago
    assert prune(database, 2).rows["worker_minute"] == 0  # the charts reach back a week, whatever the age
    assert left(sql, *tables) == {**before, "task": before["task"] - 1, "task_item": 3, "task_attempt": 0}


def test_tasks_that_something_hangs_on_stay_and_are_named(database: Database, sql: Sql, id_ai_model: int) -> None:
    given_more, cancelled_in_flight, waited_for, in_group, batch = (ended_task(sql, id_ai_model) for _ in range(5))
    sql("INSERT INTO task_item (id_task, text_original) VALUES (%s, 'x')", [given_more])
    sql("UPDATE task SET status_id = 5 WHERE id_task = %s", [cancelled_in_flight])
    sql(
        "UPDATE task_item SET status_id = 2, id_worker = 1, claim_token = %s WHERE id_task = %s",
        [bytes(16), cancelled_in_flight],
    )
    waiting = Application(sql).task(id_ai_model)
    sql("INSERT INTO task_dependency (id_task, after_id_task) VALUES (%s, %s)", [waiting, waited_for])
    sql("INSERT INTO task_group (name) VALUES ('nocne')")
    sql("UPDATE task SET id_task_group = LAST_INSERT_ID() WHERE id_task = %s", [in_group])
    sql("INSERT INTO batch (batch_key, id_task, id_ai_model, id_worker, state) VALUES ('k', %s, 1, 1, 'collecting')", [batch])
    free = ended_task(sql, id_ai_model, status=5)
    pruned = prune(database)
    assert pruned.rows["task"] == 1
    assert not sql("SELECT id_task FROM task WHERE id_task = %s", [free])
    assert pruned.kept == {
        "open": [given_more, cancelled_in_flight, batch],
        "waited for": [waited_for],
        "in an open group": [in_group],
    }


def test_accepted_results_that_were_not_written_back_stay_unless_told(database: Database, sql: Sql, id_ai_model: int) -> None:
    tasks = [ended_task(sql, id_ai_model) for _ in range(3)]
    for id_task in tasks:
        sql("INSERT INTO task_source (id_task, table_name, key_column, text_column) VALUES (%s, 't', 'k', 'x')", [id_task])
    not_written, written, rejected = tasks
    sql("UPDATE task_item SET review_status_id = 1 WHERE id_task IN (%s, %s)", [not_written, written])
    sql("UPDATE task_item SET review_status_id = 2 WHERE id_task = %s", [rejected])
    sql(
        "INSERT INTO task_item_export (id_task, id_task_item, outcome, hash_before, hash_after, exported_by)"
        " SELECT id_task, id_task_item, 'written', UNHEX(SHA2(text_original, 256)), UNHEX(SHA2(text_corrected, 256)), 'a'"
        " FROM task_item WHERE id_task = %s",
        [written],
    )
    pruned = prune(database)
    assert pruned.kept == {"not exported": [not_written]}
    assert pruned.rows["task"] == 2
    assert prune(database, with_unexported=True).rows["task"] == 1


def test_a_large_task_goes_in_small_transactions_and_its_counters_are_right_all_the_way(
    database: Database, sql: Sql, id_ai_model: int
) -> None:
    small = [ended_task(sql, id_ai_model) for _ in range(3)]
    large = ended_task(sql, id_ai_model, 2 * ITEMS + 10)
    after = ended_task(sql, id_ai_model)
    sql("UPDATE task_item SET status_id = 3 WHERE id_task = %s AND id_task_item %% 3 = 0", [large])
    failed = sql("SELECT SUM(status_id = 3) AS n FROM task_item WHERE id_task = %s", [large])[0]["n"]
    sql(
        "UPDATE task SET records_failed = %s, records_processed = records_processed - %s WHERE id_task = %s",
        [failed, failed, large],
    )
    halves = []

    def told(pruned: Pruned) -> None:
        rows = sql("SELECT COUNT(*) AS n FROM task WHERE id_task = %s", [large])[0]["n"]
        if rows and 0 < sql("SELECT COUNT(*) AS n FROM task_item WHERE id_task = %s", [large])[0]["n"] < 2 * ITEMS + 10:
            assert counters(sql, large) == counted(sql, large)
            halves.append(pruned.rows["task_item"])

    Pruning(database, told=told, pause=lambda _: None).run(30 * DAY)
    assert len(halves) >= 2
    assert left(sql, "task", "task_item", "task_attempt") == {"task": 0, "task_item": 0, "task_attempt": 0}
    assert not sql("SELECT id_task FROM task WHERE id_task IN (%s, %s)", [small[0], after])


def test_a_task_that_is_brought_back_meanwhile_keeps_what_it_has(database: Database, sql: Sql, id_ai_model: int) -> None:
    large = ended_task(sql, id_ai_model, 3 * ITEMS)

    def told(pruned: Pruned) -> None:
        if pruned.rows["task_item"] == ITEMS and not sql("SELECT 1 FROM task_item WHERE status_id = 0"):
            sql("INSERT INTO task_item (id_task, text_original) VALUES (%s, 'nowy')", [large])

    pruned = Pruning(database, told=told, pause=lambda _: None).run(30 * DAY)
    assert pruned.rows["task_item"] == ITEMS
    assert left(sql, "task", "task_item") == {"task": 1, "task_item": 2 * ITEMS + 1}
    assert counters(sql, large) == counted(sql, large)


def test_files_in_a_folder_go_too_and_it_is_said_where_they_cannot(
    database: Database, sql: Sql, id_ai_model: int, tmp_path: Path
) -> None:
    def with_file(name: str) -> int:
        id_task = ended_task(sql, id_ai_model)
        sql(
            "INSERT INTO task_item_file (id_task_item, position, mime_type, size, sha256, path)"
            " SELECT id_task_item, 1, 'image/png', 1, %s, CONCAT(id_task, '/', %s) FROM task_item WHERE id_task = %s",
            [bytes(32), name, id_task],
        )
        return id_task

    folder = tmp_path / str(with_file("1-1-abc.png"))
    folder.mkdir()
    (folder / "1-1-abc.png").write_bytes(b"x")
    with_file("gone.png")
    other = tmp_path / "other"
    other.write_bytes(b"x")
    with_file("../../other")
    pruned = prune(database, folder=tmp_path)
    assert (pruned.files_removed, pruned.files_missing, pruned.files_left) == (1, 2, 0)
    assert not folder.exists()
    assert other.exists()
    with_file("x.png")
    assert prune(database).files_left == 1


def test_two_runs_at_once_do_the_work_once(database: Database, sql: Sql, id_ai_model: int) -> None:
    for _ in range(4):
        ended_task(sql, id_ai_model, 300)
    both = threading.Barrier(2)
    done: list[Pruned] = []

    def run() -> None:
        both.wait(10)
        done.append(prune(database))

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert [sum(pruned.rows[table] for pruned in done) for table in ("task", "task_item", "task_attempt")] == [4, 1200, 1200]
    assert left(sql, "task", "task_item", "task_attempt") == {"task": 0, "task_item": 0, "task_attempt": 0}


def test_work_goes_on_beside_it(database: Database, database_url: str, sql: Sql, id_ai_model: int) -> None:
    """In the middle of a transaction that deletes, claims and commits of open tasks, new tasks and new items wait for nobody."""
    ended_task(sql, id_ai_model, 2 * ITEMS)
    application = Application(sql)
    application.items(application.task(id_ai_model), 3)
    sql("SET SESSION innodb_lock_wait_timeout = 1")
    other = Database(parse_database_url(database_url))
    queue = Queue(other)
    worker = queue.register(host="h", pid=1, version="1", mode="run", concurrency=4, lease_seconds=30.0)
    claimed: list[int] = []

    class Watched(Pruning):
        def _in_transaction(self, tx: Transaction, *arguments: Any) -> Any:
            step = super()._in_transaction(tx, *arguments)
            other.transaction(lambda mine: mine.raw("SET SESSION innodb_lock_wait_timeout = 1"))
            claimed.extend(item.id_task_item for item in queue.claim(worker, queue.runnable(Filters()), 1))
            application.items(application.task(id_ai_model), 1)
            return step

    assert Watched(database, pause=lambda _: None).run(30 * DAY).rows["task"] == 1
    assert len(claimed) >= 3
    other.close()


def test_the_command_says_what_goes_and_what_stays(
    sql: Sql, database_url: str, id_ai_model: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AI_WORKER_DB_URL", database_url)
    ai_worker = Commands(monkeypatch, capsys)
    ended_task(sql, id_ai_model, 2, task_type="summary")
    ended_task(sql, id_ai_model)
    ended = ai_worker("prune", "--older-than", "30d", "--task-type", "summary", "--dry-run", "--json")
    assert ended.json["deleted"] == {"task": 1, "task_item": 2, "task_attempt": 2}
    assert ended.json["dry_run"]
    ended = ai_worker("prune", "--older-than", "30d")
    assert "task_item" in ended.out
    assert "deleted" in ended.out
    assert (ai_worker("prune", "--older-than", "30d").out, ended.code) == ("nothing that old\n", 0)
    assert ai_worker("prune", "--older-than", "30m").code == 2
    assert ai_worker("prune", "--older-than", "30").code == 2
