"""The `openai` provider over the real SDK against the fake server: each fault, in both APIs, as the worker will see it."""

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
from ai_worker.models import Completion, Secret, Usage
from ai_worker.providers import ProviderConfig, provider_class
from ai_worker.providers._openai_wire import failure, read_chat, read_responses
from ai_worker.providers.openai import Dialect, OpenAIProvider
from tests.fake_provider import FakeProvider, Rule, asking, correct, tokens_for
from tests.fake_provider.asking import Expected
from tests.fake_provider.faults import CONDITIONAL, FAULTS
from tests.fake_provider.samples import KEY, SCHEMA, TEXT, prompt, secret, whole_traceback

pytest_plugins = ["tests.fake_provider.asking"]

BILLED = Usage(tokens_for(TEXT).input, tokens_for(TEXT).output)
BOTH = ("chat", "responses")


def configured(fake: FakeProvider, **changes: Any) -> ProviderConfig:
    fields: dict[str, Any] = {"name": "m", "model": "gpt-x", "base_url": fake.openai_url, "api_key": secret()}
    return ProviderConfig(**(fields | changes))


ask = partial(asking.ask, OpenAIProvider)
refused = partial(asking.refused, OpenAIProvider)

FAILED_REQUESTS = {
    "400": Expected(errors.InvalidRequest, "invalid_value", says="Invalid value for 'messages[0].role'"),
    "400_context_length": Expected(errors.InputTooLong, "context_length_exceeded", says="maximum context length is 8192"),
    "400_content_filter": Expected(errors.ContentRefused, "content_filter"),
    "400_bad_key": Expected(errors.AccessDenied, "invalid_api_key"),
    "400_model": Expected(errors.ModelUnknown, "invalid_request_error", says="Model Not Exist"),
    "400_option": Expected(errors.ModelStopped, "unsupported_parameter", says="reasoning_effort"),
    "401": Expected(errors.AccessDenied, "invalid_api_key", says="Incorrect API key provided"),
    "402": Expected(errors.QuotaExhausted, "invalid_request_error", says="Insufficient Balance"),
    "403": Expected(errors.AccessDenied, "unsupported_country_region_territory"),
    "404": Expected(errors.ModelUnknown, "model_not_found", says="`gpt-x` does not exist"),
    "408": Expected(errors.Overloaded, "request_timeout"),
    "409": Expected(errors.Overloaded, "conflict"),
    "413": Expected(errors.InputTooLong, "request_too_large"),
    "422": Expected(errors.InvalidRequest, "unprocessable_entity"),
    "429": Expected(errors.RateLimited, "rate_limit_exceeded"),
    "429_retry_after": Expected(errors.RateLimited, "rate_limit_exceeded", retry_after=7.0),
    "429_retry_after_ms": Expected(errors.RateLimited, "rate_limit_exceeded", retry_after=1.5),
    "429_quota": Expected(errors.QuotaExhausted, "credit_balance_exhausted", says="exceeded your current quota"),
    "429_no_quota_ever": Expected(errors.QuotaExhausted, "insufficient_quota"),
    "500": Expected(errors.Overloaded, "server_error", says="HTTP 500: The server had an error"),
    "500_broken_json": Expected(errors.Overloaded, None, says="HTTP 500"),
    "502_html": Expected(errors.Overloaded, None, says="HTTP 502: Bad Gateway 502 Bad Gateway nginx"),
    "503": Expected(errors.Overloaded, "server_is_overloaded", retry_after=3.0),
    "529": Expected(errors.Overloaded, "overloaded_error"),
    "drop": Expected(errors.NetworkFailed, None, says="connection failed"),
}

USELESS_ANSWERS = {
    "html": Expected(errors.BadAnswer, "not_json", says="Bad Gateway"),
    "broken_json": Expected(errors.BadAnswer, "not_json"),
    "not_an_object": Expected(errors.BadAnswer, "not_json"),
    "no_answer_in_it": Expected(errors.BadAnswer, "wrong_shape", says="something else"),
    "empty": Expected(errors.BadAnswer, "empty", BILLED),
    "empty_cut_short": Expected(errors.BadAnswer, "length", BILLED),
    "refused": Expected(errors.ContentRefused, "refusal", BILLED, says="I'm sorry"),
    "filtered": Expected(errors.ContentRefused, "content_filter", BILLED),
    "blocked": Expected(errors.ContentRefused, "content_filter", BILLED),
}


