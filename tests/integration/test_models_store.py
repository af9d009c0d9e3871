"""The verbs of `ai_model` on real servers."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest

from ai_worker.db import Database
from ai_worker.errors import UsageError
from ai_worker.keys import Keyring, generate_master_key
from ai_worker.models import Model, Secret
from ai_worker.store.models import Models

Sql = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def models(database: Database) -> Models:
    return Models(database)


def a_model(name: str = "korekta", **values: Any) -> Model:
    return Model(0, name, **{"provider": "openai", "model": "gpt-5.5", **values})


def test_what_was_added_comes_back_whole(models: Models) -> None:
    told = a_model(
        "Zażółć 🐝",
        base_url="http://127.0.0.1:8000/v1",
        options={"api": "chat", "extra": {"ą": 1}},
        max_requests_per_minute=500,
        max_tokens_per_minute=200_000,
        max_in_flight=8,
        price_input=Decimal("1.250000"),
        price_cached=Decimal("0.125000"),
        price_output=Decimal("10.000000"),
    )
    number = models.add(told)
    stored = models.get("Zażółć 🐝")
    assert stored.id_ai_model == number
    assert stored == models.get(number) == models.get(str(number))
    for field in ("base_url", "options", "max_requests_per_minute", "max_tokens_per_minute", "max_in_flight"):
        assert getattr(stored, field) == getattr(told, field)
    assert (stored.price_input, stored.price_cached, stored.price_output) == (Decimal("1.25"), Decimal("0.125"), Decimal(10))
    assert stored.is_active
    assert stored.stopped_at is None


def test_a_key_is_bound_to_the_id_it_was_given(models: Models) -> None:
    ring = Keyring(Secret(generate_master_key()))
    number = models.add(a_model(), lambda id_ai_model: ring.encrypt(id_ai_model, Secret("sk-żółw")))
    value = models.get(number).api_key_encrypted
    assert value is not None
    assert ring.decrypt(number, value).reveal() == "sk-żółw"


def test_nothing_is_added_when_the_key_cannot_be_encrypted(models: Models) -> None:
    def fail(_: int) -> bytes:
        raise ValueError("no master key")

    with pytest.raises(ValueError, match="no master key"):
        models.add(a_model(), fail)
    assert models.all() == []


def test_a_name_is_taken_once(models: Models) -> None:
    models.add(a_model())
    with pytest.raises(UsageError, match="'korekta' already"):
        models.add(a_model())
    assert len(models.all()) == 1


def test_a_number_is_no_name(models: Models) -> None:
    with pytest.raises(UsageError, match="must not be a number"):
        models.add(a_model("17"))
    models.add(a_model())
    with pytest.raises(UsageError, match="must not be a number"):
        models.set("korekta", name="17")


def test_a_value_too_long_for_its_column_is_the_callers_mistake(models: Models) -> None:
    with pytest.raises(UsageError, match="Data too long"):
        models.add(a_model("x" * 101))


def test_an_unknown_model_names_the_known_ones(models: Models) -> None:
    with pytest.raises(UsageError, match="there are none yet"):
        models.get("gpt")
    models.add(a_model("korekta"))
    models.add(a_model("tłumacz"))
    with pytest.raises(UsageError, match="korekta, tłumacz"):
        models.get("gpt")


def test_set_changes_what_it_is_told_and_nothing_else(models: Models) -> None:
    number = models.add(a_model(max_in_flight=8, price_input=Decimal(2)))
    models.set_key(number, b"\x01\x02")
    models.set("korekta", max_in_flight=None, options={"temperature": 0}, is_active=False)
    changed = models.get(number)
    assert (changed.max_in_flight, changed.options, changed.is_active) == (None, {"temperature": 0}, False)
    assert (changed.model, changed.price_input, changed.api_key_encrypted) == ("gpt-5.5", Decimal(2), b"\x01\x02")


def test_a_model_in_use_stays(models: Models, sql: Sql) -> None:
    number = models.add(a_model())
    sql("INSERT INTO task (id_ai_model, description) VALUES (%s, 'Popraw')", (number,))
    with pytest.raises(UsageError, match="used by 1 task and stays"):
        models.remove("korekta")
    sql("DELETE FROM task")
    models.remove("korekta")
    assert models.all() == []


def test_one_of_many_failures_stops_a_model_and_one_of_many_answers_resumes_it(models: Models) -> None:
    number = models.add(a_model())
    assert models.stop(number, "quota_exhausted", "saldo wyczerpane", 60)
    assert not models.stop(number, "access_denied", "a call that was in flight", 60)
    stopped = models.get(number)
    assert (stopped.stopped_kind, stopped.stopped_reason) == ("quota_exhausted", "saldo wyczerpane")
    assert stopped.stopped_at is not None
    assert stopped.probe_at is not None
    assert 59 < (stopped.probe_at - stopped.stopped_at).total_seconds() < 61
    assert models.resume(number)
    assert not models.resume(number)
    assert models.get(number).stopped_kind is None


def test_a_failed_probe_keeps_a_model_stopped_since_it_first_was(models: Models) -> None:
    number = models.add(a_model())
    models.stop(number, "quota_exhausted", "first", 0)
    first = models.get(number)
    assert models.stop(number, "access_denied", "x" * 5000, 0.5)
    second = models.get(number)
    assert second.stopped_at == first.stopped_at
    assert second.stopped_kind == "access_denied"
    assert second.probe_at is not None
    assert first.probe_at is not None
    assert second.probe_at > first.probe_at


def test_rekey_changes_all_keys_or_none(models: Models) -> None:
    numbers = [models.add(a_model(name), lambda _: b"old") for name in ("a", "b", "c")]
    models.add(a_model("without"))

    def fail_at_the_last(number: int, _: bytes) -> bytes:
        if number == numbers[-1]:
            raise ValueError("undecryptable")
        return b"new"

    with pytest.raises(ValueError, match="undecryptable"):
        models.rekey(fail_at_the_last)
    assert [models.get(number).api_key_encrypted for number in numbers] == [b"old"] * 3

    assert models.rekey(lambda number, _: b"new" if number != numbers[0] else None) == 2
    assert [models.get(number).api_key_encrypted for number in numbers] == [b"old", b"new", b"new"]
    assert models.get("without").api_key_encrypted is None
