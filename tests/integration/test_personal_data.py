"""Tasks that mask or block personal data, by every way in and every lane, in a real database."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import ValidationError

from ai_worker.client import Client
from ai_worker.errors import CannotMask, UsageError
from ai_worker.models import PersonalData
from ai_worker.task_types import masking
from ai_worker.web.api.bodies import NewTaskIn
from ai_worker.web.pages.submit import wish_of
from ai_worker.worker import Worker
from tests.conftest import Sql
from tests.fake_provider import BatchSettings, FakeProvider, Rule, correct
from tests.integration.batch_runs import batches_of, shorten_waits
from tests.integration.lifecycle import assert_ledger
from tests.integration.worker_runs import APIS, Run, add_model, add_task, attempts_of, items_of, make_due, steady_waits, task_of
from tests.servers import Programs

EMAIL, PESEL = "jan.kowalski@poczta.pl", "44051401359"
TEXTS = [f"Sprawa {number}: {EMAIL}, PESEL {PESEL}, Kowalski." for number in range(6)]
MASKED = [f"Sprawa {number}: [[EMAIL_1]], PESEL [[PESEL_1]], [[NAME_1]]." for number in range(6)]


@pytest.fixture(autouse=True)
def _quick() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch, steady_waits():
        shorten_waits(patch)
        yield


@pytest.fixture
def fake() -> Iterator[FakeProvider]:
    with FakeProvider(batches=BatchSettings(seconds=0.1)) as fake:
        yield fake


@pytest.fixture
def names(tmp_path: Path) -> Path:
    path = tmp_path / "names.txt"
    path.write_text("Kowalski\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize("lane", ["online", "batch"])
def test_placeholders_go_out_and_values_come_back(
    sql: Sql, database_url: str, fake: FakeProvider, names: Path, api: str, lane: str
) -> None:
    task = add_task(sql, add_model(sql, fake, api, "m"), TEXTS, lane=lane, personal_data="mask")
    Run(database_url, names_file=names)
    assert [item["text_corrected"] for item in items_of(sql, task)] == [correct(text) for text in TEXTS]
    assert set(fake.texts()) == set(MASKED)
    assert task_of(sql, task)["status"] == "COMPLETED"
    assert_ledger(sql)


def test_a_batch_that_was_handed_in_by_another_list_is_sent_again(
    sql: Sql, database_url: str, fake: FakeProvider, names: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the new list, `[[NAME_1]]` would be somebody else."""
    texts = ["Anna i Kowalski poszli spowrotem."]
    task = add_task(sql, add_model(sql, fake, "chat", "m"), texts, lane="batch", personal_data="mask")
    monkeypatch.setattr(masking, "names_of", lambda _: ["Kowalski"])
    fake.set_batches(hold=True)

    def stop(worker: Worker, loop: asyncio.AbstractEventLoop) -> None:
        assert fake.wait_until(lambda: bool(fake.batches.created))
        while batches_of(sql, task)[0]["provider_batch_id"] is None:
            time.sleep(0.01)
        loop.call_soon_threadsafe(worker.drain)

    Run(database_url, names_file=names, meanwhile=stop)
    assert [row.ask.text for row in fake.batches.created[0].rows] == ["Anna i [[NAME_1]] poszli spowrotem."]
    fake.batches.release()
    monkeypatch.setattr(masking, "names_of", lambda _: ["Anna", "Kowalski"])
    Run(database_url, names_file=names)
    assert [item["text_corrected"] for item in items_of(sql, task)] == [correct(text) for text in texts]
    assert [row["lane"] for row in attempts_of(sql, task) if row["outcome"] == "processed"] == ["online"]
    assert_ledger(sql)


