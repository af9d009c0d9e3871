"""The lane batch: what is handed in, what comes back singly, and what stops, pauses and cancels do to it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import closing
from decimal import Decimal
from signal import SIGINT

import pytest

from ai_worker.database_url import parse_database_url
from ai_worker.db import Database
from ai_worker.models import Filters, ItemStatus
from ai_worker.store.batches import Batches
from ai_worker.store.queue import Queue
from ai_worker.store.tasks import Tasks
from ai_worker.worker import Worker, batch_rows, batch_steps
from tests.conftest import Sql
from tests.fake_provider import BatchSettings, FakeProvider, Rule
from tests.integration.batch_runs import batches_of, let_holds_end, shorten_waits
from tests.integration.lifecycle import assert_ledger
from tests.integration.worker_runs import Run, add_model, add_task, attempts_of, items_of, make_probes_due, model_of, task_of
from tests.servers import Programs

pytest_plugins = ["tests.integration.lifecycle"]

TEXTS = [f"Pchnąć w tę łódź jeża {number} razy" for number in range(8)]
APIS = ("chat", "responses", "gemini")


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    shorten_waits(monkeypatch)


@pytest.fixture
def fake() -> Iterator[FakeProvider]:
    with FakeProvider(batches=BatchSettings(seconds=0.1)) as fake:
        yield fake


def lanes(sql: Sql, id_task: int) -> list[tuple[str, str]]:
    """Lane and outcome of the task's attempts, in the order of their items."""
    rows = sql("SELECT lane, outcome FROM task_attempt WHERE id_task = %s ORDER BY id_task_item, attempt, finished_at", [id_task])
    return [(row["lane"], row["outcome"]) for row in rows]


@pytest.mark.parametrize("api", APIS)
def test_items_are_handed_in_together_at_half_price(sql: Sql, database_url: str, fake: FakeProvider, api: str) -> None:
    task = add_task(sql, add_model(sql, fake, api, "m"), TEXTS, lane="batch")
    run = Run(database_url)
    assert not fake.requests
    assert [len(batch.rows) for batch in fake.batches.created] == [len(TEXTS)]
    assert lanes(sql, task) == [("batch", "processed")] * len(TEXTS)
    (batch,) = batches_of(sql, task)
    assert (batch["state"], batch["items"], batch["provider_batch_id"]) == ("done", len(TEXTS), fake.batches.created[0].id)
    row = task_of(sql, task)
    tokens = fake.batches.created[0].tokens
    assert (row["status"], row["tokens_input"], row["tokens_output"]) == ("COMPLETED", tokens.input, tokens.output)
    assert row["cost"] == (tokens.input * Decimal(1) + tokens.output * Decimal(2)) / 2 / 1_000_000
    assert run.summary.processed == len(TEXTS)
    assert_ledger(sql)


def test_a_batch_takes_no_more_than_its_bounds(
    sql: Sql, database_url: str, fake: FakeProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_rows, "ROWS", 3)
    task = add_task(sql, add_model(sql, fake, "chat", "m"), TEXTS, lane="batch")
    Run(database_url)
    assert sorted(len(batch.rows) for batch in fake.batches.created) == [2, 3, 3]
    assert dict(fake.batches.rows_per_text) == dict.fromkeys(TEXTS, 1)
    assert task_of(sql, task)["status"] == "COMPLETED"


