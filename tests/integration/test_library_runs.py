"""The task types of the library through a real worker, against the fake provider: each ends with something to read."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.conftest import Sql
from tests.fake_provider import FakeProvider, Rule
from tests.integration.lifecycle import assert_ledger
from tests.integration.worker_runs import APIS, Run, add_model, add_task, attempts_of, items_of, task_of

STEPS = {"reply": 1, "image_prompt": 1, "custom": 1, "research": 4, "swot": 2, "investment": 3, "technical_review": 3}
TEXT = "Czy warto przenieść sklep na drugą stronę ulicy?"
REPORT = {
    "title": "Tytuł",
    "report": "Wszystko zależy od czynszu.",
    "summary": "Zależy.",
    "verdict": "accept",
    "evidence": "weak",
}


@pytest.fixture
def fake() -> Iterator[FakeProvider]:
    with FakeProvider() as fake:
        yield fake


def test_each_type_runs_to_its_end(sql: Sql, database_url: str, fake: FakeProvider) -> None:
    tasks = {}
    for api in APIS:
        model = add_model(sql, fake, api, api)
        for name in STEPS:
            parameters = '{"language": "pl"}' if name == "image_prompt" else "{}"
            tasks[api, name] = add_task(sql, model, [TEXT], task_type=name, parameters=parameters, cache_seconds=0)
    assert Run(database_url).summary.processed == len(tasks)
    for (api, name), id_task in tasks.items():
        (item,) = items_of(sql, id_task)
        assert (item["status"], task_of(sql, id_task)["status"]) == ("PROCESSED", "COMPLETED"), (api, name)
        assert item["text_corrected"]
        steps = sorted(row["step"] for row in attempts_of(sql, id_task) if row["step"] is not None)
        assert steps == (list(range(1, STEPS[name] + 1)) if STEPS[name] > 1 else [])
        assert item["steps_total"] == STEPS[name]
    assert_ledger(sql)


def test_a_report_is_what_its_last_step_has_written(sql: Sql, database_url: str, fake: FakeProvider) -> None:
    model = add_model(sql, fake, "chat", "m")
    id_task = add_task(sql, model, [TEXT], task_type="technical_review")
    finding = {"title": "t", "where": "w", "problem": "p", "consequence": "c", "remedy": "r", "certainty": "likely"}
    understanding = {"purpose": "Przenosiny.", "parts": [], "assumptions": []}
    findings = {"findings": [{**finding, "severity": "major"}], "good": [], "overview": "Jedno."}
    last = {name: REPORT[name] for name in ("report", "verdict", "summary")}
    fake.script(*[Rule("answer", content=json.dumps(each), times=1) for each in (understanding, findings, last)])
    Run(database_url)
    (item,) = items_of(sql, id_task)
    assert (item["text_corrected"], item["change_summary"]) == ("Wszystko zależy od czynszu.", "accept: 1 major: Zależy.")
    assert json.loads(item["result"]) == {"understanding": understanding, "findings": findings, "report": last}
    asked = [request.body["messages"][-1]["content"] for request in fake.requests]
    assert ['"Przenosiny."' in each for each in asked] == [False, True, True]
    assert ['"Jedno."' in each for each in asked] == [False, False, True]


def test_advice_is_paid_for_and_not_stored(sql: Sql, database_url: str, fake: FakeProvider) -> None:
    model = add_model(sql, fake, "chat", "m")
    id_task = add_task(sql, model, [TEXT], task_type="investment", max_attempts=1)
    facts = {"subject": "x", "facts": [], "missing": []}
    analysis = {"thesis": "x", "drivers": [], "risks": [], "scenarios": []}
    last = {name: REPORT[name] for name in ("report", "evidence", "summary")} | {"report": "Rekomendujemy zakup udziałów."}
    fake.script(*[Rule("answer", content=json.dumps(each), times=1) for each in (facts, analysis, last)])
    Run(database_url)
    (item,) = items_of(sql, id_task)
    assert (item["status"], item["error_kind"]) == ("ERROR", "bad_answer")
    assert "check no_advice" in item["error_message"]
    assert item["tokens_output"] > 0
