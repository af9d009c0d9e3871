"""The lane batch: collects items into batches, hands them in, asks how they are, and stores what came of them.

Any worker takes any step of any batch. Each step ends with a state in the database, so that a crash between two steps costs
nothing, and one within a step has it done again: claims and results are fenced, and what may be at the provider already is looked
for there, by its key, before it is handed in. One batch at a time is driven on by a process; the waiting is done in the database.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from ai_worker import __version__
from ai_worker.errors import DatabaseAway, DatabaseError
from ai_worker.library import Library
from ai_worker.log import ERROR, Event
from ai_worker.models import Filters, Lane, Outcome, OutcomeKind, Task
from ai_worker.providers import BatchProvider
from ai_worker.store.batches import Batch, Batches, BatchStage, OpenBatches
from ai_worker.store.committing import Committed
from ai_worker.worker.batch_steps import AWAY_SECONDS, HOLD_SECONDS, UNSURE_SECONDS, BatchSteps
from ai_worker.worker.breaker import Breaker
from ai_worker.worker.commits import Commits
from ai_worker.worker.endpoints import Endpoints
from ai_worker.worker.lease import Lease
from ai_worker.worker.threads import Thread

LOOK_SECONDS: Final = 3.0  # between looks for other workers' batches
# After a batch that got no item: all the money of its task may be set aside for one under way, which takes up to a day, and
# each try leaves a row.
FRUITLESS_SECONDS: Final = 60.0


class BatchLane:
    """What one worker does for batches. Used in the loop, but for `takes`; its database work is done in a thread of its own.

    Parameters
    ----------
    library: the task types.
    stopping: no further step is begun; call `wake` when it is set.
    on_stored: told after each transaction with results.
    on_refused: told of a result that the database does not take.
    room: how many more items this worker may claim.
    on_claimed: told how many were, by task.
    on_change: told when it may be worth looking for other work.
    """

    def __init__(
        self,
        batches: Batches,
        filters: Filters,
        endpoints: Endpoints,
        breaker: Breaker,
        lease: Lease,
        library: Library,
        *,
        stopping: asyncio.Event,
        on_stored: Callable[[Committed], None],
        on_refused: Callable[[Outcome, str], None],
        room: Callable[[], int],
        on_claimed: Callable[[Mapping[int, int]], None],
        on_change: Callable[[], None],
    ) -> None:
        self._batches = batches
        self._filters = filters
        self._breaker = breaker
        self._lease = lease
        self._stopping = stopping
        self._on_stored = on_stored
        self._room = room
        self._on_change = on_change
        self.thread = Thread("batch")
        self._commits = Commits(self._store_group, self._stored, on_refused, self._kept)
        self._steps = BatchSteps(
            batches,
            endpoints,
            breaker,
            lease,
            self._commits,
            self.thread,
            library,
            stopping=stopping,
            room=room,
            on_claimed=on_claimed,
            on_change=on_change,
        )
        self._woken = asyncio.Event()
        self._offered: Sequence[Task] = ()
        self._tried: dict[int, float] = {}  # tasks of which no batch could be begun: when to try again
        self._own: set[int] = set()  # batches that were begun here
        self._driving: Batch | None = None
        self._current: Batch | None = None  # whose outcomes are being committed
        self._looked_at = float("-inf")

    # ----- what the worker asks and tells

    def takes(self, task: Task) -> bool:
        """Whether a task's items are for batches: not a named one, nor the one that tries a stopped model. From any thread."""
        return (
            task.lane is Lane.BATCH
            and not task.is_probe
            and self._filters.id_task_item is None
            and task.id_ai_model not in self._steps.online
        )

    def offer(self, tasks: Sequence[Task]) -> None:
        """Tasks that have items for batches, as the latest look has found them."""
        now = time.monotonic()
        self._tried = {each: until for each, until in self._tried.items() if until > now}
        self._offered = [task for task in tasks if task.id_task not in self._tried]
        if self._offered:
            self.wake()

    def tend(self) -> None:
        """It is this worker's turn to look after the fleet: now and then for batches that others have left."""
        if time.monotonic() - self._looked_at > LOOK_SECONDS:
            self.wake()

    def wake(self) -> None:
        """Something has changed."""
        self._woken.set()

    @property
    def is_driving(self) -> bool:
        """Whether a step is under way."""
        return self._driving is not None

    async def open(self) -> OpenBatches:
        """The batches that a worker with these filters may wait for."""
        return await self.thread(self._batches.open, self._filters)

    async def has_own(self) -> bool:
        """Whether a batch is open that was begun here."""
        if self._own and not (await self.thread(self._batches.open, self._filters, tuple(self._own))).batches:
            self._own.clear()
        return bool(self._own)

    async def run(self) -> None:
        """Until it is told to stop: the step that is under way then is ended first, as far as it is needed."""
        committing = asyncio.create_task(self._commits.run())
        try:
            while not self._stopping.is_set():
                self._woken.clear()
                is_more = False
                try:
                    if self._lease.may_claim:
                        is_more = await self._round()
                except DatabaseAway:
                    await self._sleep(AWAY_SECONDS)
                except Exception as error:  # noqa: BLE001 -- batches that nobody drives on would be lost: log it and go on
                    self._lease.log(Event.LIBRARY, level=ERROR, exc_info=error, logger="batches", message=str(error))
                    await self._sleep(LOOK_SECONDS)
                if not is_more:
                    await self._pause()
        finally:
            committing.cancel()

    async def aclose(self) -> None:
        """Lets go of a batch whose step was broken off: another worker goes on with it."""
        if (batch := self._driving) is not None:
            delay = UNSURE_SECONDS if batch.stage is BatchStage.SUBMITTING else 0.0
            with contextlib.suppress(DatabaseError, TimeoutError):
                async with asyncio.timeout(AWAY_SECONDS):
                    await self.thread(self._batches.leave, batch, self._steps.holder, delay)
        self.thread.close()

    # ----- which batch is next

    async def _round(self) -> bool:
        """One look, and a step or more of each batch that is due; whether there may be more."""
        await self._commits.settled()
        self._steps.holder = (
            self._steps.holder or self._lease.id_worker
        )  # the first one, also after a lost lease: it holds the same
        self._looked_at = time.monotonic()
        due = await self.thread(self._batches.due, self._steps.holder, self._filters, self._breaker.shunned())
        self._steps.due = {each: at for each, at in self._steps.due.items() if at > time.monotonic()}
        for id_batch in due:
            if self._stopping.is_set():
                return False
            batch = await self.thread(self._batches.hold, id_batch, self._steps.holder, HOLD_SECONDS)
            if batch is not None:
                await self._drive(batch)
        offered, self._offered = self._offered, ()
        for task in offered:
            await self._begin(task)
        return bool(due)

    async def _begin(self, task: Task) -> None:
        endpoint = await self._steps.endpoint(task)
        if endpoint is None or self._stopping.is_set() or self._room() <= 0:
            return
        if self._breaker.is_shunned(task.id_ai_model):  # stopped since the look that found this task
            return
        if not isinstance(endpoint.provider, BatchProvider):
            self._steps.without_batches(endpoint)
            self._on_change()
            return
        process = {"host": self._lease.host, "pid": os.getpid(), "version": __version__}
        batch = await self.thread(self._batches.begin, str(uuid.uuid4()), self._steps.holder, task, HOLD_SECONDS, process)
        if batch is None:
            self._tried[task.id_task] = time.monotonic() + LOOK_SECONDS
        else:
            self._steps.unsent.add(batch.id_batch)
            self._own.add(batch.id_batch)
            await self._drive(batch)
            if task.id_task in self._steps.fruitless:
                self._steps.fruitless.remove(task.id_task)
                self._tried[task.id_task] = time.monotonic() + FRUITLESS_SECONDS

    async def _drive(self, batch: Batch) -> None:
        """Takes a batch as far as it goes now."""
        following: Batch | None = batch
        self._steps.processed = self._steps.failed = 0
        try:
            while following is not None:
                batch = self._driving = self._current = following
                following = await self._steps.step(batch)
            self._driving = None
        finally:
            if not self._is_cancelled():
                self._driving = None
                self._steps.unsent.discard(batch.id_batch)

    @staticmethod
    def _is_cancelled() -> bool:
        return (task := asyncio.current_task()) is not None and task.cancelling() > 0

    # ----- committing

    async def _store_group(self, group: Sequence[Outcome]) -> Committed:
        if self._current is None:
            raise RuntimeError("results of no batch")
        return await self.thread(self._batches.commit, self._current, group)

    def _stored(self, committed: Committed) -> None:
        self._tried.clear()  # money may have come back
        self._steps.processed += sum(outcome.kind is OutcomeKind.PROCESSED for outcome in committed.stored)
        self._steps.failed += sum(outcome.kind is OutcomeKind.FAILED for outcome in committed.stored)
        self._on_stored(committed)

    def _kept(self, error: DatabaseError) -> None:
        self._lease.log(Event.DATABASE_AWAY, reason=f"a batch has to wait: {error}", commit_in_doubt=False)

    # ----- small helpers

    async def _sleep(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), seconds)

    async def _pause(self) -> None:
        """Until woken, or one of our own batches is due."""
        seconds = max(0.0, min(self._steps.due.values()) - time.monotonic()) if self._steps.due else None
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._woken.wait(), seconds)
