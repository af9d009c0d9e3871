"""Outcomes on their way into the database: in groups, kept while the database is away, and taken apart when one is refused."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from itertools import chain
from typing import Final

from ai_worker.errors import DatabaseError, ValueRefused
from ai_worker.models import Outcome
from ai_worker.store.committing import Committed

COMMIT_ROWS: Final = 500
COMMIT_BYTES: Final = 4_000_000  # of result texts; well below the smallest max_allowed_packet in use (16 MiB)
UNSTORABLE: Final = "unstorable"  # error_kind of an answer that the database does not take
AWAY_SECONDS: Final = 1.0  # between two tries to store a group; each has waited for the database already


class Commits:
    """Takes outcomes from calls and hands them to the database, as long as `run` runs.

    Parameters
    ----------
    store: writes a group in one transaction. Raises ValueRefused when it can never be stored, DatabaseError when not now.
    on_stored: told after each transaction.
    on_refused: told of a result that the database does not take, before it becomes a dead letter.
    on_kept: told why a group could not be stored now.
    """

    def __init__(
        self,
        store: Callable[[Sequence[Outcome]], Awaitable[Committed]],
        on_stored: Callable[[Committed], None],
        on_refused: Callable[[Outcome, str], None],
        on_kept: Callable[[DatabaseError], None],
    ) -> None:
        self._store = store
        self._on_stored = on_stored
        self._on_refused = on_refused
        self._on_kept = on_kept
        self._waiting: deque[Outcome] = deque()
        self._group: list[Outcome] = []
        self._arrived = asyncio.Event()
        self._moved = asyncio.Event()

    def put(self, outcome: Outcome) -> None:
        self._waiting.append(outcome)
        self._arrived.set()

    def __len__(self) -> int:
        """How many outcomes are in hand and not known to be stored."""
        return len(self._waiting) + len(self._group)

    def __iter__(self) -> Iterator[Outcome]:
        """These outcomes."""
        return chain(self._waiting, self._group)

    async def settled(self, left: int = 0) -> None:
        """Returns when no more than so many are in hand."""
        while len(self) > left:
            self._moved.clear()
            await self._moved.wait()

    async def run(self) -> None:
        """For ever. What has finished while one group was being stored is the next: alone when it is alone."""
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            while self._group or self._waiting:
                self._fill_group()
                try:
                    await self._commit(list(self._group))
                except DatabaseError as error:
                    # Away, full, locked for long, a privilege revoked: in hand, and kept until it is stored.
                    self._on_kept(error)
                    if isinstance(error, ValueRefused):  # of the first, again and again: let the others pass
                        self._group.append(self._group.pop(0))
                    await asyncio.sleep(AWAY_SECONDS)

    def _fill_group(self) -> None:
        size = sum(map(_size, self._group))
        while self._waiting and len(self._group) < COMMIT_ROWS and size < COMMIT_BYTES:
            outcome = self._waiting.popleft()
            self._group.append(outcome)
            size += _size(outcome)

    async def _commit(self, group: list[Outcome]) -> None:
        """Stores a group. When a value is refused, finds the outcome at fault and makes it the dead letter that it is."""
        try:
            committed = await self._store(group)
        except (ValueRefused, TypeError, ValueError) as error:  # the latter two: a plug-in's result that no JSON can hold
            if len(group) == 1:
                await self._commit([self._buried(group[0], error)])
            else:
                for outcome in group:
                    await self._commit([outcome])
            return
        if len(group) == len(self._group):
            self._group = []
        else:
            settled = {outcome.item.operation_uuid for outcome in group}
            self._group = [outcome for outcome in self._group if outcome.item.operation_uuid not in settled]
        self._moved.set()
        self._on_stored(committed)

    def _buried(self, outcome: Outcome, error: Exception) -> Outcome:
        if outcome.error_kind == UNSTORABLE:
            raise error  # nothing in it came from outside any more
        message = f"the database refused the result: {error}"
        self._on_refused(outcome, message)
        buried = Outcome.failed(outcome.item, UNSTORABLE, message, outcome.usage, outcome.cost, outcome.latency_ms or 0)
        return buried._replace(lane=outcome.lane, cache_key=outcome.cache_key)


def _size(outcome: Outcome) -> int:
    """About how many bytes an outcome sends: its text, and that again in the whole answer, in UTF-8; and its files, in digits."""
    result = outcome.result
    if result is None:
        return 0
    size = 6 * len(result.text_corrected or "")
    return size + sum(2 * len(file.content) for file in result.files) if result.files else size
