"""What people do with tasks: submit, retry, pause, resume, cancel, give another priority.

Lock order, as in the workers' commits: rows of `task_item` first and by key, the row of `task` last. Verbs on many items work in
batches, each a transaction of its own after which all counters are right; cut short, they are simply called again.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from typing import Any, Final

from ai_worker.db import Database, Transaction
from ai_worker.errors import DatabaseError, NotFound, UsageError
from ai_worker.models import ItemStatus, TaskStatus
from ai_worker.store.budgets import usd
from ai_worker.store.groups import check_open
from ai_worker.store.ledger import settle
from ai_worker.store.new_tasks import NewItem, NewTask, batches, task_columns, write_task

BATCH: Final = 1000  # items that a verb locks at once
_DUPLICATE: Final = 1062
_ENDED: Final = frozenset({TaskStatus.COMPLETED, TaskStatus.ERROR})


@dataclass(frozen=True, slots=True)
class Submitted:
    """The task of a submission. `is_new` is False when an earlier one with the same key had made it."""

    id_task: int
    items: int
    is_new: bool


@dataclass(frozen=True, slots=True)
class Change:
    """What a verb did to a task: its status before and after, and how many items were moved."""

    id_task: int
    before: TaskStatus
    after: TaskStatus
    items: int = 0


class _ReservedError(Exception):
    """Carries a new id out of the transaction that is rolled back."""

    def __init__(self, id_task: int) -> None:
        super().__init__(id_task)
        self.id_task = id_task


class Tasks:
    """The verbs of people on tasks. Each raises UsageError when there is no such task, or when it stands differently."""

    def __init__(self, db: Database) -> None:
        self._db = db

    # ----- submit

    def packet(self) -> int:
        """The bytes that one statement may have on this server; see `new_tasks.fits`."""
        size: int = self._db.query("server_packet")[0]["bytes"]
        return size

    def submit(
        self,
        task: NewTask,
        rows: Callable[[], Iterator[NewItem]],
        progress: Callable[[int], None] = lambda _: None,
    ) -> Submitted:
        """Makes a task and all its items in one transaction: nobody ever sees a part of it.

        `rows` is called anew for each run of the transaction, so it must be able to begin again. An error that it raises leaves
        nothing behind. `progress` hears how many items were sent so far. Raises UsageError when it is to come after a task that
        is not there, or into a group that is closed.

        The row of `task` is written last, under an id reserved before. Written first, its foreign key would lock the model's
        row (workers stop models there) and its unique key would hold up a second submitter, for as long as a million items take.
        """
        if task.submit_key and (found := self._of_key(task.submit_key)):
            return found
        self._check_order(task)
        key = task.submit_key or str(uuid.uuid4())
        for _ in range(3):
            id_task = self._reserve(task)
            written = _Count()
            try:
                self._db.transaction(partial(_write, task, key, id_task, rows, progress, written))
            except DatabaseError as error:
                if error.code != _DUPLICATE:
                    raise
                if found := self._of_key(key):  # somebody else's submission, or our own whose COMMIT came through late
                    return Submitted(found.id_task, found.items, is_new=found.id_task == id_task)
                continue  # the reserved id is taken: the server lost its counter in a crash
            return Submitted(id_task, written.items, is_new=True)
        raise DatabaseError("the server keeps giving away the ids that it reserved for this task")

    def _check_order(self, task: NewTask) -> None:
        if task.after:
            known = {row["id_task"] for row in self._db.query("task_states", {"tasks": list(task.after)})}
            if unknown := sorted(task.after.keys() - known):
                raise UsageError(f"--after {unknown[0]}: there is no task {unknown[0]}; `ai-worker status` lists those there are")
        if task.id_task_group is not None:
            self._db.transaction(partial(check_open, task.id_task_group))

    def _of_key(self, key: str) -> Submitted | None:
        found = self._db.query("task_of_key", {"submit_key": key})
        if not found:
            return None
        id_task = found[0]["id_task"]
        return Submitted(id_task, self._db.query("count_items", {"id_task": id_task})[0]["items"], is_new=False)

    def _reserve(self, task: NewTask) -> int:
        """An id that no other task will get: AUTO_INCREMENT does not go back when an INSERT is rolled back."""

        def work(tx: Transaction) -> None:
            raise _ReservedError(tx.insert("insert_task", {**task_columns(task), "id_task": None, "submit_key": None}))

        try:
            self._db.transaction(work)
        except _ReservedError as reserved:
            return reserved.id_task
        raise AssertionError("unreachable: the transaction always raises")

    # ----- change what is there

    def retry(self, id_task: int, id_task_item: int | None = None, *, kind: str | None = None) -> int:
        """Brings items back from ERROR, with their attempts counted anew; how many. A finished task goes on.

        All of them, or one, or those that failed for one `kind` of reason (`task_item.error_kind`).
        """
        self._refuse_cancelled(id_task, self.state(id_task))
        if id_task_item is not None:
            count = self._db.transaction(partial(self._retry, id_task, [id_task_item]))
            if not count:
                raise self._not_retried(id_task, id_task_item)
            return count
        if kind is not None:
            if not kind.isascii():
                return 0  # as no kind is; the server would refuse to compare
            return self._batch_by_batch(
                "failed_items_of_kind", {"id_task": id_task, "error_kind": kind}, partial(self._retry, id_task)
            )
        return self._in_batches(id_task, ItemStatus.ERROR, partial(self._retry, id_task))

    def _retry(self, id_task: int, items: list[int], tx: Transaction) -> int:
        count = tx.execute("retry_items", {"id_task": id_task, "items": items})
        if count and not tx.execute("uncount_failed", {"id_task": id_task, "items": count}):
            self._refuse_cancelled(id_task, TaskStatus.CANCELLED)
        return count

    @staticmethod
    def _refuse_cancelled(id_task: int, status: TaskStatus) -> None:
        if status is TaskStatus.CANCELLED:
            raise UsageError(f"task {id_task} is cancelled; `ai-worker resume {id_task}` brings it back, then retry")

    def _not_retried(self, id_task: int, id_task_item: int) -> UsageError:
        rows = self._db.query("item_state", {"id_task_item": id_task_item})
        if not rows or rows[0]["id_task"] != id_task:
            return UsageError(
                f"task {id_task} has no item {id_task_item}; `ai-worker results {id_task} --only error` lists those in ERROR"
            )
        status = ItemStatus(rows[0]["status_id"]).name
        return UsageError(f"item {id_task_item} is {status}; only an item in ERROR can be retried")

    def pause(self, id_task: int) -> Change:
        """Stops claims; what is in flight is finished and stored. One that was paused for its budget now waits for a person."""

        def work(tx: Transaction) -> Change:
            before = _lock(tx, id_task)
            if before is TaskStatus.CANCELLED or (before in _ENDED and not _is_open(tx, id_task)):
                raise UsageError(f"task {id_task} is {before.name}: there is nothing to pause")
            tx.execute("pause_task", {"id_task": id_task})
            return Change(id_task, before, TaskStatus.PAUSED)

        return self._db.transaction(work)

    def resume(self, id_task: int, budget: Decimal | None = None) -> Change:
        """Goes on with a paused or a cancelled task, whose cancelled items wait again. A running task just goes on.

        `budget` is what it may cost from now on, in USD, with what it has cost so far. Raises UsageError also when what is left
        of its budget would not pay for one item, as they have cost on average.
        """
        items = 0
        if self.state(id_task) is TaskStatus.CANCELLED:
            items += self._in_batches(id_task, ItemStatus.CANCELLED, _restore)
        while (change := self._db.transaction(partial(_resume, id_task, budget))) is None:
            items += self._in_batches(id_task, ItemStatus.CANCELLED, _restore)  # cancelled by somebody in the meantime
        return Change(id_task, change.before, change.after, items)

    def cancel(self, id_task: int) -> Change:
        """Ends a task: what waits is cancelled, what is in flight is still stored. Cancelling it again finishes the job."""

        def begin(tx: Transaction) -> TaskStatus:
            before = _lock(tx, id_task)
            if before in _ENDED and not _is_open(tx, id_task):
                raise UsageError(f"task {id_task} is {before.name}: there is nothing to cancel")
            tx.execute("cancel_task", {"id_task": id_task})
            return before

        def end(tx: Transaction) -> None:
            if _lock(tx, id_task) is TaskStatus.CANCELLED:
                _end_if_done(tx, id_task)

        before = self._db.transaction(begin)
        items = 0
        # Deferred items may fall due, and items in flight be given back, between two looks.
        while moved := sum(self._in_batches(id_task, each, _cancel) for each in (ItemStatus.PENDING, ItemStatus.DEFERRED)):
            items += moved
        self._db.transaction(end)
        return Change(id_task, before, TaskStatus.CANCELLED, items)

    def set_priority(self, id_task: int, priority: int) -> None:
        """Higher ones first, from -32767 to 32767; 0 is the default."""
        if not self._db.execute("set_priority", {"id_task": id_task, "priority": priority}):
            raise no_task(id_task)

    def state(self, id_task: int) -> TaskStatus:
        """How a task stands."""
        rows = self._db.query("task_state", {"id_task": id_task})
        if not rows:
            raise no_task(id_task)
        return TaskStatus(rows[0]["status_id"])

    def _in_batches(self, id_task: int, status: ItemStatus, change: Callable[[list[int], Transaction], int]) -> int:
        """Applies `change` to all items in a status; how many it changed."""
        return self._batch_by_batch("items_in_status", {"id_task": id_task, "status_id": int(status)}, change)

    def _batch_by_batch(self, name: str, where: dict[str, Any], change: Callable[[list[int], Transaction], int]) -> int:
        """Applies `change` to the items that a named SELECT gives, batch by batch up the key; how many it changed."""
        total = after = 0
        while True:
            items = [row["id_task_item"] for row in self._db.query(name, {**where, "after": after, "size": BATCH})]
            if not items:
                return total
            total += self._db.transaction(partial(change, items))
            after = items[-1]


def no_task(id_task: int) -> UsageError:
    """The error for a task that is not there."""
    return NotFound(f"no task {id_task}; `ai-worker status` lists them")


class _Count:
    """How many items the present run of a transaction has written."""

    items = 0


def _write(
    task: NewTask,
    key: str,
    id_task: int,
    rows: Callable[[], Iterator[NewItem]],
    progress: Callable[[int], None],
    written: _Count,
    tx: Transaction,
) -> None:
    if tx.in_doubt and any(row["id_task"] == id_task for row in tx.query("task_of_key", {"submit_key": key})):
        return  # the earlier run had landed
    written.items = 0
    for batch in batches(id_task, rows()):
        written.items += tx.execute_many("insert_items", batch)
        progress(written.items)
    write_task(tx, task, key, id_task)


def _lock(tx: Transaction, id_task: int) -> TaskStatus:
    rows = tx.query("lock_task", {"id_task": id_task})
    if not rows:
        raise no_task(id_task)
    return TaskStatus(rows[0]["status_id"])


def _is_open(tx: Transaction, id_task: int) -> bool:
    look = tx.query("look_into_task", {"id_task": id_task})[0]
    return bool(look["is_in_flight"] or look["is_waiting"])


def _end_if_done(tx: Transaction, id_task: int) -> None:
    """Ends a task that has no open item any more, as the commit of its last item would have. The caller holds its lock."""
    if not _is_open(tx, id_task):
        settle(tx, {}, [id_task], {})


def _resume(id_task: int, budget: Decimal | None, tx: Transaction) -> Change | None:
    """None when items have yet to be restored first."""
    before = _lock(tx, id_task)
    if before in _ENDED:
        raise UsageError(f"task {id_task} is {before.name}: it has ended; `ai-worker retry {id_task}` brings back items in ERROR")
    look = tx.query("look_into_task", {"id_task": id_task})[0]
    if before is TaskStatus.CANCELLED and look["has_cancelled"]:
        return None
    if budget is not None:
        tx.execute("set_budget", {"id_task": id_task, "budget": budget})
    if before in (TaskStatus.PAUSED, TaskStatus.CANCELLED):
        if look["is_waiting"]:
            _refuse_unpaid(tx, id_task)
        tx.execute("resume_task", {"id_task": id_task})
        if look["has_items"]:  # a task that was never given any waits for them
            _end_if_done(tx, id_task)
    return Change(id_task, before, _lock(tx, id_task))


def _refuse_unpaid(tx: Transaction, id_task: int) -> None:
    """A worker would pause it again at once."""
    row = tx.query("lock_task", {"id_task": id_task})[0]
    budget, cost = row["budget"], row["cost"] or Decimal(0)
    average = cost / (row["records_processed"] or 1)
    if budget is not None and (budget <= cost or budget - cost < average):
        raise UsageError(
            f"task {id_task} has spent {usd(cost)} of its budget of {usd(budget)} USD; "
            f"`ai-worker resume {id_task} --budget {usd(max(budget, cost) * 2)}` gives it more"
        )


def _cancel(items: list[int], tx: Transaction) -> int:
    return tx.execute("cancel_items", {"items": items})


def _restore(items: list[int], tx: Transaction) -> int:
    return tx.execute("restore_items", {"items": items})
