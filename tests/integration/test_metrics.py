"""What Prometheus is given, by the web and by a worker: well formed, complete, and in agreement with the ledger."""

from __future__ import annotations

import asyncio
import socket
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from prometheus_client.parser import text_string_to_metric_families

from ai_worker.counts import PREFIX, Metric, Source
from ai_worker.db import Database
from ai_worker.models import Filters, Secret
from ai_worker.store import gauges
from ai_worker.store.models import Models
from ai_worker.store.queue import Queue
from ai_worker.store.tokens import Scope
from ai_worker.worker import Reloaded, Worker, WorkerOptions
from tests.conftest import Sql
from tests.fake_provider import FakeProvider, Rule
from tests.integration.lifecycle import Application
from tests.integration.webs import Web, problem, serving
from tests.integration.worker_runs import Run, add_model, add_task, steady_waits
from tests.marks import ON_ONE_SERVER
from tests.promtool import Promtool

pytest_plugins = ["tests.integration.lifecycle"]
# What is asked of the database has tests of its own on each server.
pytestmark = ON_ONE_SERVER

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


@pytest.fixture
def fake() -> Iterator[FakeProvider]:
    with FakeProvider() as fake, steady_waits():
        yield fake


@pytest.fixture
def web(database_url: str) -> Iterator[Web]:
    with serving(database_url) as web:
        yield web


def samples_of(text: str, source: Source, promtool: Promtool) -> Samples:
    """All samples of an exposition that holds what it should: every metric of its source, by type and help, and no other."""
    promtool.check_metrics(text)
    samples: Samples = {}
    kinds: dict[str, str] = {}
    for family in text_string_to_metric_families(text):
        if not family.name.startswith(PREFIX):
            assert family.name.startswith(("process_", "python_info"))
            continue
        kinds[family.name.removeprefix(PREFIX)] = family.type
        for sample in family.samples:
            labels = {name for name in sample.labels if name != "le"}
            (metric,) = (each for each in Metric if each.key.removesuffix("_total") == family.name.removeprefix(PREFIX))
            assert labels == set(metric.labels), sample
            samples[sample.name.removeprefix(PREFIX), tuple(sorted(sample.labels.items()))] = sample.value
    assert kinds == {each.key.removesuffix("_total"): each.kind.name.lower() for each in Metric if each.is_of(source)}
    return samples


def attempts(samples: Samples) -> dict[tuple[str, str, str], float]:
    """Attempts that are in the ledger, by model, outcome and error kind."""
    found = {}
    for (name, labels), value in samples.items():
        each = dict(labels)
        if name == "attempts_total" and each["outcome"] != "released":
            found[each["model"], each["outcome"], each["error_kind"]] = value
    return found


def ledger(sql: Sql) -> Counter[tuple[str, str, str]]:
    rows = sql("SELECT m.name, a.outcome, a.error_kind FROM task_attempt a JOIN ai_model m USING (id_ai_model)")
    return Counter((row["name"], row["outcome"], row["error_kind"] or "") for row in rows)