def test_a_batch_takes_no_more_bytes_than_its_bounds(
    sql: Sql, database_url: str, fake: FakeProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what is too long for any batch is sent alone."""
    long = "Bardzo długi tekst. " * 1500
    monkeypatch.setattr(batch_rows, "BYTES", 30_000)
    task = add_task(
        sql,
        add_model(sql, fake, "chat", "m"),
        [*TEXTS, *(f"{number} {long[:12_000]}" for number in range(3)), long],
        lane="batch",
        parameters='{"part_tokens": 1000000}',  # whole: sent in parts, a text goes into no batch
    )
    Run(database_url)
    assert len(fake.batches.created) > 1
    assert sum(len(batch.rows) for batch in fake.batches.created) == len(TEXTS) + 3
    assert [lane for lane, outcome in lanes(sql, task) if outcome == "processed"] == ["batch"] * (len(TEXTS) + 3) + ["online"]
    assert_ledger(sql)


@pytest.mark.parametrize("api", APIS)
def test_what_has_expired_comes_back_singly(sql: Sql, database_url: str, fake: FakeProvider, api: str) -> None:
    fake.set_batches(expire_after=5, gemini_keeps=True)
    task = add_task(sql, add_model(sql, fake, api, "m"), TEXTS, lane="batch")
    Run(database_url)
    assert lanes(sql, task) == [("batch", "processed")] * 5 + [("batch", "postponed"), ("online", "processed")] * 3
    assert fake.texts() == {
        text: {"requests": int(number >= 5), "rows": int(number < 5), "paid": 1} for number, text in enumerate(TEXTS)
    }
    assert {item["attempt"] for item in items_of(sql, task)} == {1}
    assert task_of(sql, task)["records_processed"] == len(TEXTS)
    assert_ledger(sql)


@pytest.mark.parametrize("api", APIS)
def test_rows_that_fail_end_as_single_calls_do(sql: Sql, database_url: str, fake: FakeProvider, api: str) -> None:
    """Refused for good: a dead letter. Overloaded: sent again, alone. An answer that cannot be used: charged, and alone."""
    fake.script(
        Rule("400_content_filter", contains=" 1 razy", at="row"),
        Rule("503", contains=" 2 razy", at="row"),
        Rule("wrong_shape", contains=" 3 razy", at="row"),
    )
    task = add_task(sql, add_model(sql, fake, api, "m"), TEXTS[:5], lane="batch")
    Run(database_url)
    items = items_of(sql, task)
    assert [item["status"] for item in items] == ["PROCESSED", "ERROR", "PROCESSED", "PROCESSED", "PROCESSED"]
    assert items[1]["error_kind"] == "content_refused"
    assert [item["attempt"] for item in items] == [1, 1, 1, 2, 1]
    assert lanes(sql, task) == [
        ("batch", "processed"),
        ("batch", "failed"),
        ("batch", "postponed"),
        ("online", "processed"),
        ("batch", "retry"),
        ("online", "processed"),
        ("batch", "processed"),
    ]
    assert_ledger(sql)


@pytest.mark.parametrize("api", APIS)
def test_a_batch_that_is_refused_as_a_whole_comes_back_singly(sql: Sql, database_url: str, fake: FakeProvider, api: str) -> None:
    """By the answer to its creation, or in its validation afterwards."""
    task = add_task(sql, add_model(sql, fake, api, "m"), TEXTS[:2], lane="batch")
    fake.script(Rule("400", at="create", times=1) if api == "gemini" else Rule("batch_invalid", at="create", times=1))
    Run(database_url)
    assert lanes(sql, task) == [("batch", "postponed"), ("online", "processed")] * 2
    assert dict(fake.batches.rows_per_text) == {}
    assert batches_of(sql, task)[0]["message"] is not None
    assert_ledger(sql)


@pytest.mark.parametrize("fault", ["401", "429_quota", "404"])
@pytest.mark.parametrize("api", ["chat", "gemini"])
def test_a_model_that_is_stopped_keeps_its_items_uncharged(
    sql: Sql, database_url: str, fake: FakeProvider, api: str, fault: str
) -> None:
    fake.script(Rule(fault, at="upload"), Rule(fault, at="create"))
    model = add_model(sql, fake, api, "m")
    task = add_task(sql, model, TEXTS, lane="batch")
    run = Run(database_url)
    if fault == "404" and api == "chat":  # no such endpoint: a server without a Batch API
        assert task_of(sql, task)["status"] == "COMPLETED"
        assert {lane for lane, _ in lanes(sql, task)} == {"online"}
        return
    assert list(run.summary.stopped_models) == ["m"]
    assert {(item["status"], item["attempt"], item["is_single"]) for item in items_of(sql, task)} == {("PENDING", 0, 0)}
    assert {row["state"] for row in batches_of(sql, task)} == {"done"}
    fake.script()
    make_probes_due(sql)
    Run(database_url)
    assert model_of(sql, model)["stopped_at"] is None
    # The model is tried with one item online; the others are handed in when it has proved well.
    assert sorted(lanes(sql, task)) == [("batch", "processed")] * (len(TEXTS) - 1) + [("online", "processed")]
    assert_ledger(sql)


@pytest.mark.parametrize("api", APIS)
def test_a_cancelled_task_is_cancelled_at_the_provider(sql: Sql, database_url: str, fake: FakeProvider, api: str) -> None:
    """What is done by then is paid for, and stored."""
    fake.set_batches(hold=True, hold_after=3)
    task = add_task(sql, add_model(sql, fake, api, "m"), TEXTS, lane="batch")

    def cancel(*_: object) -> None:
        assert fake.wait_until(lambda: any(batch.good == 3 for batch in fake.batches.created))
        sql("UPDATE task SET status_id = 5 WHERE id_task = %s", [task])

    Run(database_url, meanwhile=cancel)
    row = task_of(sql, task)
    statuses = [item["status"] for item in items_of(sql, task)]
    done = statuses.count("PROCESSED")
    assert statuses == ["PROCESSED"] * done + ["CANCELLED"] * (len(TEXTS) - done)
    assert done == fake.batches.created[0].good
    assert (row["status"], row["records_processed"], row["finished_at"] is not None) == ("CANCELLED", done, True)
    assert batches_of(sql, task)[0]["cancelled_at"] is not None
    assert fake.batches.created[0].status == "cancelled"
    assert_ledger(sql)

    # Nothing was wrong with what came back: resumed, it is handed in again, at that lane's price.
    fake.set_batches(hold=False)
    with closing(Database(parse_database_url(database_url))) as db:
        assert Tasks(db).resume(task).items == len(TEXTS) - done
    Run(database_url)
    assert [len(batch.rows) for batch in fake.batches.created] == [len(TEXTS), len(TEXTS) - done]
    assert not fake.requests
    assert task_of(sql, task)["status"] == "COMPLETED"
    assert_ledger(sql)


def test_a_run_that_is_told_to_stop_says_that_its_batch_is_open(sql: Sql, programs: Programs, fake: FakeProvider) -> None:
    fake.set_batches(hold=True)
    task = add_task(sql, add_model(sql, fake, "chat", "m"), TEXTS, lane="batch")
    run = programs.start("run")
    run.wait_for('"state":"submitted"')
    run.process.send_signal(SIGINT)
    assert run.wait() == 0, run.text()
    assert "1 batch is still open: its results are stored by any later `ai-worker run` or `ai-worker daemon`" in run.text()
    assert {item["status"] for item in items_of(sql, task)} == {"IN_PROGRESS"}


def test_a_paused_tasks_batch_goes_on_and_nothing_new_is_handed_in(sql: Sql, database_url: str, fake: FakeProvider) -> None:
    fake.set_batches(hold=True)
    task = add_task(sql, add_model(sql, fake, "chat", "m"), TEXTS, lane="batch")

    def pause(*_: object) -> None:
        assert fake.wait_until(lambda: any(batch.status == "in_progress" for batch in fake.batches.created))
        sql("UPDATE task SET status_id = 4 WHERE id_task = %s", [task])
        sql("INSERT INTO task_item (id_task, text_original) VALUES (%s, 'Nowy tekst.')", [task])
        fake.batches.release()

    Run(database_url, meanwhile=pause)
    assert [item["status"] for item in items_of(sql, task)] == ["PROCESSED"] * len(TEXTS) + ["PENDING"]
    assert task_of(sql, task)["status"] == "PAUSED"
    assert len(fake.batches.created) == 1


def test_a_run_that_is_stopped_leaves_its_batch_to_the_next(sql: Sql, database_url: str, fake: FakeProvider) -> None:
    fake.set_batches(hold=True)
    task = add_task(sql, add_model(sql, fake, "chat", "m"), TEXTS, lane="batch")

    def stop(worker: Worker, running: asyncio.AbstractEventLoop) -> None:
        assert fake.wait_until(lambda: bool(fake.batches.created))
        while batches_of(sql, task)[0]["provider_batch_id"] is None:
            pass
        running.call_soon_threadsafe(worker.drain)

    assert Run(database_url, meanwhile=stop).summary.processed == 0
    (batch,) = batches_of(sql, task)
    assert (batch["state"], batch["id_holder"]) == ("submitted", None)
    assert sql("SELECT id_worker FROM worker WHERE mode <> 'batch' AND ended_at IS NULL") == []
    fake.batches.release()
    assert Run(database_url).summary.processed == len(TEXTS)
    assert dict(fake.batches.rows_per_text) == dict.fromkeys(TEXTS, 1)


def test_a_run_takes_no_more_than_it_was_told_to(sql: Sql, database_url: str, fake: FakeProvider) -> None:
    task = add_task(sql, add_model(sql, fake, "chat", "m"), TEXTS, lane="batch")
    assert Run(database_url, max_items=3).summary.processed == 3
    assert [item["status"] for item in items_of(sql, task)] == ["PROCESSED"] * 3 + ["PENDING"] * 5


def test_a_run_that_was_told_how_many_does_not_wait_for_batches_of_others(
    sql: Sql, database_url: str, fake: FakeProvider
) -> None:
    """They take up to a day, and a run for a few items is what cron starts every minute."""
    fake.set_batches(hold=True)
    model = add_model(sql, fake, "chat", "m")
    theirs = add_task(sql, model, TEXTS[:4], lane="batch")

    def stop(worker: Worker, running: asyncio.AbstractEventLoop) -> None:
        assert fake.wait_until(lambda: batches_of(sql, theirs) != [] and batches_of(sql, theirs)[0]["state"] == "submitted")
        running.call_soon_threadsafe(worker.drain)

    Run(database_url, meanwhile=stop)
    add_task(sql, model, TEXTS[4:])
    assert Run(database_url, max_items=2).summary.processed == 2
    assert [batch["state"] for batch in batches_of(sql, theirs)] == ["submitted"]


def test_a_named_item_is_done_at_once(sql: Sql, database_url: str, fake: FakeProvider) -> None:
    task = add_task(sql, add_model(sql, fake, "chat", "m"), TEXTS, lane="batch")
    named = items_of(sql, task)[4]["id_task_item"]
    Run(database_url, filters=Filters(id_task_item=named))
    assert [item["status"] for item in items_of(sql, task)] == ["PENDING"] * 4 + ["PROCESSED"] + ["PENDING"] * 3
    assert lanes(sql, task) == [("online", "processed")]
    assert fake.batches.created == []


def test_a_provider_without_batches_does_them_online(sql: Sql, database_url: str) -> None:
    task = add_task(sql, add_model(sql, None, "echo", "m"), TEXTS, lane="batch")
    Run(database_url)
    assert task_of(sql, task)["status"] == "COMPLETED"
    assert {lane for lane, _ in lanes(sql, task)} == {"online"}
    assert batches_of(sql, task) == []


def test_a_batch_of_a_provider_that_nobody_reaches_is_given_up_after_its_lease(
    sql: Sql, database_url: str, fake: FakeProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not by a rescue, which takes it for what it is; and its items go on as those of the dead."""
    fake.set_batches(hold=True)
    task = add_task(sql, add_model(sql, fake, "chat", "m"), TEXTS, lane="batch")

    def stop(worker: Worker, running: asyncio.AbstractEventLoop) -> None:
        while not batches_of(sql, task) or batches_of(sql, task)[0]["provider_batch_id"] is None:
            pass
        running.call_soon_threadsafe(worker.drain)

    Run(database_url, meanwhile=stop)
    sql("UPDATE worker SET lease_until = UTC_TIMESTAMP(6) - INTERVAL 1 SECOND WHERE mode = 'batch'")
    let_holds_end(sql)
    fake.script(Rule("503", at="poll", contains=fake.batches.created[0].id))
    fake.set_batches(hold=False)
    Run(database_url, lease_seconds=4.0)
    first, second = batches_of(sql, task)
    assert first["message"].startswith("given up: overloaded: ")
    assert first["failures"] == batch_steps.FAILURES_AT_LEAST - 1
    assert fake.counts()["batch_requests"]["cancel"] == 1
    assert (first["items"], second["items"]) == (len(TEXTS), len(TEXTS))
    assert {(item["status"], item["lost_count"]) for item in items_of(sql, task)} == {("PROCESSED", 1)}
    assert_ledger(sql)


def test_a_rescue_leaves_batches_alone_however_old(sql: Sql, queue: Queue, database_url: str, fake: FakeProvider) -> None:
    task = add_task(sql, add_model(sql, None, "echo", "m"), TEXTS, lane="batch")
    holder = queue.register(host="h", pid=1, version="0", mode="run", concurrency=1, lease_seconds=30)
    (runnable,) = queue.runnable(Filters())
    batches = Batches(queue)
    batch = batches.begin("key", holder, runnable, 60, {"host": "h", "pid": 1, "version": "0"})
    assert batch is not None
    assert batches.begin("another", holder, runnable, 60, {"host": "h", "pid": 1, "version": "0"}) is None
    assert len(batches.claim(batch, runnable, 100, 0)) == len(TEXTS)
    sql("UPDATE worker SET lease_until = UTC_TIMESTAMP(6) - INTERVAL 30 DAY WHERE mode = 'batch'")
    assert queue.rescue().id_worker is None
    assert queue.rescue_orphans().items == 0
    assert queue.others_at_work(holder, Filters()) == []
    assert batches.hold(batch.id_batch, holder + 1000, 60) is None
    assert batches.open(Filters()).batches == 1
    batches.give_up(batch, "for a test")
    assert queue.rescue().items == len(TEXTS)
    assert {item["status_id"] for item in items_of(sql, task)} == {ItemStatus.PENDING}
    assert batches.open(Filters()).batches == 0
    assert attempts_of(sql, task)[0]["outcome"] == "lost"
    assert_ledger(sql)
