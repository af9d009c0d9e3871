"""Claims items into free slots, as long as there are any and the worker may; and says when nothing is left to claim."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Callable
from typing import Final

from ai_worker.counts import Counts, Metric
from ai_worker.errors import DatabaseAway
from ai_worker.models import Filters, Item
from ai_worker.store.queue import Queue, Waiting
from ai_worker.worker.accounts import Accounts
from ai_worker.worker.batches import BatchLane
from ai_worker.worker.express import Express
from ai_worker.worker.lease import Lease
from ai_worker.worker.listener import Listener
from ai_worker.worker.options import WorkerOptions
from ai_worker.worker.pacer import Pacer
from ai_worker.worker.picker import Picker
from ai_worker.worker.room import Room
from ai_worker.worker.shared_picker import SharedPicker
from ai_worker.worker.slots import Slots
from ai_worker.worker.threads import Thread
from ai_worker.worker.tracing import Tracing
from ai_worker.worker.upkeep import Upkeep

CLAIM_ROWS: Final = 500
LINGER_SECONDS: Final = 0.01  # after a slot is free, for more of them: claiming one row at a time costs a transaction each
LOOK_SECONDS: Final = 0.2  # between looks at what others may change
BATCH_LOOK_SECONDS: Final = 2.0  # the same, when only batches are waited for
BUSY_SHARE: Final = 10  # with more than a tenth of its slots in use a worker leaves the listening to others
DEFERRED_HORIZON: Final = 60.0  # `run` waits for items due within this many seconds
STUCK_SECONDS: Final = 300.0  # ... but no longer than this without getting one done: it may be told to slow down for ever
OUTAGE_SECONDS: Final = 60.0  # `run` without a result in hand gives up on an absent database after this long


class Claiming:
    """Used in the loop.

    Parameters
    ----------
    thread: for the claims, and for what must not be done at the same time.
    express: claims new items of heavier queues while the worker is busy with lighter ones; None where there are none.
    work_seen: set by whoever knows of something that the next look may find.
    draining: nothing more is claimed.
    on_room: to be told when items may be claimed that could not be before.
    """

    def __init__(
        self,
        queue: Queue,
        filters: Filters,
        options: WorkerOptions,
        thread: Thread,
        lease: Lease,
        slots: Slots,
        room: Room,
        pacer: Pacer,
        accounts: Accounts,
        batches: BatchLane,
        picker: Picker | SharedPicker,
        listener: Listener,
        express: Express | None,
        upkeep: Upkeep,
        counts: Counts,
        tracing: Tracing,
        *,
        work_seen: asyncio.Event,
        draining: asyncio.Event,
        on_room: Callable[[], None],
    ) -> None:
        self._queue = queue
        self._filters = filters
        self._options = options
        self._thread = thread
        self._lease = lease
        self._slots = slots
        self._room = room
        self._pacer = pacer
        self._accounts = accounts
        self._batches = batches
        self._picker = picker
        self._take = tracing.claims(counts.timed(Metric.CLAIM_DURATION, picker.take))
        self._shared = picker if isinstance(picker, SharedPicker) else None
        self._listener = listener
        self._express = express
        self._upkeep = upkeep
        self._work_seen = work_seen
        self._draining = draining
        self._on_room = on_room
        self._has_looked_everywhere = False
        self._came_round = time.monotonic()
        self.has_looked = asyncio.Event()
        """Set once a look for work has been made, whatever it found."""

    @property
    def standstill(self) -> float:
        """Seconds since the loop came round; 0 while it waits for a call to end: that has a deadline of its own."""
        return max(0.0, time.monotonic() - self._came_round)

    async def run(self) -> None:
        """Until the worker drains, or a `run` has nothing left to do. Raises DatabaseAway when a `run` had to wait too long."""
        if self._express is None:
            await self._claim()
            return
        beside = asyncio.create_task(self._express.run(self._begin, self._look_above))
        try:
            await self._claim()
        finally:
            self._express.stop()
            await self._express.aclose()
            await beside

    async def _claim(self) -> None:
        new_item: int | None = None
        away_since: float | None = None
        while not self._draining.is_set():
            size = await self._wait_for_slots()
            if size is None:
                return
            self._came_round = time.monotonic()
            if not self._lease.may_claim:
                self._leave_listening(is_busy=False)
                await self._pause(self._options.lease_seconds / 20)
                continue
            self._work_seen.clear()  # what is seen from here on may be missed by this look, and leads to another
            try:
                with self._room.being_claimed():
                    items = await self._thread(self._take, self._lease.id_worker, size, new_item)
            except DatabaseAway:
                away_since = away_since or time.monotonic()
                if self._may_wait_no_longer(away_since):
                    raise
                continue
            away_since = None
            self.has_looked.set()
            new_item = None
            self._batches.offer(self._picker.taken_for_batches())
            if (seconds := self._queue.limits.new_wait()) is not None:
                asyncio.get_running_loop().call_later(seconds, self._on_room)
            if items:
                self._begin(items)
                self._listener.found()
                if self._slots.in_flight > self._options.concurrency // BUSY_SHARE:
                    self._leave_listening(is_busy=True)
            elif self._shared is not None and self._shared.has_waiting:
                continue  # not all queues were looked at
            elif not self._options.forever and await self._is_done():
                return
            else:
                new_item = await self._news()

    def _leave_listening(self, *, is_busy: bool) -> None:
        """To other workers; but a busy one goes on listening for what goes before its work."""
        self._listener.leave()
        if self._express is not None:
            (self._express.listen if is_busy else self._express.rest)()

    async def _news(self) -> int | None:
        """Returns when it is time to look for work, as `Listener.wait` does."""
        if self._express is not None:
            self._express.rest()
        self._slots.offer()
        return await self._listener.wait(self._work_seen)

    async def _wait_for_slots(self) -> int | None:
        """How many items may be claimed now; None when no more ever. Waits for a slot, and a moment longer for a few."""
        options, accounts = self._options, self._accounts
        while not self._draining.is_set():
            self._came_round = time.monotonic()
            left = accounts.left()
            free = self._slots.free(accounts.in_hand)
            if left <= 0:
                has_batches = not accounts.is_holding and await self._batches.has_own()
                if not accounts.is_holding and not has_batches:
                    return None
                self._listener.leave()
                await self._pause(BATCH_LOOK_SECONDS if has_batches else LOOK_SECONDS)  # what is given back may be claimed again
            elif free <= 0 and self._shared is not None:
                self._came_round = math.inf
                if await self._shared.overtakes(self._slots.changed):
                    return min(CLAIM_ROWS, left)
            elif free <= 0:
                self._came_round = math.inf
                await self._slots.changed()
            else:
                if free < min(options.concurrency // 10, left):
                    await asyncio.sleep(LINGER_SECONDS)
                    free = self._slots.free(accounts.in_hand)
                if free > 0:  # fewer may be ahead by now
                    return min(free, CLAIM_ROWS, left)
        return None

    def _begin(self, items: list[Item]) -> None:
        self._accounts.took(items)
        self._pacer.saw({item.task.id_task: item.task for item in items}.values())
        self._slots.fill(items)
        if self._draining.is_set():
            self._slots.give_back()

    def _look_above(self) -> None:
        """At the heavier queues, where there is room for any, though they had nothing a moment ago."""
        if self._shared is not None:
            self._shared.look_now()
        self._slots.wake()

    def _may_wait_no_longer(self, away_since: float) -> bool:
        is_long = time.monotonic() - away_since > OUTAGE_SECONDS
        return is_long and not self._options.forever and not self._accounts.is_holding

    # ----- the end of a `run`

    async def _is_done(self) -> bool:
        """Whether a `run` may end: nothing in flight or in hand, nothing claimable, soon due, or held by a silent worker."""
        if self._accounts.is_holding:
            return False
        began = time.monotonic()
        while not self._draining.is_set():
            waiting, others = await self._thread(self._look_around)
            if waiting.pending > waiting.blocked:
                return False
            due = waiting.due_seconds
            # A worker that has beaten since we ran out of work is alive and will finish its own; a silent one may be dead.
            is_anybody_silent = any(silent > time.monotonic() - began for silent in others)
            is_stuck = time.monotonic() - self._accounts.progress_at > STUCK_SECONDS
            if not is_anybody_silent and (due is None or due > DEFERRED_HORIZON or is_stuck):
                if not (await self._batches.open()).batches:
                    self._accounts.summary.waiting = waiting
                    return True
                await self._pause(BATCH_LOOK_SECONDS)
            else:
                await self._pause(min(LOOK_SECONDS, max(due or LOOK_SECONDS, 0.005)))
        return True

    def _look_around(self) -> tuple[Waiting, list[float]]:
        self._queue.promote_due()
        if not self._has_looked_everywhere:
            self._upkeep.reopen_all()
            self._upkeep.keep_time()  # a schedule that is due makes work
            self._has_looked_everywhere = True
        # In this order: what another worker gives back between the two looks is seen by the second.
        others = self._queue.others_at_work(self._lease.id_worker, self._filters)
        return self._queue.waiting(self._filters, self._room.blocked_models()), others

    async def _pause(self, seconds: float) -> None:
        """Waits for work to appear, a drain, or the time to pass."""
        self._work_seen.clear()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._work_seen.wait(), seconds)