@pytest.mark.parametrize("api", BOTH)
@pytest.mark.parametrize("fault", FAILED_REQUESTS | USELESS_ANSWERS)
def test_each_fault_is_sorted(fake: FakeProvider, api: str, fault: str) -> None:
    expected = (FAILED_REQUESTS | USELESS_ANSWERS)[fault]
    fake.script(Rule(fault))
    error = refused(configured(fake, options={"api": api}))
    assert type(error) is expected.kind
    assert (error.code, error.usage, error.retry_after) == (expected.code, expected.usage, expected.retry_after)
    assert expected.says in str(error)
    assert fake.counts()["requests"] == 1  # neither the SDK nor we try again


def test_an_error_inside_a_200_is_sorted_by_its_own_code_and_keeps_its_usage(fake: FakeProvider) -> None:
    fake.script(Rule("error_in_200"))
    gateway = refused(configured(fake))
    assert (type(gateway), gateway.code, gateway.usage) == (errors.Overloaded, None, Usage(BILLED.tokens_input, 0))
    assert str(gateway) == "HTTP 502: The upstream server is overloaded."
    failed = refused(configured(fake, options={"api": "responses"}))
    assert (type(failed), failed.code, failed.usage) == (errors.Overloaded, "server_error", BILLED)


@pytest.mark.parametrize("api", BOTH)
def test_no_fault_of_the_server_is_left_out_here(api: str) -> None:
    elsewhere = {"answer", "slow", "hang", "cut_short", "wrong_shape", "error_in_200", *CONDITIONAL}
    assert set(FAILED_REQUESTS | USELESS_ANSWERS) | elsewhere == FAULTS


@pytest.mark.parametrize("api", BOTH)
@pytest.mark.parametrize("fault", [*FAILED_REQUESTS, *USELESS_ANSWERS, "error_in_200"])
def test_the_key_never_shows(fake: FakeProvider, api: str, fault: str) -> None:
    fake.script(Rule(fault, echo_key=True))
    error = refused(configured(fake, options={"api": api}))
    assert KEY not in whole_traceback(error)
    assert error.__context__ is None  # the SDK's error would hold the request with its headers
    assert KEY[8:] not in str(error)


def test_the_key_is_not_in_the_providers_repr_and_reaches_the_server(fake: FakeProvider) -> None:
    assert KEY not in repr(OpenAIProvider(configured(fake)))
    ask(configured(fake))
    assert fake.requests[0].headers["authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize("api", BOTH)
def test_the_answer_with_its_usage(fake: FakeProvider, api: str) -> None:
    fake.script(Rule("answer", tokens=[120, 80, 64, 50]))
    completion = ask(configured(fake, options={"api": api}))[0]
    assert json.loads(completion.text)["corrected"] == correct(TEXT)
    assert completion.usage == Usage(120, 80, tokens_cached=64, tokens_reasoning=50)
    assert (completion.finish, completion.model) == ("stop", "gpt-x")


@pytest.mark.parametrize("api", BOTH)
def test_an_answer_that_was_cut_short_says_so(fake: FakeProvider, api: str) -> None:
    fake.script(Rule("cut_short"))
    completion = ask(configured(fake, options={"api": api}))[0]
    assert completion.finish == "length"
    assert completion.text.startswith('{"corrected": "Zaż')
    assert completion.usage == BILLED


@pytest.mark.parametrize("api", BOTH)
def test_the_shape_of_the_answer_is_the_task_types_business(fake: FakeProvider, api: str) -> None:
    fake.script(Rule("wrong_shape"))
    assert ask(configured(fake, options={"api": api}))[0].text == '{"answer": 42}'


@pytest.mark.parametrize(
    "said",
    [
        '```json\n{"corrected": "Żółw"}\n```',
        'Here you are: {"corrected": "Żółw"} — anything else?',
        '<think>A brace { or two {} maybe</think>\n{"corrected": "Żółw"}',
        '  {"corrected": "Żółw"}\n',
        '{"corrected": "Żółw"} {"corrected": "Żuk"} and so on',
    ],
)
def test_json_is_found_in_a_talkative_answer(fake: FakeProvider, said: str) -> None:
    fake.script(Rule("answer", content=said))
    assert ask(configured(fake, options={"structured": "text"}))[0].text == '{"corrected": "Żółw"}'


@pytest.mark.parametrize(
    "said", ["Nie mogę { tego {} zrobić.", '{"changes": [{"corrected": "Żółw"}, {"corr', "```", 'x {"a":' * 5000]
)
def test_an_answer_without_a_whole_object_is_handed_on_as_it_is(fake: FakeProvider, said: str) -> None:
    fake.script(Rule("answer", content=said))
    assert ask(configured(fake))[0].text == said


KEYS = ["error", "choices", "message", "content", "refusal", "finish_reason", "usage", "output", "status", "type", "text", "code"]
NUMBERS = ["prompt_tokens", "completion_tokens_details", "reasoning_tokens", "incomplete_details", "reason", "parts"]
WORDS = ["stop", "length", "content_filter", "completed", "incomplete", "message", "output_text", "refusal", "failed", "9" * 5000]
ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.sampled_from(WORDS) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS + NUMBERS), inner, max_size=6),
    max_leaves=20,
)


