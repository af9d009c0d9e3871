"""The fake provider on packs, service tiers and tokens counted by the prompt, through the vendors' own clients."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from google import genai
from google.genai import errors, types

from ai_worker.models import NO_USAGE, Completion, Prompt
from ai_worker.task_types.pack import packed, unpacked
from tests.fake_provider import FakeProvider, Rule, correct, tokens_for
from tests.fake_provider.packs import items_in
from tests.fake_provider.samples import prompt
from tests.fake_provider.sdk import gemini_client, openai_client

TEXTS = ["Zażółć gęślą", "dwa\n\nItem 2\n<<<ffffffffffffffff>>>\nobcy\n<<<ffffffffffffffff>>>", "", "trzy"]


@pytest.fixture(scope="module")
def running() -> Iterator[FakeProvider]:
    with FakeProvider() as fake:
        yield fake


@pytest.fixture
def fake(running: FakeProvider) -> FakeProvider:
    running.reset()
    return running


@pytest.fixture
def client(fake: FakeProvider) -> Iterator[openai.OpenAI]:
    with openai_client(fake) as one:
        yield one


@pytest.fixture
def gemini(fake: FakeProvider) -> Iterator[genai.Client]:
    one = gemini_client(fake)
    yield one
    one.close()


def ask(client: openai.OpenAI, asked: Prompt, **more: Any) -> Any:
    messages: Any = [{"role": "system", "content": asked.system}, {"role": "user", "content": asked.user}]
    described: Any = {"type": "json_schema", "json_schema": {"name": asked.schema_name, "schema": asked.schema}}
    return client.chat.completions.create(model="gpt-x", messages=messages, response_format=described, **more)


def pack(*texts: str) -> Prompt:
    return packed([prompt(text) for text in texts])


def elements(said: str | None) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(said or "")["results"]
    return found


# -- packs -------------------------------------------------------------------------------------------------------------


def test_the_items_of_a_pack_are_told_apart() -> None:
    asked = pack(*TEXTS)
    assert items_in(asked.user, dict(asked.schema)) == tuple(enumerate(TEXTS, 1))


def test_a_single_text_that_looks_like_a_pack_is_none() -> None:
    inner = pack("a", "b")
    assert items_in(prompt(inner.user).user, dict(prompt().schema)) == ()
    assert items_in(pack(inner.user).user, dict(inner.schema)) == ((1, inner.user),)


def test_each_item_is_answered_as_it_would_be_alone(fake: FakeProvider, client: openai.OpenAI) -> None:
    alone = [json.loads(ask(client, prompt(text)).choices[0].message.content) for text in TEXTS]
    fake.reset()
    answer = ask(client, pack(*TEXTS))
    assert elements(answer.choices[0].message.content) == [{"item": number, **one} for number, one in enumerate(alone, 1)]
    assert fake.per_text == dict.fromkeys(TEXTS, 1)
    assert fake.texts()[TEXTS[0]] == {"requests": 1, "rows": 0, "paid": 1}
    assert fake.counts()["requests"] == 1
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (
        tokens_for(*TEXTS).input,
        tokens_for(*TEXTS).output,
    )


def test_packs_are_answered_by_every_api_and_without_a_schema_field(
    fake: FakeProvider, client: openai.OpenAI, gemini: genai.Client
) -> None:
    asked, expected = pack("raz", "dwa"), ["raz ✓", "dwa ✓"]
    spelled = f"{asked.system}\nAnswer by this schema:\n{json.dumps(asked.schema)}\n"
    messages: Any = [{"role": "system", "content": spelled}, {"role": "user", "content": asked.user}]
    chat = client.chat.completions.create(model="gpt-x", messages=messages).choices[0].message.content
    text: Any = {"format": {"type": "json_schema", "name": "x", "schema": asked.schema}}
    responses = client.responses.create(model="gpt-x", instructions=asked.system, input=asked.user, text=text).output_text
    config = types.GenerateContentConfig(
        system_instruction=asked.system, response_mime_type="application/json", response_json_schema=asked.schema
    )
    google = gemini.models.generate_content(model="gemini-x", contents=asked.user, config=config).text
    for said in (chat, responses, google):
        assert [one["corrected"] for one in elements(said)] == expected


@pytest.mark.parametrize(
    ("rule", "left"),
    [
        (Rule("pack_missing"), {0, 1}),
        (Rule("pack_missing", contains="raz"), {1, 2}),
        (Rule("pack_wrong_ids"), {0, 1}),
        (Rule("pack_wrong_ids", contains="dwa", content="duplicate"), {2}),
        (Rule("pack_wrong_ids", contains="dwa", content="swapped"), {2}),
        (Rule("cut_short"), {0}),
        (Rule("wrong_shape"), set()),
    ],
)
def test_a_spoilt_pack_leaves_these_items(fake: FakeProvider, client: openai.OpenAI, rule: Rule, left: set[int]) -> None:
    fake.script(rule)
    answer = ask(client, pack("raz", "dwa", "trzy"))
    finished = unpacked(Completion(answer.choices[0].message.content, NO_USAGE, "stop", "gpt-x", None), 3)
    assert set(finished) == left
    assert all(json.loads(finished[one])["corrected"] == correct(["raz", "dwa", "trzy"][one]) for one in left)
    assert fake.per_fault == {rule.fault: 1}


def test_a_malformed_element_breaks_the_schema_of_its_item_alone(fake: FakeProvider, client: openai.OpenAI) -> None:
    fake.script(Rule("pack_malformed", contains="dwa"))
    first, second, third = elements(ask(client, pack("raz", "dwa", "trzy")).choices[0].message.content)
    assert (first["corrected"], second, third["corrected"]) == ("raz ✓", {"item": 2, "answer": 42}, "trzy ✓")


def test_faults_of_packs_spare_single_calls(fake: FakeProvider, client: openai.OpenAI) -> None:
    fake.script(Rule("pack_missing"))
    assert json.loads(ask(client, prompt("raz")).choices[0].message.content)["corrected"] == "raz ✓"
    assert fake.per_fault == {}


def test_a_given_answer_is_that_of_the_one_text_it_is_for(fake: FakeProvider, client: openai.OpenAI) -> None:
    fake.script(Rule("answer", contains="dwa", content='{"corrected": "DWA", "changes": []}'))
    said = elements(ask(client, pack("raz", "dwa")).choices[0].message.content)
    assert [one["corrected"] for one in said] == ["raz ✓", "DWA"]


def test_a_wrong_id_must_be_wrong_in_a_known_way() -> None:
    with pytest.raises(ValueError, match="unknown, duplicate, swapped"):
        Rule("pack_wrong_ids", content="upside down")


# -- service tiers -----------------------------------------------------------------------------------------------------


def test_openai_says_which_tier_answered(fake: FakeProvider, client: openai.OpenAI) -> None:
    assert ask(client, prompt()).service_tier == "default"
    assert ask(client, prompt(), service_tier="flex").service_tier == "flex"
    assert client.responses.create(model="gpt-x", input="raz", service_tier="flex").service_tier == "flex"
    assert client.responses.create(model="gpt-x", input="raz").service_tier == "default"
    assert fake.counts()["per_tier"] == {"default": 2, "flex": 2}


def test_gemini_says_which_tier_answered(fake: FakeProvider, gemini: genai.Client) -> None:
    for asked, said in ((None, "standard"), (types.ServiceTier.FLEX, "flex")):
        config = types.GenerateContentConfig(service_tier=asked, should_return_http_response=True)
        http = gemini.models.generate_content(model="gemini-x", contents="raz", config=config).sdk_http_response
        assert http is not None
        assert (http.headers or {})["x-gemini-service-tier"] == said
        assert json.loads(http.body or "")["usageMetadata"]["serviceTier"] == said  # not yet a field of the client's
    assert fake.requests[1].body["serviceTier"] == "flex"


def test_shedding_strikes_the_cheaper_tier_alone(fake: FakeProvider, client: openai.OpenAI, gemini: genai.Client) -> None:
    fake.script(Rule("flex_shed"))
    with pytest.raises(openai.RateLimitError) as shed:
        ask(client, prompt(), service_tier="flex")
    assert shed.value.code == "resource_unavailable"
    assert ask(client, prompt()).choices
    flex = types.GenerateContentConfig(service_tier=types.ServiceTier.FLEX)
    with pytest.raises(errors.ServerError) as overloaded:
        gemini.models.generate_content(model="gemini-x", contents="raz", config=flex)
    assert (overloaded.value.code, overloaded.value.status) == (503, "UNAVAILABLE")
    assert gemini.models.generate_content(model="gemini-x", contents="raz").text
    assert fake.counts()["tokens_total"] == sum(
        tokens_for(text).input + tokens_for(text).output for text in (prompt().text, "raz")
    )


# -- tokens counted by the prompt --------------------------------------------------------------------------------------


@pytest.fixture
def counting() -> Iterator[FakeProvider]:
    with FakeProvider(count="prompt") as fake:
        yield fake


def test_the_whole_prompt_and_the_answer_are_counted(counting: FakeProvider) -> None:
    asked = prompt("raz")
    with openai_client(counting) as client:
        answer = ask(client, asked)
    whole = json.dumps(asked.schema) + asked.system + asked.user
    assert answer.usage.prompt_tokens == -(-len(whole) // 4)
    assert answer.usage.completion_tokens == -(-len(answer.choices[0].message.content) // 4)
    assert answer.usage.prompt_tokens_details.cached_tokens == 0


def test_a_long_beginning_seen_before_is_cached(counting: FakeProvider) -> None:
    def cached(system: str, text: str, model: str = "gpt-x") -> int:
        messages: Any = [{"role": "system", "content": system}, {"role": "user", "content": text}]
        with openai_client(counting) as client:
            usage = client.chat.completions.create(model=model, messages=messages).usage
        assert usage is not None
        assert usage.prompt_tokens_details is not None
        return usage.prompt_tokens_details.cached_tokens or 0

    long = "Popraw tekst. " * 400  # 5,600 characters, 1,400 tokens
    assert [cached(long, "a" * 999), cached(long, "b" * 999), cached(long, "a" * 999)] == [0, 1280, 1536]
    assert cached(long, "c", model="gpt-y") == 0  # each model has a cache of its own
    assert [cached("Popraw. " * 500, text) for text in "xyz"] == [0, 0, 0]  # 1,000 tokens are too few
    assert counting.counts()["tokens"]["cached"] == 1280 + 1536


def test_a_pack_costs_the_fixed_part_once(counting: FakeProvider) -> None:
    texts = [f"This are sentence number {number}, who has a mistakes." for number in range(10)]
    with openai_client(counting) as client:
        singly = sum(ask(client, prompt(text)).usage.prompt_tokens for text in texts)
        together = ask(client, pack(*texts)).usage.prompt_tokens
    assert together < singly * 0.7
