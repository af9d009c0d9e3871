"""Personal data of a thousand rows, masked: none of it reaches the provider, all of it is back in the results.

Real workers with the rights of sql/grants.sql; what they send is read off the wire, byte by byte.
"""

from __future__ import annotations

import json
import random
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.chaos import ledger
from tests.chaos.arena import Arena
from tests.chaos.canaries import Person, Tap, as_bytes, found_in, people
from tests.chaos.fleet import Fleet
from tests.conftest import Sql
from tests.fake_provider import Ask, BatchSettings, FakeProvider, Rule
from tests.fake_provider.answering import answer_json
from tests.integration.lifecycle import assert_ledger

ROWS = {"online": 250, "packs": 250, "batch": 150, "parts": 20, "reply": 100, "steps": 30, "context": 50, "again": 150}
PLACEHOLDER = re.compile(r"\[\[[A-Z]+_\d+\]\]")


class Forgetful:
    """Answers as the fake does; but of one text in ten its first answer has lost a placeholder, or made one up."""

    def __init__(self) -> None:
        self.asked: set[str] = set()

    def __call__(self, ask: Ask) -> str:
        answer = answer_json(ask)
        chance = zlib.crc32(ask.text.encode()) % 20
        if ask.text in self.asked or chance > 1:
            return answer
        self.asked.add(ask.text)
        return answer.replace("[[NAME_1]]", "[[NAME_9]]" if chance else "Klient")


def _insert(sql: Sql, model: int, rows: list[tuple[str, dict[str, Any] | None]], **columns: Any) -> int:
    task = {"id_ai_model": model, "description": "Popraw tekst.", "personal_data": "mask", "cache_seconds": 0, **columns}
    sql(f"INSERT INTO task ({', '.join(task)}) VALUES ({', '.join(['%s'] * len(task))})", list(task.values()))
    id_task: int = sql("SELECT MAX(id_task) AS id FROM task")[0]["id"]
    values = [value for text, context in rows for value in (id_task, text, None if context is None else json.dumps(context))]
    sql(f"INSERT INTO task_item (id_task, text_original, context) VALUES {', '.join(['(%s, %s, %s)'] * len(rows))}", values)
    return id_task


