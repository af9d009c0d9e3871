"""Batches: what is handed in at a provider by the thousand, and driven on by whichever worker comes by.

A batch owns its items through a `worker` row of its own, of mode `batch`, so that claim, fence, late results and rescue are those
of any worker. Its row in `batch` says how far it is; each state is stored before the next step is made. Who takes a step holds
the batch for so long, by the database's clock; a holder that dies loses it by the passing of time.

    collecting -> submitting -> submitted -> storing -> done

In `submitting` the provider may or may not have it: who comes to it without having been there looks for it by its key first.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from ai_worker.db import Transaction
from ai_worker.models import NOTHING, Filters, Item, Outcome, Task, TaskStatus
from ai_worker.store.claims import filter_columns, json_object, task_of_row
from ai_worker.store.committing import Committed
from ai_worker.store.ledger import operation_uuid
from ai_worker.store.queue import Queue, lease_column

MODE: Final = "batch"  # of a batch's `worker` row
# A batch's items are its own for this long after a provider was last reached: the day that it may take, a day of nobody reaching
# the provider, and two hours. Workers of a version that knows no batches rescue by the lease alone.
LEASE_SECONDS: Final = 50 * 3600.0
_MESSAGE_CHARACTERS: Final = 1000  # batch.message
_PAGE: Final = 500


class BatchStage(StrEnum):
    """`batch.state`."""

    COLLECTING = "collecting"
    SUBMITTING = "submitting"
    SUBMITTED = "submitted"
    STORING = "storing"
    DONE = "done"


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch as it stands.

    `key` names it at the provider. So many `failures` in a row it could not be asked for. It `is_cancelled` when the provider was
    asked to end it, and `is_overdue` when the provider could not be reached in all of its lease. `age` is in seconds since it was
    submitted, or made.
    """

    id_batch: int
    key: str
    id_task: int
    id_ai_model: int
    id_worker: int
    stage: BatchStage
    provider_batch_id: str | None
    items: int
    failures: int
    is_cancelled: bool
    task_status: TaskStatus
    age: int
    is_overdue: bool

    @property
    def is_unwanted(self) -> bool:
        """Whether its task was cancelled or deleted."""
        return self.task_status is TaskStatus.CANCELLED


@dataclass(frozen=True, slots=True)
class OpenBatches:
    """How many are open for some filters, and in how many seconds the first of them may be looked at."""

    batches: int
    seconds: float


