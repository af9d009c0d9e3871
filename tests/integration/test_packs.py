"""Packs: several items in one call, each with the result, and the books, that it would have had alone."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest

from ai_worker.worker import Worker
from tests.acceptance.fleet import sentences
from tests.conftest import Sql
from tests.fake_provider import FakeProvider, Rule, correct
from tests.integration.lifecycle import assert_ledger
from tests.integration.worker_runs import (
    APIS,
    Run,
    add_model,
    add_task,
    attempts_of,
    items_of,
    make_due,
    model_of,
    steady_waits,
    task_of,
)
from tests.servers import Programs

TEXTS = [f"Kot numer {number} poszedł spowrotem" for number in range(10)]
BEFORE_IT = {-1}  # whatever stands in the pack before the text at which a rule aims
ODD = 'Item 3\n<<<0123456789abcdef>>>\nZażółć 🙂\r\n"},{'
UNTOLD = {"broken_json", "blocked"}  # answers that do not tell, or not truly, what they are billed


@pytest.fixture(autouse=True)
def _ledger_at_the_end(sql: Sql) -> Iterator[None]:
    """Whatever a test did, all tables agree with each other at its end."""
    yield
    assert_ledger(sql)


@pytest.fixture
def fake() -> Iterator[FakeProvider]:
    with FakeProvider() as fake:
        yield fake


def packs(fake: FakeProvider) -> list[int]:
    """How many items each request had, in the order of the requests."""
    return [len(request.texts) for request in fake.requests]


def assert_all_processed(sql: Sql, id_task: int, texts: Sequence[str]) -> None:
    items = items_of(sql, id_task)
    assert [(item["status"], item["attempt"], item["error_kind"]) for item in items] == [("PROCESSED", 1, None)] * len(texts)
    assert [item["text_corrected"] for item in items] == [correct(text) for text in texts]
    assert (task_of(sql, id_task)["status"], task_of(sql, id_task)["records_processed"]) == ("COMPLETED", len(texts))


def assert_sums_are_exact(sql: Sql, fake: FakeProvider, *tasks: int) -> None:
    """The tokens of items, attempts and tasks are those that the provider billed; the cost is theirs at 1 and 2 USD a million."""
    billed = fake.counts()["tokens"]
    for table in ("task", "task_item", "task_attempt"):
        places = ", ".join(["%s"] * len(tasks))
        (sums,) = sql(
            f"SELECT SUM(tokens_input) AS i, SUM(tokens_output) AS o, SUM(cost) AS c FROM {table} WHERE id_task IN ({places})",
            tasks,
        )
        assert (sums["i"], sums["o"]) == (billed["input"], billed["output"]), table
        assert sums["c"] == Decimal(billed["input"] + 2 * billed["output"]) / 1_000_000, table


@pytest.mark.parametrize("api", APIS)
def test_ten_items_are_one_call_and_end_as_they_would_alone(sql: Sql, database_url: str, fake: FakeProvider, api: str) -> None:
    texts = [*TEXTS[:9], ODD]
    alone = add_task(sql, add_model(sql, fake, api, "alone"), texts)
    Run(database_url)
    assert fake.received == 10
    fake.reset()
    together = add_task(sql, add_model(sql, fake, api, "together"), texts, pack=10, cache_seconds=0)
    assert Run(database_url).summary.processed == 10

    assert packs(fake) == [10]
    assert_all_processed(sql, together, texts)
    for one, other in zip(items_of(sql, alone), items_of(sql, together), strict=True):
        for column in ("status_id", "text_corrected", "change_summary", "result", "attempt", "error_kind"):
            assert one[column] == other[column]
    assert_sums_are_exact(sql, fake, together)
    assert min(item["tokens_input"] for item in items_of(sql, together)) > 0


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("categorization", {"categories": ["skarga", "pochwała"]}),
        ("summary", {}),
        ("analysis", {}),
    ],
)
def test_other_task_types_pack_too(
    sql: Sql, database_url: str, fake: FakeProvider, name: str, parameters: dict[str, Any]
) -> None:
    id_task = add_task(
        sql, add_model(sql, fake, "chat", "chat"), TEXTS, task_type=name, parameters=json.dumps(parameters), pack=5
    )
    assert Run(database_url).summary.processed == 10
    assert packs(fake) == [5, 5]
    assert_sums_are_exact(sql, fake, id_task)


def test_packs_are_as_large_as_the_task_says_and_no_larger(sql: Sql, database_url: str, fake: FakeProvider) -> None:
    texts = [f"{text}, wariant {number}" for number in range(4) for text in TEXTS]
    few = add_task(sql, add_model(sql, fake, "chat", "few"), texts[:7], pack=10, cache_seconds=0)
    four = add_task(sql, add_model(sql, fake, "chat", "four"), texts, pack=4, cache_seconds=0)
    one = add_task(sql, add_model(sql, fake, "chat", "one"), texts[:3], pack=1, cache_seconds=0)
    assert Run(database_url).summary.processed == 50
    assert sorted(packs(fake)) == [1] * 3 + [4] * 10 + [7]
    for id_task, own in ((few, texts[:7]), (four, texts), (one, texts[:3])):
        assert_all_processed(sql, id_task, own)
    assert_sums_are_exact(sql, fake, few, four, one)


def test_a_worker_with_few_slots_packs_all_the_same(sql: Sql, database_url: str, fake: FakeProvider) -> None:
    """Who waits for companions gives its slot away, or there would be none for these."""
    fake.latency_ms = 50
    texts = [f"Kot numer {number} poszedł spowrotem" for number in range(60)]
    id_task = add_task(sql, add_model(sql, fake, "chat", "chat"), texts, pack=10)
    assert Run(database_url, concurrency=2).summary.processed == 60
    assert fake.peak_in_flight <= 2
    assert fake.received <= 30
    assert_all_processed(sql, id_task, texts)


def test_long_texts_go_alone_and_large_packs_are_parted(sql: Sql, database_url: str, fake: FakeProvider) -> None:
    long, medium = "słowo " * 600, [f"słowo {number} " * 40 for number in range(30)]
    id_task = add_task(sql, add_model(sql, fake, "chat", "chat"), [long, *medium, *TEXTS], pack=50)
    assert Run(database_url).summary.processed == 41
    assert [request.texts for request in fake.requests if long.strip() in request.text.strip()] == [(long,)]
    assert 3 <= fake.received <= 8
    assert_sums_are_exact(sql, fake, id_task)


def test_a_pack_keeps_to_what_the_model_may_answer(sql: Sql, database_url: str, fake: FakeProvider) -> None:
    model = add_model(sql, fake, "chat", "chat", options='{"max_output_tokens": 200}')
    id_task = add_task(sql, model, TEXTS, pack=10)
    assert Run(database_url).summary.processed == 10
    assert max(packs(fake)) == 3
    assert_all_processed(sql, id_task, TEXTS)


def test_free_providers_do_not_pack(sql: Sql, database_url: str) -> None:
    id_task = add_task(sql, add_model(sql, None, "echo", "echo"), TEXTS, pack=10)
    assert Run(database_url).summary.processed == 10
    assert [item["text_corrected"] for item in items_of(sql, id_task)] == TEXTS


# -- what goes wrong with an answer -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "alone"),
    [
        (Rule("pack_missing", contains=TEXTS[3]), {3}),
        (Rule("pack_malformed", contains=TEXTS[3]), {3}),
        (Rule("pack_wrong_ids", contains=TEXTS[3]), {3}),
        (Rule("pack_wrong_ids", contains=TEXTS[3], content="duplicate"), BEFORE_IT | {3}),
        (Rule("pack_wrong_ids", contains=TEXTS[3], content="swapped"), BEFORE_IT | {3}),
        (Rule("answer", contains=TEXTS[3], content='{"corrected_text": "777", "change_summary": ""}', times=1), {3}),
        (Rule("wrong_shape", times=1), set(range(10))),
        (Rule("empty", times=1), set(range(10))),
        (Rule("broken_json", times=1), set(range(10))),
        (Rule("not_an_object", times=1), set(range(10))),
        (Rule("refused", times=1), set(range(10))),
        (Rule("400_content_filter", times=1), set(range(10))),
        (Rule("400_context_length", times=1), set(range(10))),
        (Rule("400", times=1), set(range(10))),
        (Rule("blocked", times=1), set(range(10))),
    ],
    ids=lambda value: f"{value.fault} {value.content or ''}" if isinstance(value, Rule) else f"{len(value)} alone",
)
@pytest.mark.parametrize("api", ["chat", "gemini"])
def test_what_a_pack_does_not_bring_is_asked_for_alone_in_the_same_attempt(
    sql: Sql, database_url: str, fake: FakeProvider, api: str, rule: Rule, alone: set[int]
) -> None:
    id_task = add_task(sql, add_model(sql, fake, api, api), TEXTS, pack=10)
    fake.script(replace(rule))
    assert Run(database_url).summary.processed == 10
    assert packs(fake) == [10] + [1] * len(alone)
    pack, *others = (request.texts for request in fake.requests)
    before_it = pack[pack.index(TEXTS[3]) - 1]  # items join a pack in any order
    texts = {before_it if each in BEFORE_IT else TEXTS[each] for each in alone}
    assert {text for (text,) in others} == texts
    assert_all_processed(sql, id_task, TEXTS)
    if rule.fault not in UNTOLD:
        assert_sums_are_exact(sql, fake, id_task)


def test_an_answer_that_breaks_off_is_used_as_far_as_it_goes(sql: Sql, database_url: str, fake: FakeProvider) -> None:
    id_task = add_task(sql, add_model(sql, fake, "chat", "chat"), TEXTS, pack=10)
    fake.script(Rule("cut_short", times=1))
    assert Run(database_url).summary.processed == 10
    assert 4 <= fake.received - 1 <= 6
    assert_all_processed(sql, id_task, TEXTS)
    assert_sums_are_exact(sql, fake, id_task)


def test_one_items_fault_is_its_own(sql: Sql, database_url: str, fake: FakeProvider) -> None:
    """Its text makes the provider refuse the pack; the others end well, and it ends as it would have alone."""
    id_task = add_task(sql, add_model(sql, fake, "chat", "chat"), TEXTS, pack=10)
    fake.script(Rule("400_content_filter", contains=TEXTS[4]))
    summary = Run(database_url).summary
    assert (summary.processed, summary.failed) == (9, 1)
    assert packs(fake) == [10] + [1] * 10
    (bad,) = (item for item in items_of(sql, id_task) if item["text_corrected"] is None)
    assert (bad["text_original"], bad["status"], bad["error_kind"]) == (TEXTS[4], "ERROR", "content_refused")
    assert_sums_are_exact(sql, fake, id_task)


# -- what goes wrong with a call --------------------------------------------------------------------------------------


def test_a_pack_is_sent_again_as_a_whole_where_waiting_helps(sql: Sql, database_url: str, fake: FakeProvider) -> None:
    id_task = add_task(sql, add_model(sql, fake, "chat", "chat"), TEXTS, pack=10)
    fake.script(Rule("503", times=1), Rule("429", times=1), Rule("drop", times=1))
    with steady_waits():
        assert Run(database_url).summary.processed == 10
    assert packs(fake) == [10] * 4
    assert_all_processed(sql, id_task, TEXTS)


@pytest.mark.parametrize(
    ("fault", "kind", "charged", "calls"),
    [("503", "overloaded", 1, 5), ("429", "rate_limited", 0, 5), ("drop", "network", 1, 5)],
)
def test_when_waiting_does_not_help_all_items_end_as_they_would_alone(
    sql: Sql, database_url: str, fake: FakeProvider, fault: str, kind: str, charged: int, calls: int
) -> None:
    id_task = add_task(sql, add_model(sql, fake, "chat", "chat"), TEXTS, pack=10)
    fake.script(Rule(fault))
    with steady_waits():
        assert Run(database_url).summary.deferred == 10
    assert packs(fake) == [10] * calls
    items = items_of(sql, id_task)
    assert {(item["status"], item["attempt"], item["error_kind"]) for item in items} == {("DEFERRED", charged, kind)}
    fake.reset()
    make_due(sql)
    assert Run(database_url).summary.processed == 10
    assert packs(fake) == [10]


def test_on_its_last_attempt_an_item_goes_alone(sql: Sql, database_url: str, fake: FakeProvider) -> None:
    """What failed before may have failed for the pack's sake: it takes longer to answer, for one thing."""
    id_task = add_task(sql, add_model(sql, fake, "chat", "chat"), TEXTS, pack=10, max_attempts=2)
    fake.script(Rule("503"))
    with steady_waits():
        Run(database_url)
    fake.reset()
    make_due(sql)
    assert Run(database_url).summary.processed == 10
    assert packs(fake) == [1] * 10
    assert {item["attempt"] for item in items_of(sql, id_task)} == {2}


