"""Limits of queues and task types for the whole fleet: items begun per minute, in progress at once, seconds per attempt.

A claim of items that have limits locks the rows of `queue_limit` first, so that such claims go one after the other; it counts
what is in progress from the items themselves, and moves `paced_until` on by what it has begun. Nothing can drift: what a dead
worker held counts until it is given back, and no more after. Tasks without a limit know nothing of this.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from math import ceil
from typing import Final, NamedTuple

from ai_worker.db import Database, Row, Transaction
from ai_worker.models import Lane, Outcome, Task

REFRESH_SECONDS: Final = 3.0  # a limit that is set, or changed, is known to every worker after so long
# What was not begun in time may be begun later, for so long. In return the steps are longer by as much in a minute, so that in no
# minute there are more than the limit says.
CREDIT_SECONDS: Final = 0.5
HOLD_SECONDS: Final = 0.1  # at least, before items of a limit that is used up are tried again

Key = tuple[str, str]  # queue and task type, either of them empty for all


class QueueLimit(NamedTuple):
    """A row of `queue_limit`: items begun per minute, in progress at once, seconds per attempt; None where there is no limit."""

    queue: str
    task_type: str
    per_minute: int | None = None
    at_once: int | None = None
    time_limit: int | None = None

    @property
    def key(self) -> Key:
        return self.queue, self.task_type


class Admission(NamedTuple):
    """How many items may be begun now, and for how many seconds each limit that is used up then holds."""

    room: int
    holds: Mapping[Key, float]


class QueueLimits:
    """What one worker knows of the limits. Used by the claim's thread, but for `freed` and `has_freed`."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._limits: dict[Key, QueueLimit] = {}
        self._refreshed_at = float("-inf")
        self._held: dict[Key, float] = {}  # limits that are used up, and until when
        self._wait: float | None = None  # seconds, of a hold that nobody was told of yet
        self._has_freed = False

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self._limits)

    def refresh(self) -> None:
        """Reads them again, now and then."""
        if time.monotonic() - self._refreshed_at > REFRESH_SECONDS:
            before, self._limits = self._limits, {each.key: each for each in self._read()}
            for key in [key for key in list(self._held) if before.get(key) != self._limits.get(key)]:
                self._held.pop(key, None)
            self._refreshed_at = time.monotonic()

    def timed(self, task: Task) -> Task:
        """The task with the shortest time limit that there is for it."""
        if not self._limits:  # on the way of every task
            return task
        seconds = [each.time_limit for each in self._of(task) if each.time_limit]
        return replace(task, time_limit=min(seconds)) if seconds else task

    def of(self, task: Task) -> tuple[Key, ...]:
        """The limits that a claim of the task's items has to keep to, in the order in which they are locked.

        What is handed in by batches is for their provider to pace.
        """
        if not self._limits or task.lane is Lane.BATCH:
            return ()
        return tuple(sorted(each.key for each in self._of(task) if each.per_minute or each.at_once))

    @property
    def claimed_by(self) -> list[Key]:
        """All limits that claims have to keep to."""
        return [each.key for each in self._limits.values() if each.per_minute or each.at_once]

    @property
    def held(self) -> list[Key]:
        """Limits that are used up for the moment."""
        now = time.monotonic()
        return [key for key, until in list(self._held.items()) if until > now]

    def holds(self, task: Task) -> bool:
        """Whether one of the task's limits is used up."""
        return bool(self._held) and not set(self.of(task)).isdisjoint(self.held)

    def hold(self, holds: Mapping[Key, float]) -> None:
        """These limits are used up for so many seconds."""
        now = time.monotonic()
        for key, seconds in holds.items():
            self._held[key] = now + seconds
            self._wait = seconds if self._wait is None else min(self._wait, seconds)

    def new_wait(self) -> float | None:
        """Seconds after which it is worth looking again, where a limit was used up since the last time that this was asked."""
        wait, self._wait = self._wait, None
        return wait

    def freed(self, outcomes: Iterable[Outcome]) -> None:
        """These items are not in progress any more: what waits for them is tried at once. Callable from any thread."""
        for outcome in outcomes if self._held else ():
            for each in self._of(outcome.item.task):
                if each.at_once and self._held.pop(each.key, None) is not None:
                    self._has_freed = True

    def has_freed(self) -> bool:
        """Whether such items have ended since the last time that this was asked."""
        has_freed, self._has_freed = self._has_freed, False
        return has_freed

    def _read(self) -> Iterable[QueueLimit]:
        return map(limit_of_row, self._db.query("queue_limits"))

    def _of(self, task: Task) -> list[QueueLimit]:
        keys = ((task.queue, task.task_type), (task.queue, ""), ("", task.task_type), ("", ""))
        return [self._limits[key] for key in keys if key in self._limits] if self._limits else []


def admit(tx: Transaction, keys: Sequence[Key], size: int) -> Admission:
    """How many of `size` items all these limits let begin. The limits stay locked until the transaction ends."""
    count = size
    waits: dict[Key, tuple[int, float]] = {}  # how many this one lets begin, and seconds until the next after that
    for queue, task_type in keys:
        rows = tx.query("lock_queue_limit", {"queue": queue, "task_type": task_type})
        for row in rows:  # none: somebody has just removed it
            if row["max_per_minute"] is not None:
                waits[queue, task_type] = _by_rate(row)
            if row["max_in_flight"] is not None:
                which = {"queue": queue, "any_queue": not queue, "task_type": task_type, "any_type": not task_type}
                held = tx.query("in_flight_of_limit", {**which, "most": row["max_in_flight"]})[0]["items"]
                free = max(0, row["max_in_flight"] - held)
                if free <= waits.get((queue, task_type), (free, 0.0))[0]:
                    waits[queue, task_type] = free, HOLD_SECONDS
    count = min([size, *(let for let, _ in waits.values())])
    holds = {key: max(HOLD_SECONDS, seconds) for key, (let, seconds) in waits.items() if let <= count and let < size}
    return Admission(count, holds)


def begun(tx: Transaction, keys: Sequence[Key], count: int) -> None:
    """So many items have been begun, under the locks of `admit`."""
    for queue, task_type in keys:
        which = {"queue": queue, "task_type": task_type}
        times = {"credit_us": int(CREDIT_SECONDS * 1e6), "minute_us": int((60 + CREDIT_SECONDS) * 1e6)}
        tx.execute("pace_queue_limit", {**which, **times, "count": count})


def limit_of_row(row: Row) -> QueueLimit:
    """A row of `queue_limits`."""
    return QueueLimit(row["queue"], row["task_type"], row["max_per_minute"], row["max_in_flight"], row["time_limit"])


def _by_rate(row: Row) -> tuple[int, float]:
    """How many may begin now, and in how many seconds the next one after these. For `ahead_us` the rate is used up already."""
    step = ceil((60 + CREDIT_SECONDS) * 1e6 / row["max_per_minute"])
    if row["ahead_us"] > 0:
        return 0, row["ahead_us"] / 1e6
    behind = min(CREDIT_SECONDS * 1e6, -row["ahead_us"])
    count = int(behind // step) + 1
    return count, (count * step - behind) / 1e6
