"""How much more a worker may take on, by all that limits it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from ai_worker.models import Task
from ai_worker.worker.breaker import Breaker
from ai_worker.worker.congestion import Throttle
from ai_worker.worker.pacer import Pacer
from ai_worker.worker.shares import Shares
from ai_worker.worker.slots import Slots


class Room:
    """Room for items of a task, and the models that have none. The claim's thread may ask, too."""

    def __init__(self, slots: Slots, throttle: Throttle, shares: Shares, pacer: Pacer, breaker: Breaker) -> None:
        self._slots = slots
        self._throttle = throttle
        self._shares = shares
        self._pacer = pacer
        self._breaker = breaker
        self._is_being_claimed = False

    def of(self, task: Task) -> int:
        """How many more items of the task's model may be claimed now."""
        return min(self._for_calls(task), self._pacer.room(task))

    def may_add(self, task: Task) -> bool:
        """Whether an item of the task may have one more call; the pace is kept by the call itself."""
        return not self._is_being_claimed and self._for_calls(task) > 0

    @contextlib.contextmanager
    def being_claimed(self) -> Iterator[None]:
        """Inside, a claim is made by what room there was: no further call takes it meanwhile."""
        self._is_being_claimed = True
        try:
            yield
        finally:
            self._is_being_claimed = False

    def blocked_models(self) -> list[int]:
        """Models that may take no more for a while; others only wait for their sending time, or a share."""
        return self._slots.full_models() + self._throttle.full_models() + self._breaker.shunned()

    def busy_models(self) -> list[int]:
        """Models that take no more items now, for whatever reason."""
        return self.blocked_models() + self._pacer.busy_models() + self._shares.full_models()

    def _for_calls(self, task: Task) -> int:
        return min(self._slots.room(task), self._throttle.room(task.id_ai_model), self._shares.room(task))
