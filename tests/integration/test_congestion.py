"""A provider in trouble: it gets fewer calls at a time, its retries have a budget, and what waits for it is not charged."""

from __future__ import annotations

import time
from typing import Any

from ai_worker.worker import Worker
from tests.conftest import Sql
from tests.fake_provider import FakeProvider, Rule
from tests.integration.worker_runs import Run, add_model, add_task, items_of, steady_waits


def stop(fake: FakeProvider, requests: int) -> Any:
    """Drains the worker after so many requests."""

    def meanwhile(worker: Worker, loop: Any) -> None:
        fake.wait_for_requests(requests)
        loop.call_soon_threadsafe(worker.drain)

    return meanwhile


def test_a_provider_that_fails_every_call_is_not_hammered(sql: Sql, database_url: str) -> None:
    """Two hundred items, each with five calls in an attempt, would be a thousand."""
    with FakeProvider() as fake, steady_waits():
        task = add_task(sql, add_model(sql, fake, "chat", "sick"), [f"t{n}" for n in range(200)])
        fake.script(Rule("529"))
        run = Run(database_url, concurrency=40)
        assert 200 < fake.received <= 200 + 50
        items = items_of(sql, task)
        assert {item["status"] for item in items} == {"DEFERRED"}
        assert {item["error_kind"] for item in items} == {"overloaded"}
        assert sum(item["attempt"] == 0 for item in items) >= 150  # not charged: nobody knows what is wrong with them
        assert run.summary.failed == 0


def test_a_provider_that_is_overloaded_gets_fewer_calls_at_a_time(sql: Sql, database_url: str) -> None:
    with FakeProvider(latency_ms=200, gather=51) as fake:
        add_task(sql, add_model(sql, fake, "chat", "slow"), [f"t{n}" for n in range(200)])
        fake.script(Rule("503", times=30))  # which asks for three seconds
        Run(database_url, concurrency=60, meanwhile=stop(fake, 150))
        at_once = [
            sum(other.received_at <= request.received_at < (other.finished_at or 0.0) for other in fake.requests)
            for request in fake.requests
        ]
        assert max(at_once[:60]) > 50
        assert 30 < max(at_once[100:150]) <= 60 * 0.7 + 8  # one decrease for all thirty, and a little more with each answer since


def test_other_models_do_not_suffer(sql: Sql, database_url: str) -> None:
    with FakeProvider(latency_ms=20) as fake, steady_waits():
        add_task(sql, add_model(sql, fake, "chat", "sick"), [f"sick{n}" for n in range(100)], priority=5)
        well = add_task(sql, add_model(sql, fake, "chat", "well"), [f"well{n}" for n in range(300)])
        fake.script(Rule("529", contains="sick"))
        began = time.monotonic()
        Run(database_url, concurrency=50)
        assert time.monotonic() - began < 20
        assert {item["status"] for item in items_of(sql, well)} == {"PROCESSED"}
