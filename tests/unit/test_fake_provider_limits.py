"""The fake provider's limits refuse what the real ones would, and what it counts is what proofs can rest on."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from google.genai import errors

from tests.fake_provider import FakeProvider, Limits, Rule, Tokens, tokens_for
from tests.fake_provider.limits import Limiter, duration
from tests.fake_provider.sdk import gemini_client, openai_client
from tests.fake_provider.tally import Tally


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def admitted(limiter: Limiter, number: int, tokens: int = 0) -> int:
    """How many of so many requests are let in at once; each has ended when the next comes."""
    let_in = 0
    for _ in range(number):
        if limiter.admit("m", Tokens(tokens, 0)) is None:
            let_in += 1
            limiter.release("m")
    return let_in


# -- the limiter -------------------------------------------------------------------------------------------------------


def test_a_sliding_window_lets_in_the_limit_and_then_each_as_an_old_one_leaves() -> None:
    clock = Clock()
    limiter = Limiter(Limits(requests_per_minute=3), clock)
    assert admitted(limiter, 2) == 2
    clock.now += 30
    assert admitted(limiter, 5) == 1
    refusal = limiter.admit("m", None)
    assert refusal is not None
    assert (refusal.kind, refusal.limit, refusal.used, refusal.requested, refusal.wait) == ("requests", 3, 3, 1, 30)
    clock.now += 29.9
    assert admitted(limiter, 5) == 0
    clock.now += 0.2
    assert admitted(limiter, 5) == 2  # the two of the beginning have left, the third stands


def test_tokens_are_refused_until_enough_of_the_old_ones_have_left() -> None:
    clock = Clock()
    limiter = Limiter(Limits(tokens_per_minute=100), clock)
    assert admitted(limiter, 1, 40) == 1
    clock.now += 10
    assert admitted(limiter, 2, 40) == 1
    refusal = limiter.admit("m", Tokens(50, 20))
    assert refusal is not None
    assert (refusal.kind, refusal.used, refusal.requested, refusal.wait) == ("tokens", 80, 70, 60)  # both must leave
    assert limiter.admit("m", Tokens(20, 0)) is None


def test_what_never_fits_is_refused_without_a_time_to_wait() -> None:
    refusal = Limiter(Limits(tokens_per_minute=100), Clock()).admit("m", Tokens(90, 11))
    assert refusal is not None
    assert refusal.wait is None


def test_input_alone_counts_where_the_vendor_counts_so() -> None:
    limiter = Limiter(Limits(tokens_per_minute=100, charge="input"), Clock())
    assert limiter.admit("m", Tokens(90, 500)) is None


@pytest.mark.parametrize(("burst", "at_once"), [(1.0, 60), (0.1, 6)])
def test_a_bucket_lets_a_burst_through_and_then_the_rate(burst: float, at_once: int) -> None:
    clock = Clock()
    limiter = Limiter(Limits(requests_per_minute=60, count="bucket", burst=burst), clock)
    assert admitted(limiter, 100) == at_once
    clock.now += 3
    assert admitted(limiter, 100) == 3
    refusal = limiter.admit("m", None)
    assert refusal is not None
    assert refusal.wait == pytest.approx(1.0)
    clock.now += 1000
    assert admitted(limiter, 100) == at_once


def test_calls_in_flight_are_counted_until_they_end() -> None:
    limiter = Limiter(Limits(max_in_flight=2), Clock())
    assert [limiter.admit("m", None) for _ in range(2)] == [None, None]
    refusal = limiter.admit("m", None)
    assert refusal is not None
    assert refusal.kind == "in_flight"
    limiter.release("m")
    assert limiter.admit("m", None) is None


def test_limits_per_model_are_separate() -> None:
    limiter = Limiter(Limits(requests_per_minute=1, per="model"), Clock())
    assert [limiter.admit(model, None) is None for model in ("a", "a", "b")] == [True, False, True]


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0, "0s"), (0.1199, "120ms"), (1, "1s"), (7.66, "7.66s"), (60, "1m0s"), (360, "6m0s"), (86.4, "1m26.4s"), (3600, "1h0m0s")],
)
def test_durations_are_written_as_openai_writes_them(seconds: float, said: str) -> None:
    assert duration(seconds) == said


@pytest.mark.parametrize("wrong", [{"count": "monthly"}, {"per": "key"}, {"requests_per_minute": 0}, {"burst": -1}])
def test_limits_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Limits(**wrong)


# -- the tally ---------------------------------------------------------------------------------------------------------


def test_the_peak_is_the_most_in_any_window_and_leaves_out_what_was_refused_or_failed() -> None:
    tally = Tally()
    for at in (0.0, 59.0, 60.0, 61.0):  # 0 and 60 are not in one window: 60 s lie between them
        tally.add(at, Tokens(10, 5), 200, tier="default")
    assert tally.peak() == {"requests": 3, "tokens": 45}
    tally.add(61.5, None, 429, tier="default", refused_by="requests")
    tally.add(61.5, None, 500, tier="default")
    assert tally.peak() == {"requests": 3, "tokens": 45}
    assert tally.peak(1.5) == {"requests": 2, "tokens": 30}
    tally.add(61.6, Tokens(1000, 0), 200, tier="flex")
    assert tally.peak() == {"requests": 4, "tokens": 1045}
    assert tally.peak(0.5) == {"requests": 1, "tokens": 1000}


def test_the_timeline_counts_by_stretches() -> None:
    tally = Tally()
    assert tally.timeline() == {"origin": None, "bucket": 1.0, "rows": []}
    tally.add(100.0, Tokens(10, 5), 200, tier="default")
    tally.add(100.9, None, 429, tier="default", refused_by="tokens")
    tally.add(102.1, None, 503, tier="default")
    rows = tally.timeline()["rows"]
    assert [(row["at"], row["accepted"], row["refused"], row["failed"], row["tokens"]) for row in rows] == [
        (0, 1, 1, 0, 15),
        (1, 0, 0, 0, 0),
        (2, 0, 0, 1, 0),
    ]
    assert len(tally.timeline(10)["rows"]) == 1
    assert tally.counts()["refused_at"] == [0.9]


# -- the server, through the vendors' clients --------------------------------------------------------------------------


@pytest.fixture
def fake() -> Iterator[FakeProvider]:
    with FakeProvider(limits=Limits(requests_per_minute=2, tokens_per_minute=1000)) as running:
        yield running


def ask_openai(fake: FakeProvider, text: str = "raz dwa") -> Any:
    messages: Any = [{"role": "user", "content": text}]
    with openai_client(fake) as client:
        return client.chat.completions.with_raw_response.create(model="gpt-x", messages=messages)


def test_openai_says_what_is_left(fake: FakeProvider) -> None:
    headers = ask_openai(fake).headers
    assert (headers["x-ratelimit-limit-requests"], headers["x-ratelimit-remaining-requests"]) == ("2", "1")
    billed = tokens_for("raz dwa")
    assert headers["x-ratelimit-remaining-tokens"] == str(1000 - billed.input - billed.output)
    assert headers["x-ratelimit-reset-requests"] in ("1m0s", "59.99s", "59.98s", "59.97s")


def test_openai_refuses_in_its_own_words_and_says_when(fake: FakeProvider) -> None:
    ask_openai(fake)
    ask_openai(fake)
    with pytest.raises(openai.RateLimitError, match=r"requests per min \(RPM\): Limit 2, Used 2, Requested 1") as caught:
        ask_openai(fake)
    assert (caught.value.code, caught.value.type) == ("rate_limit_exceeded", "requests")
    headers = caught.value.response.headers
    assert 55 < int(headers["retry-after"]) <= 60
    assert 55_000 < int(headers["retry-after-ms"]) <= 60_000
    assert headers["x-ratelimit-remaining-requests"] == "0"
    counts = fake.counts()
    assert (counts["per_status"], counts["refused"]) == ({"200": 2, "429": 1}, {"requests": 1})
    assert counts["peak_window"]["requests"] == 2
    assert fake.texts() == {"raz dwa": {"requests": 3, "rows": 0, "paid": 2}}
    assert counts["tokens_total"] == 2 * (tokens_for("raz dwa").input + tokens_for("raz dwa").output)
    assert [one.refused_by for one in fake.requests] == [None, None, "requests"]


def test_gemini_refuses_in_its_own_words_and_says_when(fake: FakeProvider) -> None:
    client = gemini_client(fake)
    for _ in range(2):
        client.models.generate_content(model="gemini-x", contents="raz")
    with pytest.raises(errors.ClientError) as caught:
        client.models.generate_content(model="gemini-x", contents="raz")
    assert (caught.value.code, caught.value.status) == (429, "RESOURCE_EXHAUSTED")
    quota, retry = caught.value.details["error"]["details"]
    assert "PerMinute" in quota["violations"][0]["quotaId"]
    assert 55 < float(retry["retryDelay"].removesuffix("s")) <= 60


def test_a_server_may_keep_silent_about_its_limits(fake: FakeProvider) -> None:
    fake.limit(Limits(requests_per_minute=1, headers=False, retry_after=False))
    said = [name for name in ask_openai(fake).headers if "ratelimit" in name]
    with pytest.raises(openai.RateLimitError) as caught:
        ask_openai(fake)
    assert said == [name for name in caught.value.response.headers if "ratelimit" in name or "retry" in name] == []
    client = gemini_client(fake)  # closed when it is collected
    with pytest.raises(errors.ClientError) as refused:
        client.models.generate_content(model="gemini-x", contents="raz")
    assert [one["@type"] for one in refused.value.details["error"]["details"]] == ["type.googleapis.com/google.rpc.QuotaFailure"]


def test_a_request_too_large_for_the_limit_is_refused_for_good(fake: FakeProvider) -> None:
    fake.limit(Limits(tokens_per_minute=12))
    with pytest.raises(openai.RateLimitError, match=r"Request too large .*tokens per min \(TPM\): Limit 12") as caught:
        ask_openai(fake)
    assert caught.value.type == "tokens"
    assert "retry-after" not in caught.value.response.headers


def test_a_refused_request_uses_up_neither_the_limit_nor_the_script(fake: FakeProvider) -> None:
    fake.limit(Limits(requests_per_minute=600, tokens_per_minute=100))
    fake.script(Rule("answer", tokens=[101, 0], times=1))
    with pytest.raises(openai.RateLimitError):
        ask_openai(fake)
    assert fake.per_fault == {}
    fake.limit(Limits(tokens_per_minute=101))
    assert ask_openai(fake).parse().usage.prompt_tokens == 101  # the rule is still there
    assert fake.per_fault == {"answer": 1}


def test_reset_brings_the_first_limits_back_with_nothing_used(fake: FakeProvider) -> None:
    ask_openai(fake)
    fake.limit(Limits())
    assert not fake.limiter.limits.any
    fake.reset()
    assert fake.limiter.limits.requests_per_minute == 2
    assert ask_openai(fake).headers["x-ratelimit-remaining-requests"] == "1"
    assert fake.counts()["per_status"] == {"200": 1}


def http(url: str, body: Any = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(url, data), timeout=10) as response:  # noqa: S310 -- our own loopback server
        return json.load(response)


def test_limits_and_counts_over_http(fake: FakeProvider) -> None:
    assert http(f"{fake.url}/_limits")["requests_per_minute"] == 2
    assert http(f"{fake.url}/_limits", {"requests_per_minute": 1, "count": "bucket"})["count"] == "bucket"
    for wrong in ({"requests_per_hour": 1}, {"burst": 0}):
        with pytest.raises(urllib.error.HTTPError, match="400"):
            http(f"{fake.url}/_limits", wrong)
    ask_openai(fake)
    with pytest.raises(openai.RateLimitError):
        ask_openai(fake)
    assert http(f"{fake.url}/_counts?window=10")["peak_window"] == {"seconds": 10.0, "requests": 1, "tokens": 15}
    assert http(f"{fake.url}/_timeline?bucket=60")["rows"] == [{"at": 0, "accepted": 1, "refused": 1, "failed": 0, "tokens": 15}]
    assert http(f"{fake.url}/_texts") == {"raz dwa": {"requests": 2, "rows": 0, "paid": 1}}
    for wrong_url in ("_counts?window=soon", "_timeline?bucket=0"):
        with pytest.raises(urllib.error.HTTPError, match="400"):
            http(f"{fake.url}/{wrong_url}")
