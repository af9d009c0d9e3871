"""Rate limits as the vendors enforce them: requests and tokens per minute, and calls in flight.

What the references leave open is decided here: a refused request costs nothing, and a call is charged when it is let in, with
all the tokens it will turn out to have cost.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from tests.fake_provider.wire import Tokens


@dataclass(frozen=True)
class Limits:
    """What a server enforces; each limit is off where it is None.

    requests_per_minute, tokens_per_minute: refused with 429 above them.
    max_in_flight: so many calls at a time; one more is refused with 429.
    count: `sliding` = never more than the limit within any `seconds`; `bucket` = a bucket of `burst` minutes' worth, filled
        continuously, as OpenAI does: a fresh one lets a whole minute's worth through at once.
    seconds: the length of the sliding window, which lets so much of the minute's worth through.
    burst: the bucket's size, as a share of the minute's worth.
    per: `server` = one limit for all requests, `model` = one for each model name.
    charge: `total` = input and output tokens count; `input` = input alone, as Gemini does.
    headers: whether OpenAI's answers say what is left (`x-ratelimit-...`).
    retry_after: whether a 429 says how long to wait.
    """

    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    max_in_flight: int | None = None
    count: str = "sliding"
    seconds: float = 60.0
    burst: float = 1.0
    per: str = "server"
    charge: str = "total"
    headers: bool = True
    retry_after: bool = True

    def __post_init__(self) -> None:
        choices = {"count": ("sliding", "bucket"), "per": ("server", "model"), "charge": ("total", "input")}
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, not {getattr(self, name)!r}")
        for name in ("requests_per_minute", "tokens_per_minute", "max_in_flight", "seconds", "burst"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be above 0, not {value!r}")

    @property
    def any(self) -> bool:
        return (self.requests_per_minute, self.tokens_per_minute, self.max_in_flight) != (None, None, None)


@dataclass(frozen=True)
class Refusal:
    """Why a request was not let in: `kind` is requests, tokens or in_flight. `wait` is None where waiting does not help."""

    kind: str
    limit: float
    used: float
    requested: float
    wait: float | None


class _Meter(Protocol):
    limit: float

    def wait(self, amount: float, now: float) -> float:
        """Seconds until the amount fits; 0 now, infinity never."""

    def take(self, amount: float, now: float) -> None: ...

    def used(self, now: float) -> float: ...

    def reset(self, now: float) -> float:
        """Seconds until the whole limit is there again, when nothing more is taken."""


class _Sliding:
    def __init__(self, limit: float, seconds: float) -> None:
        self.limit = limit * seconds / 60.0
        self._seconds = seconds
        self._taken: deque[tuple[float, float]] = deque()
        self._sum = 0.0

    def _forget(self, now: float) -> None:
        while self._taken and self._taken[0][0] <= now - self._seconds:
            self._sum -= self._taken.popleft()[1]

    def wait(self, amount: float, now: float) -> float:
        self._forget(now)
        if amount > self.limit:
            return math.inf
        too_much = self._sum + amount - self.limit
        if too_much <= 0:
            return 0.0
        for taken_at, taken in self._taken:
            too_much -= taken
            if too_much <= 0:
                return taken_at + self._seconds - now
        raise AssertionError("what was taken is more than the sum of it")

    def take(self, amount: float, now: float) -> None:
        self._taken.append((now, amount))
        self._sum += amount

    def used(self, now: float) -> float:
        self._forget(now)
        return self._sum

    def reset(self, now: float) -> float:
        self._forget(now)
        return self._taken[-1][0] + self._seconds - now if self._taken else 0.0


class _Bucket:
    def __init__(self, limit: float, burst: float, now: float) -> None:
        self.limit = limit
        self._size = max(limit * burst, 1.0)
        self._per_second = limit / 60.0
        self._level, self._at = self._size, now

    def _fill(self, now: float) -> None:
        self._level = min(self._size, self._level + (now - self._at) * self._per_second)
        self._at = now

    def wait(self, amount: float, now: float) -> float:
        self._fill(now)
        if amount > self._size:
            return math.inf
        return max(0.0, (amount - self._level) / self._per_second)

    def take(self, amount: float, now: float) -> None:
        self._level -= amount

    def used(self, now: float) -> float:
        self._fill(now)
        return max(0.0, self.limit - self._level)

    def reset(self, now: float) -> float:
        self._fill(now)
        return (self._size - self._level) / self._per_second


class _Scope:
    """The state of the limits for one model, or for all."""

    def __init__(self, limits: Limits, now: float) -> None:
        self._limits = limits
        self.meters: dict[str, _Meter] = {}
        for kind, limit in (("requests", limits.requests_per_minute), ("tokens", limits.tokens_per_minute)):
            if limit is not None:
                sliding = limits.count == "sliding"
                self.meters[kind] = _Sliding(limit, limits.seconds) if sliding else _Bucket(limit, limits.burst, now)
        self.held = 0

    def admit(self, amounts: dict[str, int], now: float) -> Refusal | None:
        most = self._limits.max_in_flight
        if most is not None and self.held >= most:
            return Refusal("in_flight", most, self.held, 1, 1.0)
        for kind, meter in self.meters.items():
            if wait := meter.wait(amounts[kind], now):
                return Refusal(kind, meter.limit, meter.used(now), amounts[kind], None if wait == math.inf else wait)
        for kind, meter in self.meters.items():
            meter.take(amounts[kind], now)
        self.held += 1
        return None


class Limiter:
    """Lets requests in as far as the limits go. Not for several threads: the server's loop alone asks.

    clock: seconds; for tests of the limiter itself.
    """

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        self.limits = limits
        self._clock = clock
        self._scopes: defaultdict[str, _Scope] = defaultdict(lambda: _Scope(limits, clock()))

    def _scope(self, model: str) -> _Scope:
        return self._scopes[model if self.limits.per == "model" else ""]

    def admit(self, model: str, tokens: Tokens | None) -> Refusal | None:
        """None when the request is let in; then `release` must follow. `tokens`: what it will cost, None for nothing."""
        cost = 0 if tokens is None else tokens.input + (tokens.output if self.limits.charge == "total" else 0)
        return self._scope(model).admit({"requests": 1, "tokens": cost}, self._clock())

    def release(self, model: str) -> None:
        self._scope(model).held -= 1

    def headers(self, model: str) -> dict[str, str]:
        """OpenAI's `x-ratelimit-...` headers for the limits that are on."""
        if not self.limits.headers:
            return {}
        now, said = self._clock(), {}
        for kind, meter in self._scope(model).meters.items():
            said[f"x-ratelimit-limit-{kind}"] = f"{meter.limit:.0f}"
            said[f"x-ratelimit-remaining-{kind}"] = str(max(0, math.floor(meter.limit - meter.used(now))))
            said[f"x-ratelimit-reset-{kind}"] = duration(meter.reset(now))
        return said


def duration(seconds: float) -> str:
    """A duration in OpenAI's words: `0s`, `120ms`, `7.66s`, `6m0s`, `1h0m0s`."""
    if seconds <= 0:
        return "0s"
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    minutes, rest = divmod(round(seconds, 2), 60)
    hours, minutes = divmod(int(minutes), 60)
    tail = f"{round(rest, 2):g}s"
    return f"{hours}h{minutes}m{tail}" if hours else f"{minutes}m{tail}" if minutes else tail
