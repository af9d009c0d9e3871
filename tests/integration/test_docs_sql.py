"""The SQL that the documents show is run as it stands, on both servers: applications and operators copy it."""

from __future__ import annotations

import re
from pathlib import Path

from ai_worker.migrate import split
from tests.conftest import Sql

ROOT = Path(__file__).parents[2]
PAGES = {name: (ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "DB_Description.md")}
PHP = re.findall(r'prepare\("(INSERT .*?)"\)', PAGES["README.md"])


def blocks(page: str) -> list[str]:
    """The SQL examples of a page, in order."""
    return re.findall(r"^ *```sql\n(.*?)^ *```", PAGES[page], re.M | re.S)


def test_every_statement_shown_runs(sql: Sql) -> None:
    sql("INSERT INTO ai_model (name, provider) VALUES ('gpt', 'echo')")
    shown = [statement for page in PAGES for block in blocks(page) for statement in split(block)]
    assert len(shown) > 12
    for statement in shown:
        sql(statement.replace("%", "%%") if "%" in statement else statement)
    (item,) = sql(
        "SELECT t.task_type, t.status_id AS task_status, i.status_id, i.external_key, i.text_original"
        "  FROM task t JOIN task_item i USING (id_task)"
    )
    assert item == {
        "task_type": "correction",
        "task_status": 0,
        "status_id": 0,
        "external_key": "post:17",
        "text_original": "Wogóle nie wiem.",
    }


def test_the_php_example_inserts_a_task_with_its_items(sql: Sql) -> None:
    into_task, into_item = (statement.replace("?", "%s") for statement in PHP)
    sql("INSERT INTO ai_model (name, provider) VALUES ('gpt', 'echo')")
    sql(into_task, ("Popraw pisownię", "gpt"))
    (task,) = sql("SELECT id_task, description FROM task")
    assert task["description"] == "Popraw pisownię"
    for key, text in {17: "Wogóle nie wiem.", 18: "Żeczywiście."}.items():
        sql(into_item, (task["id_task"], f"post:{key}", text))
    assert sql("SELECT COUNT(*) AS items FROM task_item WHERE status_id = 0") == [{"items": 2}]


def test_a_task_is_paused_and_resumed_as_shown(sql: Sql) -> None:
    (block,) = (block for block in blocks("DB_Description.md") if block.lstrip().startswith("UPDATE task SET status_id = 4"))
    pause, resume = split(block)
    sql("INSERT INTO ai_model (name, provider) VALUES ('gpt', 'echo')")
    sql("INSERT INTO task (id_task, id_ai_model) SELECT 7, id_ai_model FROM ai_model")
    sql(pause)
    assert sql("SELECT status_id, status_reason FROM task") == [{"status_id": 4, "status_reason": "nightly backup"}]
    sql(resume)
    assert sql("SELECT status_id, status_reason FROM task") == [{"status_id": 0, "status_reason": None}]