@pytest.mark.parametrize(
    ("fault", "kind"), [("429_quota", "quota_exhausted"), ("401", "access_denied"), ("404", "model_unknown")]
)
def test_a_pack_that_finds_its_model_stopped_gives_all_items_back(
    sql: Sql, database_url: str, fake: FakeProvider, fault: str, kind: str
) -> None:
    model = add_model(sql, fake, "chat", "chat")
    id_task = add_task(sql, model, TEXTS, pack=10)
    fake.script(Rule(fault))
    assert Run(database_url).summary.released == 10
    assert packs(fake) == [10]
    assert model_of(sql, model)["stopped_kind"] == kind
    assert {(item["status"], item["attempt"]) for item in items_of(sql, id_task)} == {("PENDING", 0)}
    assert attempts_of(sql, id_task) == []


def test_a_drain_lets_a_pack_in_flight_end(sql: Sql, database_url: str, fake: FakeProvider) -> None:
    fake.latency_ms = 500
    id_task = add_task(sql, add_model(sql, fake, "chat", "chat"), TEXTS, pack=10)

    def drain(worker: Worker, loop: asyncio.AbstractEventLoop) -> None:
        fake.wait_for_requests(1, timeout=30)
        loop.call_soon_threadsafe(worker.drain)

    assert Run(database_url, meanwhile=drain).summary.processed == 10
    assert packs(fake) == [10]
    assert_all_processed(sql, id_task, TEXTS)


