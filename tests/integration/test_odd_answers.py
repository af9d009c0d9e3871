"""What comes from outside and does not fit: texts that no column takes, absurd numbers, plug-ins with bugs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ai_worker.providers import provider_class
from ai_worker.task_types import task_type
from ai_worker.worker import learning
from tests.conftest import Sql
from tests.fake_provider import FakeProvider, Rule, correct
from tests.integration.worker_runs import (
    APIS,
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

GOOD = ["Ala ma kota", "Zażółć gęślą jaźń", "Kot ma Alę"]


@pytest.fixture
def fake() -> Iterator[FakeProvider]:
    with FakeProvider() as fake:
        yield fake


def answer(text: str, summary: str = "") -> str:
    return json.dumps({"corrected_text": text, "change_summary": summary})


@pytest.mark.parametrize(
    ("said", "stored"),
    [
        ("Pies 🐕‍🦺 i 𝕜𝕠𝕥 𠜎", "Pies 🐕‍🦺 i 𝕜𝕠𝕥 𠜎"),
        ("pół znaku \ud83d tutaj", "pół znaku � tutaj"),
        ("zero \0 tutaj", "zero  tutaj"),
        ("cudzysłów \" ' \\ %s {x} \u2028 koniec", "cudzysłów \" ' \\ %s {x} \u2028 koniec"),
    ],
    ids=["four bytes", "half a surrogate pair", "NUL", "quotes"],
)
def test_any_unicode_that_a_model_answers_is_stored(
    sql: Sql, database_url: str, fake: FakeProvider, said: str, stored: str
) -> None:
    original = stored.replace("tutaj", "tuttaj")
    tasks = [add_task(sql, add_model(sql, fake, api, api), [original, *GOOD]) for api in APIS]
    fake.script(Rule("answer", content=answer(said, said), contains=original))
    assert Run(database_url).summary.processed == 12
    for id_task in tasks:
        (odd, *good) = items_of(sql, id_task)
        assert (odd["text_corrected"], json.loads(odd["result"])["corrected_text"]) == (stored, stored)
        assert [item["text_corrected"] for item in good] == [correct(text) for text in GOOD]


def test_a_text_of_several_megabytes_is_stored(sql: Sql, database_url: str, fake: FakeProvider) -> None:
    long = "Zażółć gęślą jaźń. " * 180_000 + "Koniec"  # 5 MB in UTF-8
    in_one = {"parameters": '{"part_tokens": 10000000}'}
    id_task = add_task(sql, add_model(sql, fake, "chat", "chat"), [long, *GOOD], **in_one)
    assert Run(database_url).summary.processed == 4
    assert [item["text_corrected"] for item in items_of(sql, id_task)] == [correct(text) for text in (long, *GOOD)]


def test_a_result_larger_than_a_packet_is_a_dead_letter_and_its_neighbours_are_stored(
    sql: Sql, database_url: str, fake: FakeProvider
) -> None:
    """Where the server takes packets as large as that, it is stored like any other."""
    id_task = add_task(sql, add_model(sql, fake, "chat", "chat"), [*GOOD, "Za duży"])
    fake.script(Rule("answer", content=answer("Za duży", "x" * 18_000_000), contains="Za duży"))
    run = Run(database_url)
    (*good, large) = items_of(sql, id_task)
    assert [item["text_corrected"] for item in good] == [correct(text) for text in GOOD]
    assert large["tokens_input"] > 0
    task = task_of(sql, id_task)
    (packet,) = sql("SELECT @@max_allowed_packet AS bytes")
    if packet["bytes"] > 18_100_000:
        assert (large["status"], large["text_corrected"]) == ("PROCESSED", "Za duży")
        assert (run.summary.processed, task["status"], task["records_processed"]) == (4, "COMPLETED", 4)
    else:
        assert (large["status"], large["error_kind"], large["attempt"]) == ("ERROR", "unstorable", 1)
        assert "larger than the server's max_allowed_packet" in large["error_message"]
        assert (run.summary.processed, run.summary.failed) == (3, 1)
        assert (task["status"], task["records_processed"], task["records_failed"]) == ("ERROR", 3, 1)


@pytest.mark.parametrize("tokens", [[10**12, 5, 0, 0], [5, 10**30, 0, 0], [5, 5, 10**9, 10**9]], ids=str)
def test_absurd_token_counts_cost_neither_worker_nor_answer(
    sql: Sql, database_url: str, fake: FakeProvider, tokens: list[int]
) -> None:
    tasks = [add_task(sql, add_model(sql, fake, api, api), GOOD) for api in APIS]
    fake.script(Rule("answer", tokens=tokens, contains="Kot"))
    assert Run(database_url).summary.processed == 9
    for id_task in tasks:
        assert {item["status"] for item in items_of(sql, id_task)} == {"PROCESSED"}
        assert 0 <= task_of(sql, id_task)["cost"] < 1000


# ----- plug-ins

PLUGIN = """
import asyncio, json
from ai_worker.errors import AccessDenied, ProviderError, RateLimited
from ai_worker.models import Completion, Result, Usage
from ai_worker.task_types.builtin import Correction

