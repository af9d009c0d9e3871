"""What is drawn into prompts: of whom, in which order, how much; and the facts that commits leave behind."""

from __future__ import annotations

from typing import Any

import pytest

from ai_worker.db import Database, Row
from ai_worker.models import NO_BACKGROUND, Background, Example, Item, Needs, Outcome, Result
from ai_worker.store.background import Backgrounds
from ai_worker.store.queue import Queue
from tests.conftest import Sql
from tests.integration.lifecycle import COST, USAGE, Application, assert_ledger, claim

pytest_plugins = ["tests.integration.lifecycle"]

ALL = Needs(results=10, facts=10, examples=10, tokens=1000)


@pytest.fixture
def earlier(application: Application, sql: Sql, task: int) -> Any:
    """Inserts a finished item of a subject, by plain SQL as any writer may; its key."""

    def insert(text: str, result: str | None, key: str = "klient 7", id_task: int | None = None, status: int = 1) -> int:
        (item,) = application.items(id_task or task, [text])
        done = {"status_id": status, "text_corrected": result, "context_key": key, "finished_at": "2026-01-01", "attempt": 1}
        sql(f"UPDATE task_item SET {', '.join(f'{name} = %s' for name in done)} WHERE id_task_item = %s", [*done.values(), item])
        return item

    return insert


@pytest.fixture
def next_item(application: Application, queue: Queue, worker: int, sql: Sql, task: int) -> Any:
    """Inserts an item of a subject and claims it."""

    def claimed(key: str | None = "klient 7", text: str = "A teraz?") -> Item:
        (item,) = application.items(task, [text])
        sql("UPDATE task_item SET context_key = %s WHERE id_task_item = %s", [key, item])
        queue.reopen_page()
        (held,) = claim(queue, worker)
        assert (held.id_task_item, held.context_key) == (item, key)
        return held

    return claimed


def test_the_latest_results_of_the_same_subject_are_drawn(
    database: Database, application: Application, model: int, earlier: Any, next_item: Any
) -> None:
    earlier("Pierwsze", "1")
    earlier("Czyjeś inne", "x", key="Klient 7")  # keys are told apart by each letter
    earlier("Drugie", "2", id_task=application.task(model, task_type="reply"))
    earlier("Bez wyniku", None, status=3)
    earlier("Trzecie", "3")
    item = next_item()
    earlier("Późniejsze", "4")
    draw = Backgrounds(database).draw
    assert draw([(item, ALL)]) == [Background(results=(("Pierwsze", "1"), ("Drugie", "2"), ("Trzecie", "3")))]
    assert draw([(item, ALL._replace(results=2))])[0].results == (("Drugie", "2"), ("Trzecie", "3"))
    assert draw([(item, ALL._replace(types=("reply", "memory")))])[0].results == (("Drugie", "2"),)
    assert draw([(item, ALL._replace(results=0))]) == [NO_BACKGROUND]
    assert draw([(item._replace(context_key=None), ALL)]) == [NO_BACKGROUND]


def test_results_and_facts_are_drawn_as_a_reviewer_left_them(database: Database, sql: Sql, earlier: Any, next_item: Any) -> None:
    earlier("Pierwsze", "1")
    edited, rejected = earlier("Drugie", "2"), earlier("Trzecie", "3")
    sql("UPDATE task_item SET review_status_id = 1, text_reviewed = 'dwa' WHERE id_task_item = %s", [edited])
    sql("UPDATE task_item SET review_status_id = 2 WHERE id_task_item = %s", [rejected])
    facts = [(None, "z aplikacji"), (edited, "z przyjętego"), (rejected, "z odrzuconego"), (2**62, "z usuniętego")]
    for item, fact in facts:
        sql("INSERT INTO context_fact (context_key, fact, id_task_item) VALUES ('klient 7', %s, %s)", [fact, item])
    drawn = Backgrounds(database).draw([(next_item(), ALL._replace(examples=0))])
    kept = ("z aplikacji", "z przyjętego", "z usuniętego")
    assert drawn == [Background(facts=kept, results=(("Pierwsze", "1"), ("Drugie", "dwa")))]


@pytest.mark.parametrize("key", ["", "   ", "klient 7 ", " klient 7", "KLIENT 7", "klient ７"])
def test_a_key_is_that_key_alone(database: Database, sql: Sql, earlier: Any, next_item: Any, key: str) -> None:
    """To both servers keys are equal that differ in blanks at their ends; and a blank one is nobody's, not everybody's."""
    for other in ("klient 7", "", " "):
        earlier(f"Czyjeś: {other}", "x", key=other)
        sql("INSERT IGNORE INTO context_fact (context_key, fact) VALUES (%s, 'Cudzy fakt')", [other])
    assert Backgrounds(database).draw([(next_item(key), ALL)]) == [NO_BACKGROUND]


