"""The commands `model`, `keygen` and `rekey`, on real databases and over the real SDKs."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ai_worker.db import Database
from ai_worker.keys import Keyring, generate_master_key
from ai_worker.models import Model, Secret
from ai_worker.providers import provider_class
from ai_worker.store.models import Models
from tests.fake_provider import FakeProvider, Rule
from tests.fake_provider.limits import Limits
from tests.integration.commands import Commands

Sql = Callable[..., list[dict[str, Any]]]

KEY = "sk-tajny-klucz-0123456789"
MASTER = generate_master_key()


@pytest.fixture
def commands(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Commands:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AI_WORKER_DB_URL", database_url)
    monkeypatch.setenv("AI_WORKER_MASTER_KEY", MASTER)
    return Commands(monkeypatch, capsys)


@pytest.fixture
def models(database: Database) -> Models:
    return Models(database)


@pytest.fixture
def fake() -> Iterator[FakeProvider]:
    with FakeProvider() as running:
        yield running


def stored_key(models: Models, name: str, master: str = MASTER) -> str:
    model = models.get(name)
    assert model.api_key_encrypted is not None
    return Keyring(Secret(master)).decrypt(model.id_ai_model, model.api_key_encrypted).reveal()


def test_add_stores_what_it_is_told(commands: Commands, models: Models, tmp_path: Path) -> None:
    (tmp_path / "key").write_text(f"{KEY}\n")
    ended = commands(
        *("model", "add", "korekta", "--provider", "openai", "--model", "gpt-5.5", "--base-url", "http://127.0.0.1:1/v1"),
        *("--api-key-file", str(tmp_path / "key"), "--rpm", "500", "--tpm", "90000", "--max-in-flight", "8"),
        *("--price-input", "0.25", "--price-cached", "0.025", "--price-output", "2"),
        *("--option", "temperature=0.5", "--option", "api=chat", "--option", 'extra_body={"a": [1]}'),
    )
    assert (ended.code, ended.err) == (0, "")
    model = models.get("korekta")
    assert f"(id_ai_model {model.id_ai_model})" in ended.out
    assert model.options == {"temperature": 0.5, "api": "chat", "extra_body": {"a": [1]}}
    assert (model.max_requests_per_minute, model.max_tokens_per_minute, model.max_in_flight) == (500, 90000, 8)
    assert [str(each) for each in (model.price_input, model.price_cached, model.price_output)] == [
        "0.250000",
        "0.025000",
        "2.000000",
    ]
    assert stored_key(models, "korekta") == KEY


def test_a_key_comes_from_standard_input_and_never_shows(commands: Commands, models: Models) -> None:
    added = commands("model", "add", "gpt", "--provider", "openai", "--model", "gpt-5.5", "--api-key-stdin", stdin=f"{KEY}\n")
    assert added.code == 0
    assert stored_key(models, "gpt") == KEY
    listed, as_json = commands("model", "list"), commands("model", "list", "--json")
    assert listed.out.splitlines()[1].split()[4] == "yes"
    assert as_json.json[0]["has_api_key"] is True
    assert KEY not in added.everything + listed.everything + as_json.everything
    assert MASTER not in added.everything + listed.everything + as_json.everything


def test_a_key_is_no_argument(commands: Commands) -> None:
    ended = commands("model", "add", "gpt", "--provider", "openai", "--api-key", KEY)
    assert ended.code == 2
    assert "No such option" in ended.err


@pytest.mark.parametrize(
    ("args", "stdin", "code", "says"),
    [
        (["--provider", "gpt"], "", 2, "unknown provider 'gpt'; known ones: echo"),
        (["--provider", "echo", "--option", "delay"], "", 2, "--option takes KEY=VALUE, not 'delay'"),
        (["--provider", "echo", "--option", "dealy_ms=3"], "", 2, "unknown option 'dealy_ms'"),
        (["--provider", "echo", "--option", "delay_ms=-1"], "", 2, "delay_ms"),
        (["--provider", "openai", "--model", "m", "--base-url", "localhost"], KEY, 2, "base URL"),
        (["--provider", "echo", "--rpm", "0"], "", 2, "--rpm"),
        (["--provider", "echo", "--price-input", "cheap"], "", 2, "is not a price"),
        (["--provider", "echo", "--price-input", "-1"], "", 2, "is not a price"),
        (["--provider", "echo", "--api-key-stdin"], " \n", 2, "no API key on standard input"),
        (["--provider", "echo", "--api-key-file", "/nowhere"], "", 2, "does not exist"),
        (["--model", "x"], "", 2, "--provider"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_is_stored(
    commands: Commands, models: Models, args: list[str], stdin: str, code: int, says: str
) -> None:
    if stdin == KEY:
        args = [*args, "--api-key-stdin"]
    ended = commands("model", "add", "m", *args, stdin=stdin)
    assert (ended.code, ended.out) == (code, "")
    assert says in ended.err
    assert "Traceback" not in ended.err
    assert models.all() == []


def test_a_key_without_a_master_key_is_refused(commands: Commands, models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AI_WORKER_MASTER_KEY")
    ended = commands("model", "add", "gpt", "--provider", "openai", "--api-key-stdin", stdin=KEY)
    assert ended.code == 78
    assert "ai-worker keygen" in ended.err
    assert models.all() == []


def test_set_changes_only_what_is_named(commands: Commands, models: Models) -> None:
    models.add(Model(0, "m", "echo", options={"delay_ms": 3}, max_in_flight=4))
    assert commands("model", "set", "m", "--rpm", "7", "--inactive", "--name", "nowa nazwa").code == 0
    changed = models.get("nowa nazwa")
    assert (changed.max_requests_per_minute, changed.max_in_flight, changed.is_active) == (7, 4, False)
    assert changed.options == {"delay_ms": 3}
    assert commands("model", "set", "nowa nazwa", "--unset", "rpm", "--unset-option", "delay_ms", "--active").code == 0
    changed = models.get("nowa nazwa")
    assert (changed.max_requests_per_minute, changed.options, changed.is_active) == (None, {}, True)


def test_set_key_and_unset_it(commands: Commands, models: Models) -> None:
    models.add(Model(0, "m", "openai", "gpt-5.5"))
    assert commands("model", "set", "m", "--api-key-stdin", stdin=KEY).code == 0
    assert stored_key(models, "m") == KEY
    assert commands("model", "set", "m", "--unset", "api-key").code == 0
    assert models.get("m").api_key_encrypted is None


def test_set_nothing_is_an_error(commands: Commands, models: Models) -> None:
    models.add(Model(0, "m", "echo"))
    ended = commands("model", "set", "m")
    assert (ended.code, "nothing to change" in ended.err) == (2, True)
    ended = commands("model", "set", "m", "--option", "foo=1")
    assert (ended.code, "unknown option 'foo'" in ended.err) == (2, True)
    assert models.get("m").options == {}


def test_list_shows_what_stopped_a_model(commands: Commands, models: Models) -> None:
    number = models.add(
        Model(0, "m", "echo", options={"headers": {"Authorization": KEY, "X-Gateway": KEY}, "extra_body": f"key: {KEY}"})
    )
    models.stop(number, "quota_exhausted", "saldo wyczerpane", 60)
    ended = commands("model", "list")
    assert "stopped: quota_exhausted" in ended.out
    assert "saldo wyczerpane" in ended.out
    (listed,) = commands("model", "list", "--json").json
    assert listed["stopped"]["reason"] == "saldo wyczerpane"
    assert listed["stopped"]["probe_at"].endswith("Z")
    assert listed["options"] == {"headers": {"Authorization": "***", "X-Gateway": "***"}, "extra_body": "***"}


def test_an_empty_list_says_how_to_go_on(commands: Commands) -> None:
    assert "ai-worker model add" in commands("model", "list").out
    assert commands("model", "list", "--json").json == []


def test_remove(commands: Commands, models: Models, sql: Sql) -> None:
    number = models.add(Model(0, "m", "echo"))
    sql("INSERT INTO task (id_ai_model) VALUES (%s)", (number,))
    ended = commands("model", "remove", "m")
    assert (ended.code, "used by 1 task" in ended.err) == (2, True)
    sql("DELETE FROM task")
    assert commands("model", "remove", "m").code == 0
    assert commands("model", "remove", "m").code == 2


def test_test_makes_one_real_call_and_gives_a_stopped_model_free(commands: Commands, models: Models, fake: FakeProvider) -> None:
    added = commands(
        *("model", "add", "gpt", "--provider", "openai", "--model", "gpt-5.5", "--base-url", fake.openai_url),
        *("--price-input", "1", "--price-output", "2", "--api-key-stdin"),
        stdin=KEY,
    )
    assert added.code == 0
    assert fake.counts()["requests"] == 0  # adding calls nobody
    models.stop(models.get("gpt").id_ai_model, "quota_exhausted", "x", 600)
    ended = commands("model", "test", "gpt", "--json")
    assert ended.code == 0, ended.everything
    report = ended.json
    assert (report["ok"], report["resumed"]) == (True, True)
    assert report["answer"].startswith(report["text"])
    assert report["tokens_input"] > 10
    assert float(report["cost"]) == pytest.approx((report["tokens_input"] + 2 * report["tokens_output"]) / 1e6)
    assert models.get("gpt").stopped_kind is None
    assert fake.counts()["requests"] == 1
    assert KEY not in ended.everything


@pytest.mark.parametrize(
    ("fault", "kind", "says"),
    [
        ("401", "access_denied", "Set a valid key"),
        ("404", "model_unknown", "Check --model"),
        ("429_quota", "quota_exhausted", "Add credit"),
        ("500", "overloaded", "try again later"),
        ("empty", "bad_answer", "use another model"),
    ],
)
def test_test_says_what_is_wrong_and_what_to_do(
    commands: Commands, models: Models, fake: FakeProvider, fault: str, kind: str, says: str
) -> None:
    models.add(
        Model(0, "gpt", "openai", "gpt-5.5", base_url=fake.openai_url),
        lambda number: Keyring(Secret(MASTER)).encrypt(number, Secret(KEY)),
    )
    models.stop(models.get("gpt").id_ai_model, "quota_exhausted", "x", 600)
    fake.script(Rule(fault))
    ended = commands("model", "test", "gpt")
    assert ended.code == 1
    assert f"({kind})" in ended.out
    assert says in ended.out
    assert KEY not in ended.everything
    assert models.get("gpt").stopped_kind == "quota_exhausted"
    assert commands("model", "test", "gpt", "--json").json["error_kind"] == kind


def test_test_shows_limits_and_price(commands: Commands, sql: Sql) -> None:
    with FakeProvider(limits=Limits(requests_per_minute=480, tokens_per_minute=90_000)) as fake:
        url = ("--provider", "openai", "--model", "m", "--base-url", fake.openai_url)
        commands("model", "add", "gpt", *url, "--rpm", "300", "--price-input", "0.25", "--price-output", "2")
        shown = commands("model", "test", "gpt").out
        report = commands("model", "test", "gpt", "--json").json
        commands("model", "add", "dark", *url)
        unpriced = commands("model", "test", "dark").out
    assert "300 requests/min, the provider says 480 requests/min and 90,000 tokens/min" in shown
    assert "0.25/0.25/2 USD per million tokens in/cached/out, as set here" in shown
    assert report["limits"]["requests_per_minute"] == 300
    assert report["limits"]["provider_tokens_per_minute"] == 90_000
    assert report["price"] == {"input": "0.250000", "cached": "0.250000", "output": "2.000000", "source": "set"}
    assert report["latency_ms"] >= 0
    assert "price     unknown, and so is what tasks cost" in unpriced


def test_reset_lets_a_model_go_and_forgets_what_was_learnt(commands: Commands, models: Models, sql: Sql) -> None:
    commands("model", "add", "echo", "--provider", "echo")
    number = models.get("echo").id_ai_model
    models.stop(number, "quota_exhausted", "brak środków", 3600)
    sql(
        "INSERT INTO ai_model_pace (id_ai_model, paced_until, requests_per_minute, tokens_per_minute, slowed_at)"
        " VALUES (%s, UTC_TIMESTAMP(6) + INTERVAL 1 HOUR, 5, 100, UTC_TIMESTAMP(6))",
        [number],
    )
    ended = commands("model", "set", "echo", "--reset")
    assert (ended.code, ended.err) == (0, "")
    assert "still stopped" not in ended.out
    assert models.get("echo").stopped_at is None
    (pace,) = sql("SELECT *, paced_until <= UTC_TIMESTAMP(6) AS is_free FROM ai_model_pace")
    assert (pace["requests_per_minute"], pace["tokens_per_minute"], pace["slowed_at"], pace["is_free"]) == (None, None, None, 1)


def test_a_budget_per_day_is_set_and_unset(commands: Commands, models: Models) -> None:
    commands("model", "add", "echo", "--provider", "echo", "--budget-per-day", "20")
    assert models.get("echo").budget_per_day == 20
    assert commands("model", "list", "--json").json[0]["budget_per_day"] == "20.000000000"
    assert commands("model", "set", "echo", "--unset", "budget-per-day").code == 0
    assert models.get("echo").budget_per_day is None
    ended = commands("model", "set", "echo", "--budget-per-day", "-1")
    assert (ended.code, "not an amount above zero" in ended.err) == (2, True)


def test_a_stopped_model_that_is_changed_is_said_to_be_stopped_still(commands: Commands, models: Models) -> None:
    models.add(Model(0, "mój model", "echo"))
    assert commands("model", "set", "mój model", "--rpm", "5").out == "Model mój model changed.\n"
    models.stop(models.get("mój model").id_ai_model, "access_denied", "x", 600)
    said = "It is still stopped; `ai-worker model test 'inny model'` lets it go.\n"
    assert commands("model", "set", "mój model", "--name", "inny model").out == f"Model inny model changed.\n{said}"
    assert commands("model", "set", "inny model", "--api-key-stdin", stdin=KEY).out.endswith(said)
    assert models.get("inny model").stopped_kind == "access_denied"


def test_keygen_prints_a_new_key_each_time(commands: Commands) -> None:
    first, second = commands("keygen"), commands("keygen")
    assert len(base64.b64decode(first.out)) == 32
    assert first.out != second.out


def test_rekey_takes_old_and_panel_keys_over_or_none(
    commands: Commands, models: Models, sql: Sql, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, other = generate_master_key(), generate_master_key()
    models.add(Model(0, "old", "openai"), lambda number: Keyring(Secret(old)).encrypt(number, Secret("key-old")))
    models.add(Model(0, "now", "openai"), lambda number: Keyring(Secret(MASTER)).encrypt(number, Secret("key-now")))
    panel = models.add(Model(0, "panel", "gemini"))
    sql("UPDATE ai_model SET api_key_encrypted = AES_ENCRYPT('key-panel', 'hasło panelu') WHERE id_ai_model = %s", (panel,))
    before = {model.name: model.api_key_encrypted for model in models.all()}

    (tmp_path / "other").write_text(other)
    refused = commands("rekey", "--old-key-file", str(tmp_path / "other"))
    assert (refused.code, refused.out) == (78, "")
    assert "the API key of model old was encrypted with a master key that is neither the current one nor given" in refused.err
    assert "by --old-key-file or AI_WORKER_MASTER_KEY_OLD" in refused.err
    assert "rekey" not in refused.err
    (tmp_path / "old").write_text(old + "\n")
    refused = commands("rekey", "--old-key-file", str(tmp_path / "old"))
    assert (refused.code, "AI_WORKER_LEGACY_AES_KEY" in refused.err, "of model panel" in refused.err) == (78, True, True)
    assert {model.name: model.api_key_encrypted for model in models.all()} == before

    monkeypatch.setenv("AI_WORKER_LEGACY_AES_KEY", "hasło panelu")
    done = commands("rekey", "--old-key-file", str(tmp_path / "old"), "--json")
    assert (done.code, done.json) == (0, {"rekeyed": 2})
    assert [stored_key(models, name) for name in ("old", "now", "panel")] == ["key-old", "key-now", "key-panel"]
    assert models.get("now").api_key_encrypted == before["now"]

    monkeypatch.delenv("AI_WORKER_LEGACY_AES_KEY")
    assert commands("rekey", "--json").json == {"rekeyed": 0}
    assert commands("rekey").out == "3 keys are current already.\n"


def test_rekey_with_nothing_to_encrypt(commands: Commands, models: Models) -> None:
    models.add(Model(0, "m", "echo"))
    assert commands("rekey").out == "There is no key to encrypt.\n"


def test_a_key_that_cannot_be_opened_is_told_by_its_models_name(
    commands: Commands, models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    models.add(Model(0, "gpt", "openai", "gpt-5.5"), lambda number: Keyring(Secret(MASTER)).encrypt(number, Secret(KEY)))
    monkeypatch.setenv("AI_WORKER_MASTER_KEY", generate_master_key())
    ended = commands("model", "test", "gpt")
    assert (ended.code, "the API key of model gpt was encrypted with another master key" in ended.err) == (78, True)


def test_rekey_takes_the_old_key_from_its_setting_too(
    commands: Commands, models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = generate_master_key()
    models.add(Model(0, "m", "openai"), lambda number: Keyring(Secret(old)).encrypt(number, Secret(KEY)))
    monkeypatch.setenv("AI_WORKER_MASTER_KEY_OLD", old)
    assert commands("rekey").out == "1 key encrypted anew.\n"
    assert commands("rekey").out == "1 key is current already.\n"
    assert stored_key(models, "m") == KEY


def test_rekey_without_a_master_key_says_so(commands: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AI_WORKER_MASTER_KEY")
    ended = commands("rekey")
    assert (ended.code, "AI_WORKER_MASTER_KEY" in ended.err) == (78, True)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script_for_the_command(commands: Commands, shell: str) -> None:
    ended = commands("completion", shell)
    assert ended.code == 0
    assert "_AI_WORKER_COMPLETE" in ended.out
    assert "ai-worker" in ended.out


PLUGIN = """
import asyncio
class Base:
    def __init__(self, config): pass
    async def aclose(self): raise OSError("nie zamknę się")