@given(st.dictionaries(st.sampled_from(KEYS + NUMBERS), ANY_JSON, max_size=8), st.sampled_from([200, 302, 400, 429, 500]))
def test_no_shape_of_an_answer_or_error_breaks_the_readers(body: dict[str, Any], status: int) -> None:
    for read in (read_chat, read_responses):
        with contextlib.suppress(ProviderError):
            said = read(body, KEY)
            assert said.text.strip()
            assert said.usage.tokens_output >= 0
    error = failure(status, body, {"retry-after": str(body)[:20]}, (KEY,))
    assert isinstance(error, ProviderError)
    assert len(str(error)) < 600


# -- what is sent ------------------------------------------------------------------------------------------------------


def test_chat_request(fake: FakeProvider) -> None:
    options = {
        "max_output_tokens": "500",
        "reasoning_effort": "low",
        "temperature": "0",
        "headers": '{"X-Team": "redakcja"}',
        "extra_body": '{"service_tier": "flex"}',
    }
    ask(configured(fake, options=options))
    request = fake.requests[0]
    assert request.path == "/v1/chat/completions"
    assert request.headers["x-team"] == "redakcja"
    assert request.body == {
        "model": "gpt-x",
        "messages": [{"role": "system", "content": prompt().system}, {"role": "user", "content": prompt().user}],
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "correction", "schema": prompt().schema, "strict": True},
        },
        "max_tokens": 500,
        "reasoning_effort": "low",
        "temperature": 0.0,
        "service_tier": "flex",
    }


def test_responses_request(fake: FakeProvider) -> None:
    ask(configured(fake, options={"api": "responses", "max_output_tokens": 500, "reasoning_effort": "low"}))
    request = fake.requests[0]
    assert request.path == "/v1/responses"
    assert request.body == {
        "model": "gpt-x",
        "input": [{"role": "system", "content": prompt().system}, {"role": "user", "content": prompt().user}],
        "store": False,
        "text": {"format": {"type": "json_schema", "name": "correction", "schema": prompt().schema, "strict": True}},
        "max_output_tokens": 500,
        "reasoning": {"effort": "low"},
        "temperature": 0.2,
    }


@pytest.mark.parametrize(("api", "limit"), [("chat", "max_tokens"), ("responses", "max_output_tokens")])
def test_the_prompts_parameters_are_sent_unless_the_model_has_its_own(fake: FakeProvider, api: str, limit: str) -> None:
    of_prompt = prompt(temperature=0.7, top_p=0.9, max_output_tokens=300)
    ask(configured(fake, options={"api": api}), of_prompt)
    ask(configured(fake, options={"api": api, "temperature": 0, "top_p": "0.5", "max_output_tokens": 500}), of_prompt)
    sent = [(each.body["temperature"], each.body["top_p"], each.body[limit]) for each in fake.requests]
    assert sent == [(0.7, 0.9, 300), (0, 0.5, 500)]


