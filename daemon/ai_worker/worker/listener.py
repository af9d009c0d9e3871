"""What a worker does while there is nothing to do: it listens for new work, or waits for its turn to.

Of all idle workers that want the same, the one whose turn it is listens for new items inside the server, and looks at all tasks
now and then for what is not a new item (a task resumed, an item retried, a schedule come due). It also does the fleet's upkeep.
The others wait in the server, and cost next to nothing. With the turn goes no right: whoever sees work claims it.

A busy worker leaves the listening to others; but see `express` for what goes before the work that it is busy with.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Callable, Iterable
from typing import Final

from ai_worker.errors import DatabaseAway, DatabaseError
from ai_worker.models import Filters
from ai_worker.store.turns import Turns
from ai_worker.worker.threads import Thread

TURN_SECONDS: Final = 8.0  # in the queue for the turn; then a look of one's own, in case the listener is deaf
# Between looks at all tasks, growing from the one to the other. Short at first: what two applications insert at the same moment
# may be committed against the order of its keys, and the lower one is not heard.
LOOK_FIRST, LOOK_LAST = 0.025, 0.2
LOOK_SLOWEST: Final = 1.0  # where a look takes long, because there are many tasks with nothing to do
LOOK_SHARE: Final = 0.05  # of the time, for looking
POLL_FIRST, POLL_LAST = 0.005, 0.2  # the same without turns
DEAF_SECONDS: Final = 0.005  # after hearing of an item that was not for us; doubled each time
RETRY_SECONDS: Final = 5.0  # without turns, until they are tried again: the server could not be reached
REFUSED_SECONDS: Final = 60.0  # ... or has none


class Listener:
    """Used in the loop. The waiting itself is done in a thread of its own, which no claim has to wait for.

    Parameters
    ----------
    busy_models: those that take no items now. Called from the thread.
    polls: for a worker that takes no turns, because it will end when nothing is left.
    """

    def __init__(self, turns: Turns, filters: Filters, busy_models: Callable[[], Iterable[int]], *, polls: bool = False) -> None:
        self._turns = turns
        self._filters = filters
        self._busy_models = busy_models
        self.thread = Thread("listen")
        self._listening: asyncio.Future[int | None] | None = None
        self._on_duty = asyncio.Event()
        self._on_duty.set()
        self._fruitless = self._misheard = 0  # looks in a row; those of them that a new item had led to
        self._look_began = time.monotonic()
        self._polls_until = float("inf") if polls else 0.0
        self._is_wanted = False  # the turn
        # Of the thread:
        self._turn: str | None = None  # the name of what it holds
        self._newest = 0
        self._has_heard = False

    async def wait(self, woken: asyncio.Event) -> int | None:
        """Returns when it is time to look for work: with the key of a new item, at its own pace, or when woken.

        Call it after a look that found nothing; after one that did, call `found`.
        """
        looked = time.monotonic() - self._look_began
        self._fruitless += 1
        new_item = None
        if time.monotonic() < self._polls_until:
            await _until(woken, _growing(POLL_FIRST, 1.5, self._fruitless, POLL_LAST))
        elif not (self._misheard and await _until(woken, _growing(DEAF_SECONDS, 2, self._misheard, LOOK_LAST))):
            pace = max(_growing(LOOK_FIRST, 2, self._fruitless, LOOK_LAST), min(looked / LOOK_SHARE, LOOK_SLOWEST))
            began = time.monotonic()
            new_item = await self._listen(pace, woken)
            if new_item is not None:
                self._misheard += 1
            elif time.monotonic() - began > pace / 2:
                self._misheard = 0  # it is quiet again
        self._look_began = time.monotonic()
        return new_item

    @property
    def hears(self) -> bool:
        """Whether a new item for this worker is heard of at once: it has the turn, and nobody inserts what is not for it."""
        return self._turn is not None and not self._misheard

    def found(self) -> None:
        """A look has brought items: there may soon be more."""
        self._fruitless = self._misheard = 0

    def leave(self) -> None:
        """Somebody else's turn: this worker is busy, or must not claim."""
        self._is_wanted = False
        self._on_duty.set()
        if self._turn is not None or self._listening is not None:
            self.thread.aside(self._end_turn)

    async def on_duty(self) -> None:
        """Returns when this worker has to do the fleet's upkeep: unless it waits for its turn, and another one does."""
        await self._on_duty.wait()

    async def aclose(self) -> None:
        """Ends the waiting. Nobody else is held up: the server frees what a session held."""
        self._turns.close()
        self.thread.aside(self._turns.disconnect)
        if self._listening is not None and not self.thread.is_dead:
            await asyncio.gather(self._listening, return_exceptions=True)
        self.thread.close(is_to_finish=True)

    async def _listen(self, seconds: float, woken: asyncio.Event) -> int | None:
        self._is_wanted = True
        if self._listening is None:
            if self._turn is None:
                self._on_duty.clear()
            self._listening = self.thread(self._step, seconds)
            self._listening.add_done_callback(lambda _: woken.set())
        if not self._listening.done():  # it may have ended while this worker was busy, and woken nobody
            await woken.wait()
        if not self._listening.done():
            return None  # woken; it goes on listening
        listening, self._listening = self._listening, None
        if self._turn is not None:
            self._on_duty.set()
        try:
            return listening.result()
        except DatabaseError as error:
            # Whether the database is away is for the claim to find out, which waits for it.
            self._polls_until = time.monotonic() + (RETRY_SECONDS if isinstance(error, DatabaseAway) else REFUSED_SECONDS)
            self._on_duty.set()
            return None

    # ----- in the thread

    def _step(self, seconds: float) -> int | None:
        """Waits for the turn, or with it for a new item, and returns its key."""
        turn = self._turns.name(self._filters, self._busy_models())
        try:
            if self._turn != turn:
                self._end_turn(always=True)
                self._take_turn(turn)
                return None  # in either case it is time for a look
            if self._has_heard:
                self._has_heard = False
                before, self._newest = self._newest, self._turns.newest_item()
                if self._newest > before:
                    return None  # more has come in: one look finds it all
            heard = self._turns.listen(turn, self._newest, seconds)
        except DatabaseError:
            self._turn = None
            raise
        if heard is None:
            self._turn = None
            return None
        self._has_heard = heard > self._newest
        self._newest = heard
        return heard if self._has_heard else None

    def _take_turn(self, turn: str) -> None:
        has_turn = self._turns.take(turn, TURN_SECONDS * random.uniform(0.8, 1.2))  # noqa: S311 -- jitter
        if has_turn is None:
            raise DatabaseError("this server has no named locks")
        if has_turn:
            self._turn = turn
            self._end_turn()  # if it has become busy in the meantime
            self._newest = self._turns.newest_item()

    def _end_turn(self, *, always: bool = False) -> None:
        if self._turn is None or (self._is_wanted and not always):
            return
        turn, self._turn = self._turn, None
        with contextlib.suppress(DatabaseError):  # then the server has ended it
            self._turns.end(turn)


def _growing(first: float, factor: float, times: int, last: float) -> float:
    """Seconds that grow with the number of times up to a limit, with jitter."""
    return min(first * factor ** min(times - 1, 30), last) * random.uniform(0.8, 1.2)  # noqa: S311 -- jitter


async def _until(event: asyncio.Event, seconds: float) -> bool:
    """Waits for the event, or the time; whether it was the event."""
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(event.wait(), seconds)
    return event.is_set()
