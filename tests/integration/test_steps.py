"""Prompts of several steps through a worker: each step is stored, and none that is finished is asked for again."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from ai_worker.cli import progress
from ai_worker.database_url import parse_database_url
from ai_worker.db import Database
from ai_worker.errors import DatabaseAway, DatabaseError
from ai_worker.models import Filters, Item
from ai_worker.store.budgets import Stored
from ai_worker.store.queue import Queue
from ai_worker.store.reports import Reports, StepProgress
from ai_worker.store.steps import Finished, Steps
from ai_worker.store.tasks import Tasks
from ai_worker.task_types import task_type
from ai_worker.worker import Worker, calls, claiming
from ai_worker.worker import loop as worker_loop
from ai_worker.worker import steps as stepping
from tests.conftest import Sql
from tests.fake_provider import FakeProvider, Request, Rule, correct
from tests.integration.commands import Commands
from tests.integration.counted import assert_counted
from tests.integration.lifecycle import Application, assert_ledger, register
from tests.integration.proxy import Proxy
from tests.integration.worker_runs import (
    Run,
    add_model,
    add_task,
    attempts_of,
    items_of,
    make_due,
    make_probes_due,
    model_of,
    steady_waits,
    task_of,
)
from tests.servers import Programs

pytest_plugins = ["tests.integration.lifecycle", "tests.integration.proxy", "tests.integration.report_plugin"]
pytestmark = pytest.mark.usefixtures("report_plugin")

STEPS = ("outline", "draft", "critique", "final")
TEXT = "Firma rośnie z roku na rok."


@pytest.fixture(autouse=True)
def _ledger_at_the_end(sql: Sql) -> Iterator[None]:
    """Whatever a test did, all tables agree with each other at its end."""
    yield
    assert_ledger(sql)
    if not sql("SELECT 1 FROM worker WHERE ended_at IS NULL OR lost_at IS NOT NULL LIMIT 1"):
        assert_counted(sql)  # whoever is killed takes with him what he has counted since his last heartbeat


@pytest.fixture
def fake() -> Iterator[FakeProvider]:
    with FakeProvider() as fake, steady_waits():
        yield fake


def step_of(request: Request) -> str:
    """Which step a request is for."""
    said = json.dumps(request.body)
    return next(name for name in STEPS if f"This is step {name}." in said)


def steps_asked(fake: FakeProvider) -> Counter[str]:
    return Counter(map(step_of, fake.requests))


def test_steps_are_done_in_order_and_each_knows_the_ones_before(database_url: str, sql: Sql, fake: FakeProvider) -> None:
    id_task = add_task(sql, add_model(sql, fake, "chat", "m"), [TEXT], task_type="report", description="")
    Run(database_url)
    assert [step_of(request) for request in fake.requests] == list(STEPS)
    assert json.dumps(fake.requests[-1].body, ensure_ascii=False).count(correct(TEXT)) >= 3
    (item,) = items_of(sql, id_task)
    assert (item["status"], item["text_corrected"]) == ("PROCESSED", correct(TEXT))
    assert (item["steps_done"], item["steps_total"]) == (4, 4)
    assert json.loads(item["result"]).keys() == set(STEPS)
    rows = sql("SELECT step, part, text FROM task_item_step ORDER BY step")
    assert [(row["step"], row["part"], row["text"]) for row in rows] == [(number, 0, correct(TEXT)) for number in (1, 2, 3, 4)]
    ledger = attempts_of(sql, id_task)
    assert Counter(row["step"] for row in ledger) == {None: 1, 1: 1, 2: 1, 3: 1, 4: 1}
    assert {row["cost"] for row in ledger if row["step"] is None} == {Decimal(0)}


def test_a_step_that_fails_is_asked_for_again_alone(database_url: str, sql: Sql, fake: FakeProvider) -> None:
    fake.script(Rule("answer", times=2), Rule("broken_json", times=1))
    id_task = add_task(sql, add_model(sql, fake, "chat", "m"), [TEXT], task_type="report", description="")
    Run(database_url)
    (item,) = items_of(sql, id_task)
    assert (item["status"], item["error_kind"], item["steps_done"], item["steps_total"]) == ("DEFERRED", "bad_answer", 2, 4)
    assert item["tokens_input"] > 0
    make_due(sql)
    Run(database_url)
    assert items_of(sql, id_task)[0]["status"] == "PROCESSED"
    assert steps_asked(fake) == {"outline": 1, "draft": 1, "critique": 2, "final": 1}


def test_a_changed_prompt_begins_anew(database_url: str, sql: Sql, fake: FakeProvider, report_plugin: Path) -> None:
    fake.script(Rule("answer", times=2), Rule("broken_json", times=1))
    id_task = add_task(sql, add_model(sql, fake, "chat", "m"), [TEXT], task_type="report", description="")
    Run(database_url)
    make_due(sql)
    entries = report_plugin / "report_plugin-1.0.dist-info" / "entry_points.txt"
    entries.write_text("[ai_worker.task_types]\nreport = report_plugin:Changed")
    task_type.cache_clear()
    Run(database_url)
    assert items_of(sql, id_task)[0]["steps_done"] == 4
    assert steps_asked(fake) == {"outline": 2, "draft": 2, "critique": 2, "final": 1}


def test_each_step_has_its_model_with_its_price(database_url: str, sql: Sql, fake: FakeProvider) -> None:
    own = add_model(sql, fake, "chat", "own")
    cheap = add_model(sql, fake, "chat", "cheap", price_input=0, price_output=0, model="tiny")
    dear = add_model(sql, fake, "gemini", "dear", price_input=100, price_output=100)
    models = json.dumps({"models": {"outline": "cheap", "critique": "dear", "final": "own"}})
    id_task = add_task(sql, own, [TEXT], task_type="report", description="", parameters=models)
    Run(database_url)
    assert items_of(sql, id_task)[0]["status"] == "PROCESSED"
    by_step = {row["step"]: row for row in attempts_of(sql, id_task)}
    assert {step: row["id_ai_model"] for step, row in by_step.items()} == {None: own, 1: cheap, 2: own, 3: dear, 4: own}
    assert by_step[1]["cost"] == 0
    assert by_step[3]["cost"] > by_step[2]["cost"] > 0
    assert [request.api for request in fake.requests] == ["chat", "chat", "gemini", "chat"]


@pytest.mark.parametrize(
    ("models", "said"),
    [
        ({"draft": "nowhere"}, "step 'draft' is for the model 'nowhere', and there is no such one; known ones: own"),
        ({"sketch": "own"}, "there is no step 'sketch'; known ones: outline, draft, critique, final"),
    ],
)
def test_an_unknown_model_or_step_is_named(
    models: dict[str, str], said: str, database_url: str, sql: Sql, fake: FakeProvider
) -> None:
    id_task = add_task(
        sql, add_model(sql, fake, "chat", "own"), [TEXT], task_type="report", parameters=json.dumps({"models": models})
    )
    Run(database_url)
    (item,) = items_of(sql, id_task)
    assert (item["status"], item["error_kind"]) == ("ERROR", "invalid_task")
    assert said in item["error_message"]


def test_a_steps_model_that_is_stopped_is_waited_for_and_tried_again(database_url: str, sql: Sql, fake: FakeProvider) -> None:
    own, other = add_model(sql, fake, "chat", "own"), add_model(sql, fake, "chat", "other")
    fake.script(Rule("answer", times=1), Rule("401", times=1))
    models = json.dumps({"models": {"draft": "other"}})
    id_task = add_task(sql, own, [TEXT], task_type="report", parameters=models)
    Run(database_url)
    (item,) = items_of(sql, id_task)
    assert (item["status"], item["error_kind"]) == ("DEFERRED", "access_denied")
    assert (item["attempt"], item["steps_done"], task_of(sql, id_task)["records_failed"]) == (0, 1, 0)
    assert (model_of(sql, own)["stopped_kind"], model_of(sql, other)["stopped_kind"]) == (None, "access_denied")
    asked = len(fake.requests)
    make_due(sql)
    Run(database_url)
    (item,) = items_of(sql, id_task)
    assert (item["status"], item["error_kind"], item["attempt"], len(fake.requests)) == ("DEFERRED", "model_stopped", 0, asked)
    make_due(sql)
    make_probes_due(sql)
    Run(database_url)
    assert items_of(sql, id_task)[0]["status"] == "PROCESSED"
    assert model_of(sql, other)["stopped_kind"] is None
    assert steps_asked(fake) == {"outline": 1, "draft": 2, "critique": 1, "final": 1}


def test_a_stopped_model_that_no_step_was_for_stays_stopped(database_url: str, sql: Sql, fake: FakeProvider) -> None:
    """The item was claimed to try it, and tells nothing of it."""
    stopped = {"stopped_at": "2026-01-01", "stopped_kind": "access_denied", "stopped_reason": "x", "probe_at": "2026-01-01"}
    own = add_model(sql, fake, "chat", "own", **stopped)
    add_model(sql, fake, "chat", "other")
    models = json.dumps({"models": dict.fromkeys(STEPS, "other")})
    id_task = add_task(sql, own, [TEXT], task_type="report", parameters=models)
    Run(database_url)
    assert items_of(sql, id_task)[0]["status"] == "PROCESSED"
    assert model_of(sql, own)["stopped_kind"] == "access_denied"


def test_a_steps_model_keeps_its_limits(database_url: str, sql: Sql) -> None:
    with FakeProvider(latency_ms=20) as small, FakeProvider() as fake:
        own = add_model(sql, fake, "chat", "own")
        add_model(sql, small, "chat", "small", max_in_flight=2)
        models = json.dumps({"models": {"draft": "small", "critique": "small"}})
        id_task = add_task(sql, own, [f"{TEXT} {number}" for number in range(8)], task_type="report", parameters=models)
        Run(database_url)
        assert {item["status"] for item in items_of(sql, id_task)} == {"PROCESSED"}
        assert (small.peak_in_flight, len(small.requests)) == (2, 16)


def test_a_steps_model_is_held_to_its_budget_per_day(database_url: str, sql: Sql, fake: FakeProvider) -> None:
    own = add_model(sql, fake, "chat", "own")
    other = add_model(sql, fake, "chat", "other", price_input=1000, price_output=1000, budget_per_day="0.001")
    models = json.dumps({"models": {"draft": "other"}})
    id_task = add_task(sql, own, [TEXT], task_type="report", parameters=models)
    waiting = Run(database_url).summary.waiting
    assert waiting is not None
    assert waiting.paused.keys() == {id_task}
    (item,), task = items_of(sql, id_task), task_of(sql, id_task)
    assert (item["status"], item["attempt"], item["steps_done"], steps_asked(fake)) == ("PENDING", 0, 1, {"outline": 1})
    assert task["status"] == "PAUSED"
    assert task["status_reason"].startswith("the budget of model other for the UTC day of 0.001")
    assert task["resume_at"] is not None
    assert {row["id_ai_model"] for row in attempts_of(sql, id_task)} == {own}

    sql("UPDATE ai_model SET budget_per_day = 100 WHERE id_ai_model = %s", [other])
    with closing(Database(parse_database_url(database_url))) as db:
        Tasks(db).resume(id_task)
    Run(database_url)
    assert items_of(sql, id_task)[0]["status"] == "PROCESSED"
    assert steps_asked(fake) == dict.fromkeys(STEPS, 1)


class Whole:
    """Sets the whole budget aside for each item."""

    def prepare(self, _: object, __: object) -> None: ...

    def __call__(self, item: Item, _: Stored) -> Decimal | None:
        return item.task.budget_per_day


def test_a_step_waits_while_all_money_of_its_models_day_is_set_aside(
    database_url: str, sql: Sql, fake: FakeProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claiming, "DEFERRED_HORIZON", 1.0)
    own = add_model(sql, fake, "chat", "own")
    other = add_model(sql, fake, "chat", "other", price_input=1, price_output=1, budget_per_day=1)
    models = json.dumps({"models": {"draft": "other"}})
    id_task = add_task(sql, own, [TEXT], task_type="report", parameters=models)
    elsewhere = add_task(sql, other, ["x"], task_type="correction")
    with closing(Database(parse_database_url(database_url))) as db:
        queue = Queue(db)
        queue.estimate_with(Whole())
        assert len(queue.claim(register(queue), queue.runnable(Filters(id_task=elsewhere)), 1)) == 1
    Run(database_url, filters=Filters(id_task=id_task))
    (item,) = items_of(sql, id_task)
    assert (item["status"], item["error_kind"], item["attempt"], steps_asked(fake)) == ("DEFERRED", "budget", 0, {"outline": 1})
    assert 29 < item["delay"] < 31
    assert task_of(sql, id_task)["status"] == "IN_PROGRESS"


def test_a_drain_ends_after_the_step_under_way(database_url: str, sql: Sql, fake: FakeProvider) -> None:
    fake.script(Rule("answer", times=1), Rule("slow", delay_ms=200, times=1))
    id_task = add_task(sql, add_model(sql, fake, "chat", "m"), [TEXT], task_type="report", description="")

    def drain(worker: Worker, loop: asyncio.AbstractEventLoop) -> None:
        fake.wait_for_requests(2)
        loop.call_soon_threadsafe(worker.drain)

    Run(database_url, meanwhile=drain)
    (item,) = items_of(sql, id_task)
    assert (item["status"], item["attempt"], item["steps_done"], item["steps_total"]) == ("PENDING", 0, 2, 4)
    Run(database_url)
    assert steps_asked(fake) == dict.fromkeys(STEPS, 1)


@pytest.mark.parametrize("error", [DatabaseAway("gone"), DatabaseError("a right was taken away", 1142)])
def test_a_step_is_stored_once_however_often_it_takes(
    error: DatabaseError, database_url: str, sql: Sql, fake: FakeProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its COMMIT landed, and the answer was lost with the database."""
    id_task = add_task(sql, add_model(sql, fake, "chat", "m"), [TEXT], task_type="report", description="")
    store, asked = Steps.store, []

    def stored(self: Steps, id_worker: int, done: Finished) -> bool:
        goes_on = store(self, id_worker, done)
        asked.append(done.place.step)
        if len(asked) == 1:
            raise error
        return goes_on

    monkeypatch.setattr(Steps, "store", stored)
    monkeypatch.setattr(stepping, "AWAY_SECONDS", 0.01)
    Run(database_url)
    assert (items_of(sql, id_task)[0]["status"], asked) == ("PROCESSED", [1, 1, 2, 3, 4])
    assert steps_asked(fake) == dict.fromkeys(STEPS, 1)