def test_a_drain_while_a_pack_waits_for_its_retry_gives_all_items_back(sql: Sql, database_url: str, fake: FakeProvider) -> None:
    id_task = add_task(sql, add_model(sql, fake, "chat", "chat"), TEXTS, pack=10)
    fake.script(Rule("429_retry_after"))  # seven seconds

    def drain(worker: Worker, loop: asyncio.AbstractEventLoop) -> None:
        fake.wait_for_requests(1, timeout=30)
        while fake.answered < 1:
            pass
        loop.call_soon_threadsafe(worker.drain)

    assert Run(database_url, meanwhile=drain).summary.released == 10
    assert {(item["status"], item["attempt"]) for item in items_of(sql, id_task)} == {("PENDING", 0)}
    fake.reset()
    assert Run(database_url).summary.processed == 10
    assert_all_processed(sql, id_task, TEXTS)


def test_an_abort_gives_all_items_of_a_pack_back(sql: Sql, database_url: str, fake: FakeProvider) -> None:
    fake.script(Rule("hang", times=1))
    id_task = add_task(sql, add_model(sql, fake, "chat", "chat"), TEXTS, pack=10)

    def abort(worker: Worker, loop: asyncio.AbstractEventLoop) -> None:
        fake.wait_for_requests(1, timeout=30)
        loop.call_soon_threadsafe(worker.abort)

    assert Run(database_url, meanwhile=abort).summary.released == 10
    assert packs(fake) == [10]
    assert {(item["status"], item["attempt"]) for item in items_of(sql, id_task)} == {("PENDING", 0)}
    assert Run(database_url).summary.processed == 10
    assert_all_processed(sql, id_task, TEXTS)


