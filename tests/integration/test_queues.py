"""Queues for specialised hosts: who takes what, in every statement that knows filters, and on the command line."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from ai_worker.database_url import parse_database_url
from ai_worker.db import Database
from ai_worker.models import Filters, QueueShare
from ai_worker.store.batches import Batches
from ai_worker.store.queue import Queue
from ai_worker.store.turns import Turns
from ai_worker.worker import shared_picker
from ai_worker.worker.shared_picker import SharedPicker
from tests.conftest import Sql
from tests.integration.commands import Commands
from tests.integration.lifecycle import Application, claim, register
from tests.integration.worker_runs import Run, add_model, add_task, items_of, task_of

pytest_plugins = ["tests.integration.lifecycle"]

REPLY, BATCH = Filters(queues=(QueueShare("reply", 5),)), Filters(queues=(QueueShare("batch"),))
BOTH = Filters(queues=(QueueShare("reply", 5), QueueShare("batch")))
NEITHER = Filters(queues=(QueueShare("images"),))


@pytest.fixture
def ai_worker(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], database_url: str) -> Commands:
    monkeypatch.setenv("AI_WORKER_DB_URL", database_url)
    return Commands(monkeypatch, capsys)


def test_a_worker_sees_the_tasks_of_its_queues_and_without_any_all(application: Application, queue: Queue, model: int) -> None:
    reply, batch, other = (application.task(model, **each) for each in ({"queue": "reply"}, {"queue": "batch"}, {}))
    for each in (reply, batch, other):
        application.items(each, 2)
    seen = {
        filters: (
            [task.id_task for task in queue.runnable(filters)],
            queue.waiting(filters).pending,
            [task.id_task for task in queue.preview_tasks(filters)],
        )
        for filters in (Filters(), REPLY, BATCH, BOTH, NEITHER)
    }
    assert seen == {
        Filters(): ([reply, batch, other], 6, [reply, batch, other]),
        REPLY: ([reply], 2, [reply]),
        BATCH: ([batch], 2, [batch]),
        BOTH: ([reply, batch], 4, [reply, batch]),
        NEITHER: ([], 0, []),
    }
    assert [task.queue for task in queue.runnable(Filters())] == ["reply", "batch", "default"]


def test_a_worker_takes_new_items_of_its_queues_alone(application: Application, queue: Queue, worker: int, model: int) -> None:
    (key,) = application.items(application.task(model, queue="reply"))
    assert queue.claim_new(worker, key, BATCH) == []
    (item,) = queue.claim_new(worker, key, BOTH)
    assert item.task.queue == "reply"


def test_a_run_waits_for_others_of_its_queues_alone(application: Application, queue: Queue, worker: int, model: int) -> None:
    application.items(application.task(model, queue="reply"))
    (unpaid,) = (application.task(model, queue="reply", status_id=4, status_reason="the budget is spent"),)
    application.items(unpaid)
    claim(queue, worker, filters=REPLY)
    other = register(queue)
    assert len(queue.others_at_work(other, REPLY)) == 1
    assert queue.others_at_work(other, BATCH) == []
    assert queue.waiting(Filters(id_task=unpaid, queues=REPLY.queues)).paused
    assert not queue.waiting(Filters(id_task=unpaid, queues=BATCH.queues)).paused


def test_batches_are_those_of_a_workers_queues(application: Application, queue: Queue, worker: int, model: int) -> None:
    task = application.task(model, lane="batch", queue="nightly")
    application.items(task)
    batches = Batches(queue)
    (found,) = queue.runnable(Filters(queues=(QueueShare("nightly"),)))
    batch = batches.begin("key", worker, found, 1.0, {"host": "h", "pid": 1, "version": "0"})
    assert batch is not None
    batches.leave(batch, worker, 0.0)
    assert batches.due(worker, Filters(queues=(QueueShare("nightly"),))) == [batch.id_batch]
    assert batches.due(worker, REPLY) == []
    assert (batches.open(Filters()).batches, batches.open(REPLY).batches) == (1, 0)


def test_workers_of_the_same_queues_share_the_listening_whatever_these_weigh(database: Database) -> None:
    turns = Turns(database)
    one = turns.name(BOTH, [])
    assert one == turns.name(Filters(queues=(QueueShare("batch", 3), QueueShare("reply"))), [])
    assert len({one, turns.name(REPLY, []), turns.name(Filters(), [])}) == 3


def test_a_run_does_its_queues_and_leaves_the_others(application: Application, database_url: str) -> None:
    model = application.model("echo")
    tasks = {name: application.task(model, queue=name) for name in ("reply", "batch", "images")}
    for each in tasks.values():
        application.items(each, 5)
    assert Run(database_url, filters=BOTH).summary.processed == 10
    assert [application.task_row(each)["records_processed"] for each in tasks.values()] == [5, 5, 0]
    with closing(Database(parse_database_url(database_url))) as db:
        assert Queue(db).waiting(Filters()).pending == 5


def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.02)


def test_a_reply_is_claimed_past_a_claim_loop_that_is_busy_with_bulk(
    sql: Sql, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its looks never come here: what is begun while the batch holds all slots but the kept ones was heard of."""
    monkeypatch.setattr(shared_picker, "LOOK_SECONDS", 3600.0)
    monkeypatch.setattr(shared_picker, "LISTENING_SECONDS", 3600.0)
    monkeypatch.setattr(SharedPicker, "look_now", lambda _: None)
    quick = add_model(sql, None, "echo", "quick")
    slow = add_model(sql, None, "echo", "slow", options='{"delay_ms": 300000}')
    first = add_task(sql, quick, ["Dzień dobry"], queue="reply")  # from here on, a place is kept for the next one
    add_task(sql, slow, [f"Opis {number}" for number in range(30)], queue="batch")
    statuses: list[str] = []

    def chat(worker: Any, event_loop: asyncio.AbstractEventLoop) -> None:
        try:
            express = worker._parts.claiming._express
            until(lambda: items_of(sql, first)[0]["status"] == "PROCESSED" and express.is_listening)
            assert len(sql("SELECT 1 FROM task_item WHERE status_id = 0")) >= 10, "the batch waits for slots"
            for number in range(3):
                task = add_task(sql, quick, [f"Pytanie {number}"], queue="reply")
                until(lambda task=task: items_of(sql, task)[0]["status"] == "PROCESSED")  # type: ignore[misc]  # bound at once
                statuses.append(task_of(sql, task)["status"])
        finally:
            event_loop.call_soon_threadsafe(worker.abort)

    Run(database_url, filters=BOTH, forever=True, concurrency=20, meanwhile=chat)
    assert statuses == ["COMPLETED"] * 3
    assert sql("SELECT COUNT(*) AS n FROM task_item WHERE status_id = 2") == [{"n": 0}], "what was broken off was given back"


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("reply:0", "from 1 to 1000"),
        ("reply:x", "from 1 to 1000"),
        ("reply:1001", "from 1 to 1000"),
        ("reply:", "from 1 to 1000"),
        ("dwa słowa", "no name of a queue"),
        (":5", "no name of a queue"),
        ("x" * 51, "no name of a queue"),
    ],
)
def test_what_is_no_queue_is_refused(ai_worker: Commands, argument: str, said: str) -> None:
    for command in ("run", "daemon"):
        ended = ai_worker(command, "--queue", argument)
        assert (ended.code, said in ended.err) == (2, True), ended.err


def test_a_queue_named_twice_is_refused(ai_worker: Commands) -> None:
    ended = ai_worker("run", "--queue", "reply:5", "--queue", "reply")
    assert (ended.code, "named twice" in ended.err) == (2, True)


def test_submit_names_the_queue_and_status_shows_it(ai_worker: Commands, application: Application, tmp_path: Path) -> None:
    application.model("echo")
    file = tmp_path / "a.txt"
    file.write_text("tekst\n")
    assert ai_worker("submit", str(file), "--queue", "two words").code == 2
    task = ai_worker("submit", str(file), "--queue", "reply", "--json").json["id_task"]
    assert application.task_row(task)["queue"] == "reply"
    assert ai_worker("status", str(task), "--json").json["queue"] == "reply"
    assert "  queue        reply\n" in ai_worker("status", str(task)).out
    assert "QUEUE" in ai_worker("status").out
    assert ai_worker("run", "--queue", "batch", "--json").json["processed"] == 0
    assert ai_worker("run", "--queue", "reply:5", "--queue", "batch", "--json").json["processed"] == 1