class Base:
    def __init__(self, config): pass
    async def aclose(self): pass
    async def complete(self, prompt):
        return Completion(json.dumps({"corrected_text": prompt.text, "change_summary": ""}), Usage(3, 4))

class Sound(Base): pass

class Raising(Base):
    async def complete(self, prompt): raise RuntimeError("zły dzień: \\ud83d")

class Breaking(Base):
    async def complete(self, prompt): raise asyncio.CancelledError

class Unmade(Base):
    def __init__(self, config): raise ZeroDivisionError("nie ma mnie")

class Unclosed(Base):
    async def aclose(self): raise RuntimeError("nie zamknę się")

class NoCompletion(Base):
    async def complete(self, prompt): return None

class Patient(Base):
    async def complete(self, prompt): raise RateLimited("kiedyś", retry_after=float("inf"))

class Denied(Base):
    async def complete(self, prompt): raise AccessDenied("nie \\ud83d wolno", retry_after=float("nan"))

class Wordy(Base):
    class Verbose(ProviderError):
        kind = "a kind of error that is longer than its column, and żółty"
    async def complete(self, prompt): raise self.Verbose("x" * 5000, usage=Usage(-3, -4))

class OddResult(Correction):
    name = "correction"
    def result(self, original, answer, settings): return Result(original, None, {"set": {1, 2}})

class OddText(Correction):
    name = "correction"
    def result(self, original, answer, settings): return Result(42, None, {})

class OddNan(Correction):
    name = "correction"
    def result(self, original, answer, settings): return Result(original, None, {"nan": float("nan")})
"""

PROVIDERS = ("Sound", "Raising", "Breaking", "Unmade", "Unclosed", "NoCompletion", "Patient", "Denied", "Wordy")


@pytest.fixture
def plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An installed package of bad providers and task types, found by their entry points as any other."""
    (tmp_path / "odd_plugin.py").write_text(PLUGIN, encoding="utf-8")
    metadata = tmp_path / "odd_plugin-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: odd-plugin\nVersion: 1.0\n")
    lines = [f"{name} = odd_plugin:{name}" for name in PROVIDERS] + ["Missing = there_is_no_such_module:Provider"]
    types = ["odd_result = odd_plugin:OddResult", "odd_text = odd_plugin:OddText", "odd_nan = odd_plugin:OddNan"]
    entries = ["[ai_worker.providers]", *lines, "[ai_worker.task_types]", *types]
    (metadata / "entry_points.txt").write_text("\n".join(entries))
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    provider_class.cache_clear()
    task_type.cache_clear()


def run_beside_a_sound_one(sql: Sql, url: str, provider: str, **options: Any) -> tuple[int, int, Run]:
    """Runs items of a provider beside sound ones, which must be done whatever it does: its model, its task, the run."""
    model = add_model(sql, None, provider, provider)
    task = add_task(sql, model, GOOD)
    sound = add_task(sql, add_model(sql, None, "Sound", "sound"), GOOD)
    with steady_waits():
        run = Run(url, **options)
    assert (task_of(sql, sound)["status"], task_of(sql, sound)["records_processed"]) == ("COMPLETED", 3)
    return model, task, run


@pytest.mark.parametrize(
    ("provider", "kind", "message"),
    [
        ("Raising", "internal", "RuntimeError: zły dzień: �"),
        ("Breaking", "internal", "RuntimeError: the provider broke off its own call"),
        ("NoCompletion", "internal", "AttributeError: 'NoneType' object has no attribute 'limits'"),
        ("Wordy", "a kind of error that is longer", "x" * 1000),
    ],
)
def test_a_providers_bug_costs_its_items_their_attempts(
    sql: Sql, database_url: str, plugins: None, provider: str, kind: str, message: str
) -> None:
    model, task, run = run_beside_a_sound_one(sql, database_url, provider)
    assert run.claimed == 6
    for item in items_of(sql, task):
        assert (item["status"], item["attempt"], item["error_message"]) == ("DEFERRED", 1, message)
        assert item["error_kind"].startswith(kind)
    for _ in range(2):
        make_due(sql)
        with steady_waits():
            assert Run(database_url).claimed == 3
    assert {(item["status"], item["attempt"]) for item in items_of(sql, task)} == {("ERROR", 3)}
    assert len(attempts_of(sql, task)) == 9
    assert (task_of(sql, task)["status"], task_of(sql, task)["records_failed"]) == ("ERROR", 3)
    assert model_of(sql, model)["stopped_at"] is None


