"""`review`: a verdict goes to processed items alone, stands in the item, and every one is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ai_worker.db import Database
from ai_worker.errors import UsageError
from ai_worker.models import ReviewStatus
from ai_worker.store import reviews
from ai_worker.store.reviews import Review, Reviews, Span
from ai_worker.store.tasks import Tasks
from tests.conftest import Sql
from tests.integration.commands import Commands

ACCEPT = Review(ReviewStatus.ACCEPTED, "Żaneta")


@pytest.fixture
def ai_worker(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], database_url: str) -> Commands:
    monkeypatch.setenv("AI_WORKER_DB_URL", database_url)
    return Commands(monkeypatch, capsys)


@pytest.fixture
def task(sql: Sql) -> int:
    sql("INSERT INTO ai_model (name, provider) VALUES ('echo', 'echo')")
    sql("INSERT INTO task (id_ai_model, status_id, started_at) SELECT id_ai_model, 1, NOW(6) FROM ai_model")
    id_task: int = sql("SELECT id_task FROM task")[0]["id_task"]
    return id_task


@pytest.fixture
def items(sql: Sql, task: int) -> list[int]:
    """Five processed items and one that waits; their ids."""
    for number in range(1, 6):
        sql(
            "INSERT INTO task_item (id_task, status_id, attempt, finished_at, external_key, text_original, text_corrected) "
            "VALUES (%s, 1, 1, NOW(6), %s, %s, %s)",
            [task, f"post:{number}", f"Dzis {number}", f"Dziś {number}"],
        )
    sql("INSERT INTO task_item (id_task, text_original) VALUES (%s, 'czeka')", [task])
    return [row["id_task_item"] for row in sql("SELECT id_task_item FROM task_item ORDER BY id_task_item")]


def standing(sql: Sql) -> list[tuple[Any, ...]]:
    rows = sql("SELECT review_status_id, text_reviewed, reviewed_by, reviewed_at FROM task_item ORDER BY id_task_item")
    return [(row["review_status_id"], row["text_reviewed"], row["reviewed_by"], row["reviewed_at"] is not None) for row in rows]


UNREVIEWED = (0, None, None, False)


def test_reviews_are_taken_back_by_their_items(ai_worker: Commands, task: int, items: list[int]) -> None:
    assert items
    ended = ai_worker("review", str(task), "all", "reset")
    assert (ended.code, "say which reviews to take back" in ended.err) == (2, True)


def test_one_item_from_the_list_to_the_results(ai_worker: Commands, sql: Sql, task: int, items: list[int]) -> None:
    listed = ai_worker("review", str(task), "--limit", "2")
    assert f"item {items[0]} (post:1)\n[-Dzis-]{{+Dziś+}} 1\n" in listed.out
    assert f"more: ai-worker review {task} --only unreviewed --after {items[1]}" in listed.out
    assert ai_worker("review", str(task), str(items[0]), "accept", "--by", "Żaneta", "--note", "dobrze").out == (
        f"task {task}: 1 item accepted\n"
    )
    ended = ai_worker("review", str(task), str(items[1]), "accept", "--text", "Dziś, dwa", "--by", "Łukasz", "--json")
    assert ended.json == {"id_task": task, "review": "ACCEPTED", "items": 1, "by": "Łukasz"}
    ai_worker("review", str(task), str(items[2]), "reject", "--by", "Łukasz")
    ai_worker("review", str(task), str(items[2]), "reset", "--by", "Żaneta")
    assert standing(sql)[:3] == [(1, None, "Żaneta", True), (1, "Dziś, dwa", "Łukasz", True), UNREVIEWED]
    kept = sql("SELECT id_task, id_task_item, review_status_id s, text_reviewed t, note, reviewed_by b FROM task_item_review")
    assert [(row["id_task_item"], row["s"], row["t"], row["note"], row["b"]) for row in kept] == [
        (items[0], 1, None, "dobrze", "Żaneta"),
        (items[1], 1, "Dziś, dwa", None, "Łukasz"),
        (items[2], 2, None, None, "Łukasz"),
        (items[2], 0, None, None, "Żaneta"),
    ]
    assert {row["id_task"] for row in kept} == {task}

    page = ai_worker("review", str(task), "--only", "accepted", "--json").json
    assert [item["id_task_item"] for item in page["items"]] == items[:2]
    assert page["next"] is None
    assert page["items"][1]["text_reviewed"] == "Dziś, dwa"
    rest = ai_worker("review", str(task), "--after", str(items[3]), "--json").json
    assert [item["id_task_item"] for item in rest["items"]] == [items[4]]
    (line,) = [line for line in ai_worker("results", str(task)).out.splitlines() if "post:2" in line]
    assert '"Dziś, dwa"' in line
    assert "ACCEPTED" in line


def test_many_items(ai_worker: Commands, sql: Sql, task: int, items: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reviews, "_BATCH", 2)
    ended = ai_worker("review", str(task), f"{items[0]},{items[2]}-{items[4]}", "reject", "--by", "a")
    assert "4 items rejected" in ended.out
    assert [row[0] for row in standing(sql)] == [2, 0, 2, 2, 2, 0]
    ai_worker("review", str(task), f"{items[0]}-{items[4]}", "reset", "--by", "a")
    assert "5 items accepted" in ai_worker("review", str(task), "all", "accept", "--by", "b").out
    assert [row[:3] for row in standing(sql)] == [(1, None, "b")] * 5 + [(0, None, None)]
    assert "0 items rejected" in ai_worker("review", str(task), "all", "reject", "--by", "c").out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("{waiting}", "accept"), "item {waiting} is PENDING; only a PROCESSED item can be reviewed"),
        (("{first}-{waiting}", "accept"), "item {waiting} is PENDING"),
        (("999999", "accept"), "no item 999999; `ai-worker results {task}` names them"),
        (("999990-999999", "accept"), "no item from 999990 to 999999"),
        (("{first}",), "say which item, and what of it: `ai-worker review {task} {first} accept`"),
        (("accept",), "`ai-worker review {task} 15 accept`"),
        (("x", "accept"), "names no items"),
        (("9-3", "accept"), "is no span of items"),
        (("{first}-{waiting}", "accept", "--text", "x"), "a text goes to one item"),
        (("all", "accept", "--text", "x"), "a text goes to one item"),
        (("{first}", "reject", "--text", "x"), "only who accepts"),
        (("{first}", "accept", "--text", ""), "the text is empty"),
        (("{first}", "accept", "--by", "x" * 191), "--by is longer than 190 characters"),
        (("{first}", "accept", "--note", "x" * 1001), "longer than 1,000"),
        (("{first}", "accept", "--text-file", "nowhere.txt"), "nowhere.txt cannot be read"),
    ],
)
def test_what_is_refused_changes_nothing(
    ai_worker: Commands, sql: Sql, task: int, items: list[int], arguments: tuple[str, ...], message: str
) -> None:
    names = {"first": items[0], "waiting": items[5], "task": task}
    ended = ai_worker("review", str(task), *(each.format(**names) for each in arguments))
    assert ended.code == 2
    assert message.format(**names) in ended.err
    assert standing(sql) == [UNREVIEWED] * 6
    assert not sql("SELECT id_task_item FROM task_item_review")


def test_a_review_of_no_task_says_so(ai_worker: Commands, items: list[int]) -> None:
    ended = ai_worker("review", "4711", str(items[0]), "accept")
    assert (ended.code, ended.err) == (2, "ai-worker: no task 4711; `ai-worker status` lists them\n")


def test_items_of_another_task_are_left_alone(database: Database, sql: Sql, task: int, items: list[int]) -> None:
    sql("INSERT INTO task (id_ai_model) SELECT id_ai_model FROM ai_model")
    other = sql("SELECT MAX(id_task) AS id FROM task")[0]["id"]
    with pytest.raises(UsageError, match=f"task {other} has no item {items[0]}"):
        Reviews(database).review([Span(items[0], items[0])], ACCEPT, id_task=other)
    with pytest.raises(UsageError, match="no task 999999"):
        Reviews(database).items(999999)
    with pytest.raises(UsageError, match="no task 999999"):
        Reviews(database).review_rest(999999, ACCEPT)
    assert Reviews(database).review([Span(items[0], items[0])], ACCEPT) == 1
    assert standing(sql)[0][0] == 1


def test_text_from_a_file(ai_worker: Commands, sql: Sql, task: int, items: list[int], tmp_path: Path) -> None:
    """An editor ends every file with a line end; whether the text has one is told by the original."""
    file = tmp_path / "text.txt"
    file.write_bytes("Zażółć\ngęślą\n".encode())
    sql("UPDATE task_item SET text_original = 'a\nb\n' WHERE id_task_item = %s", [items[1]])
    for item in items[:2]:
        assert ai_worker("review", str(task), str(item), "accept", "--text-file", str(file)).code == 0
    assert [row[1] for row in standing(sql)[:2]] == ["Zażółć\ngęślą", "Zażółć\ngęślą\n"]


def test_a_new_result_begins_unreviewed(database: Database, sql: Sql, task: int, items: list[int]) -> None:
    """`retry` is the only way back, and the review was of a result that is gone."""
    Reviews(database).review([Span(items[0], items[0])], ACCEPT)
    sql("UPDATE task_item SET status_id = 3 WHERE id_task_item = %s", [items[0]])
    sql("UPDATE task SET records_failed = 1")
    Tasks(database).retry(task, items[0])
    assert standing(sql)[0] == UNREVIEWED
    assert len(sql("SELECT 1 FROM task_item_review")) == 1
