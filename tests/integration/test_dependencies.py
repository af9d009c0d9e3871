"""`--after`: a task begins when others have ended, and says so while it waits."""

from __future__ import annotations

from pathlib import Path

import pytest

from ai_worker.models import Filters, Item
from ai_worker.store.queue import Queue
from tests.conftest import Sql
from tests.integration.commands import Commands
from tests.integration.lifecycle import EVERYTHING, Application, claim, done, failed

pytest_plugins = ["tests.integration.lifecycle"]


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], database_url: str) -> Commands:
    monkeypatch.setenv("AI_WORKER_DB_URL", database_url)
    monkeypatch.setenv("AI_WORKER_LOG_LEVEL", "error")
    return Commands(monkeypatch, capsys)


@pytest.fixture
def rows(tmp_path: Path) -> str:
    path = tmp_path / "rows.txt"
    path.write_text("Zażółć gęślą jaźń\n", encoding="utf-8")
    return str(path)


def wait_for(sql: Sql, task: int, parent: int, needs: str = "success") -> None:
    sql("INSERT INTO task_dependency (id_task, after_id_task, needs) VALUES (%s, %s, %s)", [task, parent, needs])


def runnable(queue: Queue) -> list[int]:
    return [each.id_task for each in queue.runnable(EVERYTHING)]


@pytest.mark.parametrize(
    ("needs", "parent", "is_met"),
    [
        ("success", "status_id = 1, started_at = NOW(6)", False),
        ("success", "status_id = 2, finished_at = NOW(6)", True),
        ("success", "status_id = 3, finished_at = NOW(6)", False),
        ("success", "status_id = 5, finished_at = NOW(6)", False),
        ("end", "status_id = 0", False),
        ("end", "status_id = 4", False),
        ("end", "status_id = 2, finished_at = NOW(6)", True),
        ("end", "status_id = 3, finished_at = NOW(6)", True),
        ("end", "status_id = 5, finished_at = NULL", False),  # items of it are still in flight
        ("end", "status_id = 5, finished_at = NOW(6)", True),
    ],
)
def test_what_meets_a_dependency(
    application: Application, queue: Queue, worker: int, model: int, sql: Sql, needs: str, parent: str, is_met: bool
) -> None:
    first, second = application.task(model), application.task(model)
    (item,) = application.items(second)
    wait_for(sql, second, first, needs)
    sql(f"UPDATE task SET {parent} WHERE id_task = %s", [first])
    assert runnable(queue) == ([second] if is_met else [])
    assert [task.id_task for task in queue.preview_tasks(EVERYTHING)] == ([second] if is_met else [])
    waiting = queue.waiting(EVERYTHING)
    assert waiting.pending == is_met
    assert set(waiting.held) == (set() if is_met else {second})
    assert queue.claim_new(worker, item, EVERYTHING) == []  # whoever depends on others goes the long way
    assert len(claim(queue, worker)) == is_met


def test_a_parent_that_is_gone_keeps_nobody_waiting(application: Application, queue: Queue, model: int, sql: Sql) -> None:
    task = application.task(model)
    application.items(task)
    wait_for(sql, task, 10**9)
    assert runnable(queue) == [task]


def test_all_of_several_must_be_met(application: Application, queue: Queue, worker: int, model: int, sql: Sql) -> None:
    one, two, last = (application.task(model) for _ in range(3))
    for task in (one, two, last):
        application.items(task)
    wait_for(sql, last, one)
    wait_for(sql, last, two, "end")
    items: dict[int, Item] = {item.task.id_task: item for item in claim(queue, worker, 2)}
    assert set(items) == {one, two}
    queue.commit(worker, [done(items[one])])
    assert runnable(queue) == []
    queue.commit(worker, [failed(items[two])])
    assert runnable(queue) == [last]


def test_a_run_does_both_and_a_failed_parent_is_named(commands: Commands, application: Application, rows: str, sql: Sql) -> None:
    application.model("try")
    (first, second) = (commands("submit", rows, "--json", *more).json["id_task"] for more in ([], []))
    third = commands("submit", rows, "--json", "--after", str(first), "--after", f"{second}:end", "--priority", "9").json[
        "id_task"
    ]
    assert "needs its success: NEW, not met" in commands("status", str(third)).out
    assert f"waits for task {first}, task {second}" in commands("status", str(third)).out
    alone = commands("run", "--task", str(third), "--json")
    assert alone.json["processed"] == 0
    assert f"task {third} waits for task {first} (NEW), task {second} (NEW)" in alone.err
    together = commands("run", "--json")
    assert (together.code, together.json["processed"]) == (0, 3)
    finished = {row["id_task"]: row for row in sql("SELECT id_task, started_at, finished_at FROM task")}
    assert finished[third]["started_at"] >= max(finished[first]["finished_at"], finished[second]["finished_at"])
    assert all(each["met"] for each in commands("status", str(third), "--json").json["after"])


def test_status_names_the_remedies_of_what_holds_a_task_up(
    commands: Commands, application: Application, rows: str, sql: Sql
) -> None:
    application.model("try")
    first = commands("submit", rows, "--json").json["id_task"]
    second = commands("submit", rows, "--json", "--after", str(first)).json["id_task"]
    sql("UPDATE task SET status_id = 3, finished_at = UTC_TIMESTAMP(6) WHERE id_task = %s", [first])
    sql("UPDATE task_item SET status_id = 3, error_kind = 'internal', finished_at = UTC_TIMESTAMP(6) WHERE id_task = %s", [first])
    assert f"`ai-worker retry {first}` brings back what failed there" in commands("status", str(second)).out
    reason = "it has a budget, and the price of model try is not known"
    sql("UPDATE task SET status_id = 4, status_reason = %s, budget = 2 WHERE id_task = %s", [reason, second])
    paused = commands("status", str(second)).out
    assert "`ai-worker model set try --price-input … --price-output …` says the price" in paused
    assert f"`ai-worker resume {second}` goes on" in paused


def test_a_run_says_what_cannot_come_by_itself(commands: Commands, application: Application, rows: str, sql: Sql) -> None:
    application.model("try")
    first = commands("submit", rows, "--json").json["id_task"]
    second = commands("submit", rows, "--json", "--after", str(first)).json["id_task"]
    commands("cancel", str(first))
    ended = commands("run")
    assert f"task {second} waits for task {first} (CANCELLED, which has ended otherwise than needed)" in ended.err
    assert commands("status", str(second), "--json").json["after"] == [
        {"id_task": first, "needs": "success", "status": "CANCELLED", "met": False}
    ]
    assert Filters(id_task=second)


def test_a_parent_that_is_not_there_or_makes_no_sense_is_refused(commands: Commands, application: Application, rows: str) -> None:
    application.model("try")
    unknown = commands("submit", rows, "--after", "999999999")
    assert unknown.code == 2
    assert "there is no task 999999999" in unknown.err
    assert "is not the number of a task" in commands("submit", rows, "--after", "7:never").err


def test_doctor_names_a_circle(commands: Commands, application: Application, model: int, queue: Queue, sql: Sql) -> None:
    one, two, three = (application.task(model) for _ in range(3))
    for task in (one, two, three):
        application.items(task)
    for task, parent in ((one, two), (two, three), (three, one)):
        wait_for(sql, task, parent)
    assert runnable(queue) == []
    found = commands("doctor", "--offline").everything
    assert f"tasks wait for each other in a circle: {one}, {two}, {three}" in found
