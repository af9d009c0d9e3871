"""A model on which no item can succeed is stopped for everybody: what waits meanwhile, what goes on, and how it comes back."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import asdict

import pytest

from ai_worker import log
from ai_worker.keys import Keyring, generate_master_key
from ai_worker.models import Secret
from tests.conftest import Sql
from tests.fake_provider import FakeProvider, Rule, correct, tokens_for
from tests.fake_provider.samples import KEY
from tests.integration.worker_runs import (
    APIS,
    Run,
    add_model,
    add_task,
    attempts_of,
    items_of,
    make_probes_due,
    model_of,
    steady_waits,
    task_of,
)
from tests.servers import Programs

TEXTS = [f"Pchnąć w tę łódź jeża {number} razy" for number in range(50)]


@pytest.fixture
def fake() -> Iterator[FakeProvider]:
    with FakeProvider(latency_ms=100) as fake:
        yield fake


def set_key(sql: Sql, id_ai_model: int, key: str) -> str:
    """Stores an API key for a model; the master key that opens it."""
    master = generate_master_key()
    sealed = Keyring(Secret(master)).encrypt(id_ai_model, Secret(key))
    sql("UPDATE ai_model SET api_key_encrypted = %s WHERE id_ai_model = %s", [sealed, id_ai_model])
    return master


def everything_stored(sql: Sql) -> str:
    """All rows of all tables as one text."""
    tables = [row["t"] for row in sql("SELECT table_name AS t FROM information_schema.tables WHERE table_schema = DATABASE()")]
    return "\n".join(str(sql(f"SELECT * FROM {table}")) for table in tables)


@pytest.mark.parametrize(
    ("fault", "kind"), [("401", "access_denied"), ("404", "model_unknown"), ("429_quota", "quota_exhausted")]
)
@pytest.mark.parametrize("api", ["chat", "gemini"])
def test_fifty_calls_in_flight_find_out_at_the_same_time(
    sql: Sql, database_url: str, fake: FakeProvider, fault: str, kind: str, api: str
) -> None:
    broken, sound = add_model(sql, fake, api, "broken"), add_model(sql, None, "echo", "sound")
    waiting, done = add_task(sql, broken, TEXTS), add_task(sql, sound, TEXTS[:5], priority=-1)
    fake.script(Rule(fault, delay_ms=500))

    run = Run(database_url)

    assert fake.per_text == dict.fromkeys(TEXTS, 1)
    assert fake.peak_in_flight > 10
    assert {(item["status"], item["attempt"], item["tokens_input"]) for item in items_of(sql, waiting)} == {("PENDING", 0, 0)}
    assert attempts_of(sql, waiting) == []
    assert (task_of(sql, waiting)["status"], task_of(sql, waiting)["records_failed"]) == ("IN_PROGRESS", 0)
    assert model_of(sql, broken)["stopped_kind"] == kind
    assert model_of(sql, sound)["stopped_at"] is None
    assert (task_of(sql, done)["status"], task_of(sql, done)["records_processed"]) == ("COMPLETED", 5)
    assert (run.summary.processed, run.summary.released, run.claimed) == (5, 50, 55)
    assert list(run.summary.stopped_models) == ["broken"]
    assert run.summary.waiting is not None
    assert run.summary.waiting.pending == 50


def test_a_stopped_model_is_not_asked_before_its_time_and_then_once(sql: Sql, database_url: str, fake: FakeProvider) -> None:
    model = add_model(sql, fake, "chat", "broken")
    task = add_task(sql, model, TEXTS)
    fake.script(Rule("401"))
    Run(database_url)
    fake.reset()
    assert Run(database_url).claimed == 0
    assert fake.received == 0

    make_probes_due(sql)
    run = Run(database_url)

    first, second = sorted(fake.requests, key=lambda request: request.received_at)[:2]
    assert first.finished_at is not None
    assert second.received_at > first.finished_at
    assert fake.per_text == dict.fromkeys(TEXTS, 1)
    assert (run.summary.processed, run.summary.stopped_models) == (50, {})
    assert {(item["status"], item["attempt"], item["text_corrected"]) for item in items_of(sql, task)} == {
        ("PROCESSED", 1, correct(text)) for text in TEXTS
    }
    assert task_of(sql, task)["tokens_input"] == sum(tokens_for(text).input for text in TEXTS)
    assert model_of(sql, model)["stopped_at"] is None


def test_a_probe_that_fails_costs_one_call_and_puts_off_the_next(sql: Sql, database_url: str, fake: FakeProvider) -> None:
    model = add_model(sql, fake, "gemini", "broken")
    task = add_task(sql, model, TEXTS)
    fake.script(Rule("401"))
    Run(database_url)
    before = model_of(sql, model)
    make_probes_due(sql)
    fake.reset()
    fake.script(Rule("429_quota"))

    run = Run(database_url)

    assert fake.received == 1
    assert run.claimed == 1
    after = model_of(sql, model)
    assert (after["stopped_kind"], after["stopped_at"]) == ("quota_exhausted", before["stopped_at"])
    assert "quota" in after["stopped_reason"]
    assert float(after["probe_seconds"]) > 37_000  # the provider's own wish
    assert {(item["status"], item["attempt"]) for item in items_of(sql, task)} == {("PENDING", 0)}


def test_a_probe_that_only_meets_an_overload_leaves_the_model_stopped(sql: Sql, database_url: str, fake: FakeProvider) -> None:
    model = add_model(sql, fake, "chat", "broken")
    add_task(sql, model, TEXTS)
    fake.script(Rule("401"))
    Run(database_url)
    make_probes_due(sql)
    fake.reset()
    fake.script(Rule("503"))
    with steady_waits():
        run = Run(database_url)
    assert (fake.received, run.claimed) == (5, 1)
    assert model_of(sql, model)["stopped_kind"] == "access_denied"


ECHOING = ("401", "429_quota", "400", "500", "502_html", "error_in_200", "no_answer_in_it", "html")


def test_a_key_that_the_provider_echoes_shows_nowhere(
    sql: Sql, database_url: str, fake: FakeProvider, capfd: pytest.CaptureFixture[str]
) -> None:
    for api, fault in itertools.product(APIS, ECHOING):
        add_task(
            sql, add_model(sql, fake, api, f"{api} {fault}", api_key_encrypted=b"sealed"), [f"Zażółć gęślą jaźń ({api} {fault})"]
        )
    fake.script(*(Rule(fault, contains=f" {fault})", echo_key=True) for fault in ECHOING))
    log.configure("debug", "json")  # on the captured stream
    with steady_waits():
        run = Run(database_url, decrypt=lambda *_: Secret(KEY))
    assert set(fake.per_fault) == set(ECHOING)
    assert all(KEY in str(request.headers) for request in fake.requests)
    printed = capfd.readouterr()
    assert "Incorrect API key provided" in printed.err
    for place in (printed.out, printed.err, everything_stored(sql), str(asdict(run.summary))):
        assert KEY not in place
        assert KEY[:12] not in place


def test_the_command_says_why_and_exits_with_1(sql: Sql, programs: Programs, fake: FakeProvider) -> None:
    model = add_model(sql, fake, "chat", "gpt-zły")
    task = add_task(sql, model, TEXTS[:3])
    master = set_key(sql, model, KEY)
    fake.script(Rule("401", echo_key=True))
    ended = programs.run("run", env={"AI_WORKER_MASTER_KEY": master, "AI_WORKER_LOG_LEVEL": "debug"})
    assert ended.returncode == 1
    assert "model gpt-zły is stopped for every worker: HTTP 401: Incorrect API key provided." in ended.stderr
    assert "`ai-worker model test gpt-zły` tries it" in ended.stderr
    assert "3 items wait" in ended.stderr
    assert "0 processed, 0 failed, 0 deferred, 3 released" in ended.stdout
    again = programs.run("run", env={"AI_WORKER_MASTER_KEY": master})
    assert again.returncode == 1
    assert "3 items wait: no model can take them now" in again.stderr
    for text in (ended.stdout, ended.stderr, again.stderr, everything_stored(sql)):
        assert KEY not in text
        assert master not in text
    assert {item["status"] for item in items_of(sql, task)} == {"PENDING"}


def test_a_model_whose_items_the_next_one_did_is_told_of_and_no_failure(sql: Sql, programs: Programs, fake: FakeProvider) -> None:
    broken, sound = add_model(sql, fake, "chat", "broken", model="broken"), add_model(sql, None, "echo", "sound")
    task = add_task(sql, broken, TEXTS[:3])
    sql("INSERT INTO task_fallback (id_task, position, id_ai_model) VALUES (%s, 1, %s)", [task, sound])
    fake.script(Rule("401"))
    ended = programs.run("run")
    assert ended.returncode == 0, ended.stderr
    assert "model broken is stopped for every worker" in ended.stderr
    assert task_of(sql, task)["records_processed"] == 3


@pytest.mark.parametrize(
    ("settings", "remedy"),
    [
        (
            {"AI_WORKER_MASTER_KEY": generate_master_key()},
            "was encrypted with another master key. Set AI_WORKER_MASTER_KEY to that",
        ),
        ({}, "no master key is set. Make one with `ai-worker keygen`"),
    ],
    ids=["another master key", "no master key"],
)
def test_a_host_without_the_key_leaves_the_model_to_others(
    sql: Sql, programs: Programs, fake: FakeProvider, settings: dict[str, str], remedy: str
) -> None:
    model = add_model(sql, fake, "chat", "sealed")
    task = add_task(sql, model, TEXTS)
    master = set_key(sql, model, KEY)

    ended = programs.run("run", env=settings)

    assert ended.returncode == 1
    assert remedy in ended.stderr
    assert fake.received == 0
    assert "model sealed cannot be used from here" in ended.stderr
    assert model_of(sql, model)["stopped_at"] is None  # other hosts may have the key
    assert {(item["status"], item["attempt"]) for item in items_of(sql, task)} == {("PENDING", 0)}

    assert programs.run("run", env={"AI_WORKER_MASTER_KEY": master}).returncode == 0
    assert task_of(sql, task)["records_processed"] == 50
