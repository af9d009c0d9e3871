"""A task and its items before they are there: what can be said of them, and the rows that they become."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any, Final, NamedTuple

from ai_worker.db import Transaction
from ai_worker.models import DEFAULT_QUEUE, Lane, Need, PersonalData, Task, TaskStatus
from ai_worker.store.groups import check_open

CACHE_SECONDS: Final = 30 * 86_400  # the default of task.cache_seconds
BATCH_ROWS: Final = 1000  # items that one statement inserts
_BATCH_CHARACTERS: Final = 400_000  # of text in one batch: what is held in memory
_ROW_OVERHEAD: Final = 2_000  # bytes of an INSERT around one row's text, key and context
_ESCAPED: Final = "\\'"  # what a literal doubles


@dataclass(frozen=True, slots=True)
class NewTask:
    """A task to be made. `scheduled_at` is in UTC, without a zone; `submit_key` makes the submission idempotent.

    `fallbacks` are further models, in order; `pack` items go into one call at most; `cache_seconds` is how old an answer to the
    same work may be; `budget` is in USD. It begins when the tasks `after` which it comes have ended as needed; its results are
    kept for `result_seconds` after its end, None: for good. With a `held` reason it is PAUSED from its first moment on, until a
    person resumes it.
    """

    id_ai_model: int
    task_type: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    priority: int = 0
    scheduled_at: datetime | None = None
    max_attempts: int = 3
    submit_key: str | None = None
    fallbacks: tuple[int, ...] = ()
    lane: Lane = Lane.ONLINE
    pack: int = 1
    cache_seconds: int = CACHE_SECONDS
    budget: Decimal | None = None
    queue: str = DEFAULT_QUEUE
    id_prompt: int | None = None
    id_task_group: int | None = None
    result_seconds: int | None = None
    personal_data: PersonalData = PersonalData.OFF
    after: Mapping[int, Need] = field(default_factory=dict)
    held: str | None = None

    def as_task(self) -> Task:
        """The task as a worker will see it, but for its id: to be checked, or shown, before it is made."""
        return Task(
            id_task=0,
            id_ai_model=self.id_ai_model,
            task_type=self.task_type,
            description=self.description,
            parameters=self.parameters,
            max_attempts=self.max_attempts,
            priority=self.priority,
            status=TaskStatus.NEW,
            lane=self.lane,
            pack=self.pack,
            cache_seconds=self.cache_seconds,
            budget=self.budget,
            queue=self.queue,
            id_prompt=self.id_prompt,
            personal_data=self.personal_data,
        )


class NewItem(NamedTuple):
    """An item to be made; `context` is the text of a JSON object."""

    text_original: str
    external_key: str | None = None
    context: str | None = None
    context_key: str | None = None


def fits(text: str, size: int, packet: int) -> bool:
    """Whether a text of `size` bytes of UTF-8 can be sent to a server that takes statements of `packet` bytes."""
    if size * 2 + _ROW_OVERHEAD < packet:
        return True
    return size + sum(map(text.count, _ESCAPED)) + _ROW_OVERHEAD < packet


def write_task(tx: Transaction, task: NewTask, key: str, id_task: int | None = None) -> int:
    """Writes a task without its items, under an id that was reserved for it or a new one; the id."""
    if task.id_task_group is not None:
        check_open(task.id_task_group, tx)  # under a lock that the group's end waits for: after all those rows
    given = tx.insert("insert_task", {**task_columns(task), "id_task": id_task, "submit_key": key})
    id_task = id_task or given
    chain = enumerate(task.fallbacks, start=1)
    if fallbacks := [{"id_task": id_task, "position": position, "id_ai_model": model} for position, model in chain]:
        tx.execute_many("insert_fallbacks", fallbacks)
    if task.after:
        waits = [{"id_task": id_task, "after_id_task": each, "needs": need.value} for each, need in task.after.items()]
        tx.execute_many("insert_dependencies", waits)
    if task.held is not None:
        tx.execute("hold_task", {"id_task": id_task, "reason": task.held})
    return id_task


def task_columns(task: NewTask) -> dict[str, Any]:
    """The task as `insert_task` takes it, but for its id and key."""
    return {
        "id_ai_model": task.id_ai_model,
        "task_type": task.task_type,
        "description": task.description or None,
        "parameters": json.dumps(task.parameters, ensure_ascii=False) if task.parameters else None,
        "priority": task.priority,
        "scheduled_at": task.scheduled_at,
        "max_attempts": task.max_attempts,
        "lane": task.lane.value,
        "pack": task.pack,
        "cache_seconds": task.cache_seconds,
        "budget": task.budget,
        "queue": task.queue,
        "id_prompt": task.id_prompt,
        "id_task_group": task.id_task_group,
        "result_seconds": task.result_seconds,
        "personal_data": task.personal_data.value,
    }


def batches(id_task: int, rows: Iterable[NewItem]) -> Iterator[list[dict[str, Any]]]:
    """Rows for `insert_items`, bounded in number and length. Measured: 1,000 at a time is as fast as it gets on both servers."""
    batch: list[dict[str, Any]] = []
    size = 0
    for text, external_key, context, context_key in rows:
        size += len(text) + len(context or "")
        batch.append(
            {
                "id_task": id_task,
                "external_key": external_key,
                "context_key": context_key,
                "context": context,
                "text_original": text,
            }
        )
        if len(batch) >= BATCH_ROWS or size >= _BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