@pytest.mark.parametrize("lane", ["online", "batch"])
def test_what_is_blocked_is_a_dead_letter_that_names_kinds_and_nothing_is_sent(
    sql: Sql, database_url: str, fake: FakeProvider, names: Path, lane: str
) -> None:
    texts = [TEXTS[0], "Bez niczego spowrotem."]
    task = add_task(sql, add_model(sql, fake, "chat", "m"), texts, lane=lane, personal_data="block")
    spare = add_model(sql, fake, "chat", "spare")
    sql("INSERT INTO task_fallback (id_task, position, id_ai_model) VALUES (%s, 1, %s)", [task, spare])
    Run(database_url, names_file=names)
    blocked, clean = items_of(sql, task)
    assert (blocked["status"], blocked["error_kind"], blocked["attempt"]) == ("ERROR", "personal_data", 1)
    assert "EMAIL (1), NAME (1), PESEL (1)" in blocked["error_message"]
    assert not any(value in blocked["error_message"] for value in (EMAIL, PESEL, "Kowalski"))
    assert clean["text_corrected"] == correct(texts[1])
    assert set(fake.texts()) == {texts[1]}
    assert_ledger(sql)


def test_a_text_that_goes_in_packs_is_masked_row_by_row(sql: Sql, database_url: str, fake: FakeProvider, names: Path) -> None:
    task = add_task(sql, add_model(sql, fake, "chat", "m"), TEXTS, pack=6, personal_data="mask", cache_seconds=0)
    fake.script(Rule("pack_missing", times=1))
    Run(database_url, names_file=names)
    assert [item["text_corrected"] for item in items_of(sql, task)] == [correct(text) for text in TEXTS]
    assert len(fake.requests[0].texts) == 6
    assert {text for request in fake.requests for text in request.texts} == set(MASKED)


def test_equal_masked_texts_share_no_answer_and_equal_values_do(sql: Sql, database_url: str, fake: FakeProvider) -> None:
    model = add_model(sql, fake, "chat", "m")
    texts = ["Do a@x.pl spowrotem.", "Do b@x.pl spowrotem.", "Do a@x.pl spowrotem."]
    task = add_task(sql, model, texts, personal_data="mask", cache_seconds=3600)
    Run(database_url)
    assert [item["text_corrected"] for item in items_of(sql, task)] == [correct(text) for text in texts]
    assert len(fake.requests) == 2
    plain = add_task(sql, model, ["Do [[EMAIL_1]] spowrotem."], cache_seconds=3600)
    Run(database_url)
    assert items_of(sql, plain)[0]["text_corrected"] == correct("Do [[EMAIL_1]] spowrotem.")


def test_an_answer_that_loses_a_value_is_bad_and_tried_again(
    sql: Sql, database_url: str, fake: FakeProvider, names: Path
) -> None:
    task = add_task(sql, add_model(sql, fake, "chat", "m"), ["Do pana Kowalski spowrotem."], personal_data="mask", max_attempts=2)
    fake.script(Rule("answer", content='{"corrected_text": "Do pana spowrotem.", "change_summary": ""}'))
    Run(database_url, names_file=names)
    (item,) = items_of(sql, task)
    assert (item["status"], item["error_kind"]) == ("DEFERRED", "bad_answer")
    assert item["error_message"] == "check personal_data: it has lost placeholders of the text: [[NAME_1]]"
    make_due(sql)
    Run(database_url, names_file=names)
    assert items_of(sql, task)[0]["status"] == "ERROR"
    assert task_of(sql, task)["tokens_output"] > 0
    assert_ledger(sql)


