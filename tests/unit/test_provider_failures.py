"""What all API families share when a call fails: waiting times, and messages without secrets."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from ai_worker.errors import BadAnswer, ConfigurationError
from ai_worker.providers import _gemini_wire, _openai_wire
from ai_worker.providers._failures import MESSAGE_LIMIT, check_base_url, clean, duration, retry_after, secrets_of
from ai_worker.providers._options import Options

KEY = "tajny-klucz-123"


@pytest.mark.parametrize(
    "text",
    [
        f"Incorrect API key provided: {KEY}. You can find your API key at the dashboard.",
        f"header Authorization: Bearer {KEY}",
        f"https://api/v1?alt=json&key={KEY}&x=1",
        f'{{"api_key": "{KEY}"}}',
        f"wrong key '{KEY}'",
        "x" * (MESSAGE_LIMIT - 5) + KEY,
    ],
)
def test_the_key_is_taken_out(text: str) -> None:
    assert KEY[:5] not in clean(text, (KEY,))
    assert "***" in clean(text, (KEY,)) or clean(text, (KEY,)).endswith("…")


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("Incorrect API key provided: sk-proj-****abcd. Find it", "Incorrect API key provided: ***. Find it"),
        ("invalid bearer Abc-Def_123", "invalid bearer ***"),
        ("POST /v1/x?key=AbCdEf failed", "POST /v1/x?key=*** failed"),
        ("token sk-or-v1-0123456789abcdef is revoked", "token *** is revoked"),
        ("AIzaSyA1234567890bcdefg expired", "*** expired"),
        ("API key not valid. Please pass a valid API key.", "API key not valid. Please pass a valid API key."),
        ("task-force, desk-bound, monkey=business", "task-force, desk-bound, monkey=business"),
    ],
)
def test_what_looks_like_a_key_is_taken_out_and_the_rest_kept(text: str, kept: str) -> None:
    assert clean(text) == kept


def test_messages_are_one_bounded_line_of_text() -> None:
    assert clean("<html><style>a{}</style><h1>502</h1>\n\n<p>Zła  brama</p></html>") == "502 Zła brama"
    assert len(clean("ż" * 10_000)) == MESSAGE_LIMIT


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after": "9", "retry-after-ms": "250"}, 0.25),
        ({"retry-after": "9", "retry-after-ms": "soon"}, 9.0),
        ({"retry-after": "1", "retry-after-ms": "0"}, 1.0),  # Azure
        ({"retry-after": "soon"}, None),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0.0),
    ],
)
def test_retry_after(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(headers) == seconds


def test_retry_after_as_a_date() -> None:
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    seconds = retry_after({"retry-after": later})
    assert seconds is not None
    assert 27 < seconds <= 30


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("39s", 39.0),
        ("1.500s", 1.5),
        ("6m0s", 360.0),
        ("10h17m4s", 37024.0),
        ("120ms", 0.12),
        ("", None),
        ("soon", None),
        ("5 s", None),
    ],
)
def test_duration(text: str, seconds: float | None) -> None:
    assert duration(text) == seconds


def test_what_is_secret_in_a_model_is_taken_out_of_messages() -> None:
    """The key, a second one in a header, the password and the token in a base URL; also where a server says it in its code."""
    base = "https://me:pass%2Fw0rd@gateway.example/v1?access_token=t0ken-of-9&api=1"
    secrets = secrets_of("the-key", base, {"x-gateway": "Bearer second-key", "x-team": "shop"})
    said = "the-key second-key pass/w0rd pass%2Fw0rd t0ken-of-9 Bearer second-key shop 1"
    assert clean(said, secrets) == "*** *** *** *** *** *** shop 1"
    body = {"error": {"message": "", "code": "bad the-key", "type": "second-key", "status": "the-key"}}
    for failure in (_openai_wire.failure, _gemini_wire.failure):
        error = failure(500, body, {}, secrets)
        assert "the-key" not in f"{error} {error.code}"
    assert secrets_of(None, None) == ()


@pytest.mark.parametrize(
    "given", [{"headers": {"X": 7, "Y": "second-key"}}, {"headers": "X: second-key"}, {"extra_body": "second-key"}]
)
def test_a_complaint_about_options_does_not_show_what_may_be_a_key(given: dict[str, object]) -> None:
    options = Options("m", given, ("headers", "extra_body"))
    with pytest.raises(ConfigurationError, match="must be a JSON object") as raised:
        options.headers("headers") if "headers" in given else options.mapping("extra_body")
    assert "second-key" not in str(raised.value)


@pytest.mark.parametrize(
    "url", ["ftp://me:secret@host/v1", "me:secret@host", "http://", "http://host:secret/v1", "http://[secret"]
)
def test_a_complaint_about_a_base_url_does_not_show_it(url: str) -> None:
    with pytest.raises(ConfigurationError, match="must begin with http:// or https://") as raised:
        check_base_url(url, "m")
    assert "secret" not in str(raised.value)


def test_an_answer_nested_too_deeply_to_be_shown_is_a_bad_answer() -> None:
    nested: dict[str, object] = {}
    for _ in range(3000):
        nested = {"x": nested}
    for read in (_openai_wire.read_chat, _openai_wire.read_responses, _gemini_wire.read):
        with pytest.raises(BadAnswer, match="nested too deeply"):
            read(nested, ())