class Raising(Base):
    async def complete(self, prompt): raise RuntimeError("zły dzień")
class Breaking(Base):
    async def complete(self, prompt): raise asyncio.CancelledError
class Empty(Base):
    async def complete(self, prompt): return None
class Unmade(Base):
    def __init__(self, config): raise ZeroDivisionError("nie ma mnie")
"""


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An installed package of providers with mistakes."""
    (tmp_path / "bad_plugin.py").write_text(PLUGIN, encoding="utf-8")
    metadata = tmp_path / "bad_plugin-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: bad-plugin\nVersion: 1.0\n")
    lines = [f"{name.lower()} = bad_plugin:{name}" for name in ("Raising", "Breaking", "Empty", "Unmade")]
    (metadata / "entry_points.txt").write_text("\n".join(["[ai_worker.providers]", *lines]))
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    provider_class.cache_clear()


@pytest.mark.parametrize(
    ("provider", "error"),
    [
        ("raising", "RuntimeError: zły dzień"),
        ("breaking", "RuntimeError: the provider broke off its own call"),
        ("empty", "AttributeError: 'NoneType' object has no attribute 'usage'"),
    ],
)
def test_test_tells_a_mistake_of_a_plugin_in_one_line(
    commands: Commands, models: Models, plugin: None, provider: str, error: str
) -> None:
    models.add(Model(0, "m", provider))
    ended = commands("model", "test", "m")
    assert (ended.code, ended.err) == (1, "")
    assert ended.out.startswith(f"m gave no usable answer (internal): {error}\n")
    assert f"the provider '{provider}': tell its makers" in ended.out
    assert commands("model", "test", "m", "--json").json["error_kind"] == "internal"


def test_a_plugin_that_cannot_be_made_ready_is_told_in_one_line(commands: Commands, models: Models, plugin: None) -> None:
    said = "provider 'unmade' cannot be made ready: ZeroDivisionError: nie ma mnie"
    added = commands("model", "add", "m", "--provider", "unmade")
    assert (added.code, said in added.err, models.all()) == (2, True, [])
    models.add(Model(0, "m", "unmade"))
    tried = commands("model", "test", "m")
    assert (tried.code, tried.err.startswith(f"ai-worker: {said}"), tried.out) == (78, True, "")


def test_the_offline_provider_is_seen_to_correct(commands: Commands, models: Models) -> None:
    models.add(Model(0, "try", "offline"))
    report = commands("model", "test", "try", "--json").json
    assert ("shcool" in report["text"], report["answer"]) == (True, report["text"].replace("shcool", "school"))
