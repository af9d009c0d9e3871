"""What items' prompts need beside the items, drawn for all that ask at about the same time, without holding up the loop."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from ai_worker.errors import ConfigurationError, DatabaseAway, DatabaseError
from ai_worker.models import NO_BACKGROUND, Background, Item, Needs

GATHER_SECONDS: Final = 0.003  # for more items to ask, which are then served in one trip to the thread
AT_ONCE: Final = 100  # items in one trip: others want the thread too

_Question = tuple[Item, Needs, "asyncio.Future[Background]"]


class Backgrounds:
    """Used in the loop, by tasks that want a background; nobody else pays for it.

    Parameters
    ----------
    draw: the backgrounds of many items, see `store.background.Backgrounds.draw`.
    """

    def __init__(self, draw: Callable[[Sequence[tuple[Item, Needs]]], Awaitable[list[Background]]]) -> None:
        self._draw = draw
        self._asked: list[_Question] = []
        self._drawing: asyncio.Task[None] | None = None

    async def of(self, item: Item, needs: Needs) -> Background:
        """The background of one item. Raises DatabaseAway, ConfigurationError where the database refuses to tell."""
        if item.subject is None and not needs.examples:
            return NO_BACKGROUND
        answer: asyncio.Future[Background] = asyncio.get_running_loop().create_future()
        self._asked.append((item, needs, answer))
        if self._drawing is None or self._drawing.done():
            self._drawing = asyncio.get_running_loop().create_task(self._keep_drawing())
        return await answer

    async def _keep_drawing(self) -> None:
        while self._asked:
            await asyncio.sleep(GATHER_SECONDS)
            questions = [question for question in self._asked[:AT_ONCE] if not question[2].done()]
            del self._asked[:AT_ONCE]
            try:
                drawn = await self._draw([(item, needs) for item, needs, _ in questions])
            except Exception as error:  # noqa: BLE001 -- whatever it is, it is for those who wait
                for _, _, answer in questions:
                    if not answer.done():
                        answer.set_exception(_told(error))
                continue
            for (_, _, answer), background in zip(questions, drawn, strict=True):
                if not answer.done():  # else its call was cancelled
                    answer.set_result(background)


def _told(error: Exception) -> Exception:
    """A right that was not granted, say, will not come by waiting: it must cost the item an attempt."""
    is_lasting = isinstance(error, DatabaseError) and not isinstance(error, DatabaseAway)
    return ConfigurationError(f"the background cannot be read: {error}") if is_lasting else error
