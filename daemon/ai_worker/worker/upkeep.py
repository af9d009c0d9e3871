"""What any worker does for the whole fleet: due items, dead workers, and tasks whose end or new start nobody saw."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Mapping
from typing import Final

from ai_worker.errors import DatabaseAway, DatabaseError
from ai_worker.log import Event, Log
from ai_worker.store.ledger import EndedTask
from ai_worker.store.queue import Due, Queue, Rescued
from ai_worker.store.schedules import Broken
from ai_worker.worker.lease import Lease

ORPHANS_EVERY: Final = 8  # sweeps
FORGET_EVERY: Final = 8  # the same, of answers that nobody can use any more


class Upkeep:
    """Used by one thread, which calls `step` every second or so; but for `keep_time`."""

    def __init__(
        self,
        queue: Queue,
        lease: Lease,
        lease_seconds: float,
        on_work: Callable[[], None],
        on_callback: Callable[[], None] = lambda: None,
        on_rescue: Callable[[int, Mapping[int, int]], None] = lambda _, __: None,
    ) -> None:
        self._queue = queue
        self._lease = lease
        self._seconds = lease_seconds
        self._on_work = on_work  # told when items have become claimable
        self._on_callback = on_callback  # told when a callback is to be sent
        self._on_rescue = on_rescue  # told how many items were rescued, in all and by model
        self._keeping_time = threading.Lock()  # who looks for what is left must see what another thread is just making
        self._page: int | None = None
        self._round = 0
        self._next_sweep = time.monotonic()

    def step(self) -> None:
        """One second's share of the work."""
        due = self._queue.next_due()
        if due is not None and due <= 0:
            while self._queue.promote_due():
                self._on_work()
        if time.monotonic() >= self._next_sweep:
            self._next_sweep = time.monotonic() + self._seconds / 4 * random.uniform(0.75, 1.25)  # noqa: S311 -- jitter
            self._sweep()
            self._round += 1
        if self.keep_time().has_stale:  # also what an earlier worker on this host has left behind
            self._rescue()

    def keep_time(self) -> Due:
        """Fires schedules, ends groups, and clears results whose time is over: what is due now, a bounded share of it.

        What it found to be due. Callable from any thread.
        """
        with self._keeping_time:
            due = self._queue.look_at_time()
            wanted = ((due.has_schedule, self._fire), (due.has_group, self._end_groups), (due.has_expired, self._clear_results))
            refused: DatabaseError | None = None
            for is_due, work in wanted:
                try:
                    if is_due:
                        work()
                except DatabaseAway:
                    raise
                except DatabaseError as error:  # what is wrong with one of them must not hold up the others for ever
                    refused = refused or error
            if due.has_callback:
                self._on_callback()
            if refused is not None:
                raise refused
            return due

    def _fire(self) -> None:
        for each in self._queue.schedules.fire_some():
            if isinstance(each, Broken):
                self._lease.log(Event.SCHEDULE_BROKEN, schedule=each.name, message=each.message)
            else:
                moment = each.due_at.isoformat() + "Z"
                self._lease.log(Event.SCHEDULE_FIRED, schedule=each.name, due=moment, task=each.id_task, count=each.items)
        self._on_work()

    def _end_groups(self) -> None:
        ended = self._queue.groups.end_some()
        for group in ended:
            self._lease.log(Event.GROUP_ENDED, group=group.name, count=group.tasks)
        if ended:
            self._on_callback()

    def _clear_results(self) -> None:
        for id_task in self._queue.expiry.clear_some():
            self._lease.log(Event.RESULTS_EXPIRED, task=id_task)

    def reopen_all(self) -> None:
        """Looks through all finished tasks for open items: before a `run` says that nothing is left."""
        page = self._queue.reopen_page()
        while page is not None:
            page = self._queue.reopen_page(page)

    def _may_rescue(self) -> bool:
        # Right after a restart of the server every lease is stale and nobody is dead: let them all beat first.
        return self._lease.may_rescue and self._queue.uptime() >= self._seconds

    def _rescue(self) -> None:
        if self._may_rescue():
            while self._report(self._queue.rescue()):
                pass

    def _sweep(self) -> None:
        if self._round % ORPHANS_EVERY == 0 and self._may_rescue():
            while self._report(self._queue.rescue_orphans()):
                pass
        if self._round % FORGET_EVERY == 0:
            self._queue.cache.forget()
        if self._queue.resume_due():
            self._on_work()
        self._page = self._queue.reopen_page(self._page)
        log_ended(self._lease.log, self._queue.end_forgotten())

    def _report(self, rescued: Rescued) -> bool:
        """Tells what was rescued; whether there may be more."""
        if rescued.id_worker is not None or rescued.items:
            self._lease.log(Event.RESCUE, lost_worker=rescued.id_worker, count=rescued.items)
        if rescued.items:
            self._on_rescue(rescued.items, rescued.models)
            self._on_work()
        log_ended(self._lease.log, rescued.ended)
        return rescued.more


def log_ended(log: Log, ended: list[EndedTask]) -> None:
    """One line per task that has ended."""
    if ended:
        log.each(
            Event.TASK_DONE,
            [
                {
                    "task": task.id_task,
                    "status": task.status.name,
                    "records_processed": task.records_processed,
                    "records_failed": task.records_failed,
                }
                for task in ended
            ],
        )
