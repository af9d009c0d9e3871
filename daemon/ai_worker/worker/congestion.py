"""How many calls a model takes at a time, as its answers show, and how often its failures may be tried again.

Additive increase, multiplicative decrease: a model that says "slower" or "overloaded" gets fewer calls at a time, once for all
answers that say so together; one that answers gets one more in the time of a call. After a stop it begins with one, and doubles.
https://www.rfc-editor.org/rfc/rfc5681 does the same for packets.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Final

from ai_worker.errors import Overloaded, RateLimited, Transient

DECREASE: Final = 0.7
SHORTEST_WINDOW: Final = 1.0  # seconds in which all complaints count as one; the time of a call, where that is longer
RETRIES: Final = 50.0  # call retries that may be made at first, and saved up; as many as there are slots, where these are more
PER_ANSWER: Final = 0.2  # of a call retry, that each answer gives: a sick provider gets a fifth more calls, no more


class Congestion:
    """One model's state in one worker. `slots` is how many calls it can have in flight."""

    __slots__ = ("_has_answered", "_retries", "_slots", "_threshold", "_window_until", "latency", "most")

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self.most = math.inf  # calls at a time
        self._threshold = math.inf  # up to here it doubles, above it grows by one
        self._window_until = -math.inf
        self._has_answered = True  # since the latest decrease
        self._retries = self._full
        self.latency = 0.0  # seconds

    @property
    def _full(self) -> float:
        return max(RETRIES, float(self._slots))

    def answered(self, seconds: float) -> None:
        """A call has been answered, after so many seconds."""
        self._has_answered = True
        self.latency += (seconds - self.latency) / 8
        if self._retries < self._full:
            self._retries += PER_ANSWER
        if self.most < math.inf:
            self.most += 1.0 if self.most < self._threshold else 1.0 / self.most
            if self.most > 2 * self._slots:
                self.most = math.inf

    def complained(self, now: float, in_flight: int) -> bool:
        """A call was answered with "slower" or "overloaded", while so many were in flight. Whether this is news."""
        if now < self._window_until:
            return False
        self._window_until = now + max(SHORTEST_WINDOW, self.latency)
        if not self._has_answered:  # it takes nothing at all now; that is no measure of how much it will take
            return False
        self._has_answered = False
        self.most = self._threshold = max(1.0, min(self.most, in_flight) * DECREASE)
        return True

    def restart(self) -> None:
        """It was stopped: it begins anew with one call at a time."""
        self.most, self._threshold = 1.0, math.inf

    def may_retry(self) -> bool:
        """Whether one more call retry may be made; it is taken off."""
        if self._retries < 1.0:
            return False
        self._retries -= 1.0
        return True


class Throttle:
    """The congestion of all models. Used in the loop, but for `room` and `full_models`, which the claim's thread may ask.

    `held` says how many items of a model have a slot, or wait for their first.
    """

    def __init__(self, slots: int, held: Callable[[int], int], clock: Callable[[], float] = time.monotonic) -> None:
        self._slots = slots
        self._held = held
        self._clock = clock
        self._models: dict[int, Congestion] = {}
        self._capped: set[int] = set()

    def of(self, id_ai_model: int) -> Congestion:
        """The model's state."""
        found = self._models.get(id_ai_model)
        if found is None:
            found = self._models.setdefault(id_ai_model, Congestion(self._slots))
        return found

    def answered(self, id_ai_model: int, began: float) -> None:
        """A call that began then has been answered."""
        congestion = self.of(id_ai_model)
        congestion.answered(self._clock() - began)
        if congestion.most == math.inf:
            self._capped.discard(id_ai_model)

    def failed(self, id_ai_model: int, error: Transient) -> None:
        """A call has failed, for a reason that is not the item's."""
        if isinstance(error, RateLimited | Overloaded):
            self.of(id_ai_model).complained(self._clock(), self._held(id_ai_model))
            self._capped.add(id_ai_model)

    def restart(self, id_ai_model: int) -> None:
        """The model was stopped."""
        self.of(id_ai_model).restart()
        self._capped.add(id_ai_model)

    def room(self, id_ai_model: int) -> int:
        """How many more of its items may be held."""
        most = self._models[id_ai_model].most if id_ai_model in self._capped else math.inf
        return 1_000_000 if most == math.inf else int(most) - self._held(id_ai_model)

    def full_models(self) -> list[int]:
        """Models that take no more items now."""
        return [each for each in list(self._capped) if self.room(each) <= 0]

    def caps(self, id_ai_model: int) -> bool:
        """Whether one of the model's items having ended may make room for another that could not be claimed."""
        return id_ai_model in self._capped