@pytest.mark.parametrize("name", ["temperature", "top_p"])
def test_a_parameter_that_the_server_refuses_is_left_out_and_the_other_is_not(name: str) -> None:
    dialect = Dialect("json_schema", ("max_tokens",))
    narrower = dialect.narrowed(f"Unsupported parameter: '{name}' is not supported with this model.")
    assert narrower is not None
    assert narrower.sampling == {"temperature", "top_p"} - {name}
    assert narrower.narrowed(f"Unsupported parameter: '{name}' is not supported with this model.") is None


def test_a_schema_that_strict_mode_refuses_is_sent_without_it(fake: FakeProvider) -> None:
    optional = {"type": "object", "properties": {"corrected": {"type": "string"}}, "additionalProperties": False}
    ask(configured(fake), prompt(schema=optional | {"required": []}))
    assert fake.requests[0].body["response_format"]["json_schema"]["strict"] is False


def test_each_task_is_asked_with_its_own_schema(fake: FakeProvider) -> None:
    """What follows from a schema is worked out once; two tasks whose items come in turns must not get each other's."""
    lax, strict = prompt(schema=SCHEMA | {"additionalProperties": True}), prompt()
    ask(configured(fake), lax, strict, lax, strict)
    sent = [request.body["response_format"]["json_schema"] for request in fake.requests]
    assert [(each["strict"], each["schema"]) for each in sent] == [(False, lax.schema), (True, strict.schema)] * 2


