"""Long texts through a worker: sent in parts, several at once, and whole again; a part that fails wastes no other."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Iterator

import pytest

from ai_worker.db import Database
from ai_worker.providers._fill import fill
from ai_worker.store.tasks import Tasks
from ai_worker.text_parts import parts_of
from ai_worker.worker import Worker
from tests.conftest import Sql
from tests.fake_provider import Ask, FakeProvider, Rule
from tests.integration.batch_runs import shorten_waits
from tests.integration.lifecycle import assert_ledger
from tests.integration.worker_runs import Run, add_model, add_task, attempts_of, items_of, make_due, model_of, steady_waits

PARAGRAPH = (
    "Wczoraj poszliśmy z dr. Nowakiem na długi spacer, np. do parku przy ul. Leśnej 7. Było tam bardzo miło, choć padał deszcz… "
    "„Wrócimy tu jutro?” zapytała Ania. Nikt jej nie odpowiedział, więc poszła dalej sama.\r\n\r\n"
)


def polish(characters: int) -> str:
    """A text of about that length in paragraphs, each with its number."""
    count = characters // len(PARAGRAPH) + 1
    return "".join([f"{number}. rozdział. {PARAGRAPH}" for number in range(count)])


def echo(ask: Ask, mark: str = "") -> str:
    """An answer that changes nothing, or adds a mark."""
    assert ask.wanted is not None
    return json.dumps(fill(ask.wanted, next(iter(ask.wanted["properties"])), ask.text.strip() + mark), ensure_ascii=False)


@pytest.fixture(autouse=True)
def _ledger_at_the_end(sql: Sql) -> Iterator[None]:
    """Whatever a test did, all tables agree with each other at its end."""
    with steady_waits():
        yield
    assert_ledger(sql)


@pytest.fixture
def fake() -> Iterator[FakeProvider]:
    with FakeProvider(answer=echo, latency_ms=5) as fake:
        yield fake


def test_a_text_of_300_000_characters_comes_back_whole(database_url: str, sql: Sql, fake: FakeProvider) -> None:
    text, fake.gather = polish(300_000), 4
    id_task = add_task(sql, add_model(sql, fake, "chat", "m"), [text, "Krótki tekst."], parameters='{"explain": false}')
    Run(database_url)
    long, short = items_of(sql, id_task)
    assert long["text_corrected"] == text
    assert short["text_corrected"] == "Krótki tekst."
    parts = parts_of(text, 3000)
    assert len(fake.requests) == len(parts) + 1
    assert max(fake.per_text.values()) == 1
    assert fake.peak_in_flight <= 9
    assert (long["steps_done"], long["steps_total"], long["change_summary"]) == (len(parts), len(parts), "No changes")
    assert (short["steps_done"], short["steps_total"]) == (0, 1)
    assert not sql("SELECT 1 FROM task_item_step"), "the result has them all"
    assert len(attempts_of(sql, id_task)) == len(parts) + 2


def test_changes_in_parts_are_in_the_whole(database_url: str, sql: Sql) -> None:
    text = "\n\n  " + polish(3000) + "  \n" * 2000 + "Koniec."
    with FakeProvider(answer=lambda ask: echo(ask, " ✓")) as fake:
        id_task = add_task(sql, add_model(sql, fake, "chat", "m"), [text], parameters='{"part_tokens": 400, "explain": false}')
        Run(database_url)
        sent = [request.text for request in fake.requests]
    (item,) = items_of(sql, id_task)
    assert item["text_corrected"].replace(" ✓", "") == text
    assert item["text_corrected"].count(" ✓") == len(sent) == item["steps_total"]
    assert all(text.strip() for text in sent), "blanks alone are copied"
    assert set(json.loads(item["result"])) >= {"corrected_text", "change_summary"}


def test_a_part_that_fails_for_good_wastes_no_other(database_url: str, sql: Sql, fake: FakeProvider, database: Database) -> None:
    text = polish(30_000)
    text = text.replace("57. rozdział", "57. Krokodyl")
    parts = parts_of(text, 1000)
    fake.script(Rule("400_content_filter", contains="Krokodyl", times=1))
    id_task = add_task(sql, add_model(sql, fake, "chat", "m"), [text], parameters='{"part_tokens": 1000}')
    Run(database_url)
    (item,) = items_of(sql, id_task)
    assert (item["status"], item["error_kind"]) == ("ERROR", "content_refused")
    assert (item["steps_done"], item["steps_total"]) == (len(parts) - 1, len(parts))
    assert len(sql("SELECT 1 FROM task_item_step")) == len(parts) - 1
    assert len(fake.requests) == len(parts)
    assert Tasks(database).retry(id_task) == 1
    Run(database_url)
    sql("UPDATE task_item SET attempt = attempt + 1")  # a retry counts anew; the audit does not
    (item,) = items_of(sql, id_task)
    assert (item["status"], item["text_corrected"] == text) == ("PROCESSED", True)
    assert [request.text for request in fake.requests][len(parts) :] == [part for part in parts if "Krokodyl" in part]


def test_a_part_that_fails_for_a_while_is_asked_for_again_alone(database_url: str, sql: Sql, fake: FakeProvider) -> None:
    text = polish(20_000).replace("20. rozdział", "20. Krokodyl")
    parts = parts_of(text, 1000)
    fake.script(Rule("broken_json", contains="Krokodyl", times=2))
    id_task = add_task(sql, add_model(sql, fake, "chat", "m"), [text], parameters='{"part_tokens": 1000}')
    for attempt in (1, 2):
        Run(database_url)
        (item,) = items_of(sql, id_task)
        assert (item["status"], item["attempt"], item["error_kind"]) == ("DEFERRED", attempt, "bad_answer")
        assert len(fake.requests) == len(parts) + attempt - 1
        make_due(sql)
    Run(database_url)
    (item,) = items_of(sql, id_task)
    assert (item["status"], item["attempt"], item["text_corrected"] == text) == ("PROCESSED", 3, True)
    assert len(fake.requests) == len(parts) + 2


@pytest.mark.parametrize(("fault", "kind"), [("401", None), ("429", "rate_limited")])
def test_what_strikes_all_parts_leaves_the_rest_alone(
    fault: str, kind: str | None, database_url: str, sql: Sql, fake: FakeProvider
) -> None:
    text = polish(100_000)
    parts = parts_of(text, 500)
    fake.latency_ms = 0
    fake.script(Rule("answer", times=5), Rule(fault))
    model = add_model(sql, fake, "chat", "m")
    id_task = add_task(sql, model, [text], parameters='{"part_tokens": 500}')
    Run(database_url)
    (item,) = items_of(sql, id_task)
    assert (item["error_kind"], item["attempt"]) == (kind, 0), "not charged"
    assert item["steps_done"] <= 5
    assert len(fake.requests) < len(parts)
    assert (model_of(sql, model)["stopped_kind"] == "access_denied") == (fault == "401")


def test_parts_keep_to_the_slots_and_to_the_models_limit(database_url: str, sql: Sql, fake: FakeProvider) -> None:
    texts, fake.latency_ms = [f"{number}. {polish(8_000)}" for number in range(3)], 40
    limited = add_model(sql, fake, "chat", "limited", max_in_flight=3)
    tasks = [add_task(sql, limited, [text], parameters='{"part_tokens": 500}') for text in texts]
    Run(database_url)
    assert fake.peak_in_flight <= 3
    free = add_model(sql, fake, "chat", "free")
    tasks += [add_task(sql, free, [text], parameters='{"part_tokens": 500}') for text in texts]
    Run(database_url, concurrency=5)
    assert 4 <= fake.peak_in_flight <= 5
    assert [items_of(sql, each)[0]["text_corrected"] for each in tasks] == 2 * texts


def test_a_model_with_a_short_answer_gets_short_parts(database_url: str, sql: Sql, fake: FakeProvider) -> None:
    text = polish(6000)
    model = add_model(sql, fake, "chat", "m", options='{"max_output_tokens": 800}')
    id_task = add_task(sql, model, [text])
    Run(database_url)
    assert sorted(request.text for request in fake.requests) == sorted(parts_of(text, 400))
    (item,) = items_of(sql, id_task)
    assert (item["text_corrected"] == text, item["steps_total"]) == (True, len(parts_of(text, 400)))


def test_a_long_text_goes_into_no_pack_and_no_cache(database_url: str, sql: Sql, fake: FakeProvider) -> None:
    text = polish(3000)
    model = add_model(sql, fake, "chat", "m")
    both = {"parameters": '{"part_tokens": 300}', "pack": 5, "cache_seconds": 3600}
    id_task = add_task(sql, model, [text, "Ala ma kota.", text, "Ola ma psa."], **both)
    Run(database_url, concurrency=4)
    assert [item["text_corrected"] for item in items_of(sql, id_task)] == [text, "Ala ma kota.", text, "Ola ma psa."]
    assert len(fake.requests) == 2 * len(parts_of(text, 300)) + 1
    assert {attempt["lane"] for attempt in attempts_of(sql, id_task)} == {"online"}


def test_in_the_lane_batch_a_long_text_is_sent_online(
    database_url: str, sql: Sql, fake: FakeProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    shorten_waits(monkeypatch)
    text = polish(3000)
    fake.set_batches(seconds=0.05)
    options = {"parameters": '{"part_tokens": 300}', "lane": "batch"}
    id_task = add_task(sql, add_model(sql, fake, "chat", "m"), [text, "Ala ma kota."], **options)
    Run(database_url)
    assert [item["text_corrected"] for item in items_of(sql, id_task)] == [text, "Ala ma kota."]
    done = [attempt for attempt in attempts_of(sql, id_task) if attempt["outcome"] == "processed"]
    lanes = Counter((attempt["lane"], attempt["step"] is None) for attempt in done)
    parts = len(parts_of(text, 300))
    assert lanes == {("batch", True): 1, ("online", True): 1, ("online", False): parts}
    assert len(fake.requests) == parts


def test_a_drain_stores_what_is_under_way_and_gives_the_item_back(database_url: str, sql: Sql, fake: FakeProvider) -> None:
    text = polish(60_000)
    parts = parts_of(text, 500)
    id_task = add_task(sql, add_model(sql, fake, "chat", "m"), [text], parameters='{"part_tokens": 500}')

    def drain(worker: Worker, loop: asyncio.AbstractEventLoop) -> None:
        fake.wait_for_requests(12)
        loop.call_soon_threadsafe(worker.drain)

    Run(database_url, meanwhile=drain)
    (item,) = items_of(sql, id_task)
    first = len(fake.requests)
    assert (item["status"], item["attempt"]) == ("PENDING", 0)
    assert 12 <= item["steps_done"] == first < len(parts)
    Run(database_url)
    (item,) = items_of(sql, id_task)
    assert (item["text_corrected"] == text, len(fake.requests)) == (True, len(parts))


def test_a_cancelled_task_pays_for_the_parts_under_way_and_no_more(
    database_url: str, sql: Sql, fake: FakeProvider, database: Database
) -> None:
    text, fake.latency_ms = polish(60_000), 30
    id_task = add_task(sql, add_model(sql, fake, "chat", "m"), [text], parameters='{"part_tokens": 500}')

    def cancel(*_: object) -> None:
        fake.wait_for_requests(12)
        Tasks(database).cancel(id_task)

    Run(database_url, meanwhile=cancel)
    (item,) = items_of(sql, id_task)
    assert (item["status"], item["steps_done"]) == ("CANCELLED", len(fake.requests))
    assert 12 <= len(fake.requests) < 40 < len(parts_of(text, 500))
