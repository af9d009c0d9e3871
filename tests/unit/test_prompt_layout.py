"""What providers' prompt caches go by: the beginning of a request, to the first byte that differs from an earlier one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from ai_worker.models import Prompt
from ai_worker.providers import Provider, ProviderConfig
from ai_worker.providers.gemini import GeminiProvider
from ai_worker.providers.openai import OpenAIProvider
from ai_worker.task_types import task_type
from ai_worker.task_types.pack import packed
from tests.fake_provider import FakeProvider, asking
from tests.fake_provider.samples import secret
from tests.unit.test_prompts import INJECTION, PARAMETERS, an_item

pytest_plugins = ["tests.fake_provider.asking"]

TEXTS = ["jeden", INJECTION, "trzy 🙂\r\n" * 50]


def singles(name: str) -> list[Prompt]:
    return [task_type(name).prompt(an_item(name, text)) for text in TEXTS]


def packs(name: str) -> list[Prompt]:
    made = singles(name)
    return [packed(made[:1]), packed(made), packed(made[1:])]


@pytest.mark.parametrize("name", PARAMETERS)
@pytest.mark.parametrize("made", [singles, packs])
def test_all_that_varies_stands_in_the_user_part(name: str, made: Any) -> None:
    prompts = made(name)
    assert len({(prompt.system, prompt.schema_name, json.dumps(prompt.schema), prompt.temperature) for prompt in prompts}) == 1
    for prompt in prompts:
        assert all(text not in prompt.system for text in TEXTS)
        marker = next(line for line in prompt.user.split("\n") if line.startswith("<<<"))
        assert marker not in prompt.system


def test_the_fixed_part_is_what_a_request_mostly_consists_of() -> None:
    """A short text's own tokens are next to nothing beside it: there is something to be saved by a cache."""
    for name in PARAMETERS:
        prompt = singles(name)[0]
        assert len(prompt.system) > 10 * len(prompt.user)


def endpoints(fake: FakeProvider) -> Iterator[tuple[type[Provider], ProviderConfig]]:
    for structured in ("json_schema", "json_object", "text"):
        options: dict[str, Any] = {"structured": structured}
        for api in ("chat", "responses"):
            yield OpenAIProvider, ProviderConfig("m", "gpt-x", fake.openai_url, secret(), {**options, "api": api})
        yield GeminiProvider, ProviderConfig("m", "gemini-x", fake.gemini_url, secret(), options)


@pytest.mark.parametrize("made", [singles, packs])
def test_requests_differ_in_nothing_but_their_last_message(fake: FakeProvider, made: Any) -> None:
    for kind, config in endpoints(fake):
        fake.requests.clear()
        prompts = made("correction")
        asking.ask(kind, config, *prompts)
        bodies = [request.body for request in fake.requests]
        assert [user_part(body) for body in bodies] == [prompt.user for prompt in prompts]
        assert len({json.dumps(without_user_part(body)) for body in bodies}) == 1, (kind, config.options)


def user_part(body: dict[str, Any]) -> Any:
    if contents := body.get("contents"):
        (content,) = contents
        (part,) = content["parts"]
        return part["text"]
    fixed, varying = body.get("messages") or body["input"]  # Google puts the parts of a request in order by itself
    assert (fixed["role"], varying["role"]) == ("system", "user")
    return varying["content"]


def without_user_part(body: dict[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(body).replace(json.dumps(user_part(body)), '""'))
