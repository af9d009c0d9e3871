"""The `gemini` provider over the real SDK against the fake server: each fault as the worker will see it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ai_worker import errors
from ai_worker.errors import ConfigurationError, ProviderError
from ai_worker.models import Completion, Limits, Usage
from ai_worker.providers import ProviderConfig, provider_class
from ai_worker.providers._gemini_wire import failure, read, supported_schema
from ai_worker.providers.gemini import CONFIGS_KEPT, GeminiProvider
from tests.fake_provider import FakeProvider, Rule, asking, correct, tokens_for
from tests.fake_provider.asking import Expected
from tests.fake_provider.faults import CONDITIONAL, FAULTS
from tests.fake_provider.samples import KEY, SCHEMA, TEXT, prompt, secret, whole_traceback

pytest_plugins = ["tests.fake_provider.asking"]

BILLED = Usage(tokens_for(TEXT).input, tokens_for(TEXT).output)
PER_MINUTE = "GenerateRequestsPerMinutePerProjectPerModel-FreeTier"
PER_DAY = "GenerateRequestsPerDayPerProjectPerModel-FreeTier"


def configured(fake: FakeProvider, **changes: Any) -> ProviderConfig:
    fields: dict[str, Any] = {"name": "m", "model": "gemini-x", "base_url": fake.gemini_url, "api_key": secret()}
    return ProviderConfig(**(fields | changes))


ask = partial(asking.ask, GeminiProvider)
refused = partial(asking.refused, GeminiProvider)

EXPECTED = {
    "400": Expected(errors.InvalidRequest, "INVALID_ARGUMENT", says="HTTP 400: Invalid value"),
    "400_context_length": Expected(errors.InputTooLong, "INVALID_ARGUMENT", says="exceeds the maximum number of tokens"),
    "400_content_filter": Expected(errors.ContentRefused, "INVALID_ARGUMENT"),
    "400_bad_key": Expected(errors.AccessDenied, "API_KEY_INVALID", says="API key not valid"),
    "400_model": Expected(errors.ModelUnknown, "INVALID_ARGUMENT"),
    "400_option": Expected(errors.ModelStopped, "INVALID_ARGUMENT"),
    "401": Expected(errors.AccessDenied, "UNAUTHENTICATED"),
    "402": Expected(errors.QuotaExhausted, "INVALID_ARGUMENT"),
    "403": Expected(errors.AccessDenied, "PERMISSION_DENIED"),
    "404": Expected(errors.ModelUnknown, "NOT_FOUND"),
    "408": Expected(errors.Overloaded, "DEADLINE_EXCEEDED"),
    "409": Expected(errors.Overloaded, "ABORTED"),
    "413": Expected(errors.InputTooLong, "INVALID_ARGUMENT"),
    "422": Expected(errors.InvalidRequest, "INVALID_ARGUMENT"),
    "429": Expected(errors.RateLimited, PER_MINUTE),
    "429_retry_after": Expected(errors.RateLimited, PER_MINUTE, retry_after=7.0),
    "429_retry_after_ms": Expected(errors.RateLimited, PER_MINUTE, retry_after=1.5),
    "429_quota": Expected(errors.QuotaExhausted, PER_DAY, retry_after=37024.0),
    "429_no_quota_ever": Expected(errors.QuotaExhausted, PER_MINUTE, retry_after=39.0),
    "500": Expected(errors.Overloaded, "INTERNAL"),
    "500_broken_json": Expected(errors.Overloaded, "not_json"),
    "502_html": Expected(errors.Overloaded, "Bad Gateway", says="HTTP 502: Bad Gateway 502 Bad Gateway nginx"),
    "503": Expected(errors.Overloaded, "UNAVAILABLE", retry_after=3.0),
    "529": Expected(errors.Overloaded, "UNAVAILABLE"),
    "drop": Expected(errors.NetworkFailed, None, says="connection failed"),
    "html": Expected(errors.BadAnswer, "not_json", says="Bad Gateway"),
    "broken_json": Expected(errors.BadAnswer, "not_json"),
    "not_an_object": Expected(errors.BadAnswer, "not_json"),
    "no_answer_in_it": Expected(errors.BadAnswer, "wrong_shape", says="something else"),
    "error_in_200": Expected(errors.Overloaded, "UNAVAILABLE", says="upstream server is overloaded"),
    "empty": Expected(errors.BadAnswer, "empty", BILLED),
    "empty_cut_short": Expected(errors.BadAnswer, "MAX_TOKENS", BILLED, says="thoughts used up the output limit"),
    "refused": Expected(errors.ContentRefused, "SAFETY", BILLED),
    "filtered": Expected(errors.ContentRefused, "RECITATION", BILLED),
    "blocked": Expected(errors.ContentRefused, "PROHIBITED_CONTENT", Usage(BILLED.tokens_input, 0)),
}


@pytest.mark.parametrize("fault", EXPECTED)
def test_each_fault_is_sorted(fake: FakeProvider, fault: str) -> None:
    expected = EXPECTED[fault]
    fake.script(Rule(fault))
    error = refused(configured(fake))
    assert type(error) is expected.kind
    assert (error.code, error.usage, error.retry_after) == (expected.code, expected.usage, expected.retry_after)
    assert expected.says in str(error)
    assert fake.counts()["requests"] == 1  # neither the SDK nor we try again


def test_no_fault_of_the_server_is_left_out_here() -> None:
    assert set(EXPECTED) | {"answer", "slow", "hang", "cut_short", "wrong_shape", *CONDITIONAL} == FAULTS


@pytest.mark.parametrize("fault", EXPECTED)
def test_the_key_never_shows(fake: FakeProvider, fault: str) -> None:
    fake.script(Rule(fault, echo_key=True))
    error = refused(configured(fake))
    assert KEY not in whole_traceback(error)
    assert error.__context__ is None  # the SDK's error would hold the response and its request with its headers
    assert KEY[8:] not in str(error)


def test_the_key_is_not_in_the_providers_repr_and_reaches_the_server(fake: FakeProvider) -> None:
    assert KEY not in repr(GeminiProvider(configured(fake)))
    ask(configured(fake))
    assert fake.requests[0].headers["x-goog-api-key"] == KEY
    assert KEY not in fake.requests[0].path


@pytest.mark.parametrize(
    ("message", "details", "kind", "retry_after"),
    [
        ("Quota exceeded. Please retry in 10h17m4.5s.", [], errors.RateLimited, 37024.5),
        ("Your prepayment credits are depleted.", [], errors.QuotaExhausted, None),
        ("Resource has been exhausted (e.g. check quota).", [], errors.RateLimited, None),
        ("limit: 0, model: x", [{"@type": "type.googleapis.com/google.rpc.RetryInfo"}], errors.QuotaExhausted, None),
        ("limit: 05", "not a list", errors.RateLimited, None),
    ],
)
def test_a_429_by_its_words(message: str, details: Any, kind: type[ProviderError], retry_after: float | None) -> None:
    error = failure(429, {"error": {"message": message, "status": "RESOURCE_EXHAUSTED", "details": details}}, {}, ())
    assert (type(error), error.retry_after, error.code) == (kind, retry_after, "RESOURCE_EXHAUSTED")


def test_a_daily_quota_decides_over_one_by_the_minute() -> None:
    """As the API really answers when both are hit."""
    violations = [{"quotaId": PER_MINUTE}, {"quotaId": PER_DAY}]
    details = [{"@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": violations}]
    error = failure(429, [{"error": {"message": "You exceeded your current quota", "details": details}}], {}, ())
    assert (type(error), error.code) == (errors.QuotaExhausted, PER_DAY)


PER_MINUTE_TOKENS = "GenerateContentInputTokensPerModelPerMinute-PaidTier2"


@pytest.mark.parametrize(
    ("violations", "limits"),
    [
        ([{"quotaId": PER_MINUTE, "quotaValue": "15"}], Limits(15, None)),
        ([{"quotaId": PER_MINUTE_TOKENS, "quotaValue": "250000"}], Limits(None, 250_000)),
        (
            [{"quotaId": PER_MINUTE_TOKENS, "quotaValue": 250000}, {"quotaId": PER_MINUTE, "quotaValue": "15"}],
            Limits(15, 250_000),
        ),
        ([{"quotaId": PER_DAY, "quotaValue": "20"}, {"quotaId": PER_MINUTE, "quotaValue": "5"}], Limits(5, None)),
        ([{"quotaId": PER_DAY, "quotaValue": "20"}], None),
        ([{"quotaId": PER_MINUTE}, {"quotaValue": "9"}, {"quotaId": "ImagesPerMinute", "quotaValue": "9"}, "?"], None),
        ([{"quotaId": PER_MINUTE, "quotaValue": "0"}], None),
        ({}, None),
    ],
)
def test_a_429_names_the_limit_that_was_hit(violations: Any, limits: Limits | None) -> None:
    details = [{"@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": violations}]
    assert failure(429, {"error": {"message": "Quota exceeded", "details": details}}, {}, ()).limits == limits


@pytest.mark.parametrize("version", ["v1beta", "v1"])
def test_the_answer_with_its_usage(fake: FakeProvider, version: str) -> None:
    fake.script(Rule("answer", tokens=[120, 80, 64, 50]))
    completion = ask(configured(fake, options={"api_version": version}))[0]
    assert json.loads(completion.text)["corrected"] == correct(TEXT)
    assert completion.usage == Usage(120, 80, tokens_cached=64, tokens_reasoning=50)
    assert (completion.finish, completion.model) == ("stop", "gemini-x")
    assert completion.request_id is not None
    assert fake.requests[0].path == f"/{version}/models/gemini-x:generateContent"


def test_an_answer_that_was_cut_short_says_so(fake: FakeProvider) -> None:
    fake.script(Rule("cut_short"))
    completion = ask(configured(fake))[0]
    assert completion.finish == "length"
    assert completion.text.startswith('{"corrected": "Zaż')
    assert completion.usage == BILLED


def test_the_shape_of_the_answer_is_the_task_types_business(fake: FakeProvider) -> None:
    fake.script(Rule("wrong_shape"))
    assert ask(configured(fake))[0].text == '{"answer": 42}'


KEYS = ["error", "candidates", "content", "parts", "text", "thought", "finishReason", "promptFeedback", "blockReason", "code"]
MORE_KEYS = ["usageMetadata", "promptTokenCount", "details", "@type", "violations", "quotaId", "retryDelay", "reason", "message"]
WORDS = ["STOP", "MAX_TOKENS", "SAFETY", "google.rpc.QuotaFailure", "google.rpc.RetryInfo", "39s", "9h9", "retry in 9s"]
ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from(WORDS) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS + MORE_KEYS), inner, max_size=6),
    max_leaves=20,
)


@given(st.dictionaries(st.sampled_from(KEYS + MORE_KEYS), ANY_JSON, max_size=8), st.sampled_from([302, 400, 429, 500]))
def test_no_shape_of_an_answer_or_error_breaks_the_reader(body: dict[str, Any], status: int) -> None:
    with contextlib.suppress(ProviderError):
        assert read(body, KEY).text.strip()
    error = failure(status, body, {}, (KEY,))
    assert isinstance(error, ProviderError)
    assert len(str(error)) < 600


# -- what is sent ------------------------------------------------------------------------------------------------------


def test_request(fake: FakeProvider) -> None:
    options = {"max_output_tokens": "500", "thinking_budget": "0", "safety": "off", "extra_body": '{"serviceTier": "flex"}'}
    ask(configured(fake, options=options))
    request = fake.requests[0]
    thinking = request.body["generationConfig"].pop("thinkingConfig")
    assert list(thinking.values()) == [0]  # its name is spelt in snake or camel case, as the SDK's version has it; both work
    assert request.path == "/v1beta/models/gemini-x:generateContent"
    assert request.headers["x-server-timeout"] == "120"
    assert request.body == {
        "contents": [{"role": "user", "parts": [{"text": prompt().user}]}],
        "systemInstruction": {"role": "user", "parts": [{"text": prompt().system}]},
        "generationConfig": {
            "temperature": 0.2,
            "maxOutputTokens": 500,
            "responseMimeType": "application/json",
            "responseJsonSchema": prompt().schema,
        },
        "safetySettings": [
            {"category": f"HARM_CATEGORY_{category}", "threshold": "OFF"}
            for category in ("HARASSMENT", "HATE_SPEECH", "SEXUALLY_EXPLICIT", "DANGEROUS_CONTENT")
        ],
        "serviceTier": "flex",
    }


def test_the_prompts_parameters_are_sent_unless_the_model_has_its_own(fake: FakeProvider) -> None:
    of_prompt = prompt(temperature=0.7, top_p=0.9, max_output_tokens=300)
    ask(configured(fake), of_prompt, prompt(temperature=0.7))
    ask(configured(fake, options={"temperature": 0, "top_p": 0.5, "max_output_tokens": 500}), of_prompt)
    sent = [request.body["generationConfig"] for request in fake.requests]
    told = [(each["temperature"], each.get("topP"), each.get("maxOutputTokens")) for each in sent]
    assert told == [(0.7, 0.9, 300), (0.7, None, None), (0, 0.5, 500)]


def test_each_task_is_asked_in_its_own_way(fake: FakeProvider) -> None:
    """What stands around the text is built once a task; tasks whose items come in turns must not get each other's."""
    other = SCHEMA | {"required": ["corrected"]}
    asked = [prompt(), prompt("a"), prompt(system="Other."), prompt(schema=other), prompt(temperature=0.7)]
    ask(configured(fake), *asked, *asked)
    sent = [
        (
            request.text,
            request.body["systemInstruction"]["parts"][0]["text"],
            request.body["generationConfig"]["responseJsonSchema"],
            request.body["generationConfig"]["temperature"],
        )
        for request in fake.requests
    ]
    assert sent == [(each.text, each.system, each.schema, each.temperature) for each in asked * 2]