def test_the_oldest_have_no_room(database: Database, sql: Sql, earlier: Any, next_item: Any) -> None:
    for number in range(5):
        earlier(f"Pytanie {number} " + "a" * 380, "b" * 388)
    for number in range(5):
        sql("INSERT INTO context_fact (context_key, fact) VALUES ('klient 7', %s)", [f"Fakt {number} " + "c" * 420])
    item = next_item()
    (drawn,) = Backgrounds(database).draw([(item, ALL._replace(tokens=1000))])
    assert [fact[:6] for fact in drawn.facts] == ["Fakt 1", "Fakt 2", "Fakt 3", "Fakt 4"]  # half of the tokens
    assert [text[:9] for text, _ in drawn.results] == ["Pytanie 3", "Pytanie 4"]
    (drawn,) = Backgrounds(database).draw([(item, ALL._replace(results=0, tokens=150))])
    assert [fact[:6] for fact in drawn.facts] == ["Fakt 4"]
    earlier("Długie", "d" * 100_000)
    (drawn,) = Backgrounds(database).draw([(next_item(), ALL._replace(facts=0))])
    assert drawn.results == ()  # a conversation without its latest answer would mislead


def test_reviewed_items_of_the_same_task_are_examples(
    database: Database, application: Application, model: int, sql: Sql, task: int, earlier: Any, next_item: Any
) -> None:
    def review(item: int, status: int, *, text: str | None = None, note: str | None = None, of: int = task) -> None:
        sql("UPDATE task_item SET review_status_id = %s WHERE id_task_item = %s", [status, item])
        sql(
            "INSERT INTO task_item_review (id_task, id_task_item, review_status_id, text_reviewed, note, reviewed_by)"
            " VALUES (%s, %s, %s, %s, %s, 'Anna')",
            [of, item, status, text, note],
        )

    accepted, edited, rejected, changed_mind, undone = (earlier(f"tekst {n}", f"wynik {n}", key="x") for n in range(5))
    review(accepted, 1)
    review(edited, 1, text="lepszy wynik")
    review(rejected, 2, note="zmienia sens")
    review(changed_mind, 1)
    review(changed_mind, 2)
    review(undone, 1)
    review(undone, 0)
    other = application.task(model)
    review(earlier("innego zadania", "x", id_task=other), 1, of=other)
    item = next_item(key=None)

    def examples(needs: Needs, item: Item = item) -> tuple[Example, ...]:
        return Backgrounds(database).draw([(item, needs)])[0].examples

    good = [Example("tekst 1", "lepszy wynik", True), Example("tekst 0", "wynik 0", True)]
    bad = [Example("tekst 3", "wynik 3", False), Example("tekst 2", "wynik 2", False, "zmienia sens")]
    assert examples(ALL) == (*good, *bad)
    assert examples(ALL._replace(examples=2)) == (good[0], bad[0])
    assert examples(ALL, item._replace(id_task_item=edited)) == (good[1], *bad)  # nobody is an example to himself
    assert examples(ALL._replace(tokens=13)) == (good[0], bad[0])


def test_the_same_examples_serve_the_items_of_a_moment(
    database: Database, sql: Sql, next_item: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    query = Database.query

    def noted(self: Database, name: str, *rest: Any) -> list[Row]:
        asked.append(name)
        return query(self, name, *rest)

    monkeypatch.setattr(Database, "query", noted)
    backgrounds, item = Backgrounds(database), next_item()
    backgrounds.draw([(item, ALL)] * 3)
    assert (asked.count("reviewed_examples"), asked.count("newest_facts")) == (1, 1)


def learnt(item: Item, *facts: str) -> Outcome:
    return Outcome.processed(item, Result("x", None, {}, facts=facts), USAGE, COST, 1)


@pytest.mark.parametrize("is_alone", [True, False], ids=["a group of results", "a group with a failure in it"])
def test_a_commit_keeps_new_facts_once(queue: Queue, worker: int, sql: Sql, next_item: Any, *, is_alone: bool) -> None:
    sql("INSERT INTO context_fact (context_key, fact) VALUES ('klient 7', 'Ma psa.'), ('klient 8', 'Ma kota.')")
    item, other = next_item(), next_item()
    group = [learnt(item, "Ma psa.", "Ma kota.", " Ma kota. ", "", "\ud800", "ż" * 3000)]
    if not is_alone:
        group.append(Outcome.failed(other, "bad_answer", "x", USAGE, COST, 1))
    assert len(queue.commit(worker, group).stored) == len(group)
    rows = sql("SELECT fact, id_task_item FROM context_fact WHERE context_key = 'klient 7'")
    assert {row["fact"]: row["id_task_item"] for row in rows} == {
        "Ma psa.": None,
        **dict.fromkeys(["Ma kota.", "\ufffd", "ż" * 2000], item.id_task_item),
    }
    assert_ledger(sql)


def test_facts_about_nobody_and_facts_of_lost_claims_are_not_kept(queue: Queue, worker: int, sql: Sql, next_item: Any) -> None:
    assert queue.commit(worker, [learnt(next_item(key=None), "Ma psa.")]).stored
    item = next_item()
    assert queue.commit(worker, [learnt(item._replace(claim_token=bytes(16)), "Ma kota.")]).lost
    assert sql("SELECT * FROM context_fact") == []
