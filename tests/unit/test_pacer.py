"""Whose turn it is, and when items can be claimed: however a model's sending time goes, it never comes to a standstill."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from ai_worker.models import NO_LIMITS, Limits, Prompt, Task, TaskStatus, Usage
from ai_worker.store.pace import Stretch
from ai_worker.worker.pacer import Pacer

TASK = Task(1, 1, "correction", "", {}, 3, 0, TaskStatus.IN_PROGRESS)
PROMPT = Prompt(
    system="s",
    user="x",
    schema={},
    schema_name="x",
    text="x",
    answer_field="a",
    task_type="correction",
    parameters={},
    temperature=0.0,
    tokens_output_expected=10,
)
PATIENCE = 10.0  # seconds; what is waited for here takes one or two


class Fleet:
    """A pacer on a line of sending time of its own. `limits` and `held_until` are what the worker knows of the model."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.held_until = -math.inf
        self.held = 0
        self.line_ends = 0.0
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.pacer = Pacer(
            self._lease,
            lambda _: self.limits,
            lambda _: self.held_until,
            slots=10,
            held=lambda _: self.held,
            away=self._away,
            on_ready=lambda: None,
        )
        self.pacer.start()

    async def _lease(self, id_ai_model: int, seconds: float) -> Stretch:
        await self.may_answer.wait()
        begins = max(time.monotonic(), self.line_ends)
        self.line_ends = begins + seconds
        return Stretch(True, begins - time.monotonic())

    @asynccontextmanager
    async def _away(self) -> AsyncIterator[None]:
        yield

    async def has_room(self) -> None:
        """Returns when an item can be claimed, as the claim finds out: only models that are not busy are asked for room."""
        await until(lambda: not self.pacer.busy_models() and self.pacer.room(TASK) > 0)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110 -- as the claim does: it is told nothing but that it may look
            await asyncio.sleep(0.01)


def test_a_call_that_cost_far_more_than_was_thought_holds_its_model_up_for_no_longer_than_that() -> None:
    """Ten thousand tokens a second: the answer has cost the sending time of a second, and the next stretches are shorter."""

    async def run() -> None:
        fleet = Fleet(Limits(None, 600_000))
        await fleet.has_room()
        fleet.held = 1
        turn = await fleet.pacer.turn(TASK, PROMPT)
        assert turn is not None
        fleet.held = 0
        turn.end(Usage(5_000, 5_000))
        ended = time.monotonic()
        await fleet.has_room()
        assert 0.3 < time.monotonic() - ended < 5.0

    asyncio.run(run())


def test_a_pause_that_the_provider_asked_for_ends() -> None:
    async def run() -> None:
        fleet = Fleet(Limits(6_000, None))
        fleet.held_until = time.monotonic() + 1.2
        began = time.monotonic()
        await fleet.has_room()
        assert 0.6 < time.monotonic() - began < 5.0

    asyncio.run(run())


def test_a_limit_that_is_taken_away_while_sending_time_is_asked_for_leaves_no_model_waiting() -> None:
    async def run() -> None:
        fleet = Fleet(Limits(6_000, None))
        fleet.may_answer.clear()
        assert fleet.pacer.room(TASK) == 0
        await until(lambda: fleet.pacer.busy_models() == [1])
        fleet.limits = NO_LIMITS
        fleet.pacer.saw([TASK])
        fleet.may_answer.set()
        await fleet.has_room()

    asyncio.run(run())


def test_no_turn_is_waited_for_once_the_worker_is_stopping() -> None:
    async def run() -> None:
        fleet = Fleet(Limits(6_000, None))
        await fleet.has_room()
        fleet.pacer.stop()
        async with asyncio.timeout(PATIENCE):
            assert await fleet.pacer.turn(TASK, PROMPT) is None

    asyncio.run(run())
