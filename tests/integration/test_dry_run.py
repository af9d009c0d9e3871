"""`run --dry-run`: shows what would be sent and what it would cost, and leaves every byte of the database as it was."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Sql
from tests.integration.commands import Commands

TABLES = ("ai_model", "task", "task_item", "task_attempt", "worker")


@pytest.fixture
def commands(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Commands:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AI_WORKER_DB_URL", database_url)
    return Commands(monkeypatch, capsys)


@pytest.fixture
def task(sql: Sql) -> int:
    """A task with two items, on a model with prices whose endpoint nobody may call."""
    sql(
        "INSERT INTO ai_model (name, provider, model, base_url, price_input, price_output)"
        " VALUES ('gpt', 'openai', 'm', 'http://127.0.0.1:9/v1', 10, 20)"
    )
    sql("INSERT INTO task (id_ai_model, description) SELECT id_ai_model, 'Popraw interpunkcję' FROM ai_model")
    (row,) = sql("SELECT id_task FROM task")
    sql(
        "INSERT INTO task_item (id_task, text_original) VALUES (%(task)s, 'Wogóle nie wiem.'), (%(task)s, 'Żeczywiście 🙂')",
        {"task": row["id_task"]},
    )
    id_task: int = row["id_task"]
    return id_task


def contents(sql: Sql) -> list[dict[str, Any]]:
    """A checksum of each table, and all of its rows for good measure: both servers compute the first differently."""
    return [*sql(f"CHECKSUM TABLE {', '.join(TABLES)}"), *(row for table in TABLES for row in sql(f"SELECT * FROM {table}"))]


def test_shows_prompts_tokens_and_cost_and_changes_nothing(commands: Commands, sql: Sql, task: int) -> None:
    before = contents(sql)
    ended = commands("run", "--dry-run")
    assert contents(sql) == before
    assert ended.code == 0
    assert "Wogóle nie wiem." in ended.out
    assert "Żeczywiście 🙂" in ended.out
    assert "Popraw interpunkcję" in ended.out
    assert "dry run: 2 items" in ended.out
    assert "nothing was sent or written" in ended.out


def test_json_adds_up(commands: Commands, sql: Sql, task: int) -> None:
    *prompts, total = [json.loads(line) for line in commands("run", "--dry-run", "--json").out.splitlines()]
    assert [each["id_task"] for each in prompts] == [task, task]
    for name in ("tokens_input", "tokens_output"):
        assert sum(each[name] for each in prompts) == total[name] > 0
    priced = Decimal(total["tokens_input"]) * 10 / 1_000_000 + Decimal(total["tokens_output"]) * 20 / 1_000_000
    assert Decimal(total["cost"]) == priced == sum(Decimal(each["cost"]) for each in prompts)


def test_an_unknown_price_is_unknown_and_not_nothing(commands: Commands, sql: Sql, task: int) -> None:
    sql("UPDATE ai_model SET price_input = NULL, price_output = NULL")
    assert json.loads(commands("run", "--dry-run", "--json").out.splitlines()[-1])["cost"] is None
    ended = commands("run", "--dry-run")
    assert "the price of model gpt is not known" in ended.out
    assert "cost about unknown" in ended.out


def test_what_would_fail_is_told_and_does_not_hide_the_rest(commands: Commands, sql: Sql, task: int) -> None:
    sql("INSERT INTO task (id_ai_model, task_type, priority) SELECT id_ai_model, 'nosuch', 5 FROM ai_model")
    sql("INSERT INTO task_item (id_task, text_original) SELECT id_task, 'Ala' FROM task WHERE task_type = 'nosuch'")
    sql("INSERT INTO task_item (id_task, text_original) VALUES (%s, '  ')", (task,))
    ended = commands("run", "--dry-run")
    assert ended.code == 0
    assert "would end in ERROR: unknown task type 'nosuch'" in ended.out
    assert "would end in ERROR: nothing to send: the text is empty" in ended.out
    assert "Wogóle nie wiem." in ended.out
    assert "dry run: 4 items" in ended.out


def test_counts_every_task_of_a_long_list(commands: Commands, sql: Sql, task: int) -> None:
    """One-item tasks, as an application makes them: more than a claim looks at, and more than a page."""
    for _ in range(6):
        sql(
            "INSERT INTO task (id_ai_model) SELECT id_ai_model FROM ai_model" + " UNION ALL SELECT id_ai_model FROM ai_model" * 99
        )
    sql(
        "INSERT INTO task_item (id_task, text_original) SELECT id_task, CONCAT('Żółw ', id_task) FROM task WHERE id_task <> %s",
        [task],
    )
    sql("UPDATE task SET status_id = 1, started_at = NOW(6) WHERE id_task %% 2 = 1", [])
    before = contents(sql)
    *_, total = [json.loads(line) for line in commands("run", "--dry-run", "--json").out.splitlines()]
    assert total["items"] == 602
    *each, exact = [json.loads(line) for line in commands("run", "--dry-run", "--json", "--max-item", "1000").out.splitlines()]
    assert len({prompt["id_task_item"] for prompt in each}) == 602
    assert sum(prompt["tokens_input"] for prompt in each) == exact["tokens_input"] == total["tokens_input"]
    assert sum(Decimal(prompt["cost"]) for prompt in each) == Decimal(exact["cost"]) == Decimal(total["cost"])
    assert "(592 more prompts are not shown" in commands("run", "--dry-run").out
    assert contents(sql) == before


def test_counts_what_waits_for_a_stopped_model_and_says_so(commands: Commands, sql: Sql, task: int) -> None:
    sql(
        "UPDATE ai_model SET stopped_at = NOW(6), stopped_kind = 'quota_exhausted', stopped_reason = 'brak środków',"
        " probe_at = NOW(6) + INTERVAL 1 HOUR"
    )
    ended = commands("run", "--dry-run")
    assert "Wogóle nie wiem." in ended.out
    assert "model gpt is stopped: 2 of these items wait for it" in ended.out
    assert "dry run: 2 items" in ended.out
    total = json.loads(commands("run", "--dry-run", "--json").out.splitlines()[-1])
    assert (total["items"], total["stopped_models"]) == (2, ["gpt"])
    sql("UPDATE ai_model SET stopped_at = NULL, stopped_kind = NULL, stopped_reason = NULL, probe_at = NULL")
    assert "is stopped" not in commands("run", "--dry-run").out


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE task SET scheduled_at = NOW(6) + INTERVAL 1 HOUR",
        "UPDATE task SET status_id = 4",
        "UPDATE task SET status_id = 5, finished_at = NOW(6)",
        "UPDATE ai_model SET is_active = 0",
        "UPDATE task_item SET status_id = 4, available_at = NOW(6) + INTERVAL 1 HOUR",
    ],
)
def test_leaves_out_what_a_run_would_not_come_to(commands: Commands, sql: Sql, task: int, change: str) -> None:
    sql(change)
    assert "dry run: 0 items" in commands("run", "--dry-run").out