def test_the_web_tells_of_the_whole_fleet(
    web: Web, application: Application, queue: Queue, sql: Sql, database_url: str, fake: FakeProvider, promtool: Promtool
) -> None:
    """After two runs: the first dies with an item, the second finds it, and failures for now and for good."""
    model = add_model(sql, fake, "chat", 'a "model"\\', max_in_flight=9, budget_per_day=5)
    sql("UPDATE ai_model SET budget_per_day = NULL")
    task = add_task(sql, model, ["Ala ma kota.", "Kot ma Alę.", "Pies ma budę.", "Dom ma dach."])
    fake.script(Rule("wrong_shape", contains="Kot"), Rule("400_content_filter", contains="Pies"))
    dead = queue.register(host="h", pid=1, version="0", mode="run", concurrency=1, lease_seconds=30)
    queue.claim(dead, queue.runnable(Filters()), 1)
    application.kill_worker(dead)
    Run(database_url, lease_seconds=5)
    echo = add_model(
        sql, None, "echo", "e", stopped_kind="quota", stopped_reason="q", stopped_at="2026-01-01", probe_at="2038-01-01"
    )
    Run(database_url)
    add_task(sql, echo, ["tekst"] * 3, queue="reply")

    answer = web.client(Scope.READ).get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=")
    seen = samples_of(answer.text, Source.FLEET, promtool)
    assert attempts(seen) == ledger(sql)
    assert {outcome for _, outcome, _ in attempts(seen)} == {"processed", "retry", "failed", "lost"}
    name = ("model", 'a "model"\\')
    (sums,) = sql("SELECT SUM(tokens_input) AS i, SUM(tokens_output) AS o, SUM(cost) AS cost FROM task_attempt")
    assert seen["tokens_total", (name, ("type", "input"))] == sums["i"]
    assert seen["tokens_total", (name, ("type", "output"))] == sums["o"]
    assert seen["cost_usd_total", (name,)] == pytest.approx(float(sums["cost"]))
    assert seen["model_spent_today_usd", (name,)] == pytest.approx(float(sums["cost"]))
    assert seen["rescued_items_total", ()] == 1
    assert seen["claimed_items_total", ()] == 4
    assert seen["attempt_duration_seconds_count", (name,)] == len(sql("SELECT 1 FROM task_attempt WHERE latency_ms IS NOT NULL"))
    assert seen["commit_duration_seconds_count", ()] >= 1
    assert seen["items", (("queue", "default"), ("status", "deferred"))] == 1
    assert seen["items", (("queue", "reply"), ("status", "pending"))] == 3
    assert seen["tasks", (("status", "new"),)] == 1
    assert seen["model_stopped", (("kind", "quota"), ("model", "e"))] == 1
    assert seen["model_limit_in_flight", (name,)] == 9
    assert seen["workers", (("state", "alive"),)] == 0
    assert ("model_budget_per_day_usd", (name,)) not in seen
    assert task


def test_metrics_need_a_token(web: Web) -> None:
    problem(web.client(token="").get("/metrics"), 401)


def test_however_many_ask_the_database_is_looked_at_once(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = []
    look = gauges.look

    def counting(db: object) -> object:
        looks.append(db)
        time.sleep(0.05)  # long enough for the others to ask meanwhile
        return look(db)  # type: ignore[arg-type]

    monkeypatch.setattr(gauges, "look", counting)
    client = web.client(Scope.READ)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: client.get("/metrics").text, range(8)))
    assert len(set(answers)) == 1
    assert len(looks) == 1


def test_a_worker_tells_of_itself(sql: Sql, database_url: str, promtool: Promtool) -> None:
    add_task(sql, add_model(sql, None, "echo", "e"), ["tekst"] * 30, cache_seconds=0)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    texts: list[str] = []

    def ask(worker: Worker, loop: asyncio.AbstractEventLoop) -> None:
        deadline = time.monotonic() + 30
        while not (texts and 'outcome="processed"} 30.0' in texts[-1]) and time.monotonic() < deadline:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
                    texts.append(answer.read().decode())
            except OSError:  # it has not begun to listen
                time.sleep(0.02)
        loop.call_soon_threadsafe(worker.drain)

    Run(database_url, forever=True, concurrency=7, metrics_port=port, meanwhile=ask)
    seen = samples_of(texts[-1], Source.PROCESS, promtool)
    assert attempts(seen) == ledger(sql) == {("e", "processed", ""): 30}
    assert seen["concurrency", ()] == 7
    assert seen["database_connections", ()] >= 2
    assert seen["claimed_items_total", ()] == 30
    assert seen["claim_duration_seconds_count", ()] >= 1
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", port))


def test_a_worker_tells_how_many_calls_it_may_make_after_other_settings(database: Database) -> None:
    def read_anew() -> Reloaded:
        return Reloaded(1.0, 4, [], [])

    options = WorkerOptions(forever=True, concurrency=9)
    worker = Worker(
        Queue(database), Models(database), lambda *_: Secret(""), filters=Filters(), options=options, reload=read_anew
    )
    assert worker._gauges()[Metric.CONCURRENCY] == 9
    asyncio.run(worker._read_anew())
    assert worker._gauges()[Metric.CONCURRENCY] == 4
