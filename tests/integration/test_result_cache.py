"""Identical work is sent once: on one worker and on several, in flight and later, and again when there is a reason."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

import pytest

from ai_worker.models import Filters
from ai_worker.worker import twins
from tests.conftest import Sql
from tests.fake_provider import FakeProvider, Rule, correct, tokens_for
from tests.integration.lifecycle import assert_ledger
from tests.integration.worker_runs import Run, add_model, add_task, attempts_of, items_of, steady_waits, task_of

TEXT = "Pchnąć w tę łódź jeża lub ośm skrzyń fig"


@pytest.fixture
def fake() -> Iterator[FakeProvider]:
    with FakeProvider(latency_ms=50) as fake:
        yield fake


@pytest.fixture
def model(sql: Sql, fake: FakeProvider) -> int:
    return add_model(sql, fake, "chat", "m")


def test_a_hundred_equal_items_are_one_call(sql: Sql, database_url: str, fake: FakeProvider, model: int) -> None:
    task = add_task(sql, model, [TEXT] * 100)
    run = Run(database_url)
    assert (run.summary.processed, run.summary.failed, run.summary.released) == (100, 0, 0)
    assert fake.counts()["requests"] == 1
    assert {item["text_corrected"] for item in items_of(sql, task)} == {correct(TEXT)}
    attempts = attempts_of(sql, task)
    assert sorted(each["lane"] for each in attempts) == ["cache"] * 99 + ["online"]
    usage = tokens_for(TEXT)
    for each in attempts:
        if each["lane"] == "cache":
            assert (each["tokens_input"], each["tokens_output"], each["cost"]) == (0, 0, Decimal(0))
            assert each["latency_ms"] > 0
    row = task_of(sql, task)
    assert (row["status"], row["tokens_input"], row["tokens_output"]) == ("COMPLETED", usage.input, usage.output)
    assert row["cost"] == Decimal(usage.input + 2 * usage.output) / 1_000_000
    assert_ledger(sql)


@pytest.mark.parametrize("concurrency", [1, 2, 7])
def test_twins_give_their_slots_away(sql: Sql, database_url: str, fake: FakeProvider, model: int, concurrency: int) -> None:
    """With fewer slots than twins, and different texts among them."""
    texts = [f"{TEXT} {number % 5}" for number in range(60)]
    task = add_task(sql, model, texts)
    assert Run(database_url, concurrency=concurrency).summary.processed == 60
    assert dict(fake.per_text) == dict.fromkeys(texts, 1)
    assert [item["text_corrected"] for item in items_of(sql, task)] == [correct(text) for text in texts]
    assert_ledger(sql)


def test_a_later_task_of_the_same_work_is_answered(sql: Sql, database_url: str, fake: FakeProvider, model: int) -> None:
    texts = [f"{TEXT} {number}" for number in range(20)]
    first = add_task(sql, model, texts)
    Run(database_url)
    again = add_task(sql, model, texts)
    Run(database_url)
    assert fake.counts()["requests"] == 20
    rows, firsts = items_of(sql, again), items_of(sql, first)
    for row, before in zip(rows, firsts, strict=True):
        assert row["text_corrected"] == before["text_corrected"] == correct(row["text_original"])
        assert row["change_summary"] == before["change_summary"]
        assert json.loads(row["result"]) == json.loads(before["result"])
        assert row["cost"] == 0
    assert task_of(sql, again)["cost"] == 0


@pytest.mark.parametrize(
    "columns",
    [{"description": "Popraw tylko przecinki."}, {"cache_seconds": 0}, {"task_type": "summary"}],
    ids=["instruction", "cache off", "type"],
)
def test_other_work_is_sent(sql: Sql, database_url: str, fake: FakeProvider, model: int, columns: dict[str, Any]) -> None:
    add_task(sql, model, [TEXT])
    Run(database_url)
    other = add_task(sql, model, [TEXT], **columns)
    Run(database_url)
    assert fake.counts()["requests"] == 2
    assert [each["lane"] for each in attempts_of(sql, other)] == ["online"]


def test_without_the_cache_each_item_is_sent(sql: Sql, database_url: str, fake: FakeProvider, model: int) -> None:
    add_task(sql, model, [TEXT] * 10, cache_seconds=0)
    Run(database_url)
    assert fake.counts()["requests"] == 10
    assert sql("SELECT * FROM result_cache") == []


def test_the_model_is_known_by_what_it_is_not_by_its_name(sql: Sql, database_url: str, fake: FakeProvider, model: int) -> None:
    add_task(sql, model, [TEXT])
    Run(database_url)
    add_task(sql, add_model(sql, fake, "chat", "the same, dearer", price_input=5), [TEXT])
    Run(database_url)
    assert fake.counts()["requests"] == 1
    add_task(sql, add_model(sql, fake, "chat", "another", model="another"), [TEXT])
    add_task(sql, add_model(sql, fake, "chat", "warmer", options='{"temperature": 1}'), [TEXT])
    add_task(sql, add_model(sql, fake, "gemini", "elsewhere"), [TEXT])
    Run(database_url)
    assert fake.counts()["requests"] == 4


@pytest.mark.parametrize(
    "columns",
    [{"provider": "echo", "price_input": None, "price_output": None}, {"price_input": 0, "price_output": 0}],
    ids=["echo", "free"],
)
def test_what_costs_nothing_is_not_cached(sql: Sql, database_url: str, fake: FakeProvider, columns: dict[str, Any]) -> None:
    add_task(sql, add_model(sql, fake, "chat", "free", **columns), [TEXT] * 5)
    assert Run(database_url).summary.processed == 5
    assert sql("SELECT * FROM result_cache") == []


def test_an_unknown_price_is_not_nothing(sql: Sql, database_url: str, fake: FakeProvider) -> None:
    """A nothing in the sum would make it one."""
    task = add_task(sql, add_model(sql, fake, "chat", "m", price_input=None, price_output=None), [TEXT] * 3)
    Run(database_url)
    assert fake.counts()["requests"] == 1
    assert sorted(each["lane"] for each in attempts_of(sql, task)) == ["cache", "cache", "online"]
    assert task_of(sql, task)["cost"] is None
    assert [row["cost"] for row in items_of(sql, task)] == [None] * 3


def test_the_next_twin_leads_when_the_leader_fails(sql: Sql, database_url: str, fake: FakeProvider, model: int) -> None:
    """An answer that is none is charged to the item that got it; the others get the next one's."""
    fake.script(Rule("refused", times=1))
    task = add_task(sql, model, [TEXT] * 10)
    summary = Run(database_url).summary
    assert (summary.processed, summary.failed) == (9, 1)
    assert fake.counts()["requests"] == 2
    assert sorted(each["lane"] for each in attempts_of(sql, task)) == ["cache"] * 8 + ["online"] * 2
    assert_ledger(sql)


