"""The calls that providers have not answered yet, and when each of them should have ended by itself."""

from __future__ import annotations

import itertools
import time
from typing import Final

from ai_worker.models import Lane, Prompt

# Times its time-out: a call's clock runs in its provider, which begins when it has a connection, and a busy loop is late to see
# its end. What is then still under way has no clock that works.
GRACE: Final = 2.0
GRACE_SECONDS: Final = 60.0
LONGEST_SECONDS: Final = 900.0  # what providers give a picture, or a call in the cheap tier, whatever the setting says


class UnderWay:
    """Used in the loop. `seconds` is how long a provider gives one call."""

    def __init__(self, seconds: float) -> None:
        self._usual = GRACE * seconds + GRACE_SECONDS
        self._longest = max(self._usual, GRACE * LONGEST_SECONDS)
        self._numbers = itertools.count()
        self._due: dict[int, float] = {}

    def begin(self, prompt: Prompt, now: float) -> int:
        """A call begins; the number to `end` it with."""
        number = next(self._numbers)
        is_usual = prompt.lane is Lane.ONLINE and prompt.image is None
        self._due[number] = now + (self._usual if is_usual else self._longest)
        return number

    def end(self, number: int) -> None:
        """The call has ended, in whatever way."""
        del self._due[number]

    def overdue(self) -> int:
        """How many calls are under way beyond any time-out of theirs: nothing will end them any more."""
        now = time.monotonic()
        return sum(due < now for due in self._due.values())
