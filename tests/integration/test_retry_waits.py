"""Waits as they really are: what the provider asks for is kept, too long a wait becomes the database's, a drain ends one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import pytest

from ai_worker.worker import Worker
from tests.conftest import Sql
from tests.fake_provider import FakeProvider, Rule, correct
from tests.fake_provider.faults import FAILURES, Failure
from tests.integration.worker_runs import APIS, Run, add_model, add_task, attempts_of, items_of, task_of

RETRY_INFO = {"@type": "type.googleapis.com/google.rpc.RetryInfo"}


@pytest.fixture
def fake() -> Iterator[FakeProvider]:
    with FakeProvider() as fake:
        yield fake


def ask_for(monkeypatch: pytest.MonkeyPatch, fault: str, seconds: str) -> None:
    """Makes a fault of the fake provider ask for so many seconds, in OpenAI's way and in Google's."""
    failure = FAILURES[fault]
    changed = Failure(
        failure.status,
        failure.message,
        failure.type,
        failure.code,
        google_status=failure.google_status,
        google_details=[{**RETRY_INFO, "retryDelay": f"{seconds}s"}],
        headers={"retry-after": seconds},
    )
    monkeypatch.setitem(FAILURES, fault, changed)


@pytest.mark.parametrize("fault", ["429", "503"])
def test_the_second_call_comes_when_the_provider_wants_it(
    sql: Sql, database_url: str, fake: FakeProvider, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    ask_for(monkeypatch, fault, "1")
    for api in APIS:
        add_task(sql, add_model(sql, fake, api, api), [f"Powoli, proszę: {api}"])
    fake.script(*(Rule(fault, times=1, contains=api) for api in APIS))
    assert Run(database_url).summary.processed == 3
    for api in APIS:
        first, second = (request for request in fake.requests if api in request.text)
        assert first.finished_at is not None
        assert 1.0 <= second.received_at - first.finished_at < 1.25 + 1.0  # spread by up to a quarter; and a busy machine


@pytest.mark.parametrize(
    ("fault", "kind", "seconds"),
    [
        ("429", "rate_limited", "61"),
        ("429", "rate_limited", "3600"),
        ("429", "rate_limited", "999999999"),
        ("503", "overloaded", "61"),
    ],
)
def test_a_wait_too_long_for_a_slot_is_left_to_the_database(
    sql: Sql, database_url: str, fake: FakeProvider, monkeypatch: pytest.MonkeyPatch, fault: str, kind: str, seconds: str
) -> None:
    ask_for(monkeypatch, fault, seconds)
    tasks = [add_task(sql, add_model(sql, fake, api, api), [f"Powoli, proszę: {api}"]) for api in APIS]
    fake.script(Rule(fault))
    began = time.monotonic()
    run = Run(database_url)
    assert time.monotonic() - began < 20
    assert fake.received == 3
    assert (run.summary.deferred, run.summary.failed, run.claimed) == (3, 0, 3)
    wished = min(float(seconds), 7 * 86_400)  # a week at most, whatever a provider says
    for id_task in tasks:
        (item,), (attempt,) = items_of(sql, id_task), attempts_of(sql, id_task)
        assert (item["status"], item["attempt"], item["error_kind"]) == ("DEFERRED", 0, kind)
        assert (attempt["outcome"], attempt["attempt"]) == ("postponed", 1)
        assert wished - 0.1 <= float(item["delay"]) <= wished * 1.25
        assert task_of(sql, id_task)["status"] == "IN_PROGRESS"


@pytest.mark.parametrize("fault", ["429", "503"])
def test_a_drain_ends_a_wait_and_gives_the_item_back_uncharged(
    sql: Sql, database_url: str, fake: FakeProvider, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    ask_for(monkeypatch, fault, "50")
    tasks = [add_task(sql, add_model(sql, fake, api, api), [f"Czekam: {api}"]) for api in APIS]
    fake.script(Rule(fault))
    drained: list[float] = []

    def drain(worker: Worker, loop: asyncio.AbstractEventLoop) -> None:
        fake.wait_for_requests(3, timeout=30)
        while fake.answered < 3:
            time.sleep(0.01)
        time.sleep(0.3)  # the answers arrive, and the waits begin
        drained.append(time.monotonic())
        loop.call_soon_threadsafe(worker.drain)

    run = Run(database_url, meanwhile=drain, drain_seconds=30.0)

    assert time.monotonic() - drained[0] < 5
    assert (run.summary.released, run.summary.deferred, run.summary.failed) == (3, 0, 0)
    for id_task in tasks:
        (item,) = items_of(sql, id_task)
        assert (item["status"], item["attempt"], item["lost_count"], item["error_kind"]) == ("PENDING", 0, 0, None)
        assert attempts_of(sql, id_task) == []
    fake.script()
    assert Run(database_url).summary.processed == 3
    assert [item["text_corrected"] for id_task in tasks for item in items_of(sql, id_task)] == [
        correct(f"Czekam: {api}") for api in APIS
    ]