@pytest.mark.parametrize(
    ("provider", "reason"),
    [
        (
            "Missing",
            "provider 'Missing' cannot be loaded: ModuleNotFoundError: No module named 'there_is_no_such_module': reinst",
        ),
        ("Unmade", "nie ma mnie"),
        ("Unheard", "unknown provider 'Unheard'; known ones: "),
    ],
)
def test_a_provider_that_this_process_lacks_leaves_its_model_to_others(
    sql: Sql, database_url: str, plugins: None, provider: str, reason: str
) -> None:
    model, task, run = run_beside_a_sound_one(sql, database_url, provider)
    assert run.claimed == 6
    assert run.summary.stopped_models == {}
    ((_, said),) = run.summary.unusable_models.items()
    assert said.startswith(reason)
    assert {(item["status"], item["attempt"]) for item in items_of(sql, task)} == {("PENDING", 0)}
    assert model_of(sql, model)["stopped_at"] is None


def test_a_provider_that_is_denied_stops_its_model(sql: Sql, database_url: str, plugins: None) -> None:
    model, task, run = run_beside_a_sound_one(sql, database_url, "Denied")
    assert run.claimed == 6
    assert len(run.summary.stopped_models) == 1
    assert {(item["status"], item["attempt"]) for item in items_of(sql, task)} == {("PENDING", 0)}
    row = model_of(sql, model)
    assert row["stopped_kind"] == "access_denied"
    assert row["stopped_reason"].startswith("nie � wolno")
    assert float(row["probe_seconds"]) >= 300


def test_a_provider_that_wants_to_wait_for_ever_waits_a_week(
    sql: Sql, database_url: str, plugins: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learning, "CALL_CAP", 0.05)  # for so long the model's other items are left alone, too
    _, task, run = run_beside_a_sound_one(sql, database_url, "Patient")
    assert run.claimed == 6
    for item in items_of(sql, task):
        assert (item["status"], item["attempt"]) == ("DEFERRED", 0)
        assert item["delay"] >= 7 * 86_400 - 1


def test_a_provider_that_cannot_be_closed_spoils_nothing(sql: Sql, database_url: str, plugins: None) -> None:
    _, task, run = run_beside_a_sound_one(sql, database_url, "Unclosed")
    assert run.summary.processed == 6
    assert task_of(sql, task)["status"] == "COMPLETED"


@pytest.mark.parametrize(
    ("name", "status", "kind"),
    [("odd_result", "ERROR", "unstorable"), ("odd_nan", "ERROR", "unstorable"), ("odd_text", "DEFERRED", "internal")],
)
def test_a_task_type_whose_results_cannot_be_stored_costs_its_items(
    sql: Sql, database_url: str, plugins: None, name: str, status: str, kind: str
) -> None:
    model = add_model(sql, None, "Sound", "sound")
    odd, good = add_task(sql, model, GOOD, task_type=name), add_task(sql, model, GOOD)
    with steady_waits():
        run = Run(database_url)
    assert task_of(sql, good)["records_processed"] == 3
    assert run.claimed == 6
    assert {(item["status"], item["error_kind"], item["tokens_input"]) for item in items_of(sql, odd)} == {(status, kind, 3)}
    assert task_of(sql, odd)["records_failed"] == (3 if status == "ERROR" else 0)


def test_a_task_of_an_unknown_type_fails_and_says_so(sql: Sql, database_url: str) -> None:
    model = add_model(sql, None, "echo", "echo")
    odd, good = add_task(sql, model, GOOD, task_type="corection"), add_task(sql, model, GOOD)
    assert Run(database_url).claimed == 6
    for item in items_of(sql, odd):
        assert (item["status"], item["error_kind"]) == ("ERROR", "invalid_task")
        assert item["error_message"].startswith("unknown task type 'corection'; known ones: ")
    assert task_of(sql, good)["status"] == "COMPLETED"
