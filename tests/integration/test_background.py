"""Conversations through a real worker: what one item has brought is in the next one's prompt, and no more than was asked for."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.conftest import Sql
from tests.fake_provider import FakeProvider, Rule, correct
from tests.integration.lifecycle import assert_ledger
from tests.integration.worker_runs import Run, add_model, add_task, attempts_of, items_of, task_of

KEY = "rozmowa 7"


@pytest.fixture
def fake() -> Iterator[FakeProvider]:
    with FakeProvider() as fake:
        yield fake


def say(sql: Sql, model: int, *texts: str, key: str | None = KEY, **columns: Any) -> int:
    """A task with one item per text, all of one subject."""
    given = columns.pop("parameters", {})
    id_task = add_task(sql, model, texts, parameters=json.dumps(given), **columns)
    sql("UPDATE task_item SET context_key = %s WHERE id_task = %s", [key, id_task])
    return id_task


def prompts(fake: FakeProvider) -> list[str]:
    """The user's parts of what was asked since the last time."""
    asked = [request.body["messages"][-1]["content"] for request in fake.requests]
    fake.requests.clear()
    return asked


def answer(**fields: Any) -> Rule:
    return Rule("answer", content=json.dumps(fields, ensure_ascii=False), times=1)


def test_the_second_message_knows_what_the_first_has_brought(sql: Sql, database_url: str, fake: FakeProvider) -> None:
    model = add_model(sql, fake, "chat", "m")
    fake.script(answer(reply="Miło mi, Anno.", open_question=""))
    say(sql, model, "Jestem Anna i mam psa.", task_type="reply")
    Run(database_url)
    fake.script(answer(facts=["Ma na imię Anna.", "Ma psa.", "Ma psa."]))
    memory = say(sql, model, "Jestem Anna i mam psa.", task_type="memory")
    Run(database_url)
    (item,) = items_of(sql, memory)
    assert (item["text_corrected"], item["change_summary"]) == ("Ma na imię Anna.\nMa psa.", "2 facts")
    kept = sql("SELECT context_key, fact, id_task_item FROM context_fact ORDER BY id_context_fact")
    assert [tuple(row.values()) for row in kept] == [
        (KEY, "Ma na imię Anna.", item["id_task_item"]),
        (KEY, "Ma psa.", item["id_task_item"]),
    ]

    prompts(fake)
    fake.script()
    say(sql, model, "Jak mam na imię?", task_type="reply")
    say(sql, model, "Jak mam na imię?", task_type="reply", key="rozmowa 8")
    say(sql, model, "Mam też kota.", task_type="memory")
    say(sql, model, "Kim jestem?", task_type="correction", parameters={"history_results": 2, "history_types": ["memory"]})
    Run(database_url, concurrency=1)
    reply, stranger, again, correction = prompts(fake)
    assert '{"role": "user", "text": "Jestem Anna i mam psa."}\n{"role": "assistant", "text": "Miło mi, Anno."}' in reply
    assert '"Ma na imię Anna."\n"Ma psa."' in reply
    assert "Anna" not in stranger
    assert '"Ma psa."' in again
    assert '{"text": "Jestem Anna i mam psa.", "result": "Ma na imię Anna.\\nMa psa."}' in correction
    assert "Miło mi" not in correction
    assert_ledger(sql)


def test_a_fact_that_is_known_is_kept_once_however_many_bring_it(sql: Sql, database_url: str, fake: FakeProvider) -> None:
    model = add_model(sql, fake, "chat", "m")
    sql("INSERT INTO context_fact (context_key, fact) VALUES (%s, 'Ma psa.')", [KEY])
    fake.script(Rule("answer", content=json.dumps({"facts": ["Ma psa.", "Lubi koty."]})))
    say(sql, model, *(f"wiadomość {number}" for number in range(20)), task_type="memory")
    assert Run(database_url).summary.processed == 20
    assert sorted(row["fact"] for row in sql("SELECT fact FROM context_fact")) == ["Lubi koty.", "Ma psa."]


def test_history_is_bounded(sql: Sql, database_url: str, fake: FakeProvider) -> None:
    model = add_model(sql, fake, "chat", "m")
    say(sql, model, *(f"wiadomość {number} " + "x" * 400 for number in range(6)), task_type="correction")
    Run(database_url, concurrency=1)
    prompts(fake)
    asked = {"history_results": 4, "history_facts": 5}
    say(sql, model, "ostatnia", parameters=asked)
    say(sql, model, "przedostatnia", parameters={**asked, "history_tokens": 500}, priority=1)
    Run(database_url, concurrency=1)
    tight, wide = prompts(fake)
    assert [f"wiadomość {number} " in tight for number in range(6)] == [False] * 4 + [True] * 2
    assert [f"wiadomość {number} " in wide for number in range(6)] == [False] * 2 + [True] * 4


def test_reviewed_items_serve_as_examples(sql: Sql, database_url: str, fake: FakeProvider) -> None:
    model = add_model(sql, fake, "chat", "m")
    id_task = add_task(sql, model, ["pierwszy wogóle", "drugi wogóle"], parameters='{"reviewed_examples": 4}')
    Run(database_url)
    assert not [prompt for prompt in prompts(fake) if "Background" in prompt]
    for item, status, note in zip(items_of(sql, id_task), (1, 2), (None, "zmienia sens"), strict=True):
        sql("UPDATE task_item SET review_status_id = %s WHERE id_task_item = %s", [status, item["id_task_item"]])
        sql(
            "INSERT INTO task_item_review (id_task, id_task_item, review_status_id, note, reviewed_by)"
            " VALUES (%s, %s, %s, %s, 'Anna')",
            [id_task, item["id_task_item"], status, note],
        )
    sql("INSERT INTO task_item (id_task, text_original) VALUES (%s, 'trzeci wogóle')", [id_task])
    Run(database_url)
    (prompt,) = prompts(fake)
    accepted = {"text": "pierwszy wogóle", "answer": correct("pierwszy wogóle"), "verdict": "accepted", "note": ""}
    assert json.dumps(accepted, ensure_ascii=False) in prompt
    assert '"verdict": "rejected", "note": "zmienia sens"}' in prompt
    assert items_of(sql, id_task)[2]["text_corrected"] == correct("trzeci wogóle")  # it is the row that was worked on


def test_what_needs_a_background_is_sent_alone(sql: Sql, database_url: str, fake: FakeProvider) -> None:
    """Neither in a pack nor in a batch: what is drawn is known when it is sent. Others of the worker are not concerned."""
    model = add_model(sql, fake, "chat", "m")
    texts = [f"wiadomość {number}" for number in range(4)]
    needy = {"history_facts": 1}
    packs = say(sql, model, *texts, pack=4, parameters=needy)
    batches = say(sql, model, *texts, lane="batch", parameters=needy, cache_seconds=0)
    sql("INSERT INTO context_fact (context_key, fact) VALUES (%s, 'Ma psa.')", [KEY])
    Run(database_url)
    assert [task_of(sql, each)["status"] for each in (packs, batches)] == ["COMPLETED"] * 2
    asked = prompts(fake)
    assert len(asked) == 8
    assert all('"Ma psa."' in prompt for prompt in asked)
    assert {row["lane"] for row in attempts_of(sql, batches) if row["outcome"] == "processed"} == {"online"}
