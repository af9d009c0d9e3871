"""What the server has seen, kept compactly: a line per request, and the sums that proofs are made of."""

from __future__ import annotations

import threading
from array import array
from collections import Counter
from dataclasses import dataclass
from typing import Any

from tests.fake_provider.wire import Tokens

REFUSED_KEPT = 1000  # how many refusals by a limit `counts` dates


@dataclass
class _Peak:
    """The most that fell into any window of so many seconds, as far as the log has been read."""

    seconds: float
    first: int = 0  # the oldest line in the window
    position: int = 0  # the first line not yet read
    requests: int = 0
    tokens: int = 0
    most_requests: int = 0
    most_tokens: int = 0


class Tally:
    """A line per request: when it came (monotonic seconds), the tokens it is billed, how it is answered.

    The status is the one decided when the request came in, negative where a limit refused it: the window that a provider counts
    in takes a call when it begins, and a client that goes away has still been served.
    """

    def __init__(self) -> None:
        self._times = array("d")
        self._tokens = array("d")  # tests bill more than any whole number of 64 bits
        self._statuses = array("h")
        self._peaks: dict[float, _Peak] = {}
        self._reading = threading.Lock()
        self.billed = Tokens(0, 0)
        self.per_status: Counter[int] = Counter()
        self.per_tier: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()

    def add(self, at: float, tokens: Tokens | None, status: int, *, tier: str, refused_by: str | None = None) -> None:
        """Notes a request. Must be called in the order of `at`."""
        self.per_status[status] += 1
        self.per_tier[tier] += 1
        cost = 0
        if tokens is not None:
            cost = tokens.input + tokens.output
            self.billed = self.billed.plus(tokens)
        if refused_by is not None:
            self.refused[refused_by] += 1
        self._times.append(at)
        self._tokens.append(cost)
        self._statuses.append(status if refused_by is None else -status)  # last: who reads meanwhile goes by its length

    def peak(self, seconds: float = 60.0) -> dict[str, int]:
        """The most requests and the most tokens that were let in and not answered with an error within any such window."""
        with self._reading:
            peak = self._peaks.setdefault(seconds, _Peak(seconds))
            while peak.position < len(self._statuses):
                here = peak.position
                if self._counts(here):
                    peak.requests += 1
                    peak.tokens += self._tokens[here]
                while self._times[peak.first] <= self._times[here] - seconds:
                    if self._counts(peak.first):
                        peak.requests -= 1
                        peak.tokens -= self._tokens[peak.first]
                    peak.first += 1
                peak.most_requests = max(peak.most_requests, peak.requests)
                peak.most_tokens = max(peak.most_tokens, peak.tokens)
                peak.position += 1
            return {"requests": peak.most_requests, "tokens": peak.most_tokens}

    def _counts(self, line: int) -> bool:
        return 0 < self._statuses[line] < 400

    def timeline(self, bucket: float = 1.0) -> dict[str, Any]:
        """What came in during each stretch of `bucket` seconds since the first request.

        `origin` is that moment on the monotonic clock. Each row says from when it counts (`at`, seconds since then), how many
        requests were accepted, refused by a limit, failed otherwise, and the tokens billed.
        """
        if not bucket > 0:
            raise ValueError(f"bucket must be above 0, not {bucket!r}")
        rows: list[dict[str, Any]] = []
        origin = self._times[0] if self._times else None
        for at, tokens, status in zip(self._times, self._tokens, self._statuses, strict=False):
            assert origin is not None
            number = int((at - origin) / bucket)
            while len(rows) <= number:
                rows.append({"at": round(len(rows) * bucket, 6), "accepted": 0, "refused": 0, "failed": 0, "tokens": 0})
            row = rows[number]
            row["refused" if status < 0 else "accepted" if status < 400 else "failed"] += 1
            row["tokens"] += tokens
        return {"origin": origin, "bucket": bucket, "rows": rows}

    def counts(self, window: float = 60.0) -> dict[str, Any]:
        """The sums; `refused_at` dates the last refusals by a limit, in seconds since the first request."""
        late = [at for at, status in zip(self._times, self._statuses, strict=False) if status < 0] if self.refused else []
        billed = self.billed
        return {
            "per_status": {str(status): number for status, number in self.per_status.items()},
            "per_tier": dict(self.per_tier),
            "tokens_total": billed.input + billed.output,
            "tokens": {
                "input": billed.input,
                "output": billed.output,
                "cached": billed.cached,
                "reasoning": billed.reasoning,
            },
            "peak_window": {"seconds": window, **self.peak(window)},
            "refused": dict(self.refused),
            "refused_at": [round(at - self._times[0], 3) for at in late[-REFUSED_KEPT:]],
        }
