"""`status ID --changes`: what corrections changed, summed up over a task."""

from __future__ import annotations

import json

import pytest

from ai_worker.changes import measure
from ai_worker.db import Database
from ai_worker.store import edits
from ai_worker.store.edits import edits_of
from tests.conftest import Sql
from tests.integration.commands import Commands

TEXTS = [
    ("Dzis jest ladnie", "Dziś jest ładnie"),
    ("bez zmian", "bez zmian"),
    ("Poszłem do domu wczoraj", "Poszedłem do domu wczoraj."),
    ("jeden", "zupełnie coś innego"),
]


@pytest.fixture
def task(sql: Sql) -> int:
    """Corrections with their counts, and results that have none, or something else under their name."""
    sql("INSERT INTO ai_model (name, provider) VALUES ('echo', 'echo')")
    sql("INSERT INTO task (id_ai_model, status_id, started_at) SELECT id_ai_model, 1, NOW(6) FROM ai_model")
    id_task: int = sql("SELECT id_task FROM task")[0]["id_task"]
    results = [(old, new, {"changes": measure(old, new).as_json()}) for old, new in TEXTS]
    results += [("x", "y", other) for other in ({}, {"changes": ["x → y"]}, {"changes": {"words": "3"}}, {"changes": None})]
    for number, (old, new, result) in enumerate(results):
        sql(
            "INSERT INTO task_item (id_task, external_key, status_id, attempt, finished_at, text_original, text_corrected,"
            " result) VALUES (%s, %s, 1, 1, NOW(6), %s, %s, %s)",
            [id_task, f"k{number}", old, new, json.dumps(result)],
        )
    sql("INSERT INTO task_item (id_task, text_original) VALUES (%s, 'jeszcze nie')", [id_task])
    return id_task


@pytest.mark.parametrize("page", [2, 1000])
def test_counts_are_summed_up(database: Database, task: int, monkeypatch: pytest.MonkeyPatch, page: int) -> None:
    monkeypatch.setattr(edits, "_PAGE", page)
    found = edits_of(database, task, most=2)
    counts = [measure(old, new) for old, new in TEXTS]
    assert (found.items, found.items_changed) == (4, 3)
    for name in ("words", "changed", "added"):
        assert getattr(found, name) == sum(getattr(each, name) for each in counts)
    assert found.mean_ratio == pytest.approx(sum(each.ratio for each in counts) / 4)
    assert found.ratio == pytest.approx((found.changed + found.added) / (found.words + found.added))
    assert sum(found.kinds.values()) == sum(sum(each.kinds.values()) for each in counts)
    assert [each.external_key for each in found.most_edited] == ["k3", "k0"]


def test_the_command_shows_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], database_url: str, task: int, sql: Sql
) -> None:
    monkeypatch.setenv("AI_WORKER_DB_URL", database_url)
    ai_worker = Commands(monkeypatch, capsys)
    told = ai_worker("status", str(task), "--changes", "--json").json["changes"]
    assert (told["items"], told["items_changed"], told["words"]) == (4, 3, 10)
    assert told["kinds"]["diacritics"] == 2
    assert told["most_edited"][0]["ratio"] == 1.0
    shown = ai_worker("status", str(task), "--changes").out
    assert "3 of 4 items changed" in shown
    assert "2 diacritics" in shown
    assert "(k3): 100 %" in shown
    assert "changes" not in ai_worker("status", str(task), "--json").json
    sql("UPDATE task_item SET result = NULL")
    assert "none were counted" in ai_worker("status", str(task), "--changes").out
    assert ai_worker("status", "--changes").code == 2
