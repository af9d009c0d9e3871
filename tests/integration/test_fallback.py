"""Tasks that name models in order: which one takes an item, who stands in for it, and what is on record."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest

from ai_worker.models import Filters, Item, ItemStatus, Outcome, OutcomeKind, TaskStatus
from ai_worker.store.models import Models
from ai_worker.store.queue import Queue
from tests.conftest import Sql
from tests.fake_provider import FakeProvider, Rule
from tests.integration.lifecycle import COST, USAGE, Application, assert_ledger, claim, done, failed_once, register
from tests.integration.worker_runs import Run, add_model, add_task, attempts_of, items_of, make_probes_due, model_of, task_of

pytest_plugins = ["tests.integration.lifecycle"]


@pytest.fixture(autouse=True)
def _ledger_at_the_end(sql: Sql) -> Any:
    """Whatever a test did, all tables agree with each other at its end."""
    yield
    assert_ledger(sql)


@pytest.fixture
def models(application: Application) -> tuple[int, int, int]:
    """Three models, in the order of the chain."""
    first, second, third = (application.model(f"model {name}") for name in "abc")
    return first, second, third


@pytest.fixture
def chained(application: Application, sql: Sql, models: tuple[int, int, int]) -> int:
    """A task that names them."""
    task = application.task(models[0])
    add_fallbacks(sql, task, *models[1:])
    return task


def add_fallbacks(sql: Sql, id_task: int, *models: int) -> None:
    """Names the further models of a task, as an application does."""
    for position, model in enumerate(models, 1):
        sql("INSERT INTO task_fallback (id_task, position, id_ai_model) VALUES (%s, %s, %s)", [id_task, position, model])


def refused(item: Item, message: str = "odmowa") -> Outcome:
    """Its model will not have it."""
    return Outcome.refused(item, "content_refused", message, USAGE, COST, 250)


def offered(queue: Queue, **filters: Any) -> list[tuple[int, bool]]:
    """The models that claims would be for, and whether as a probe."""
    return [(task.id_ai_model, task.is_probe) for task in queue.runnable(Filters(**filters))]


# ----- stopped models


def test_the_first_model_that_is_not_stopped_takes_the_items(
    application: Application, queue: Queue, worker: int, database: Any, chained: int, models: tuple[int, int, int]
) -> None:
    application.items(chained, 4)
    assert offered(queue) == [(models[0], False)]
    verbs = Models(database)
    verbs.stop(models[0], "quota_exhausted", "spent", 300)
    assert offered(queue) == [(models[1], False)]
    verbs.set(models[1], is_active=False)
    assert offered(queue) == [(models[2], False)]
    assert queue.waiting(Filters()).blocked == 0
    (item,) = claim(queue, worker)
    assert (item.task.id_ai_model, item.task.chain) == (models[2], models)
    assert application.item_row(item.id_task_item)["id_ai_model"] == models[2]
    queue.commit(worker, [done(item)])
    assert application.attempts(item.id_task_item)[0]["id_ai_model"] == models[2]
    verbs.stop(models[2], "quota_exhausted", "spent", 300)
    assert offered(queue) == []
    waiting = queue.waiting(Filters())
    assert (waiting.pending, waiting.blocked) == (3, 3)
    verbs.resume(models[0])
    assert offered(queue) == [(models[0], False)]
    (item,) = claim(queue, worker)
    assert application.item_row(item.id_task_item)["id_ai_model"] is None
    queue.commit(worker, [Outcome.released(item)])


def test_a_stopped_model_is_probed_while_the_next_one_works(
    application: Application, queue: Queue, worker: int, database: Any, sql: Sql, chained: int, models: tuple[int, int, int]
) -> None:
    application.items(chained, 3)
    Models(database).stop(models[0], "access_denied", "key", 300)
    make_probes_due(sql)
    probe, work = queue.runnable(Filters())
    assert [(each.id_ai_model, each.is_probe) for each in (probe, work)] == [(models[0], True), (models[1], False)]
    (tried,) = queue.claim(worker, [probe], 1)
    others = queue.claim(worker, [work], 10)
    assert tried.task.is_probe
    assert [item.task.id_ai_model for item in others] == [models[1]] * 2
    queue.commit(worker, [done(each) for each in (tried, *others)])
    assert application.task_status(chained) is TaskStatus.COMPLETED


def test_a_probe_takes_an_item_that_its_model_has_not_refused(
    application: Application, queue: Queue, worker: int, database: Any, sql: Sql, chained: int, models: tuple[int, int, int]
) -> None:
    first, second = application.items(chained, 2)
    (item,) = claim(queue, worker)
    queue.commit(worker, [refused(item)])
    Models(database).stop(models[0], "access_denied", "key", 300)
    make_probes_due(sql)
    probe = queue.runnable(Filters())[0]
    assert [each.id_task_item for each in queue.claim(worker, [probe], 1)] == [second]
    assert application.item_status(first) is ItemStatus.PENDING


@pytest.mark.parametrize("state", ["stopped", "well"])
def test_a_busy_model_is_waited_for(
    application: Application, queue: Queue, database: Any, chained: int, models: tuple[int, int, int], state: str
) -> None:
    """A fallback stands in for a model that is out of order: it does not share the load of one that is at its limits."""
    application.items(chained, 2)
    if state == "stopped":
        Models(database).stop(models[0], "quota_exhausted", "spent", 300)
    busy = [models[state == "stopped"]]
    assert queue.runnable(Filters(), busy) == []
    waiting = queue.waiting(Filters(), busy)
    assert (waiting.pending, waiting.blocked) == (2, 0 if state == "stopped" else 2)


def test_a_worker_for_one_model_takes_a_chain_only_for_that_model(
    application: Application, queue: Queue, database: Any, chained: int, models: tuple[int, int, int]
) -> None:
    application.items(chained, 2)
    assert offered(queue, models=("model a",)) == [(models[0], False)]
    assert offered(queue, models=("model b",)) == []
    assert queue.waiting(Filters(models=("model b",))).pending == 0
    Models(database).stop(models[0], "quota_exhausted", "spent", 300)
    assert offered(queue, models=("model a",)) == []
    assert offered(queue, models=("model b",)) == [(models[1], False)]
    assert queue.waiting(Filters(models=("model b",))).pending == 2


def test_a_dry_run_names_the_model_that_would_be_asked(
    application: Application, queue: Queue, database: Any, chained: int, models: tuple[int, int, int]
) -> None:
    application.items(chained)
    Models(database).stop(models[0], "quota_exhausted", "spent", 300)
    assert [(each.id_ai_model, each.is_probe) for each in queue.preview_tasks(Filters())] == [(models[1], False)]
    for each in models[1:]:
        Models(database).stop(each, "quota_exhausted", "spent", 300)
    assert [(each.id_ai_model, each.is_probe) for each in queue.preview_tasks(Filters())] == [(models[0], True)]


# ----- refusals


def test_what_one_model_refuses_the_next_one_gets_at_once_and_uncharged(
    application: Application, queue: Queue, worker: int, chained: int, models: tuple[int, int, int]
) -> None:
    (key,) = application.items(chained)
    (item,) = claim(queue, worker)
    assert refused(item).kind is OutcomeKind.PASSED_ON
    queue.commit(worker, [refused(item)])
    row = application.item_row(key)
    assert (row["status_id"], row["attempt"], row["refused"], row["error_kind"]) == (ItemStatus.PENDING, 0, 1, "content_refused")
    (item,) = claim(queue, worker)
    assert (item.task.id_ai_model, item.refused, item.attempt) == (models[1], 1, 1)
    queue.commit(worker, [done(item)])
    attempts = sorted(application.attempts(key), key=lambda row: row["finished_at"])
    assert [(row["id_ai_model"], row["outcome"]) for row in attempts] == [(models[0], "postponed"), (models[1], "processed")]
    task = application.task_row(chained)
    assert (task["records_processed"], task["cost"], task["tokens_input"]) == (1, 2 * COST, 200)
    assert task["status_id"] == TaskStatus.COMPLETED


def test_the_last_refusal_is_final_and_tells_what_each_model_said(
    application: Application, queue: Queue, worker: int, chained: int, sql: Sql, models: tuple[int, int, int]
) -> None:
    (key,) = application.items(chained)
    for each in ("pierwszy " + "x" * 2000, "drugi", "trzeci"):
        (item,) = claim(queue, worker)
        queue.commit(worker, [refused(item, each)])
    row = application.item_row(key)
    assert (row["status_id"], row["attempt"], row["refused"]) == (ItemStatus.ERROR, 1, 2)
    message = row["error_message"]
    assert message.startswith("trzeci; before, model a: pierwszy xxx")
    assert message.endswith("; before, model b: drugi")
    assert len(message) < 1000
    assert application.task_status(chained) is TaskStatus.ERROR


def test_the_last_attempt_on_one_model_is_not_the_last(
    application: Application, queue: Queue, worker: int, models: tuple[int, int, int], sql: Sql
) -> None:
    task = application.task(models[0], max_attempts=2)
    add_fallbacks(sql, task, models[1])
    (key,) = application.items(task)
    (item,) = claim(queue, worker)
    assert failed_once(item).kind is OutcomeKind.RETRY
    queue.commit(worker, [failed_once(item)])
    application.make_due()
    queue.promote_due()
    (item,) = claim(queue, worker)
    assert (item.task.id_ai_model, failed_once(item).kind) == (models[0], OutcomeKind.PASSED_ON)
    queue.commit(worker, [failed_once(item)])
    (item,) = claim(queue, worker)
    assert (item.task.id_ai_model, failed_once(item).kind) == (models[1], OutcomeKind.FAILED)
    queue.commit(worker, [failed_once(item)])
    assert application.item_status(key) is ItemStatus.ERROR


def test_items_for_different_models_come_in_one_claim(
    application: Application, queue: Queue, worker: int, chained: int, models: tuple[int, int, int]
) -> None:
    keys = application.items(chained, 4)
    first = claim(queue, worker, 2)
    queue.commit(worker, [refused(each) for each in first])
    items = claim(queue, worker, 10)
    assert [(item.id_task_item, item.task.id_ai_model) for item in items] == [
        (keys[0], models[1]), (keys[1], models[1]), (keys[2], models[0]), (keys[3], models[0])
    ]  # fmt: skip
    queue.commit(worker, [done(each) for each in items])


def test_an_item_whose_own_model_is_stopped_is_put_off_and_the_others_go_on(
    application: Application, queue: Queue, worker: int, database: Any, sql: Sql, models: tuple[int, int, int]
) -> None:
    task = application.task(models[0])
    add_fallbacks(sql, task, models[1])
    one, two = application.items(task, 2)
    (item,) = claim(queue, worker)
    queue.commit(worker, [refused(item)])
    Models(database).stop(models[1], "access_denied", "key", 77)
    assert [each.id_task_item for each in claim(queue, worker, 10)] == [two]
    row = application.item_row(one)
    assert (row["status_id"], row["attempt"]) == (ItemStatus.DEFERRED, 0)
    assert 60 < (queue.next_due() or 0) <= 77
    assert len(application.attempts(one)) == 1

    make_probes_due(sql)
    application.make_due()
    queue.promote_due()
    (probe,) = claim(queue, worker, 10)
    assert (probe.id_task_item, probe.task.id_ai_model, probe.task.is_probe) == (one, models[1], True)
    assert not queue.take_probe(models[1])  # nobody else meanwhile


def test_an_item_whose_own_model_is_busy_is_put_off(
    application: Application, queue: Queue, worker: int, chained: int, models: tuple[int, int, int]
) -> None:
    (key,) = application.items(chained)
    (item,) = claim(queue, worker)
    queue.commit(worker, [refused(item)])
    (task,) = queue.runnable(Filters())
    assert queue.claim(worker, [task], 5, busy_models=[models[1]]) == []
    assert application.item_status(key) is ItemStatus.DEFERRED
    assert 0 < (queue.next_due() or 0) <= 2


def test_a_rescue_books_the_loss_on_the_model_that_was_asked(
    application: Application, queue: Queue, worker: int, chained: int, models: tuple[int, int, int]
) -> None:
    (key,) = application.items(chained)
    (item,) = claim(queue, worker)
    queue.commit(worker, [refused(item)])
    (item,) = claim(queue, worker)
    application.kill_worker(worker)
    queue.rescue()
    other = register(queue)
    (again,) = claim(queue, other)
    assert again.task.id_ai_model == models[1]
    queue.commit(other, [done(again)])
    lost = [row for row in application.attempts(key) if row["outcome"] == "lost"]
    assert [row["id_ai_model"] for row in lost] == [models[1]]


def test_a_new_item_of_a_chain_is_taken_as_fast_as_others(
    application: Application, queue: Queue, worker: int, database: Any, chained: int, models: tuple[int, int, int]
) -> None:
    key, another = application.items(chained, 2)
    (item,) = queue.claim_new(worker, key, Filters())
    assert (item.task.id_ai_model, item.task.chain) == (models[0], models)
    Models(database).stop(models[0], "quota_exhausted", "spent", 300)
    assert queue.claim_new(worker, another, Filters()) == []  # the long way: it knows who stands in
    (other,) = claim(queue, worker)
    assert other.task.id_ai_model == models[1]


# ----- workers


@pytest.fixture
def fake() -> Iterator[FakeProvider]:
    with FakeProvider(latency_ms=20) as fake:
        yield fake


@pytest.fixture
def other() -> Iterator[FakeProvider]:
    """The provider of the second model."""
    with FakeProvider(latency_ms=20) as fake:
        yield fake


def test_a_worker_goes_on_with_the_next_model_and_comes_back_to_the_first(
    sql: Sql, database_url: str, fake: FakeProvider, other: FakeProvider
) -> None:
    cheap, dear = add_model(sql, fake, "chat", "cheap"), add_model(sql, other, "gemini", "dear", price_output=20)
    task = add_task(sql, cheap, [f"Zdanie numer {number}" for number in range(30)])
    add_fallbacks(sql, task, dear)
    fake.script(Rule("429_quota"))

    run = Run(database_url, concurrency=8)

    assert (run.summary.processed, task_of(sql, task)["status"]) == (30, "COMPLETED")
    assert model_of(sql, cheap)["stopped_kind"] == "quota_exhausted"
    assert {row["id_ai_model"] for row in attempts_of(sql, task)} == {dear}
    assert {row["id_ai_model"] for row in items_of(sql, task)} == {dear}

    fake.reset()
    make_probes_due(sql)
    later = add_task(sql, cheap, [f"Zdanie numer {number}" for number in range(30)])
    add_fallbacks(sql, later, dear)
    run = Run(database_url, concurrency=8)
    assert (run.summary.processed, model_of(sql, cheap)["stopped_at"]) == (30, None)
    asked = [row["id_ai_model"] for row in attempts_of(sql, later)]
    assert cheap in asked  # it was tried; how many the other one took meanwhile is a matter of milliseconds

    last = add_task(sql, cheap, ["Ostatnie zdanie."] * 3, cache_seconds=0)
    add_fallbacks(sql, last, dear)
    Run(database_url, concurrency=8)
    assert [row["id_ai_model"] for row in attempts_of(sql, last)] == [cheap] * 3


def test_a_worker_passes_on_what_the_first_model_refuses_and_keeps_the_books(
    sql: Sql, database_url: str, fake: FakeProvider, other: FakeProvider
) -> None:
    first, second = add_model(sql, fake, "chat", "first"), add_model(sql, other, "gemini", "second")
    texts = ["Dobre zdanie.", "Brzydkie zdanie.", "Za długie zdanie.", "Niczyje zdanie."]
    task = add_task(sql, first, texts, cache_seconds=0)
    add_fallbacks(sql, task, second)
    fake.script(
        Rule("400_content_filter", contains="Brzydkie"),
        Rule("400_context_length", contains="długie"),
        Rule("400_content_filter", contains="Niczyje"),
    )
    other.script(Rule("400_content_filter", contains="Niczyje"))

    run = Run(database_url, concurrency=4)

    items = items_of(sql, task)
    assert [(item["status"], item["refused"], item["id_ai_model"]) for item in items] == [
        ("PROCESSED", 0, None), ("PROCESSED", 1, second), ("PROCESSED", 1, second), ("ERROR", 1, second)
    ]  # fmt: skip
    assert "; before, first: " in items[3]["error_message"]
    assert (run.summary.processed, run.summary.failed, run.summary.deferred) == (3, 1, 3)
    total = task_of(sql, task)
    assert total["cost"] == sum((item["cost"] for item in items if item["cost"] is not None), Decimal(0))
    assert (total["records_processed"], total["records_failed"]) == (3, 1)


def test_a_probe_that_finds_nothing_to_try_is_left_to_the_next_task(sql: Sql, database_url: str, fake: FakeProvider) -> None:
    """All that the first task has was refused by the stopped model: to try that one, only the second task's item will do."""
    first, second = (add_model(sql, fake, "chat", name) for name in ("first", "second"))
    chained = add_task(sql, first, ["Tekst."] * 3, priority=5)
    add_fallbacks(sql, chained, second)
    sql("UPDATE task_item SET refused = 1")
    alone = add_task(sql, first, ["Inny tekst."])
    sql("UPDATE ai_model SET stopped_kind = 'quota', stopped_reason = 'x', stopped_at = UTC_TIMESTAMP(6),"
        " probe_at = UTC_TIMESTAMP(6) + INTERVAL IF(name = 'first', -1, 3600) SECOND")  # fmt: skip
    Run(database_url)
    assert task_of(sql, alone)["status"] == "COMPLETED"
    assert model_of(sql, first)["stopped_at"] is None
