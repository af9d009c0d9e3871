"""The lane flex at Gemini: what is asked, what was served, and what happens when there is no room. Over the real SDK."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from ai_worker import errors
from ai_worker.models import Lane, Limits
from ai_worker.providers import ProviderConfig
from ai_worker.providers._gemini_wire import failure, read, served_in_flex
from ai_worker.providers.gemini import GeminiProvider
from tests.fake_provider import FakeProvider, Rule, asking
from tests.fake_provider import Limits as Enforced
from tests.fake_provider.samples import prompt, secret

pytest_plugins = ["tests.fake_provider.asking"]

FLEX = prompt(lane=Lane.FLEX)

ask = partial(asking.ask, GeminiProvider)


def configured(fake: FakeProvider, **changes: Any) -> ProviderConfig:
    fields: dict[str, Any] = {"name": "m", "model": "gemini-x", "base_url": fake.gemini_url, "api_key": secret()}
    return ProviderConfig(**(fields | changes))


def test_flex_is_asked_for_and_the_answer_says_what_served(fake: FakeProvider) -> None:
    flex, online = ask(configured(fake), FLEX, prompt())
    assert [request.body.get("serviceTier") for request in fake.requests] == ["flex", None]
    assert (flex.lane, online.lane) == (Lane.FLEX, Lane.ONLINE)
    assert [request.headers["x-server-timeout"] for request in fake.requests] == ["900", "120"]  # seconds


@pytest.mark.parametrize(
    ("usage", "lane"),
    [({"serviceTier": "flex"}, Lane.FLEX), ({"serviceTier": "FLEX"}, Lane.FLEX), ({"serviceTier": "standard"}, Lane.ONLINE)],
)
def test_the_tier_that_served_may_be_another_than_was_asked_for(usage: dict[str, Any], lane: Lane) -> None:
    candidates = [{"content": {"parts": [{"text": "{}"}]}, "finishReason": "STOP"}]
    assert read({"candidates": candidates, "usageMetadata": usage}, None).lane is lane


@pytest.mark.parametrize(
    ("headers", "flex"),
    [({"X-Gemini-Service-Tier": "flex"}, True), ({"x-gemini-service-tier": "standard"}, False), ({"a": "flex"}, False)],
)
def test_the_headers_name_the_tier_too(headers: dict[str, str], flex: bool) -> None:
    assert served_in_flex(headers) is flex


def test_flex_has_more_time_than_a_call_online(fake: FakeProvider) -> None:
    fake.script(Rule("slow", delay_ms=700))
    assert ask(configured(fake, request_timeout=0.3), FLEX)[0].lane is Lane.FLEX
    with pytest.raises(errors.NetworkFailed):
        ask(configured(fake, request_timeout=0.3))


def test_a_shed_call_is_told_from_an_overload(fake: FakeProvider) -> None:
    fake.script(Rule("flex_shed"))
    with pytest.raises(errors.Shed):
        ask(configured(fake), FLEX)
    assert fake.counts()["requests"] == 1
    assert ask(configured(fake))[0].lane is Lane.ONLINE  # which has room


def test_a_server_that_refuses_the_tier_is_then_asked_online(fake: FakeProvider) -> None:
    fake.script(Rule("flex_refused"))
    completions = ask(configured(fake), FLEX, FLEX)
    assert [request.body.get("serviceTier") for request in fake.requests] == ["flex", None, None]
    assert [completion.lane for completion in completions] == [Lane.ONLINE] * 2


def test_another_complaint_is_not_taken_for_a_refusal_of_the_tier(fake: FakeProvider) -> None:
    fake.script(Rule("400_option"))
    with pytest.raises(errors.ModelStopped):
        ask(configured(fake), FLEX)
    assert fake.counts()["requests"] == 1


QUOTA = {"@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": [{"quotaId": "RequestsPerMinute"}]}
DAILY = {"@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": [{"quotaId": "RequestsPerDay"}]}


@pytest.mark.parametrize(
    ("status", "details", "in_flex", "online"),
    [
        (503, [], errors.Shed, errors.Overloaded),
        (429, [], errors.Shed, errors.RateLimited),
        (429, [QUOTA], errors.RateLimited, errors.RateLimited),
        (429, [DAILY], errors.QuotaExhausted, errors.QuotaExhausted),
        (500, [], errors.Overloaded, errors.Overloaded),
        (504, [], errors.Overloaded, errors.Overloaded),
    ],
)
def test_what_counts_as_shed(status: int, details: list[Any], in_flex: type, online: type) -> None:
    body = {"error": {"message": "Try again later.", "details": details}}
    assert type(failure(status, body, {}, (), Lane.FLEX)) is in_flex
    assert type(failure(status, body, {}, ())) is online


def test_the_limit_that_was_hit_comes_with_the_429(fake: FakeProvider) -> None:
    fake.limit(Enforced(requests_per_minute=1))
    ask(configured(fake))
    refused = asking.refused(GeminiProvider, configured(fake))
    assert type(refused) is errors.RateLimited
    assert refused.limits == Limits(1, None)
