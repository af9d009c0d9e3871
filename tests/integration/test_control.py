"""`retry`, `pause`, `resume`, `cancel`, `priority` as people call them."""

from __future__ import annotations

import pytest

from tests.conftest import Sql
from tests.integration.commands import Commands


@pytest.fixture
def ai_worker(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], database_url: str) -> Commands:
    monkeypatch.setenv("AI_WORKER_DB_URL", database_url)
    return Commands(monkeypatch, capsys)


@pytest.fixture
def task(sql: Sql) -> str:
    """A task with three items: processed, in error, pending; its id."""
    sql("INSERT INTO ai_model (name, provider) VALUES ('echo', 'echo')")
    sql(
        "INSERT INTO task (id_ai_model, status_id, started_at, records_processed, records_failed) "
        "SELECT id_ai_model, 1, NOW(6), 1, 1 FROM ai_model"
    )
    sql(
        "INSERT INTO task_item (id_task, text_original, status_id, attempt, finished_at) "
        "SELECT id_task, 'raz', 1, 1, NOW(6) FROM task UNION ALL SELECT id_task, 'dwa', 3, 3, NOW(6) FROM task "
        "UNION ALL SELECT id_task, 'trzy', 0, 0, NULL FROM task"
    )
    return str(sql("SELECT id_task FROM task")[0]["id_task"])


def test_retry(ai_worker: Commands, task: str, sql: Sql) -> None:
    item = str(sql("SELECT id_task_item FROM task_item WHERE status_id = 3")[0]["id_task_item"])
    assert ai_worker("retry", task, "--item", item, "--json").json == {"id_task": int(task), "status": "IN_PROGRESS", "items": 1}
    assert ai_worker("retry", task).out == f"task {task}: no item is in ERROR\n"
    refused = ai_worker("retry", task, "--item", item)
    assert (refused.code, refused.err) == (2, f"ai-worker: item {item} is PENDING; only an item in ERROR can be retried\n")


def test_pause_and_resume(ai_worker: Commands, task: str, sql: Sql) -> None:
    assert ai_worker("pause", task).out == f"task {task}: paused\n"
    assert sql("SELECT status_id FROM task")[0]["status_id"] == 4
    assert ai_worker("pause", task).out == f"task {task}: was paused already\n"
    assert ai_worker("resume", task).out == f"task {task}: resumed, now IN_PROGRESS\n"
    assert ai_worker("resume", task).out == f"task {task}: was not paused\n"


def test_cancel_and_resume(ai_worker: Commands, task: str) -> None:
    assert ai_worker("cancel", task).out == f"task {task}: cancelled, with 1 item\n"
    assert ai_worker("cancel", task).out == f"task {task}: was cancelled already\n"
    assert ai_worker("resume", task, "--json").json == {"id_task": int(task), "status": "IN_PROGRESS", "items": 1}


def test_cancel_tells_what_is_in_flight(ai_worker: Commands, task: str, sql: Sql) -> None:
    sql("UPDATE task_item SET status_id = 2, id_worker = 1, attempt = 1, claim_token = 'aaaabbbbccccdddd' WHERE status_id = 0")
    assert ai_worker("cancel", task).out == f"task {task}: cancelled, with 0 items; 1 item in flight will still be stored\n"


def test_priority(ai_worker: Commands, task: str, sql: Sql) -> None:
    assert ai_worker("priority", task, "-7").out == f"task {task}: priority -7\n"
    assert sql("SELECT priority FROM task")[0]["priority"] == -7
    assert ai_worker("priority", task, "12", "--json").json == {"id_task": int(task), "priority": 12}
    assert ai_worker("priority", task, "40000").code == 2
    assert ai_worker("priority", task, "wysoki").code == 2


@pytest.mark.parametrize(
    "command", [["retry"], ["pause"], ["resume"], ["cancel"], ["status"], ["watch"], ["results"], ["priority", "1"]], ids=" ".join
)
def test_no_such_task(ai_worker: Commands, command: list[str]) -> None:
    ended = ai_worker(command[0], "77", *command[1:])
    assert (ended.code, ended.out) == (2, "")
    assert ended.err == "ai-worker: no task 77; `ai-worker status` lists them\n"
