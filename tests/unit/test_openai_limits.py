"""What servers of OpenAI's protocol say of their limits, and how their 429s are sorted."""

from __future__ import annotations

from typing import Any

import pytest

from ai_worker import errors
from ai_worker.models import Limits
from ai_worker.providers._limits import LimitsReader, limits_in
from ai_worker.providers._openai_wire import failure


def said(of: str, limit: str, remaining: str | None, reset: str | None, period: str | None = None) -> dict[str, str]:
    named = {"limit": limit, "remaining": remaining, "reset": reset, "renewalperiod": period}
    return {f"x-ratelimit-{name}-{of}": value for name, value in named.items() if value is not None}


OPENAI = said("requests", "500", "499", "120ms") | said("tokens", "200000", "199000", "300ms")
GROQ = said("requests", "14400", "14399", "6s") | said("tokens", "6000", "5900", "1s")


@pytest.mark.parametrize(
    ("headers", "limits"),
    [
        ({}, None),
        ({"x-request-id": "req_1"}, None),
        (OPENAI, Limits(500, 200_000)),
        (said("tokens", "200000", "0", "60s"), Limits(None, 200_000)),
        (said("requests", "500", "0", "59.88s"), Limits(500, None)),
        (said("requests", "500", "500", "0s"), Limits(500, None)),
        (said("requests", "60", None, None), Limits(60, None)),  # a server that says no more than that
        # Requests by the day under the same name: https://console.groq.com/docs/rate-limits
        (said("requests", "14400", "14370", "2m59.56s") | said("tokens", "18000", "17997", "7.66s"), Limits(None, 18_000)),
        (said("requests", "1000", "999", "1m26.4s") | said("tokens", "6000", "5900", "1s"), Limits(None, 6000)),
        (GROQ, Limits(None, 6000)),  # the reset alone would not tell
        (said("requests", "14400", "14399", "8.5s"), None),  # of two requests, one is refilled in part
        (said("requests", "1000", "999", "3.6s"), None),  # by the hour
        (said("requests", "600", "599", "60s") | said("tokens", "90000", "89980", "60s"), Limits(600, 90_000)),  # a window
        # Azure and GitHub Models name the period, and count in fixed windows.
        (said("requests", "2500", "2499", "24", "60") | said("tokens", "250000", "249993", "1", "60"), Limits(2500, 250_000)),
        (said("requests", "2500", "2499", "24", "3600"), None),
        (said("requests", "2500", "2000", "24"), Limits(2500, None)),
        # No limits at all.
        (said("requests", "0", "0", "0s") | said("tokens", "-1", "0", "0s"), None),
        (said("requests", "many", "few", "soon") | said("tokens", "9" * 40, "1", "1s"), None),
        (said("requests", "60", "59", "2026-11-22T10:00:00Z"), None),
        (said("requests", "٦٠", None, None), None),
    ],
)
def test_the_limits_per_minute_in_the_headers(headers: dict[str, str], limits: Limits | None) -> None:
    assert limits_in(headers) == limits


def test_the_same_headers_are_understood_once() -> None:
    class Asked(dict[str, str]):
        names: list[str]

        def get(self, name: str, default: Any = None) -> Any:
            self.names.append(name)
            return super().get(name, default)

    read = LimitsReader()
    for headers, limits, most in (
        (OPENAI, Limits(500, 200_000), 100),
        (OPENAI, Limits(500, 200_000), 2),
        (OPENAI | said("requests", "600", "599", "100ms"), Limits(600, 200_000), 100),
        ({}, None, 100),
        ({}, None, 2),
    ):
        asked = Asked(headers)
        asked.names = []
        assert read(asked) == limits
        assert len(asked.names) <= most


def test_a_limit_whose_period_was_not_clear_is_looked_at_again() -> None:
    """By chance, this window's end is what a day's pace would come to."""
    read = LimitsReader()
    assert read(said("requests", "2000", "1999", "45s")) is None
    assert read(said("requests", "2000", "1997", "44s")) == Limits(2000, None)


def a_429(message: str = "Rate limit reached for gpt-x", **error: Any) -> errors.ProviderError:
    return failure(429, {"error": {"message": message, **error}}, OPENAI, ())


@pytest.mark.parametrize(
    ("problem", "kind"),
    [
        (a_429(type="insufficient_quota", code="project_spend_limit_exceeded"), errors.QuotaExhausted),
        (a_429(type="insufficient_quota", code="rate_limit_exceeded"), errors.QuotaExhausted),
        (a_429("You exceeded your current quota", type="insufficient_quota", code=None), errors.QuotaExhausted),
        (a_429(type="exceeded_current_quota_error"), errors.QuotaExhausted),
        (a_429(type="requests", code="rate_limit_exceeded"), errors.RateLimited),
        (a_429("You exceeded your current quota of requests per minute", type="tokens"), errors.RateLimited),
        (a_429(type="invalid_request_error", code="slow_down"), errors.RateLimited),
        (a_429("Requests have exceeded the call rate limit", code="429"), errors.RateLimited),
        (
            a_429("Request too large for gpt-x on tokens per min (TPM): Limit 30000, Requested 41000.", type="tokens"),
            errors.InputTooLong,
        ),
        (failure(503, {"error": {"message": "Slow Down", "code": "slow_down"}}, OPENAI, ()), errors.RateLimited),
    ],
)
def test_a_429_is_sorted_by_its_type(problem: errors.ProviderError, kind: type[errors.ProviderError]) -> None:
    assert type(problem) is kind
    assert problem.limits == Limits(500, 200_000)
