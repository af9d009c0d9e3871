"""The `echo` provider, and the schema filling it shares with `offline`."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import jsonschema_rs
import pytest

from ai_worker.errors import ConfigurationError
from ai_worker.models import Completion
from ai_worker.providers import ProviderConfig, provider_class
from ai_worker.providers._fill import fill
from ai_worker.providers.echo import EchoProvider
from tests.fake_provider.samples import TEXT, prompt


def ask(**options: Any) -> Completion:
    async def run() -> Completion:
        provider = EchoProvider(ProviderConfig("m", options=options))
        completion = await provider.complete(prompt())
        await provider.aclose()
        return completion

    return asyncio.run(run())


def test_gives_the_text_back_with_estimated_usage() -> None:
    completion = ask()
    assert json.loads(completion.text) == {"corrected": TEXT, "changes": []}
    characters = len(prompt().system) + len(prompt().user)
    assert completion.usage.tokens_input == (characters + 3) // 4
    assert completion.usage.tokens_output == (len(completion.text) + 3) // 4
    assert (completion.finish, completion.model) == ("stop", "echo")


def test_without_delay_it_never_gives_the_loop_away() -> None:
    """One `send` finishes the coroutine: no sleep, no future, nothing to schedule."""
    call = EchoProvider(ProviderConfig("m")).complete(prompt())
    with pytest.raises(StopIteration) as finished:
        call.send(None)
    assert isinstance(finished.value.value, Completion)


def test_delay() -> None:
    started = time.monotonic()
    ask(delay_ms="50")
    assert time.monotonic() - started >= 0.05


@pytest.mark.parametrize("options", [{"delay_ms": "-1"}, {"delay_ms": "soon"}, {"delay_ms": True}, {"delay": "5"}])
def test_a_configuration_that_cannot_work(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="option"):
        EchoProvider(ProviderConfig("m", options=options))


def test_registered_as_echo() -> None:
    assert provider_class("echo") is EchoProvider


WIDE: dict[str, Any] = {
    "type": "object",
    "$defs": {
        "note": {"type": "object", "properties": {"kind": {"$ref": "#/$defs/kind"}}, "required": ["kind"]},
        "kind": {"const": 7},
    },
    "properties": {
        "summary": {"type": "string"},
        "title": {"type": "string", "minLength": 3},
        "category": {"type": "string", "enum": ["skarga", "pochwała"]},
        "mood": {"type": ["string", "null"]},
        "score": {"type": "integer", "minimum": 1, "maximum": 5},
        "share": {"type": "number", "maximum": -2},
        "above": {"type": "number", "exclusiveMinimum": 3},
        "below": {"type": "integer", "exclusiveMaximum": 0},
        "certain": {"type": "boolean"},
        "tags": {"type": "array", "items": {"type": "string"}},
        "pair": {"type": "array", "items": {"$ref": "#/$defs/note"}, "minItems": 2},
        "reason": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        "either": {"oneOf": [{"type": "integer"}, {"type": "string"}]},
        "note": {"$ref": "#/$defs/note"},
        "whatever": {},
        "optional": {"type": "string"},
    },
    "additionalProperties": False,
}
WIDE["required"] = [name for name in WIDE["properties"] if name != "optional"]


def test_fill_gives_the_smallest_values_that_fit() -> None:
    filled = fill(WIDE, "summary", TEXT)
    jsonschema_rs.validator_for(WIDE).validate(filled)
    assert filled == {
        "summary": TEXT,
        "title": "---",
        "category": "skarga",
        "mood": None,
        "score": 1,
        "share": -2,
        "above": 4,
        "below": -1,
        "certain": False,
        "tags": [],
        "pair": [{"kind": 7}, {"kind": 7}],
        "reason": None,
        "either": 0,
        "note": {"kind": 7},
        "whatever": None,
    }


@pytest.mark.parametrize(
    ("answer_field", "value"),
    [("category", "skarga"), ("score", 1), ("tags", []), ("mood", TEXT), ("title", TEXT), ("optional", TEXT)],
)
def test_the_text_goes_only_where_free_text_fits(answer_field: str, value: object) -> None:
    filled = fill(WIDE, answer_field, TEXT)
    jsonschema_rs.validator_for(WIDE).validate(filled)
    assert filled[answer_field] == value


def test_the_text_is_cut_to_what_fits() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string", "maxLength": 4}}, "required": ["a"]}
    assert fill(schema, "a", "Żółwie") == {"a": "Żółw"}
