"""One worker's part of a model's sending time: the stretches that it holds, and how far it has used them. Arithmetic only.

A minute of sending time is worth the model's requests per minute, and its tokens per minute. Each call uses a bit of both, so
there are two cursors, and a call may begin when both have come so far. Times are those of `time.monotonic`.
"""

from __future__ import annotations

import math
from typing import Final

from ai_worker.models import Limits

# Of what is allowed: a provider may count in any window of a minute, and what belongs to one minute may be sent a little into the
# next (LAG), or cost more tokens than was thought.
MARGIN: Final = 0.975
LAG: Final = 0.4  # seconds that a call may come late without its sending time being lost: the loop, or a claim, was slow
CARRY: Final = (
    0.25  # seconds of one kind, requests or tokens, that are left at a stretch's end because the other kind was used up
)
LONGEST: Final = 2.0  # seconds of a stretch, unless a single call takes longer
FEW_CALLS: Final = 5  # that a stretch is worth at the least, once a worker has used one up
CROWDED: Final = 10.0  # seconds: with a longer line before it, a stretch does not grow


class Line:
    """`slots` is how many calls of this worker can be in flight: a stretch is worth no more than half as many."""

    def __init__(self, limits: Limits, slots: int) -> None:
        self._slots = slots
        self._begins = self._ends = self._requests = self._tokens = -math.inf
        self._next: tuple[float, float] | None = None
        self._length = 0.0  # of the next stretch to ask for; 0: one call's
        self._tokens_per_call = 0.0  # 0: none yet
        self.limits = limits

    @property
    def limits(self) -> Limits:
        """What the whole fleet may send per minute. May be set at any time."""
        return self._limits

    @limits.setter
    def limits(self, limits: Limits) -> None:
        self._limits = limits
        requests, tokens = limits
        self._per_request = 0.0 if requests is None else 60.0 / (requests * MARGIN)
        self._per_token = 0.0 if tokens is None else 60.0 / (tokens * MARGIN)

    @property
    def counts_tokens(self) -> bool:
        """Whether a call's tokens matter."""
        return self._per_token > 0

    @property
    def per_call(self) -> float:
        """Seconds of sending time that a call takes, by the latest ones' tokens."""
        return max(self._per_request, self._per_token * (self._tokens_per_call or 1000.0), 1e-6)

    def take(self, now: float, tokens: int) -> float:
        """Uses sending time for a call of so many tokens: 0 when it may begin now, else the seconds until one may, or infinity
        when no more sending time is held."""
        wait = self.until(now)
        if wait <= 0:
            self._requests = max(self._requests, now - LAG) + self._per_request
            self._tokens = max(self._tokens, now - LAG) + self._per_token * tokens
            self._tokens_per_call += (tokens - self._tokens_per_call) / (8 if self._tokens_per_call else 1)
        return max(0.0, wait)

    def settle(self, tokens: int) -> None:
        """A call has cost so many tokens more than it had been thought to, or fewer."""
        self._tokens += self._per_token * tokens
        self._tokens_per_call = max(1.0, self._tokens_per_call + tokens / 8)

    def until(self, now: float) -> float:
        """Seconds until a call may begin; not above 0 when one may now, infinity when no sending time is held for it."""
        while max(at := self._at, now - LAG) >= self._ends:
            if self._next is None:
                return math.inf
            self._go_on(at)
        return at - now

    def calls_until(self, horizon: float, now: float) -> int:
        """How many calls may begin before `horizon` with the sending time that is held. Changes nothing."""
        begins = max(self._at, now - LAG)
        seconds = max(0.0, min(self._ends, horizon) - begins)
        if self._next is not None:
            debt = max(0.0, self._at - self._ends) if self._ends > -math.inf else 0.0
            seconds += max(0.0, min(self._next[1], horizon) - max(self._next[0] + debt, now - LAG))
        return math.ceil(seconds / self.per_call - 1e-6)

    def wants(self, now: float, ahead: float) -> float:
        """Seconds of sending time to ask for now; 0 when what is held lasts for `ahead` seconds, or as much is on its way."""
        self.until(now)
        if self._next is not None or self._ends - max(self._at, now) > ahead:
            return 0.0
        longest = max(self.per_call, min(LONGEST, self.per_call * self._slots / 2))
        if now - self._ends > LONGEST:
            self._length = 0.0  # after a time without work, the first call is not to keep others waiting
        self._length = min(max(self._length, self.per_call), longest)
        return self._length

    def add(self, begins: float, seconds: float, line: float) -> None:
        """A stretch was leased, `line` seconds after it was asked for. It is as long as asked, and the next will be longer."""
        if self._next is not None:
            raise RuntimeError("a stretch of sending time is waiting already")
        if math.isinf(self._ends):
            self._begins = self._ends = self._requests = self._tokens = begins
        self._next = (begins, begins + seconds)
        few = FEW_CALLS * self.per_call
        self._length = 2 * seconds if line < CROWDED or seconds < few else max(few, seconds / 2)

    @property
    def _at(self) -> float:
        """When the next call may begin, as far as the stretch in use goes."""
        return max(self._requests, self._tokens, self._begins)

    def _go_on(self, at: float) -> None:
        """To the next stretch, with what was used too much of the one before, or a little of the kind that could not be used."""
        if self._next is None:
            return
        unused = max(0.0, self._ends - at)
        if unused > (self._ends - self._begins) / 2:
            self._length /= 4  # it had been doubled
        begins, ends = self._next
        shift = begins - self._ends
        self._requests = max(self._requests + unused, self._ends - CARRY) + shift
        self._tokens = max(self._tokens + unused, self._ends - CARRY) + shift
        self._begins, self._ends, self._next = begins, ends, None
