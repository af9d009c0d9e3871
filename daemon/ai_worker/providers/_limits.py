"""What OpenAI and the servers that speak its protocol say of their limits, in the headers of answers and of 429s.

    x-ratelimit-limit-requests: 500             x-ratelimit-limit-tokens: 200000
    x-ratelimit-remaining-requests: 499         x-ratelimit-remaining-tokens: 199000
    x-ratelimit-reset-requests: 120ms           x-ratelimit-reset-tokens: 300ms      until it is whole again; Azure: bare seconds
    x-ratelimit-renewalperiod-requests: 60      x-ratelimit-renewalperiod-tokens: 60     Azure and GitHub Models: the period

https://platform.openai.com/docs/guides/rate-limits names no period: OpenAI's are per minute; Groq's requests are per day, under
the same names (https://console.groq.com/docs/rate-limits).
"""

from __future__ import annotations

from collections.abc import Mapping

from ai_worker.models import Limits
from ai_worker.providers._failures import duration

MINUTE = 60.0
HOUR, DAY = 3600.0, 86_400.0


class LimitsReader:
    """Reads the limits of one server's answers. What was understood is not read again while the same numbers come: it is asked
    for each call, and the two names alone cost 4 µs in the SDK's object."""

    def __init__(self) -> None:
        self._named: tuple[str | None, str | None] | None = None
        self._limits: Limits | None = None

    def __call__(self, headers: Mapping[str, str]) -> Limits | None:
        named = (headers.get("x-ratelimit-limit-requests"), headers.get("x-ratelimit-limit-tokens"))
        if named != self._named:
            found = limits_in(headers)
            understood = sum(value is not None for value in named) == sum(value is not None for value in found or ())
            self._named = named if understood else None  # a limit whose period was not clear may yet become so
            self._limits = found
        return self._limits


def limits_in(headers: Mapping[str, str]) -> Limits | None:
    """The limits per minute that the headers name; None when they name none."""
    found = Limits(_per_minute("requests", headers), _per_minute("tokens", headers))
    return None if found == (None, None) else found


def _per_minute(of: str, headers: Mapping[str, str]) -> int | None:
    limit = whole(headers.get(f"x-ratelimit-limit-{of}"))
    if limit is None:
        return None
    period = headers.get(f"x-ratelimit-renewalperiod-{of}")
    if period is not None:
        return limit if period == "60" else None
    reset = headers.get(f"x-ratelimit-reset-{of}")
    if reset is None:
        return limit
    seconds = float(reset) if reset.isdecimal() and reset.isascii() else duration(reset)
    if seconds is None or seconds > MINUTE:
        return None
    remaining = whole(headers.get(f"x-ratelimit-remaining-{of}"))
    used = 0 if remaining is None else limit - remaining
    return None if used > 0 and _refills_slowly(seconds, used / limit, (used + 1) / limit) else limit


def _refills_slowly(seconds: float, least: float, most: float) -> bool:
    """Whether between `least` and `most` of the limit, a little refilled already, would be back in `seconds` at an hour's or a
    day's pace: so Groq's does, whose reset is short while little is used. Servers that count in windows name the window's end,
    which fits such a pace by chance at most, and not for long.
    """
    return any(0.9 * least <= seconds / period <= 1.1 * most for period in (HOUR, DAY))


def whole(value: object) -> int | None:
    """A number above 0, given as such or in decimal digits; None for anything else, and for what no limit can be."""
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) <= 12:
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 10**12 else None