class Batches:
    """The verbs on the table `batch`. Used by one thread at a time."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self._db = queue.db

    # ----- a batch's way

    def begin(self, key: str, id_holder: int, task: Task, seconds: float, process: Mapping[str, Any]) -> Batch | None:
        """A new batch, held by its maker for so long; None when its task has nothing for one, or one of it was not handed in yet.

        `process` tells the maker's host, pid and version.
        """

        def work(tx: Transaction) -> int | None:
            if tx.in_doubt and (there := tx.query("batch_of_key", {"batch_key": key})):
                id_batch: int = there[0]["id_batch"]
                return id_batch
            which = {"id_task": task.id_task, "id_ai_model": task.id_ai_model}
            state = tx.query("lock_task", {"id_task": task.id_task})
            if not state or state[0]["status_id"] in {TaskStatus.PAUSED, TaskStatus.CANCELLED}:
                return None
            if tx.query("waiting_batch", which) or not tx.query("tasks_with_items_for_batches", {"tasks": [task.id_task]}):
                return None
            id_worker = tx.insert("register_worker", {**process, "mode": MODE, "concurrency": 1, **lease_column(LEASE_SECONDS)})
            names = {"batch_key": key, "id_worker": id_worker, "id_holder": id_holder, "hold_us": _us(seconds)}
            return tx.insert("insert_batch", {**which, **names})

        id_batch = self._db.transaction(work)
        return None if id_batch is None else self._get(id_batch)

    def due(self, id_holder: int, filters: Filters, busy_models: Iterable[int] = ()) -> list[int]:
        """Batches to look at now, which nobody else is just looking at."""
        parameters = {**filter_columns(filters), "id_holder": id_holder, "busy_models": (0, *busy_models)}
        return [row["id_batch"] for row in self._db.query("due_batches", parameters)]

    def hold(self, id_batch: int, id_holder: int, seconds: float) -> Batch | None:
        """Takes it for so long; None when somebody else has it, or it has ended."""
        held = self._db.execute("hold_batch", {"id_batch": id_batch, "id_holder": id_holder, "hold_us": _us(seconds)})
        return self._get(id_batch) if held else None

    def renew(self, batch: Batch, id_holder: int, seconds: float) -> bool:
        """Keeps it for so long from now; False when the time was over, and somebody else may have begun."""
        parameters = {"id_batch": batch.id_batch, "id_holder": id_holder, "hold_us": _us(seconds)}
        return bool(self._db.execute("renew_batch", parameters))

    def leave(
        self, batch: Batch, id_holder: int, delay: float, *, failures: int = 0, message: str | None = None, reached: bool = False
    ) -> None:
        """Lets go of it; it is looked at again after `delay` seconds. Its lease begins anew when the provider was `reached`."""
        if reached:
            self._beat(batch)
        state = {"delay_us": _us(delay), "failures": min(failures, 65_535), "message": _short(message)}
        self._db.execute("leave_batch", {"id_batch": batch.id_batch, "id_holder": id_holder, **state})

    def claim(self, batch: Batch, task: Task, size: int, after: int) -> list[Item]:
        """Takes up to `size` more items with keys above `after`.

        A claim whose COMMIT had no answer is left as it is: if it landed, its items are the batch's, which is read from the rows.
        """
        return self._queue.beside().claim(batch.id_worker, [task], size, after=after, single=False)

    def task(self, batch: Batch) -> Task | None:
        """Its task, for its model; None when somebody has deleted it."""
        rows = self._db.query("task_of_batch", {"id_task": batch.id_task, "id_ai_model": batch.id_ai_model})
        return task_of_row(rows[0]) if rows else None

    def items(self, batch: Batch, task: Task) -> list[Item]:
        """What it holds, in the order of the keys: the same before and after a crash."""
        parameters = {"id_task": batch.id_task, "id_worker": batch.id_worker}
        return [
            Item(
                row["id_task_item"],
                task,
                row["text_original"],
                json_object(row["context"]) if row["context"] else NOTHING,
                row["attempt"],
                row["lost_count"],
                row["claim_token"],
                operation_uuid(row["claim_token"], row["id_task_item"]),
                row["refused"],
                bool(row["is_single"]),
            )
            for row in self._db.pages("items_of_batch", parameters, key="id_task_item", size=_PAGE)
        ]

    def submitting(self, batch: Batch, id_holder: int, items: int) -> bool:
        """It takes no more items, and may be handed in; False when it is somebody else's by now."""
        parameters = {"id_batch": batch.id_batch, "id_holder": id_holder, "items": items}
        return bool(self._db.execute("batch_submitting", parameters))

    def submitted(self, batch: Batch, provider_batch_id: str) -> bool:
        """The provider has it under this id; False when it is known there under another one, or has ended here."""
        parameters = {"id_batch": batch.id_batch, "provider_batch_id": provider_batch_id}
        stands = bool(self._db.execute("batch_submitted", parameters))
        if stands:
            self._beat(batch)
        return stands

    def cancelled(self, batch: Batch) -> None:
        """The provider was asked to end it."""
        self._db.execute("batch_cancelled", {"id_batch": batch.id_batch})

    def storing(self, batch: Batch, message: str) -> None:
        """The provider has finished with it."""
        self._db.execute("batch_storing", {"id_batch": batch.id_batch, "message": _short(message)})
        self._beat(batch)

    def commit(self, batch: Batch, outcomes: Sequence[Outcome]) -> Committed:
        """Stores outcomes of its items, in one transaction."""
        return self._queue.commit(batch.id_worker, outcomes)

    def finish(self, batch: Batch, message: str | None = None, processed: int = 0, failed: int = 0) -> bool:
        """Its end, and that of its `worker` row, if it holds nothing any more; False when it still does."""

        def work(tx: Transaction) -> bool:
            which = {"id_task": batch.id_task, "id_worker": batch.id_worker}
            if tx.query("items_of_batch", {**which, "after": 0, "size": 1}):
                return False
            counts = {"items_processed": processed, "items_failed": failed}
            tx.execute("end_worker", {"id_worker": batch.id_worker, **counts})
            tx.execute("end_batch", {"id_batch": batch.id_batch, "message": _short(message)})
            return True

        return self._db.transaction(work)

    def give_up(self, batch: Batch, message: str) -> None:
        """Its end without results: its items are given back as those of a dead worker are."""

        def work(tx: Transaction) -> None:
            tx.execute("give_up_batch", {"id_worker": batch.id_worker})
            tx.execute("end_batch", {"id_batch": batch.id_batch, "message": _short(message)})

        self._db.transaction(work)

    # ----- looking

    def open(self, filters: Filters, among: Collection[int] | None = None) -> OpenBatches:
        """What a worker with these filters may wait for; of some batches only, if any are named."""
        which = {"any_batch": among is None, "batches": tuple(among or (0,))}
        row = self._db.query("open_batches", {**filter_columns(filters), **which})[0]
        return OpenBatches(row["batches"], float(row["seconds"] or 0.0))

    def _get(self, id_batch: int) -> Batch:
        (row,) = self._db.query("batch_row", {"id_batch": id_batch})
        return Batch(
            id_batch=row["id_batch"],
            key=row["batch_key"],
            id_task=row["id_task"],
            id_ai_model=row["id_ai_model"],
            id_worker=row["id_worker"],
            stage=BatchStage(row["state"]),
            provider_batch_id=row["provider_batch_id"],
            items=row["items"],
            failures=row["failures"],
            is_cancelled=bool(row["is_cancelled"]),
            task_status=TaskStatus(row["task_status"]),
            age=row["age"],
            is_overdue=bool(row["is_overdue"]),
        )

    def _beat(self, batch: Batch) -> None:
        numbers = {"in_flight": batch.items, "items_processed": 0, "items_failed": 0}
        self._db.execute(
            "beat", {"id_worker": batch.id_worker, "host": None, "pid": None, **numbers, **lease_column(LEASE_SECONDS)}
        )


def _us(seconds: float) -> int:
    return int(seconds * 1e6)


def _short(message: str | None) -> str | None:
    return message[:_MESSAGE_CHARACTERS] if message else None