@pytest.mark.parametrize("mode", ["mask", "block"])
@pytest.mark.parametrize("lane", ["online", "batch"])
def test_a_worker_that_cannot_leaves_the_items_to_one_that_can(
    sql: Sql, database_url: str, fake: FakeProvider, monkeypatch: pytest.MonkeyPatch, mode: str, lane: str
) -> None:
    task = add_task(sql, add_model(sql, fake, "chat", "m"), ["Do a@x.pl spowrotem."], personal_data=mode, lane=lane)
    if lane == "batch":
        sql("UPDATE task_item SET is_single = 1 WHERE id_task = %s", [task])
    with monkeypatch.context() as patch:

        def lacking(*_: object) -> None:
            raise CannotMask("install it with pip install 'ai-worker[pii]'")

        patch.setattr(masking, "Detector", lacking)
        Run(database_url, max_items=1)
    (item,) = items_of(sql, task)
    assert (item["status"], item["error_kind"], item["attempt"]) == ("DEFERRED", "personal_data", 0)
    assert "ai-worker[pii]" in item["error_message"]
    assert not fake.requests
    make_due(sql)
    Run(database_url)
    assert items_of(sql, task)[0]["status"] == ("PROCESSED" if mode == "mask" else "ERROR")
    assert_ledger(sql)


def test_an_unknown_word_is_the_strictest(sql: Sql, database_url: str, fake: FakeProvider) -> None:
    model = add_model(sql, fake, "chat", "m")
    sql("SET SESSION sql_mode = ''")
    task = add_task(sql, model, ["Do a@x.pl spowrotem."], personal_data="masked")
    Run(database_url)
    assert items_of(sql, task)[0]["error_kind"] == "personal_data"
    assert not fake.requests


def test_the_form_and_the_api_take_the_same_words() -> None:
    for mode in PersonalData:
        assert wish_of({"personal_data": mode.value}).personal_data is mode
        assert NewTaskIn.model_validate({"items": ["x"], "personal_data": mode.value}).personal_data is mode
    assert wish_of({}).personal_data is NewTaskIn.model_validate({"items": ["x"]}).personal_data is PersonalData.OFF
    with pytest.raises(UsageError, match="'hide' is none of off, mask and block"):
        wish_of({"personal_data": "hide"})
    with pytest.raises(ValidationError):
        NewTaskIn.model_validate({"items": ["x"], "personal_data": "hide"})


def test_every_way_in_says_it(sql: Sql, programs: Programs, database_url: str, tmp_path: Path) -> None:
    programs.run("model", "add", "m", "--provider", "echo")
    file = tmp_path / "rows.txt"
    file.write_text(f"Do {EMAIL}\n", encoding="utf-8")

    def latest() -> str:
        mode: str = sql("SELECT personal_data FROM task ORDER BY id_task DESC LIMIT 1")[0]["personal_data"]
        return mode

    programs.run("submit", str(file))
    assert latest() == "off"
    programs.run("submit", str(file), "--personal-data", "mask")
    assert latest() == "mask"
    shown = programs.run("submit", str(file), "--personal-data", "mask", "--dry-run").stdout
    assert "[[EMAIL_1]]" in shown
    assert EMAIL not in shown
    assert "EMAIL (1)" in programs.run("submit", str(file), "--personal-data", "block", "--dry-run").stdout
    with Client(database_url) as client:
        client.submit("Cześć", model="m", personal_data="block")
    assert latest() == "block"
    schedule = (
        "schedule",
        "add",
        "nightly",
        "--type",
        "correction",
        "--cron",
        "* * * * *",
        "--text",
        f"Do {EMAIL}",
        "--personal-data",
        "mask",
    )
    programs.run(*schedule)
    (listed,) = json.loads(programs.run("schedule", "list", "--json").stdout)
    assert listed["personal_data"] == "mask"
    sql("UPDATE task SET status_id = 5, finished_at = UTC_TIMESTAMP(6)")
    sql("UPDATE task_item SET status_id = 5")
    sql("UPDATE schedule SET next_at = UTC_TIMESTAMP(6) - INTERVAL 1 SECOND")
    programs.run("run", "--max-item", "1")
    assert latest() == "mask"
    assert sql("SELECT text_corrected FROM task_item ORDER BY id_task_item DESC LIMIT 1")[0]["text_corrected"] == f"Do {EMAIL}"
