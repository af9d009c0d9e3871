"""The lane flex at OpenAI and its like: what is asked, what was served, what happens when there is no room; and the limits that
the answers name. Over the real SDK."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from ai_worker import errors
from ai_worker.models import Lane, Limits
from ai_worker.providers import ProviderConfig
from ai_worker.providers._openai_wire import failure, read_chat, read_responses
from ai_worker.providers.openai import OFFICIAL_URL, Dialect, OpenAIProvider
from tests.fake_provider import FakeProvider, Rule, asking
from tests.fake_provider import Limits as Enforced
from tests.fake_provider.samples import prompt, secret

pytest_plugins = ["tests.fake_provider.asking"]

BOTH = ("chat", "responses")
FLEX = prompt(lane=Lane.FLEX)

ask = partial(asking.ask, OpenAIProvider)


def configured(fake: FakeProvider, **options: Any) -> ProviderConfig:
    return ProviderConfig(name="m", model="gpt-x", base_url=fake.openai_url, api_key=secret(), options=options)


@pytest.mark.parametrize("api", BOTH)
def test_flex_is_asked_for_and_the_answer_says_what_served(fake: FakeProvider, api: str) -> None:
    flex, online = ask(configured(fake, api=api, flex="on"), FLEX, prompt())
    assert [request.body.get("service_tier") for request in fake.requests] == ["flex", None]
    assert (flex.lane, online.lane) == (Lane.FLEX, Lane.ONLINE)


def test_a_server_that_was_not_said_to_have_it_is_asked_online(fake: FakeProvider) -> None:
    completion = ask(configured(fake), FLEX)[0]
    assert "service_tier" not in fake.requests[0].body
    assert completion.lane is Lane.ONLINE


@pytest.mark.parametrize(
    ("url", "option", "asked"),
    [(None, "auto", True), (OFFICIAL_URL + "/", "auto", True), (None, "off", False), ("http://127.0.0.1:1/v1", "on", True)],
)
def test_who_is_asked_for_it(url: str | None, option: str, asked: bool) -> None:
    provider = OpenAIProvider(ProviderConfig("m", "gpt-x", url, secret(), {"flex": option}))
    assert provider._dialect.flex is asked


@pytest.mark.parametrize("read", [read_chat, read_responses])
@pytest.mark.parametrize(("tier", "lane"), [("flex", Lane.FLEX), ("default", Lane.ONLINE), (None, Lane.ONLINE), (7, Lane.ONLINE)])
def test_the_tier_that_served_may_be_another_than_was_asked_for(read: Any, tier: Any, lane: Lane) -> None:
    chat = {"choices": [{"message": {"content": "{}"}, "finish_reason": "stop"}]}
    response = {"status": "completed", "output": [{"type": "message", "content": [{"type": "output_text", "text": "{}"}]}]}
    assert read(chat | response | {"service_tier": tier}, None).lane is lane


def test_flex_has_more_time_than_a_call_online(fake: FakeProvider) -> None:
    fake.script(Rule("slow", delay_ms=700))
    patient = replace(configured(fake, flex="on"), request_timeout=0.3)
    assert ask(patient, FLEX)[0].lane is Lane.FLEX
    with pytest.raises(errors.NetworkFailed):
        ask(patient)


@pytest.mark.parametrize("api", BOTH)
def test_a_shed_call_is_told_from_a_rate_limit(fake: FakeProvider, api: str) -> None:
    fake.script(Rule("flex_shed"))
    with pytest.raises(errors.Overloaded) as caught:
        ask(configured(fake, api=api, flex="on"), FLEX)
    assert type(caught.value) is errors.Shed
    assert (caught.value.kind, caught.value.code) == ("shed", "resource_unavailable")
    assert fake.counts()["requests"] == 1
    assert ask(configured(fake, api=api, flex="on"))[0].lane is Lane.ONLINE  # which has room


@pytest.mark.parametrize("error", [{"type": "resource_unavailable"}, {"code": "resource_unavailable", "type": "tokens"}])
def test_shed_by_type_or_by_code(error: dict[str, str]) -> None:
    assert type(failure(429, {"error": error}, {}, ())) is errors.Shed


@pytest.mark.parametrize(
    "complaint",
    [  # as OpenAI says it
        "HTTP 400: Flex is not available for this model.",
        "HTTP 400: Invalid service_tier argument: The requested service tier is not allowed for this project.",
        "HTTP 422: service_tier: Extra inputs are not permitted",
    ],
)
def test_a_server_that_refuses_the_tier_is_not_asked_for_it_again(complaint: str) -> None:
    dialect = Dialect("json_schema", ("max_tokens",), flex=True)
    narrower = dialect.narrowed(complaint)
    assert narrower == Dialect("json_schema", ("max_tokens",), flex=False)
    assert narrower.narrowed(complaint) is None


@pytest.mark.parametrize("api", BOTH)
def test_it_is_then_asked_online(fake: FakeProvider, api: str) -> None:
    fake.script(Rule("flex_refused"))
    completions = ask(configured(fake, api=api, flex="on"), FLEX, FLEX)
    assert [request.body.get("service_tier") for request in fake.requests] == ["flex", None, None]
    assert [completion.lane for completion in completions] == [Lane.ONLINE] * 2


def test_the_limits_come_with_the_answer_and_with_the_429(fake: FakeProvider) -> None:
    fake.limit(Enforced(requests_per_minute=2, tokens_per_minute=90_000))
    answers = ask(configured(fake), prompt(), prompt())
    assert [answer.limits for answer in answers] == [Limits(2, 90_000)] * 2
    refused = asking.refused(OpenAIProvider, configured(fake))
    assert type(refused) is errors.RateLimited
    assert refused.limits == Limits(2, 90_000)
    fake.limit(Enforced())
    assert ask(configured(fake))[0].limits is None
