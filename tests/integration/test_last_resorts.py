"""What becomes of an item that would be set aside for good where its task type gives a result instead, and of time limits."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import pytest

from tests.conftest import Sql
from tests.fake_provider import FakeProvider, Rule
from tests.integration.batch_runs import shorten_waits
from tests.integration.lifecycle import assert_ledger
from tests.integration.worker_runs import (
    Run,
    add_model,
    add_task,
    attempts_of,
    items_of,
    make_due,
    model_of,
    steady_waits,
    task_of,
)

CATEGORIES = {"categories": ["skarga", "pochwała"], "fallback": "Bez kategorii"}
# fault -> kind of error, of those that set an item aside in one attempt
FAULTS = {
    "400_content_filter": "content_refused",
    "refused": "content_refused",
    "400": "invalid_request",
    "413": "input_too_long",
    "wrong_shape": "bad_answer",
    "empty": "bad_answer",
    "500": "overloaded",
    "drop": "network",
    "hang": "timeout",
}


@pytest.fixture
def fake() -> Iterator[FakeProvider]:
    with FakeProvider() as fake:
        yield fake


def parameters(**values: object) -> str:
    return json.dumps({**CATEGORIES, **values}, ensure_ascii=False)


def test_what_cannot_be_sorted_ends_in_the_fallback_category(sql: Sql, database_url: str, fake: FakeProvider) -> None:
    model = add_model(sql, fake, "chat", "m", max_requests_per_minute=1_000_000)
    fake.script(*[Rule(fault, contains=f"opinia {fault}.") for fault in FAULTS])
    texts = [f"opinia {fault}." for fault in FAULTS]
    columns = {"task_type": "categorization", "max_attempts": 1}
    saved = add_task(sql, model, [*texts, "zwykła"], parameters=parameters(time_limit=0.5), **columns)
    failing = add_task(sql, model, texts, parameters=parameters(time_limit=0.5, fallback_on_failure=False), **columns)
    with steady_waits():
        summary = Run(database_url).summary
    assert (summary.processed, summary.failed) == (len(FAULTS) + 1, len(FAULTS))

    *items, usual = items_of(sql, saved)
    attempts = {row["id_task_item"]: row for row in attempts_of(sql, saved)}
    for item, (fault, kind) in zip(items, FAULTS.items(), strict=True):
        assert (item["status"], item["text_corrected"], item["error_kind"]) == ("PROCESSED", "Bez kategorii", None), fault
        assert item["change_summary"].startswith(f"{kind}: ")
        assert json.loads(item["result"])["is_fallback"] is True
        on_record = attempts[item["id_task_item"]]
        assert (on_record["outcome"], on_record["error_kind"]) == ("processed", kind)
        assert on_record["error_message"]
    assert "is_fallback" not in json.loads(usual["result"])
    assert [item["error_kind"] for item in items_of(sql, failing)] == list(FAULTS.values())
    assert {item["status"] for item in items_of(sql, failing)} == {"ERROR"}
    assert [task_of(sql, each)["status"] for each in (saved, failing)] == ["COMPLETED", "ERROR"]
    assert_ledger(sql)


def test_a_fallback_is_no_answer_to_identical_work(sql: Sql, database_url: str, fake: FakeProvider) -> None:
    """Nor is it one to whoever asks whether a stopped model works again."""
    model = add_model(sql, fake, "chat", "m")
    task = {"task_type": "categorization", "parameters": parameters(), "max_attempts": 1}
    fake.script(Rule("wrong_shape", times=1))
    first = add_task(sql, model, ["Nie działa!"], **task)
    Run(database_url)
    assert [item["text_corrected"] for item in items_of(sql, first)] == ["Bez kategorii"]
    second = add_task(sql, model, ["Nie działa!"], **task)
    Run(database_url)
    assert [item["text_corrected"] for item in items_of(sql, second)] == ["skarga"]

    sql(
        "UPDATE ai_model SET stopped_kind = 'access_denied', stopped_reason = 'key', stopped_at = UTC_TIMESTAMP(6),"
        " probe_at = UTC_TIMESTAMP(6) WHERE id_ai_model = %s",
        [model],
    )
    fake.script(Rule("wrong_shape", times=1))
    add_task(sql, model, ["Zupełnie co innego"], **task)
    Run(database_url)
    assert model_of(sql, model)["stopped_kind"] == "access_denied"


def test_a_stopped_model_and_a_wrong_task_leave_no_fallback(sql: Sql, database_url: str, fake: FakeProvider) -> None:
    model = add_model(sql, fake, "chat", "m")
    fake.script(Rule("401", times=1))
    waiting = add_task(sql, model, ["Nie działa!"], task_type="categorization", parameters=parameters(), max_attempts=1)
    wrong = add_task(sql, add_model(sql, fake, "chat", "other"), ["Nie działa!"], task_type="categorization")
    Run(database_url)
    assert [item["status"] for item in items_of(sql, waiting)] == ["PENDING"]
    assert [(item["status"], item["error_kind"]) for item in items_of(sql, wrong)] == [("ERROR", "invalid_task")]


def test_an_attempt_is_broken_off_at_its_time_limit(sql: Sql, database_url: str, fake: FakeProvider) -> None:
    """Charged, tried again, and set aside after the last; whatever other calls the attempt has made count towards the limit."""
    model = add_model(sql, fake, "chat", "m")
    hanging = add_task(sql, model, ["Ala ma kota"], max_attempts=2, parameters='{"time_limit": 0.2}')
    retried = add_task(sql, model, ["Żółw"], max_attempts=2, parameters='{"time_limit": 0.2}')
    unlimited = add_task(sql, model, ["Pies"], max_attempts=2)
    fake.script(Rule("hang", contains="Ala"), Rule("500", contains="Żółw"), Rule("slow", contains="Pies", delay_ms=400))
    began = time.monotonic()
    Run(database_url, max_items=3)
    assert time.monotonic() - began < 20  # the request's own limit is a minute
    for task in (hanging, retried):
        (item,) = items_of(sql, task)
        assert (item["status"], item["error_kind"], item["attempt"]) == ("DEFERRED", "timeout", 1)
        assert item["error_message"] == "no answer within 0.2 s"
    assert task_of(sql, unlimited)["status"] == "COMPLETED"
    assert make_due(sql) == 2
    fake.script(Rule("hang", contains="Ala"))
    Run(database_url)
    assert [items_of(sql, task)[0]["status"] for task in (hanging, retried)] == ["ERROR", "PROCESSED"]
    assert [row["error_kind"] for row in attempts_of(sql, hanging)] == ["timeout", "timeout"]
    assert_ledger(sql)


def test_a_batch_leaves_nothing_without_a_category_either(
    sql: Sql, database_url: str, fake: FakeProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    shorten_waits(monkeypatch)
    model = add_model(sql, fake, "chat", "m", max_requests_per_minute=1_000_000)
    fake.script(Rule("refused", contains="odmowa", at="row"), Rule("wrong_shape", contains="kształt", at="row"))
    texts = ["odmowa", "zły kształt", "zwykła"]
    columns = {"task_type": "categorization", "lane": "batch", "max_attempts": 1, "parameters": parameters()}
    id_task = add_task(sql, model, texts, **columns)
    Run(database_url)
    items = items_of(sql, id_task)
    assert [item["text_corrected"] for item in items] == ["Bez kategorii", "Bez kategorii", "skarga"]
    assert [item["change_summary"].partition(":")[0] for item in items[:2]] == ["content_refused", "bad_answer"]
    assert {row["lane"] for row in attempts_of(sql, id_task)} == {"batch"}
    assert task_of(sql, id_task)["status"] == "COMPLETED"
    assert_ledger(sql)
