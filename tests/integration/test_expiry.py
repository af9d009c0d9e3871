"""Results with a time to live: cleared when it is over, and nothing else with them."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from ai_worker.db import Database
from ai_worker.models import Item, Outcome, OutcomeKind
from ai_worker.store import expiry as module
from ai_worker.store.cache import Answer, Question
from ai_worker.store.expiry import Expiry
from ai_worker.store.queue import Queue
from ai_worker.store.tasks import Tasks
from tests.conftest import Sql
from tests.integration.commands import Commands
from tests.integration.lifecycle import Application, claim, done, failed

pytest_plugins = ["tests.integration.lifecycle"]

DAY = 86_400
CLEARED = ("text_corrected", "change_summary", "result")


@pytest.fixture
def expiry(database: Database) -> Expiry:
    return Expiry(database)


def finish(queue: Queue, worker: int, items: list[Item], outcome: Any = done) -> None:
    queue.commit(worker, [outcome(item) for item in items])


def time_is_over(sql: Sql) -> None:
    sql("UPDATE task SET expire_at = NOW(6) - INTERVAL 1 SECOND WHERE expire_at IS NOT NULL")


def seconds_left(sql: Sql, task: int) -> int | None:
    (row,) = sql("SELECT TIMESTAMPDIFF(SECOND, finished_at, expire_at) AS n FROM task WHERE id_task = %s", [task])
    left: int | None = row["n"]
    return left


def test_results_are_cleared_and_the_rest_stays(
    application: Application, queue: Queue, worker: int, model: int, sql: Sql, expiry: Expiry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BATCH", 2)
    task, kept = application.task(model, result_seconds=7 * DAY), application.task(model)
    items = application.items(task, 5)
    application.items(kept)
    claimed = claim(queue, worker, 6)
    finish(queue, worker, claimed[:4] + claimed[5:])
    finish(queue, worker, claimed[4:5], failed)
    sql(
        "INSERT INTO task_item_step (id_task_item, step, digest, operation_uuid, result) VALUES (%s, 1, '', '', '{}')", [items[4]]
    )
    file = "(id_task_item, position, mime_type, size, sha256, content) VALUES (%s, 0, 'image/png', 1, '', 'x')"
    sql(f"INSERT INTO task_item_file {file}", [items[0]])
    assert (seconds_left(sql, task), seconds_left(sql, kept)) == (7 * DAY, None)
    assert expiry.clear_some() == []  # not yet
    time_is_over(sql)
    before = [application.item_row(item) for item in items]
    assert expiry.clear_some() == [task]
    assert expiry.clear_some() == []
    after = [application.item_row(item) for item in items]
    assert all(row[name] is None for row in after for name in CLEARED)
    assert [{**row, **dict.fromkeys(CLEARED)} for row in before] == after
    assert not sql("SELECT * FROM task_item_step")
    assert not sql("SELECT * FROM task_item_file")
    row = application.task_row(task)
    assert (row["expire_at"], row["status_reason"], row["records_processed"]) == (None, "results expired", 4)
    assert len(sql("SELECT * FROM task_attempt WHERE id_task = %s", [task])) == 5
    (other,) = sql("SELECT * FROM task_item WHERE id_task = %s", [kept])
    assert all(other[name] is not None for name in CLEARED)


def test_a_big_task_is_cleared_in_bounded_steps(
    application: Application, model: int, sql: Sql, expiry: Expiry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BATCH", 2)
    monkeypatch.setattr(module, "BATCHES", 3)
    task = application.task(model, status_id=2, finished_at="2026-01-01", expire_at="2026-01-02")
    application.items(task, 8)
    sql("UPDATE task_item SET status_id = 1, finished_at = NOW(6), result = '{}' WHERE id_task = %s", [task])
    assert expiry.clear_some() == []
    assert sql("SELECT COUNT(result) AS n FROM task_item") == [{"n": 2}]
    assert expiry.clear_some() == [task]
    assert sql("SELECT COUNT(result) AS n FROM task_item") == [{"n": 0}]


def test_a_task_that_goes_on_keeps_its_results_until_after_its_next_end(
    application: Application, queue: Queue, database: Database, worker: int, model: int, sql: Sql, expiry: Expiry
) -> None:
    task = application.task(model, result_seconds=DAY)
    application.items(task, 2)
    one, two = claim(queue, worker, 2)
    finish(queue, worker, [one])
    finish(queue, worker, [two], failed)
    assert seconds_left(sql, task) == DAY
    Tasks(database).retry(task)
    assert application.task_row(task)["expire_at"] is None
    time_is_over(sql)
    assert expiry.clear_some() == []
    finish(queue, worker, claim(queue, worker))
    assert seconds_left(sql, task) == DAY
    assert all(row["result"] is not None for row in sql("SELECT result FROM task_item"))
    cancelled = application.task(model, result_seconds=DAY)
    application.items(cancelled)
    Tasks(database).cancel(cancelled)
    assert seconds_left(sql, cancelled) == DAY


def test_what_is_brought_back_while_its_task_is_cleared_keeps_what_it_has(
    application: Application, queue: Queue, database: Database, worker: int, model: int, sql: Sql
) -> None:
    """The look for what is to be cleared takes no locks."""
    task = application.task(model, result_seconds=DAY)
    items = application.items(task, 2)
    one, two = claim(queue, worker, 2)
    finish(queue, worker, [one])
    finish(queue, worker, [two], failed)
    sql(
        "INSERT INTO task_item_step (id_task_item, step, digest, operation_uuid, result) VALUES (%s, 1, '', '', '{}')", [items[1]]
    )
    time_is_over(sql)
    sql("UPDATE task_item SET status_id = 0, finished_at = NULL WHERE id_task_item = %s", [items[1]])  # a retry begins
    database.transaction(partial(module._clear, task, items[1:]))
    assert sql("SELECT step FROM task_item_step") == [{"step": 1}], "paid for, and not to be asked for again"
    sql("UPDATE task SET status_id = 1, finished_at = NULL, expire_at = NULL WHERE id_task = %s", [task])
    database.transaction(partial(module._clear, task, items))
    assert application.item_row(items[0])["result"] is not None


def test_the_cache_does_not_answer_from_a_cleared_item(
    application: Application, queue: Queue, worker: int, model: int, sql: Sql, expiry: Expiry
) -> None:
    task = application.task(model, result_seconds=DAY)
    application.items(task)
    (item,) = claim(queue, worker)
    question = Question(bytes(32), item.id_task_item, DAY)
    queue.cache.ask(worker, [question])
    outcome: Outcome = done(item)._replace(cache_key=question.key)
    assert outcome.kind is OutcomeKind.PROCESSED
    queue.commit(worker, [outcome])
    later = question._replace(id_task_item=item.id_task_item + 1)
    assert isinstance(queue.cache.ask(worker, [later])[question.key], Answer)
    time_is_over(sql)
    assert expiry.clear_some() == [task]
    assert not isinstance(queue.cache.ask(worker, [later])[question.key], Answer)


def test_a_time_to_live_from_the_command_line(
    application: Application,
    database_url: str,
    tmp_path: Path,
    sql: Sql,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("AI_WORKER_DB_URL", database_url)
    commands = Commands(monkeypatch, capsys)
    application.model("echo")
    rows = tmp_path / "rows.txt"
    rows.write_text("Zażółć\n", encoding="utf-8")
    task = commands("submit", str(rows), "--result-ttl", "7d", "--json").json["id_task"]
    assert application.task_row(task)["result_seconds"] == 7 * DAY
    for wrong in ("7", "0", "-1d", "soon"):
        assert "--result-ttl" in commands("submit", str(rows), "--result-ttl", wrong).err
    commands("run")
    time_is_over(sql)
    ended = commands("run")
    assert '"event":"RESULTS_EXPIRED"' in ended.err
    assert "results expired" in commands("status", str(task)).out