def test_a_server_without_a_key_gets_none_not_even_the_environments(fake: FakeProvider, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-the-environment")
    monkeypatch.setenv("OPENAI_ORG_ID", "org-of-the-environment")
    ask(configured(fake, api_key=None))
    assert "authorization" not in fake.requests[0].headers
    assert "of-the-environment" not in str(fake.requests[0].headers)


# -- stepping down -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("api", BOTH)
def test_a_server_without_json_schema_gets_json_mode_and_the_schema_in_the_prompt(fake: FakeProvider, api: str) -> None:
    fake.script(Rule("no_json_schema"))
    first, second = ask(configured(fake, options={"api": api}), prompt(), prompt())
    assert json.loads(first.text)["corrected"] is not None
    assert second.usage == BILLED
    asked = [json.dumps(one.body, ensure_ascii=False) for one in fake.requests]
    assert ["json_schema" in body for body in asked] == [True, False, False]  # remembered: the second item is asked once
    assert all('"type": "json_object"' in body and "fit this JSON schema" in body for body in asked[1:])


def test_a_server_without_json_mode_is_asked_for_plain_text(fake: FakeProvider) -> None:
    fake.script(Rule("no_json_object"), Rule("answer", content='Oto: {"corrected": "Żółw", "changes": []}'))
    assert json.loads(ask(configured(fake))[0].text)["corrected"] == "Żółw"
    assert [one.body.get("response_format", {}).get("type") for one in fake.requests] == ["json_schema", "json_object", None]


@pytest.mark.parametrize(
    ("fault", "gone", "instead"),
    [("no_temperature", "temperature", None), ("no_max_tokens", "max_tokens", "max_completion_tokens")],
)
def test_a_parameter_that_the_model_refuses_is_not_sent_again(
    fake: FakeProvider, fault: str, gone: str, instead: str | None
) -> None:
    fake.script(Rule(fault))
    ask(configured(fake, options={"max_output_tokens": 9}), prompt(), prompt())
    bodies = [one.body for one in fake.requests]
    assert [gone in body for body in bodies] == [True, False, False]
    assert instead is None or bodies[1][instead] == 9


def test_a_server_that_takes_no_name_for_the_output_limit_ends_in_an_error(fake: FakeProvider) -> None:
    fake.script(Rule("no_max_tokens"), Rule("no_max_completion_tokens"))
    error = refused(configured(fake, options={"max_output_tokens": 9}))
    assert type(error) is errors.InvalidRequest
    assert fake.counts()["requests"] == 2


def test_many_calls_that_meet_the_same_refusal_step_down_once(fake: FakeProvider) -> None:
    fake.script(Rule("no_json_schema", delay_ms=30))

    async def run() -> list[Completion]:
        provider = OpenAIProvider(configured(fake))
        try:
            return await asyncio.gather(*(provider.complete(prompt(f"wiersz {n}")) for n in range(20)))
        finally:
            await provider.aclose()

    assert len(asyncio.run(run())) == 20
    assert fake.counts()["requests"] == 40
    assert sum("fit this JSON schema" in str(one.body) for one in fake.requests) == 20


# -- time, connections, configuration ----------------------------------------------------------------------------------


@pytest.mark.parametrize("api", BOTH)
def test_a_hanging_server_is_left_in_time(fake: FakeProvider, api: str) -> None:
    fake.script(Rule("hang"))
    started = time.monotonic()
    error = refused(configured(fake, options={"api": api}, request_timeout=0.3))
    assert time.monotonic() - started < 5
    assert type(error) is errors.NetworkFailed
    assert (error.code, str(error)) == ("timeout", "no complete answer within 0.3 s")


def test_a_slow_server_is_waited_for(fake: FakeProvider) -> None:
    fake.script(Rule("slow", delay_ms=200))
    started = time.monotonic()
    assert ask(configured(fake))[0].finish == "stop"
    assert time.monotonic() - started >= 0.2


def test_nobody_there(fake: FakeProvider) -> None:
    error = refused(configured(fake, base_url="http://127.0.0.1:1/v1"))
    assert type(error) is errors.NetworkFailed
    assert "connection failed" in str(error)


def test_three_hundred_calls_run_at_once() -> None:
    with FakeProvider(gather=300) as fake:

        async def run() -> list[Completion]:
            provider = OpenAIProvider(configured(fake, max_connections=300))
            try:
                return await asyncio.gather(*(provider.complete(prompt(f"wiersz {n}")) for n in range(300)))
            finally:
                await provider.aclose()

        completions = asyncio.run(run())
    assert fake.peak_in_flight == 300
    assert set(fake.counts()["per_text"].values()) == {1}
    assert [json.loads(one.text)["corrected"] for one in completions] == [correct(f"wiersz {n}") for n in range(300)]


def test_a_cancelled_call_stays_cancelled(fake: FakeProvider) -> None:
    fake.script(Rule("hang"))

    async def run() -> None:
        provider = OpenAIProvider(configured(fake))
        call = asyncio.create_task(provider.complete(prompt()))
        await asyncio.to_thread(fake.wait_for_requests, 1)
        call.cancel()
        try:
            await call
        finally:
            await provider.aclose()

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(run())


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"options": {"temprature": "0"}}, "unknown option 'temprature'; known ones: api, structured"),
        ({"options": {"api": "assistants"}}, "one of chat, responses"),
        ({"options": {"structured": "xml"}}, "one of json_schema, json_object, text"),
        ({"options": {"max_output_tokens": "0"}}, "a whole number of at least 1"),
        ({"options": {"max_output_tokens": "1.5"}}, "a whole number"),
        ({"options": {"temperature": "warm"}}, "a number from 0 to 2"),
        ({"options": {"temperature": "nan"}}, "a number from 0 to 2"),
        ({"options": {"extra_body": "[1]"}}, "a JSON object"),
        ({"options": {"headers": {"X-Team": "żółw"}}}, "printable ASCII"),
        ({"options": {"headers": {"X-Team": 5}}}, "printable ASCII"),
        ({"model": None}, "needs a model name"),
        ({"base_url": None, "api_key": None}, "needs an API key"),
        ({"base_url": "localhost:11434"}, "must begin with http:// or https://"),
    ],
)
def test_a_configuration_that_cannot_work(fake: FakeProvider, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        OpenAIProvider(configured(fake, **changes))


def test_a_key_that_no_header_can_carry_is_refused_without_showing_it(fake: FakeProvider) -> None:
    unusable = Secret("sk-" + "żółw" * 2)
    with pytest.raises(ConfigurationError) as caught:
        OpenAIProvider(configured(fake, api_key=unusable))
    assert unusable.reveal() not in whole_traceback(caught.value)


def test_registered_as_openai() -> None:
    assert provider_class("openai") is OpenAIProvider
