"""Models that must not be used now: stopped for the whole fleet through the database, or left alone by this worker only."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final

from ai_worker.errors import DatabaseError, ModelStopped
from ai_worker.log import Event, Log
from ai_worker.models import Item, Task

SHUN_SECONDS: Final = 5.0  # a model just stopped: by then its row says so, or could not be written


class Misconfigured(ModelStopped):
    """This process cannot use the model: it lacks the master key or the provider. Others may have them."""

    kind = "configuration"


class Breaker:
    """What one worker knows of its models' troubles.

    Parameters
    ----------
    stop: stops a model for everybody: (id_ai_model, kind, reason, probe_seconds, is_probe) -> whether that was news.
    resume: lets everybody use it again: (id_ai_model) -> whether it was stopped.
    name: a model's name, for log and summary.
    on_change: told when it may be worth looking for other work.
    """

    def __init__(
        self,
        stop: Callable[[int, str, str, float, bool], Awaitable[bool]],
        resume: Callable[[int], Awaitable[bool]],
        name: Callable[[int], str],
        log: Log,
        on_change: Callable[[], None],
    ) -> None:
        self._stop = stop
        self._resume = resume
        self._name = name
        self._log = log
        self._on_change = on_change
        self._shunned: dict[int, float] = {}  # id_ai_model -> until when
        self._stopping: dict[int, asyncio.Task[None]] = {}
        self._resuming: set[asyncio.Task[None]] = set()
        self.stopped: dict[str, str] = {}  # name -> reason, of those that this worker ran into
        self.unusable: dict[str, str] = {}  # the same, of those that only this process cannot use

    def shunned(self) -> list[int]:
        """The models to claim nothing for. Callable from any thread."""
        now = time.monotonic()
        return [each for each, until in list(self._shunned.items()) if until > now]

    def is_shunned(self, id_ai_model: int) -> bool:
        """Whether this model must not be called now."""
        return bool(self._shunned) and self._shunned.get(id_ai_model, 0.0) > time.monotonic()

    @property
    def is_resuming(self) -> bool:
        """Whether a model that proved well is not yet resumed: work for it is about to appear."""
        return bool(self._resuming)

    async def trip(self, task: Task, error: ModelStopped, probe_seconds: float) -> None:
        """Somebody has found out that a task's model cannot be used; returns when nobody will claim for it. Never raises."""
        id_ai_model = task.id_ai_model
        if isinstance(error, Misconfigured):
            self._leave_to_others(id_ai_model, error, probe_seconds)
            return
        stopping = self._stopping.get(id_ai_model)
        if stopping is None:  # once, however many calls find out at the same time
            stopping = asyncio.create_task(self._stop_for_all(task, error, probe_seconds))
            self._stopping[id_ai_model] = stopping
        await asyncio.shield(stopping)

    def answered(self, item: Item) -> None:
        """A probe has brought a result: the model is well again."""
        task = asyncio.create_task(self._resume_for_all(item.task.id_ai_model))
        self._resuming.add(task)
        task.add_done_callback(self._resumed)

    def _leave_to_others(self, id_ai_model: int, error: Misconfigured, seconds: float) -> None:
        """What is missing is missing here, and no reason to stop the others."""
        name = self._name(id_ai_model)
        if name not in self.unusable:
            self._log(Event.MODEL_UNUSABLE, model=name, message=str(error))
        self.unusable[name] = str(error)
        self._shun(id_ai_model, seconds)

    async def _stop_for_all(self, task: Task, error: ModelStopped, probe_seconds: float) -> None:
        id_ai_model = task.id_ai_model
        name = self._name(id_ai_model)
        self.stopped[name] = str(error)
        self._shun(id_ai_model, SHUN_SECONDS)
        try:
            if await self._stop(id_ai_model, error.kind, str(error), probe_seconds, task.is_probe):
                reason = str(error)
                self._log(Event.MODEL_STOPPED, model=name, kind=error.kind, message=reason, probe_seconds=probe_seconds)
        except DatabaseError as failure:
            self._log(Event.DATABASE_AWAY, reason=f"model {name} could not be stopped: {failure}", commit_in_doubt=False)
        # Calls that were under way when the model stopped fail in the next moments, and need not say so again.
        asyncio.get_running_loop().call_later(SHUN_SECONDS, self._stopping.pop, id_ai_model, None)

    def _shun(self, id_ai_model: int, seconds: float) -> None:
        self._shunned[id_ai_model] = time.monotonic() + seconds
        self._on_change()

    async def _resume_for_all(self, id_ai_model: int) -> None:
        name = self._name(id_ai_model)
        try:
            was_stopped = await self._resume(id_ai_model)
        except DatabaseError as failure:  # the next probe tries again
            self._log(Event.DATABASE_AWAY, reason=f"model {name} could not be resumed: {failure}", commit_in_doubt=False)
            return
        self._shunned.pop(id_ai_model, None)
        self.stopped.pop(name, None)
        if was_stopped:
            self._log(Event.MODEL_RESUMED, model=name)

    def _resumed(self, task: asyncio.Task[None]) -> None:
        self._resuming.discard(task)
        self._on_change()
