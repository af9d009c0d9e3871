"""How runs end: that they do, with what is left in which state, and with everything that was paid for on the books."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from decimal import Decimal
from signal import SIGINT, SIGTERM
from typing import Any

import pytest

from ai_worker.database_url import parse_database_url
from ai_worker.errors import AccessDenied, Overloaded, ProviderError
from ai_worker.models import Completion, Filters, Item, Outcome, Prompt, Usage
from ai_worker.providers import ProviderConfig
from ai_worker.worker import Worker, accounts, attempt, calls, claiming, endpoints
from tests.conftest import Sql
from tests.fake_provider import FakeProvider, Rule
from tests.integration.lifecycle import assert_ledger
from tests.integration.proxy import Proxy
from tests.integration.worker_runs import Run, add_model, add_task, attempts_of, items_of, make_due, model_of, task_of
from tests.servers import Programs, TestServer

pytest_plugins = ["tests.integration.proxy"]

TEXTS = [f"Chrząszcz brzmi w trzcinie po raz {number}" for number in range(5)]


@pytest.fixture(autouse=True)
def _ledger_at_the_end(sql: Sql) -> Iterator[None]:
    """Whatever a test did, all tables agree with each other at its end."""
    yield
    assert_ledger(sql)


def test_a_run_that_is_told_to_stop_blames_no_model(sql: Sql, programs: Programs) -> None:
    """Items that waited for sending time when it last looked are no failure."""
    with FakeProvider() as fake:
        task = add_task(sql, add_model(sql, fake, "chat", "slow", max_requests_per_minute=60), TEXTS)
        run = programs.start("run")
        run.wait_for(f'"item":{items_of(sql, task)[1]["id_task_item"]},"attempt":1')  # between the first two, it has looked
        run.process.send_signal(SIGINT)
        assert run.wait() == 0, run.text()
    assert "no model can take them" not in run.text()


# ----- one item


def test_a_run_of_one_item_ends_with_it(sql: Sql, programs: Programs) -> None:
    """The other items of its task stay pending, which is no reason to go on."""
    task = add_task(sql, add_model(sql, None, "echo", "echo"), TEXTS)
    wanted = items_of(sql, task)[2]["id_task_item"]
    ended = programs.run("run", "--task-item", str(wanted), "--json", timeout=30)
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout) == {"processed": 1, "failed": 0, "deferred": 0, "released": 0}
    assert {item["id_task_item"]: item["status"] for item in items_of(sql, task) if item["status"] != "PENDING"} == {
        wanted: "PROCESSED"
    }
    assert task_of(sql, task)["status"] == "IN_PROGRESS"


def test_a_run_of_one_item_leaves_a_stopped_models_item(sql: Sql, database_url: str) -> None:
    model = add_model(sql, None, "echo", "echo")
    task = add_task(sql, model, TEXTS)
    wanted = items_of(sql, task)[2]["id_task_item"]
    sql(
        "UPDATE ai_model SET stopped_at = UTC_TIMESTAMP(6), stopped_kind = 'access_denied', stopped_reason = 'x',"
        " probe_at = UTC_TIMESTAMP(6) + INTERVAL 1 HOUR WHERE id_ai_model = %s",
        [model],
    )
    run = Run(database_url, filters=Filters(id_task=task, id_task_item=wanted))
    assert run.claimed == 0
    assert run.summary.waiting is not None
    assert run.summary.waiting.pending == 1


# ----- nothing is left


@pytest.mark.parametrize("named", [True, False])
def test_a_late_item_of_an_old_finished_task_is_processed_before_a_run_ends(sql: Sql, database_url: str, named: bool) -> None:
    """It became visible long after its key was given, and a thousand tasks and items newer than it are finished."""
    model = add_model(sql, None, "echo", "echo")
    task, busy = add_task(sql, model, TEXTS[:1]), add_task(sql, model, [])
    assert Run(database_url).summary.processed == 1
    assert task_of(sql, task)["status"] == "COMPLETED"
    sql("INSERT INTO task_item (id_task, text_original) VALUES (%s, %s)", [task, TEXTS[1]])
    numbers = "WITH RECURSIVE n AS (SELECT 1 AS i UNION ALL SELECT i + 1 FROM n WHERE i < 1000)"  # the most by default
    for _ in range(2):
        sql(
            "INSERT INTO task (id_ai_model, description, status_id, started_at, finished_at)"
            f" {numbers} SELECT %s, 'x', 2, UTC_TIMESTAMP(6), UTC_TIMESTAMP(6) FROM n",
            [model],
        )
        sql(f"INSERT INTO task_item (id_task, text_original) {numbers} SELECT %s, 'x' FROM n", [busy])
    sql("UPDATE task_item SET status_id = 5 WHERE id_task = %s", [busy])

    run = Run(database_url, filters=Filters(id_task=task) if named else Filters())

    assert run.summary.processed == 1
    assert [item["status"] for item in items_of(sql, task)] == ["PROCESSED", "PROCESSED"]
    assert (task_of(sql, task)["status"], task_of(sql, task)["records_processed"]) == ("COMPLETED", 2)


# ----- never done


def test_a_run_that_is_told_to_slow_down_for_ever_ends(sql: Sql, database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each wait is short, and so it would wait for the next one, and the next one; cron would start a second run, a third…"""

    async def no_wait(_: calls.Caller, seconds: float) -> None:
        await asyncio.sleep(0.0 * seconds)

    monkeypatch.setattr(claiming, "STUCK_SECONDS", 1.5)
    monkeypatch.setattr(calls.Caller, "_sleep", no_wait)
    monkeypatch.setattr(attempt, "attempt_delay", lambda *_: 0.3)
    with FakeProvider() as fake:
        model = add_model(sql, fake, "chat", "chat")
        add_task(sql, model, TEXTS[1:2])
        assert Run(database_url).summary.processed == 1  # the first in a process imports the SDK: seconds, on a busy machine
        fake.script(Rule("429"))
        task = add_task(sql, model, TEXTS[:1])
        began = time.monotonic()
        run = Run(database_url)
    assert 1.5 <= time.monotonic() - began < 20
    assert run.claimed > 1  # it did wait for short waits
    (item,) = items_of(sql, task)
    assert (item["status"], item["attempt"], item["error_kind"]) == ("DEFERRED", 0, "rate_limited")
    assert {attempt["outcome"] for attempt in attempts_of(sql, task)} == {"postponed"}
    assert run.summary.waiting is not None
    assert run.summary.waiting.deferred == 1


