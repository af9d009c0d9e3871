"""Items that wait for identical work: of very many, those that find no room to wait come back in turn."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import pytest

from ai_worker.log import Log
from ai_worker.models import Item, Task, TaskStatus
from ai_worker.store.cache import Answer, Question, Standing
from ai_worker.worker.twins import TURN, TooManyTwinsError, Twins

TASK = Task(1, 1, "correction", "", {}, 3, 0, TaskStatus.IN_PROGRESS)
KEY = bytes(32)


@asynccontextmanager
async def away(*, soon: bool = False) -> AsyncIterator[Callable[[], None]]:
    yield lambda: None


async def ask(questions: Sequence[Question]) -> dict[bytes, Answer | Standing]:
    return dict.fromkeys([question.key for question in questions], Standing.UNDER_WAY)


async def abandon(questions: Sequence[Question]) -> None:
    raise AssertionError(questions)


def item(number: int) -> Item:
    return Item(number, TASK, "tekst", {}, 1, 0, bytes(16), str(number))


def test_of_very_many_the_later_ones_stay_away_for_longer() -> None:
    """Else one call of a minute would have all of them claimed, put off and written down every few seconds."""

    async def run() -> None:
        twins = Twins(ask, abandon, away, 2, Log())
        waiting = [asyncio.create_task(twins.answer(item(number), KEY)) for number in range(2)]
        while not twins._elsewhere or twins._waiting < 2:  # noqa: ASYNC110 -- a turn of the loop at a time
            await asyncio.sleep(0.001)
        turns = []
        for number in range(2, 2 + 6 * TURN):
            with pytest.raises(TooManyTwinsError) as told:
                await twins.answer(item(number), KEY)
            turns.append(told.value.turn)
        assert turns == sorted(turns)
        assert (turns[0], turns[-1]) == (1, 4)
        twins.drain()
        await asyncio.gather(*waiting, return_exceptions=True)
        await twins.aclose()

    asyncio.run(run())