@pytest.mark.parametrize("share", [pytest.param(1, marks=pytest.mark.chaos, id="thousand"), pytest.param(5, id="short")])
def test_no_canary_reaches_the_provider_and_all_are_back(
    arena: Arena, fleet: Fleet, rng: random.Random, tmp_path: Path, share: int
) -> None:
    rows = {kind: count // share for kind, count in ROWS.items()}
    persons = people(rng, sum(rows.values()) - rows["again"])
    given = iter(persons)
    whose: dict[str, list[Person]] = {
        kind: [next(given) for _ in range(count)] for kind, count in rows.items() if kind != "again"
    }
    whose["again"] = whose["online"][: rows["again"]]
    listed = tmp_path / "names.txt"
    listed.write_text("\n".join(name for person in persons for name in person.names), encoding="utf-8")
    with FakeProvider(answer=Forgetful(), batches=BatchSettings(seconds=0.2)) as fake:
        tap = Tap(("127.0.0.1", fake.port))
        try:
            fake.script(Rule("500", share=0.03), Rule("400_content_filter", contains="nie do przyjęcia"))
            arena.sql(
                "INSERT INTO ai_model (name, provider, model, base_url, max_requests_per_minute)"
                " VALUES ('fake', 'openai', 'fake', %s, 1000000)",
                [f"http://127.0.0.1:{tap.port}/v1"],
            )
            model = arena.sql("SELECT MAX(id_ai_model) AS id FROM ai_model")[0]["id"]
            tasks = _tasks(arena.sql, model, whose)
            settings = {"AI_WORKER_PERSONAL_NAMES_FILE": str(listed), "AI_WORKER_LOG_LEVEL": "debug"}
            workers = [fleet.start(command="run", env=settings) for _ in range(2)]
            codes = [worker.background.wait(150) for worker in workers]
            # What is done already is taken from there, and what was refused is read by a person.
            tasks["again"] = _insert(
                arena.sql, model, [(person.text, None) for person in whose["again"]], cache_seconds=3600, max_attempts=9
            )
            refused = _insert(arena.sql, model, [(f"To nie do przyjęcia: {persons[0].text}", None)])
            calls = len(fake.requests)
            again = fleet.start(command="run", env=settings)
            codes.append(again.background.wait(60))
        finally:
            tap.down()
        assert len(fake.requests) == calls + 1, "the cache has answered all but the one that is refused"
    assert fleet.tracebacks() == []
    assert codes[:2] == [0, 0]
    _assert_all_back(arena.sql, tasks, whose)
    item = arena.sql("SELECT error_kind FROM task_item WHERE id_task = %s", [refused])[0]
    assert item["error_kind"] == "content_refused"

    sent = {f"connection {number}": heard for number, heard in enumerate(tap.heard)}
    logs = {process.name: process.background.text().encode() for process in fleet.processes}
    tables = {
        "attempts": as_bytes(arena.sql("SELECT error_kind, error_message FROM task_attempt")),
        "errors": as_bytes(arena.sql("SELECT error_message FROM task_item WHERE error_message IS NOT NULL")),
        "cache": as_bytes(arena.sql("SELECT * FROM result_cache")),
        "batches": as_bytes(arena.sql("SELECT * FROM batch")),
        "models": as_bytes(arena.sql("SELECT name, stopped_reason FROM ai_model")),
        "workers": as_bytes(arena.sql("SELECT * FROM worker")),
    }
    everything = b"".join(sent.values())
    assert everything.count(b"[[PESEL_1]]") > 700 // share, "else nothing was heard"
    assert b"[[NAME_1]]" in b"".join(logs.values()), "the log tells of prompts, and would tell of names"
    assert b"personal_data" in tables["attempts"], "some answers were refused for what they had lost"
    found = found_in(sent | logs | tables, persons)
    values = len({value for person in persons for value in person.values})
    print(  # noqa: T201 -- the figures of docs/guarantees.md
        f"rows {sum(rows.values())}, values {values}, bytes sent {len(everything):,}, requests {len(fake.requests):,},"
        f" found with the provider, in logs, attempts, cache: {len(found)}"
    )
    assert found == []
    assert_ledger(arena.sql)


def _tasks(sql: Sql, model: int, whose: dict[str, list[Person]]) -> dict[str, int]:
    """A task for each way that a text can take."""

    def plain(kind: str) -> list[tuple[str, dict[str, Any] | None]]:
        return [(person.text, None) for person in whose[kind]]

    long = [("\n\n".join([person.text] * 12), None) for person in whose["parts"]]
    talks = [
        (
            f"Dziękuję, {person.values[7]}.",
            {"messages": [{"role": "user", "text": person.text}, {"role": "assistant", "text": "Tak."}]},
        )
        for person in whose["reply"]
    ]
    sources = [
        ("Kim jest ta osoba?", {"sources": [{"title": person.values[7], "text": person.text}]}) for person in whose["context"]
    ]
    many = {"max_attempts": 9}
    return {
        "online": _insert(sql, model, plain("online"), cache_seconds=3600, **many),
        "packs": _insert(sql, model, plain("packs"), pack=10, **many),
        "batch": _insert(sql, model, plain("batch"), lane="batch", **many),
        "parts": _insert(sql, model, long, parameters='{"part_tokens": 120}', **many),
        "reply": _insert(sql, model, talks, task_type="reply", **many),
        "steps": _insert(sql, model, plain("steps"), task_type="research", parameters='{"questions": 3}', **many),
        "context": _insert(sql, model, sources, task_type="technical_review", **many),
    }


def _assert_all_back(sql: Sql, tasks: dict[str, int], whose: dict[str, list[Person]]) -> None:
    """Each row has a result with its own values in it, and no placeholder is left."""
    gives_back: dict[str, Callable[[str], str]] = {
        kind: lambda text: f"{text} ✓" for kind in ("online", "packs", "batch", "again")
    }
    for kind, id_task in tasks.items():
        items = sql("SELECT * FROM task_item WHERE id_task = %s ORDER BY id_task_item", [id_task])
        assert len(items) == len(whose[kind])
        for item, person in zip(items, whose[kind], strict=True):
            assert item["status_id"] == 1, (kind, item["error_kind"], item["error_message"])
            if kind in gives_back:
                assert item["text_corrected"] == gives_back[kind](item["text_original"])
            if kind == "parts":
                assert all(item["text_corrected"].count(value) >= 12 for value in person.values)
            result = f"{item['text_corrected']} {item['change_summary']} {item['result']}"
            assert not PLACEHOLDER.search(result), (kind, result)
            if kind in {"reply", "steps"}:
                assert person.values[7] in item["text_corrected"]
    assert ledger.open_items(sql, *tasks.values()) == 0