def test_twins_do_not_wait_for_a_leader_that_is_put_off(sql: Sql, database_url: str, fake: FakeProvider, model: int) -> None:
    """The leader is tried again much later, and waits in the database: the next one leads at once."""
    fake.script(Rule("broken_json", times=1))
    task = add_task(sql, model, [TEXT] * 10)
    with steady_waits():
        summary = Run(database_url).summary
    assert (summary.processed, summary.deferred) == (9, 1)
    assert fake.counts()["requests"] == 2
    sql("UPDATE task_item SET available_at = UTC_TIMESTAMP(6) WHERE status_id = 4")
    assert Run(database_url).summary.processed == 1
    assert fake.counts()["requests"] == 2
    assert {item["text_corrected"] for item in items_of(sql, task)} == {correct(TEXT)}
    assert_ledger(sql)


def test_a_drain_gives_twins_back_uncharged(sql: Sql, database_url: str, fake: FakeProvider, model: int) -> None:
    fake.latency_ms = 1000
    task = add_task(sql, model, [TEXT] * 20)

    def drain(worker: Any, loop: Any) -> None:
        fake.wait_for_requests(1)
        loop.call_soon_threadsafe(worker.drain)

    summary = Run(database_url, meanwhile=drain).summary
    assert (summary.processed, summary.released) == (1, 19)
    assert len(attempts_of(sql, task)) == 1
    assert {item["attempt"] for item in items_of(sql, task) if item["status"] == "PENDING"} == {0}
    assert_ledger(sql)
    assert Run(database_url).summary.processed == 19
    assert fake.counts()["requests"] == 1


def test_an_abort_frees_the_work(sql: Sql, database_url: str, fake: FakeProvider, model: int) -> None:
    """The leader's call is broken off, and whoever comes next leads."""
    fake.latency_ms = 60_000
    add_task(sql, model, [TEXT] * 5)

    def abort(worker: Any, loop: Any) -> None:
        fake.wait_for_requests(1)
        loop.call_soon_threadsafe(worker.abort)

    assert Run(database_url, meanwhile=abort).summary.released == 5
    assert sql("SELECT * FROM result_cache") == []
    fake.latency_ms = 0
    assert Run(database_url).summary.processed == 5
    assert fake.counts()["requests"] == 2


