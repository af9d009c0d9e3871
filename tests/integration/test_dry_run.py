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