def test_more_tasks_than_are_remembered(fake: FakeProvider) -> None:
    asked = [prompt(system=f"Task {number}.") for number in range(CONFIGS_KEPT + 2)]
    ask(configured(fake), *asked)
    assert [each.body["systemInstruction"]["parts"][0]["text"] for each in fake.requests] == [each.system for each in asked]


def test_thinking_level(fake: FakeProvider) -> None:
    ask(configured(fake, options={"thinking_level": "low"}))
    assert fake.requests[0].body["generationConfig"]["thinkingConfig"].popitem()[1] == "LOW"


@pytest.mark.parametrize(("structured", "mime"), [("json_object", "application/json"), ("text", None)])
def test_without_schema_support_the_schema_goes_into_the_prompt(fake: FakeProvider, structured: str, mime: str | None) -> None:
    completion = ask(configured(fake, options={"structured": structured}))[0]
    assert json.loads(completion.text)["corrected"] == correct(TEXT)
    body = fake.requests[0].body
    assert body["generationConfig"].get("responseMimeType") == mime
    assert "responseJsonSchema" not in body["generationConfig"]
    assert "fit this JSON schema" in body["systemInstruction"]["parts"][0]["text"]


def test_the_environment_does_not_decide(fake: FakeProvider, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOOGLE_GENAI_USE_VERTEXAI", "true")
    monkeypatch.setenv("GOOGLE_API_KEY", "key-of-the-environment")
    monkeypatch.setenv("GOOGLE_GENAI_API_VERSION", "v9")
    ask(configured(fake))
    assert fake.requests[0].path.startswith("/v1beta/")
    assert fake.requests[0].headers["x-goog-api-key"] == KEY


def test_only_what_gemini_understands_of_a_schema_is_sent() -> None:
    schema = {
        "type": "object",
        "properties": {
            "const": {"const": "a"},  # a property may be called like a keyword
            "text": {"type": "string", "minLength": 1, "pattern": "x", "description": "tekst"},
            "tags": {"type": "array", "items": {"type": "string", "maxLength": 3}, "uniqueItems": True, "maxItems": 5},
            "level": {"anyOf": [{"type": "integer", "minimum": 0, "exclusiveMaximum": 9}, {"type": "null"}]},
        },
        "required": ["const", "text"],
        "additionalProperties": False,
    }
    assert supported_schema(schema) == {
        "type": "object",
        "properties": {
            "const": {"enum": ["a"]},
            "text": {"type": "string", "description": "tekst"},
            "tags": {"type": "array", "items": {"type": "string"}, "maxItems": 5},
            "level": {"anyOf": [{"type": "integer", "minimum": 0}, {"type": "null"}]},
        },
        "required": ["const", "text"],
        "additionalProperties": False,
    }


# -- time, connections, configuration ----------------------------------------------------------------------------------


def test_a_hanging_server_is_left_in_time(fake: FakeProvider) -> None:
    fake.script(Rule("hang"))
    started = time.monotonic()
    error = refused(configured(fake, request_timeout=0.3))
    assert time.monotonic() - started < 5
    assert type(error) is errors.NetworkFailed
    assert (error.code, str(error)) == ("timeout", "no complete answer within 0.3 s")


def test_nobody_there_is_told_at_once(fake: FakeProvider) -> None:
    """By itself the SDK would sleep for up to ten seconds and send again."""
    started = time.monotonic()
    error = refused(configured(fake, base_url="http://127.0.0.1:1"))
    assert time.monotonic() - started < 4
    assert type(error) is errors.NetworkFailed
    assert "connection failed" in str(error)


def test_three_hundred_calls_run_at_once() -> None:
    with FakeProvider(gather=300) as fake:

        async def run() -> list[Completion]:
            provider = GeminiProvider(configured(fake, max_connections=300))
            try:
                return await asyncio.gather(*(provider.complete(prompt(f"wiersz {n}")) for n in range(300)))
            finally:
                await provider.aclose()

        completions = asyncio.run(run())
    assert fake.peak_in_flight == 300
    assert set(fake.counts()["per_text"].values()) == {1}
    assert [json.loads(one.text)["corrected"] for one in completions] == [correct(f"wiersz {n}") for n in range(300)]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"options": {"thinking": "0"}}, "unknown option 'thinking'; known ones: api_version, structured"),
        ({"options": {"thinking_budget": "-2"}}, "a whole number of at least -1"),
        ({"options": {"safety": "low"}}, "one of default, off"),
        ({"options": {"api_version": ""}}, "a text"),
        ({"model": None}, "needs a model name"),
        ({"api_key": None}, "needs an API key"),
        ({"base_url": "ftp://x"}, "must begin with http:// or https://"),
    ],
)
def test_a_configuration_that_cannot_work(fake: FakeProvider, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        GeminiProvider(configured(fake, **changes))


def test_registered_as_gemini() -> None:
    assert provider_class("gemini") is GeminiProvider