def two_workers(
    database_url: str, fake: FakeProvider, *filters: Filters, between: Callable[[], None] = lambda: None
) -> list[int]:
    """Runs a worker per filter, the second when the first has sent something and `between` is done; what each has processed."""
    processed = [0] * len(filters)

    def work(number: int) -> None:
        processed[number] = Run(database_url, filters=filters[number], name=f"worker {number}").summary.processed

    threads = [threading.Thread(target=work, args=[number]) for number in range(len(filters))]
    for thread in threads:
        thread.start()
        fake.wait_for_requests(1)
        if thread is threads[0]:
            between()
    for thread in threads:
        thread.join(60)
    return processed


def test_twins_of_another_workers_call_wait_for_it(sql: Sql, database_url: str, fake: FakeProvider, model: int) -> None:
    fake.latency_ms = 1000
    one, two = (add_task(sql, model, [TEXT] * 3) for _ in range(2))
    assert two_workers(database_url, fake, Filters(id_task=one), Filters(id_task=two)) == [3, 3]
    assert fake.counts()["requests"] == 1
    assert {each["lane"] for each in attempts_of(sql, two)} == {"cache"}
    assert_ledger(sql)


def test_twins_of_a_dead_workers_call_take_over_once_its_lease_is_over(
    sql: Sql, database_url: str, fake: FakeProvider, model: int
) -> None:
    """And what it sends after all is stored with its own item."""
    fake.latency_ms = 3000
    one, two = (add_task(sql, model, [TEXT] * 3) for _ in range(2))

    def kill() -> None:
        fake.latency_ms = 50
        sql("UPDATE worker SET lost_at = NOW(6), lease_until = NOW(6) - INTERVAL 1 SECOND WHERE lost_at IS NULL LIMIT 1")

    filters = Filters(id_task=one), Filters(id_task=two)
    assert two_workers(database_url, fake, *filters, between=kill) == [3, 3]
    assert fake.counts()["requests"] == 2
    assert_ledger(sql)


def test_too_many_twins_are_put_off_uncharged(
    sql: Sql, database_url: str, fake: FakeProvider, model: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ai_worker.worker.assembly.WAITING_PER_SLOT", 2)
    monkeypatch.setattr("ai_worker.worker.calls.PUT_OFF_SECONDS", 0.2)
    fake.latency_ms = 500
    task = add_task(sql, model, [TEXT] * 30)
    assert Run(database_url, concurrency=4).summary.processed == 30
    assert fake.counts()["requests"] == 1
    outcomes = [each["outcome"] for each in attempts_of(sql, task)]
    assert outcomes.count("postponed") > 0
    assert {item["attempt"] for item in items_of(sql, task)} == {1}
    assert {each["lane"] for each in attempts_of(sql, task) if each["outcome"] == "postponed"} == {"cache"}
    assert sql("SELECT SUM(attempts) AS n FROM ai_model_day")[0]["n"] == 1, "nothing else was sent"


def test_a_database_that_refuses_the_cache_costs_money_not_work(
    sql: Sql, database_url: str, fake: FakeProvider, model: int
) -> None:
    sql("ALTER TABLE result_cache RENAME TO result_cache_away")
    try:
        add_task(sql, model, [TEXT] * 5)
        assert Run(database_url).summary.processed == 5
        assert fake.counts()["requests"] == 5
    finally:
        sql("ALTER TABLE result_cache_away RENAME TO result_cache")


def test_one_named_item_is_answered_too(sql: Sql, database_url: str, fake: FakeProvider, model: int) -> None:
    task = add_task(sql, model, [TEXT] * 3)
    for item in items_of(sql, task):
        assert Run(database_url, filters=Filters(id_task_item=item["id_task_item"])).summary.processed == 1
    assert fake.counts()["requests"] == 1


def test_questions_share_their_statements(
    sql: Sql, database_url: str, fake: FakeProvider, model: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    ask = twins.Twins._ask_about

    async def counted(self: twins.Twins, works: Any) -> None:
        asked.append(len(works))
        await ask(self, works)

    monkeypatch.setattr(twins.Twins, "_ask_about", counted)
    add_task(sql, model, [f"{TEXT} {number}" for number in range(300)])
    assert Run(database_url, concurrency=100).summary.processed == 300
    assert sum(asked) == 300
    assert len(asked) < 60