def test_a_defect_of_the_worker_costs_the_item_an_attempt(sql: Sql, database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given back, it would meet the defect again at once, for ever."""

    async def broken(_: calls.Caller, item: Item) -> Outcome:
        raise ZeroDivisionError(f"błąd przy {item.attempt}")

    monkeypatch.setattr(calls.Caller, "outcome", broken)
    monkeypatch.setattr(accounts, "attempt_delay", lambda *_: 1000.0)
    task = add_task(sql, add_model(sql, None, "echo", "echo"), TEXTS[:2], max_attempts=3)
    for number in (1, 2, 3):
        assert Run(database_url).claimed == 2
        for item in items_of(sql, task):
            assert item["status"] == ("DEFERRED" if number < 3 else "ERROR")
            assert (item["attempt"], item["error_kind"]) == (number, "internal")
            assert item["error_message"] == f"ZeroDivisionError: błąd przy {number}"
        make_due(sql)
    assert Run(database_url).claimed == 0
    assert task_of(sql, task)["status"] == "ERROR"


# ----- what was billed before an item was given back


class Billing:
    """A provider that bills a call and then fails it; the second call fails with `then`, the others of an item wait for it."""

    billed = Usage(1000, 100)
    then: ProviderError | None = None
    asked = threading.Event()
    calls = 0

    def __init__(self, config: ProviderConfig) -> None:
        self.name = config.name

    async def complete(self, prompt: Prompt) -> Completion:
        assert prompt.text == TEXTS[0]
        type(self).calls += 1
        if self.calls > 1 and self.then is not None:
            raise self.then
        self.asked.set()
        raise Overloaded("przeciążony, ale policzone", usage=self.billed, retry_after=0.01 if self.then else 50)

    async def aclose(self) -> None:
        """Nothing to close."""


@pytest.fixture
def billing(monkeypatch: pytest.MonkeyPatch) -> type[Billing]:
    monkeypatch.setattr(Billing, "calls", 0)
    monkeypatch.setattr(Billing, "asked", threading.Event())
    monkeypatch.setattr(endpoints, "provider_class", lambda _: Billing)
    return Billing


def assert_billed_but_not_charged(sql: Sql, id_task: int, kind: str) -> None:
    """One attempt on the books, with its tokens and at 1 USD for a million in and 2 out; the item may be claimed at once."""
    (item,), (attempt,) = items_of(sql, id_task), attempts_of(sql, id_task)
    assert (attempt["outcome"], attempt["error_kind"]) == ("postponed", kind)
    assert item["attempt"] == 0
    assert item["status"] == "PENDING" or item["delay"] < 0.1
    for row in (item, attempt, task_of(sql, id_task)):
        assert (row["tokens_input"], row["tokens_output"], row["cost"]) == (1000, 100, Decimal("0.0012"))


def test_tokens_billed_before_a_drain_are_on_the_books(sql: Sql, database_url: str, billing: type[Billing]) -> None:
    task = add_task(sql, add_model(sql, None, "echo", "billing"), TEXTS[:1])

    def drain(worker: Worker, event_loop: asyncio.AbstractEventLoop) -> None:
        assert billing.asked.wait(30)
        time.sleep(0.2)  # the answer arrives, and the wait begins
        event_loop.call_soon_threadsafe(worker.drain)

    run = Run(database_url, meanwhile=drain, drain_seconds=30.0)
    assert (run.claimed, billing.calls) == (1, 1)
    assert_billed_but_not_charged(sql, task, "drained")


def test_tokens_billed_before_a_model_stopped_are_on_the_books(
    sql: Sql, database_url: str, billing: type[Billing], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(billing, "then", AccessDenied("klucz odwołano"))
    model = add_model(sql, None, "echo", "billing")
    task = add_task(sql, model, TEXTS[:1])
    run = Run(database_url)
    assert (run.claimed, billing.calls) == (1, 2)
    assert model_of(sql, model)["stopped_kind"] == "access_denied"
    assert_billed_but_not_charged(sql, task, "access_denied")


# ----- a network that swallows everything


@pytest.mark.slow
@pytest.mark.parametrize(
    ("delay_ms", "code"), [(None, {0, 75}), (1500, {75}), (600_000, {75})], ids=["idle", "a result in hand", "a call under way"]
)
def test_a_black_hole_does_not_hold_up_the_exit(
    sql: Sql, programs: Programs, server: TestServer, database_url: str, proxy: Proxy, delay_ms: int | None, code: set[int]
) -> None:
    """Neither answer nor error comes from the database; the read time-out is a minute, and service managers kill before that."""
    task = add_task(sql, add_model(sql, None, "echo", "echo", options=json.dumps({"delay_ms": delay_ms or 0})), TEXTS[:1])
    url = server.url(parse_database_url(database_url).database or "").replace(
        f":{parse_database_url(database_url).hosts[0][1]}/", f":{proxy.port}/"
    )
    daemon = programs.start("daemon", env={"AI_WORKER_DB_URL": url, "AI_WORKER_DRAIN_SECONDS": "1"})
    wanted = "PROCESSED" if delay_ms is None else "IN_PROGRESS"
    wait_for_status(sql, task, wanted)
    daemon.wait_for("FETCH")  # it has heard that its claim has landed, too
    proxy.freeze()
    if delay_ms == 1500:
        time.sleep(2)  # the call ends, and its commit gets no answer
    began = time.monotonic()
    daemon.process.send_signal(SIGTERM)
    assert daemon.wait(40) in code, daemon.text()
    assert time.monotonic() - began < 35
    assert "Traceback" not in daemon.text()
    assert items_of(sql, task)[0]["status"] == wanted


def wait_for_status(sql: Sql, id_task: int, status: str) -> None:
    deadline = time.monotonic() + 30
    row: dict[str, Any] = {}
    while row.get("status") != status:
        assert time.monotonic() < deadline, f"not {status} after 30 s: {row}"
        time.sleep(0.02)
        (row,) = items_of(sql, id_task)