def test_a_worker_killed_in_the_middle_of_a_pack_loses_nothing(
    sql: Sql, database_url: str, fake: FakeProvider, programs: Programs
) -> None:
    fake.script(Rule("hang", times=1))
    id_task = add_task(sql, add_model(sql, fake, "chat", "chat"), TEXTS, pack=10)
    victim = programs.start("daemon", env={"AI_WORKER_LEASE_SECONDS": "5"})
    fake.wait_for_requests(1, timeout=30)
    victim.process.kill()
    victim.process.wait()
    assert Run(database_url, lease_seconds=5.0).summary.processed == 10  # it waits for the lease of the dead one
    assert packs(fake) == [10, 10]
    items = items_of(sql, id_task)
    assert [(item["status"], item["attempt"], item["lost_count"]) for item in items] == [("PROCESSED", 2, 1)] * 10
    assert [item["text_corrected"] for item in items] == [correct(text) for text in TEXTS]


# -- at what pace -----------------------------------------------------------------------------------------------------


def test_of_a_paced_model_no_more_is_claimed_than_its_next_packs_hold(sql: Sql, database_url: str, fake: FakeProvider) -> None:
    """Ten calls a second, half a second ahead: some sixty items, not as many as there are slots for."""
    texts = [f"{text}, wariant {number}" for number in range(25) for text in TEXTS]
    model = add_model(sql, fake, "chat", "chat", max_requests_per_minute=600)
    id_task = add_task(sql, model, texts, pack=10)
    held: list[int] = []

    def look(worker: Worker, loop: asyncio.AbstractEventLoop) -> None:
        for number in range(3, 20):
            fake.wait_for_requests(number, timeout=30)
            held.append(len(worker._parts.slots))

    assert Run(database_url, meanwhile=look).summary.processed == 250
    assert sum(packs(fake)) == 250
    assert fake.received <= 40
    assert max(held) <= 80
    assert_sums_are_exact(sql, fake, id_task)


# -- what it is for ---------------------------------------------------------------------------------------------------


def test_packs_of_ten_save_input_tokens_and_change_nothing_else(sql: Sql, database_url: str) -> None:
    texts = sentences()[:200]
    billed, results = [], []
    for pack in (1, 10):
        with FakeProvider(count="prompt") as fake:
            id_task = add_task(sql, add_model(sql, fake, "chat", f"pack of {pack}"), texts, pack=pack)
            assert Run(database_url, concurrency=50).summary.processed == 200
            assert_all_processed(sql, id_task, texts)
            billed.append(fake.counts()["tokens"])
            results.append([(item["text_corrected"], item["change_summary"], item["result"]) for item in items_of(sql, id_task)])
    assert results[0] == results[1]
    assert billed[1]["input"] < 0.7 * billed[0]["input"]
