"""Hostile texts and answers, through a real worker: a clear error or a correct result, and nothing lost.

Each example is one answer, drawn by hypothesis; hundreds go through a real database and a real worker together.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from ai_worker import log
from tests.chaos.hostile.drawing import drawn, named, steering
from tests.chaos.hostile.oracle import Oracle, oracle
from tests.chaos.hostile.strategies import PHRASES, bodies, can_be_stored, completion, texts
from tests.conftest import Sql
from tests.fake_provider import FakeProvider, Rule, correct
from tests.integration.commands import Commands
from tests.integration.lifecycle import assert_ledger
from tests.integration.worker_runs import Run, add_model, add_task, items_of, steady_waits

pytestmark = pytest.mark.chaos
ANSWERS, ANSWERS_AT_ONCE = 150, 300


@pytest.fixture
def ai_worker(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], database_url: str, tmp_path: Path) -> Commands:
    monkeypatch.setenv("AI_WORKER_DB_URL", database_url)
    monkeypatch.setenv("AI_WORKER_LOG_LEVEL", "error")
    monkeypatch.chdir(tmp_path)
    return Commands(monkeypatch, capsys)


@pytest.fixture
def fake() -> Iterator[FakeProvider]:
    with FakeProvider() as fake:
        yield fake


@pytest.fixture
def speaker() -> Iterator[Oracle]:
    with oracle() as speaker:
        yield speaker


def test_hostile_answers(sql: Sql, ai_worker: Commands, database_url: str, speaker: Oracle, seed: int) -> None:
    _send_answers(sql, ai_worker, database_url, speaker, drawn(bodies, ANSWERS, seed))


def _send_answers(sql: Sql, ai_worker: Commands, url: str, speaker: Oracle, examples: list[bytes]) -> int:
    """A row for each; each ends with a result or as a dead letter with a reason. How many have a result."""
    model = add_model(sql, None, "openai", "oracle", base_url=speaker.url)
    used = 0
    for start in range(0, len(examples), ANSWERS_AT_ONCE):
        speaker.bodies = examples[start : start + ANSWERS_AT_ONCE]
        rows = [f"«{number}» Ala ma kta." for number in range(len(speaker.bodies))]
        id_task = add_task(sql, model, rows, max_attempts=1)
        with steady_waits():
            Run(url, concurrency=50)
        for body, item in zip(speaker.bodies, items_of(sql, id_task), strict=True):
            assert item["status"] in {"PROCESSED", "ERROR"}, f"{item['status']}, {item['error_kind']}: {named(body)}"
            if item["status"] == "ERROR":
                assert item["error_kind"] in {"bad_answer", "content_refused"}, f"{item['error_kind']}: {named(body)}"
                assert item["error_message"]
                assert len(item["error_message"]) < 1000
            used += item["status"] == "PROCESSED"
        for kind in ("csv", "jsonl", "html"):
            assert ai_worker("results", str(id_task), "-o", f"out.{kind}").code == 0
        for command in (("status", str(id_task)), ("review", str(id_task), "--limit", "1000")):
            assert steering(ai_worker(*command).everything) == []
    (row,) = sql("SELECT stopped_kind FROM ai_model WHERE id_ai_model = %s", [model])
    assert row["stopped_kind"] is None
    assert_ledger(sql)
    assert used
    return used


@pytest.mark.parametrize("kind", ["unknown", "duplicate", "swapped"])
def test_wrong_ids_in_a_pack_of_hostile_texts(sql: Sql, database_url: str, fake: FakeProvider, seed: int, kind: str) -> None:
    """Each text still gets its own result: what a pack mixes up is asked again."""
    sound = list(dict.fromkeys(filter(can_be_stored, drawn(texts, 40, seed))))
    model = add_model(sql, fake, "chat", "fake")
    id_task = add_task(sql, model, sound, pack=10, max_attempts=5)
    fake.script(Rule("pack_wrong_ids", content=kind, times=1))
    with steady_waits():
        Run(database_url)
    for text, item in zip(sound, items_of(sql, id_task), strict=True):
        assert (item["status"], item["text_corrected"]) == ("PROCESSED", correct(text)), named(text)
    assert_ledger(sql)


def test_an_answer_of_ten_megabytes_is_used(sql: Sql, database_url: str, speaker: Oracle) -> None:
    """A short text with 10 MB of JSON around it, nested and flat: without its neighbour's taking harm."""
    good = json.dumps({"corrected_text": "Ala", "change_summary": ""})
    odd = json.dumps({"corrected_text": "Ala", "change_summary": "", "x": ["y" * 1000] * 5000, "z": [[["w"] * 5] * 5] * 50_000})
    assert len(odd) > 10_000_000
    speaker.bodies = [completion(odd), completion(good)]
    id_task = add_task(
        sql, add_model(sql, None, "openai", "oracle", base_url=speaker.url), ["«0» Ala", "«1» Ala"], max_attempts=1
    )
    with steady_waits():
        Run(database_url)
    for item in items_of(sql, id_task):
        assert (item["status"], item["text_corrected"]) == ("PROCESSED", "Ala"), item["error_message"]
        assert len(item["result"]) < 1000
    assert_ledger(sql)


# ----- logs, and the largest


def test_no_text_steers_the_terminal_through_the_log(
    sql: Sql, database_url: str, fake: FakeProvider, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also at DEBUG, where lines quote texts, and where a provider's words are quoted."""
    sound = [text for text in PHRASES if can_be_stored(text)]
    model = add_model(sql, fake, "chat", "fake")
    speaking = "\x1b[2J\x9b31m\r\x07 done"
    fake.script(Rule("answer", content=speaking, contains="SUM"), Rule("400", contains="DROP"))
    for form in ("console", "json"):
        add_task(sql, model, sound)
        capsys.readouterr()
        log.configure("debug", form)  # type: ignore[arg-type]  # one of the two
        with steady_waits():
            Run(database_url)
        text = capsys.readouterr().err
        assert text
        if form == "json":
            assert all(json.loads(line) for line in text.splitlines() if line)
        else:
            assert steering(text) == []
    assert_ledger(sql)


@pytest.mark.parametrize("size", ["16 MB", "100,000 lines"])
def test_the_largest_texts(ai_worker: Commands, sql: Sql, tmp_path: Path, size: str) -> None:
    """A text of 16 MB, and one of 100,000 lines, are stored or refused with a reason; their neighbours are there."""
    add_model(sql, None, "echo", "echo")
    text = "Ala ma kota. " * 1_200_000 if size == "16 MB" else "Ala\n" * 100_000
    rows = [json.dumps({"text": each}) for each in ("Kot", text, "Pies")]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows), encoding="utf-8")
    ended = ai_worker("submit", "rows.jsonl", "--model", "echo", "--json")
    found = [row["text_original"] for row in sql("SELECT text_original FROM task_item ORDER BY id_task_item")]
    if ended.code == 0:
        assert found == ["Kot", text, "Pies"]
    else:
        assert ended.code == 2
        assert "line 2" in ended.err
        assert "max_allowed_packet" in ended.err
        assert found == []
