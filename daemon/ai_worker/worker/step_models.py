"""Steps for another model than their task's: which one that is, whether it may be called now, and its place among the calls."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from typing import Final

from ai_worker.errors import UsageError
from ai_worker.models import Item, Step, Task
from ai_worker.store.chains import ModelState
from ai_worker.worker.attempt import PutOffError
from ai_worker.worker.endpoints import Endpoint

FRESH_SECONDS: Final = 5.0  # how long the states are trusted, as elsewhere in the worker: a stop is noticed by the call itself
FULL_SECONDS: Final = 0.1  # between two looks whether a model that is full takes one more call
STOPPED_SECONDS: Final = 30.0  # at the least, until an item comes back whose step's model is stopped
LONGEST_SECONDS: Final = 300.0


class StepModels:
    """Turns running calls to the models of their steps. Used in the loop.

    Parameters
    ----------
    fetch: the states of all models, by name.
    endpoint: the provider of a model, ready to be called.
    saw: takes note of a task's limits.
    turn_to: makes the running call one of this item's model, if there is room, see `Slots.turn_to`.
    away: gives the slot of the running call away for as long as it waits, see `Slots.away`.
    is_shunned: whether this worker knows that a model must not be called now.
    take_probe: whether this worker may try a stopped model with one call.
    """

    def __init__(
        self,
        fetch: Callable[[], Awaitable[Mapping[str, ModelState]]],
        endpoint: Callable[[int], Awaitable[Endpoint]],
        *,
        saw: Callable[[Collection[Task]], None],
        turn_to: Callable[[Item], bool],
        away: Callable[[], AbstractAsyncContextManager[object]],
        is_shunned: Callable[[int], bool],
        take_probe: Callable[[int], Awaitable[bool]],
    ) -> None:
        self._fetch = fetch
        self._endpoint = endpoint
        self._saw = saw
        self._turn_to = turn_to
        self._away = away
        self._is_shunned = is_shunned
        self._take_probe = take_probe
        self._states: Mapping[str, ModelState] = {}
        self._fetched_at = float("-inf")

    async def turn(self, item: Item, step: Step, own: Endpoint) -> tuple[Item, Endpoint]:
        """The item for the step's model, and that model's endpoint; `own` is its task's. Waits while the model is full.

        Raises UsageError when there is no such model, PutOffError while it is stopped or not in use.
        """
        if step.model is None or step.model == own.model.name:
            theirs, endpoint = item, own
        else:
            theirs = item._replace(task=await self._task(item.task, step.name, step.model))
            endpoint = await self._endpoint(theirs.task.id_ai_model)
            self._saw([theirs.task])
        while not self._turn_to(theirs):
            async with self._away():
                await asyncio.sleep(FULL_SECONDS)
        return theirs, endpoint

    async def _task(self, task: Task, step: str, name: str) -> Task:
        if name not in self._states or time.monotonic() - self._fetched_at > FRESH_SECONDS:
            self._states, self._fetched_at = await self._fetch(), time.monotonic()
        state = self._states.get(name)
        if state is None:
            known = ", ".join(sorted(self._states))
            raise UsageError(f"step {step!r} is for the model {name!r}, and there is no such one; known ones: {known}")
        if not state.is_active:
            raise PutOffError("model_inactive", f"the model {name!r} of step {step!r} is not in use", LONGEST_SECONDS)
        id_ai_model: int = state.columns["id_ai_model"]
        is_probe = False
        if state.is_stopped or self._is_shunned(id_ai_model):
            self._fetched_at = float("-inf")  # it may be well again in a moment
            is_probe = state.is_stopped and state.is_due and await self._take_probe(id_ai_model)
            if not is_probe:
                delay = min(LONGEST_SECONDS, max(STOPPED_SECONDS, state.probe_seconds))
                raise PutOffError("model_stopped", f"the model {name!r} of step {step!r} is stopped", delay)
        # It stands alone: a chain is of models for the whole item, and one that refuses a step has refused the item.
        return replace(task, **state.columns, chain=(id_ai_model,), is_probe=is_probe)