def test_what_the_database_refuses_to_tell_is_asked_again_later(
    database_url: str, sql: Sql, fake: FakeProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise DatabaseError("UPDATE command denied", 1142)

    id_task = add_task(sql, add_model(sql, fake, "chat", "m"), [TEXT], task_type="report", description="")
    with monkeypatch.context() as patch:
        patch.setattr(Steps, "begin", refuse)
        patch.setattr(calls, "REFUSED_SECONDS", 3000.0)  # longer than a run waits for
        assert Run(database_url).claimed == 1
    (item,) = items_of(sql, id_task)
    assert (item["status"], item["attempt"], item["error_kind"], len(fake.requests)) == ("DEFERRED", 0, "database", 0)
    make_due(sql)
    Run(database_url)
    assert items_of(sql, id_task)[0]["status"] == "PROCESSED"


def test_a_black_hole_does_not_hold_up_the_exit_of_who_stores_a_step(
    database_url: str, sql: Sql, fake: FakeProvider, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The read time-out is a minute, and service managers kill before that."""
    monkeypatch.setattr(worker_loop, "STORE_SECONDS", 0.2)
    fake.script(Rule("slow", delay_ms=200, times=1))
    id_task = add_task(sql, add_model(sql, fake, "chat", "m"), [TEXT], task_type="report", description="")

    def freeze(worker: Worker, loop: asyncio.AbstractEventLoop) -> None:
        fake.wait_for_requests(1)
        proxy.freeze()
        while fake.requests[0].finished_at is None:
            time.sleep(0.01)
        time.sleep(0.2)  # its step is being stored
        loop.call_soon_threadsafe(worker.drain)

    _, port = parse_database_url(database_url).hosts[0]
    began = time.monotonic()
    with pytest.raises(DatabaseAway, match="1 results were in hand"):
        Run(database_url.replace(f":{port}/", f":{proxy.port}/"), meanwhile=freeze, drain_seconds=0.2)
    assert time.monotonic() - began < 10
    assert items_of(sql, id_task)[0]["status"] == "IN_PROGRESS"


@pytest.mark.parametrize(("verb", "status"), [("pause", "PENDING"), ("cancel", "CANCELLED")])
def test_a_task_that_is_stopped_pays_for_the_step_under_way_and_no_more(
    verb: str, status: str, database_url: str, sql: Sql, fake: FakeProvider, database: Database
) -> None:
    fake.script(Rule("answer", times=1), Rule("slow", delay_ms=300, times=1))
    id_task = add_task(sql, add_model(sql, fake, "chat", "m"), [TEXT], task_type="report", description="")

    def stop(*_: object) -> None:
        fake.wait_for_requests(2)
        getattr(Tasks(database), verb)(id_task)

    Run(database_url, meanwhile=stop)
    (item,) = items_of(sql, id_task)
    assert (item["status"], item["attempt"], item["steps_done"], len(fake.requests)) == (status, 0, 2, 2)
    if verb == "pause":
        Tasks(database).resume(id_task)
        Run(database_url)
        assert items_of(sql, id_task)[0]["status"] == "PROCESSED"
        assert steps_asked(fake) == dict.fromkeys(STEPS, 1)


def test_steps_go_into_no_pack_and_no_cache(database_url: str, sql: Sql, fake: FakeProvider) -> None:
    columns = {"task_type": "report", "pack": 10, "cache_seconds": 3600}
    id_task = add_task(sql, add_model(sql, fake, "chat", "m"), [TEXT] * 3, **columns)
    Run(database_url)
    assert [item["status"] for item in items_of(sql, id_task)] == ["PROCESSED"] * 3
    assert steps_asked(fake) == dict.fromkeys(STEPS, 3)
    assert {row["lane"] for row in attempts_of(sql, id_task)} == {"online"}


def test_progress_is_told_while_steps_are_under_way_and_afterwards(
    database_url: str, sql: Sql, fake: FakeProvider, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AI_WORKER_DB_URL", database_url)
    ai_worker = Commands(monkeypatch, capsys)
    fake.script(Rule("answer", times=2), Rule("hang", times=1))
    id_task = add_task(sql, add_model(sql, fake, "chat", "m"), [TEXT], task_type="report", description="")
    seen: list[Any] = []

    def look(worker: Worker, loop: asyncio.AbstractEventLoop) -> None:
        fake.wait_for_requests(3)
        with closing(Database(parse_database_url(database_url))) as database:
            task = Reports(database).task(id_task)
        seen.extend([task.steps, progress.line(progress.Sample(task, None))])
        loop.call_soon_threadsafe(worker.abort)

    Run(database_url, meanwhile=look)
    assert seen[0] == StepProgress(items=1, done=2, total=4)
    assert "steps 2 of 4" in seen[1]
    assert ai_worker("status", str(id_task), "--json").json["steps"] is None, "nothing is in progress"
    Run(database_url)
    (item,) = [json.loads(line) for line in ai_worker("results", str(id_task), "--format", "jsonl", "--steps").out.splitlines()]
    assert [(step["step"], step["part"], step["text"], step["model"]) for step in item["steps"]] == [
        (number, 0, correct(TEXT), "m") for number in (1, 2, 3, 4)
    ]
    assert item["steps"][0]["result"] == {"summary": correct(TEXT)}
    assert ai_worker("results", str(id_task), "--steps").code == 2


@pytest.mark.slow
def test_a_worker_that_is_killed_after_each_step_repeats_none(
    sql: Sql, programs: Programs, application: Application, fake: FakeProvider
) -> None:
    id_task = add_task(sql, add_model(sql, fake, "chat", "m"), [TEXT], task_type="report", description="")
    short = {"AI_WORKER_LEASE_SECONDS": "5"}  # for so long after the server's start nobody is rescued
    for number in range(1, len(STEPS)):
        fake.script(Rule("answer", times=1), Rule("hang", times=1))
        before = len(fake.requests)
        worker = programs.start("run", env=short)
        fake.wait_for_requests(before + 2, 60)  # the second one, which never gets an answer, says that the first step is stored
        worker.process.send_signal(signal.SIGKILL)
        worker.process.wait()
        (item,) = items_of(sql, id_task)
        assert (item["status"], item["attempt"], item["steps_done"]) == ("IN_PROGRESS", number, number)
        assert_ledger(sql)
        (owner,) = sql("SELECT id_worker FROM worker WHERE ended_at IS NULL")
        application.kill_worker(owner["id_worker"])
    fake.script()
    assert programs.run("run", env=short).returncode == 0
    (item,) = items_of(sql, id_task)
    assert (item["status"], item["text_corrected"], item["steps_done"]) == ("PROCESSED", correct(TEXT), len(STEPS))
    answered = Counter(
        step_of(request) for request in fake.requests if request.finished_at is not None and request.fault != "hang"
    )
    assert answered == dict.fromkeys(STEPS, 1)
    assert Counter(row["outcome"] for row in attempts_of(sql, id_task)) == {"lost": 3, "processed": len(STEPS) + 1}
