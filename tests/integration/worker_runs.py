"""A worker in the test's own process, on a real database and against a fake provider, with the long waits made short."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from ai_worker.database_url import parse_database_url
from ai_worker.db import Database
from ai_worker.models import Filters, Item, Secret, Task
from ai_worker.retry import attempt_delay
from ai_worker.store.models import Models
from ai_worker.store.queue import Queue
from ai_worker.worker import Summary, Worker, WorkerOptions, attempt, calls, learning
from ai_worker.worker.tracing import OFF, Tracing
from tests.conftest import Sql
from tests.fake_provider import FakeProvider
from tests.servers import as_role

SHORTENED = 50  # a wait between two calls of one attempt takes a fiftieth of the seconds that the policy names
STRETCHED = 100  # one between two attempts takes a hundred times as long: nothing comes due before the test says so

APIS = ("chat", "responses", "gemini")


@contextmanager
def steady_waits() -> Iterator[None]:
    """Waits between calls are shortened; those between attempts stretched, and without chance: half of the longest there is.

    Only their length: what is waited for, and what ends a wait, is the worker's own.
    """
    wait = calls.Caller._sleep

    def stretched(failed_attempts: int, retry_after: float | None) -> float:
        return STRETCHED * attempt_delay(failed_attempts, retry_after, rng=lambda: 0.5)

    async def shorter(self: calls.Caller, seconds: float) -> None:
        await wait(self, seconds / SHORTENED)

    pause = learning.Learner._pause

    def shorter_pause(self: learning.Learner, id_ai_model: int, known: Any, now: float, seconds: float) -> None:
        pause(self, id_ai_model, known, now, seconds / SHORTENED)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calls.Caller, "_sleep", shorter)
        patch.setattr(learning.Learner, "_pause", shorter_pause)
        patch.setattr(attempt, "attempt_delay", stretched)
        yield


class CountingQueue(Queue):
    """Counts how many items were claimed, also those that were given back since."""

    claimed = 0

    def claim(self, id_worker: int, tasks: Sequence[Task], size: int, **place: Any) -> list[Item]:
        items = super().claim(id_worker, tasks, size, **place)
        self.claimed += len(items)
        return items


class Run:
    """A worker that runs until it is done; `summary` and `claimed` say what it did.

    `meanwhile(worker)` is called in a thread of its own once the worker runs. The options are those of `WorkerOptions`. With
    AI_WORKER_TEST_GRANTS the worker has the rights of sql/grants.sql and no more.
    """

    def __init__(
        self,
        url: str,
        *,
        filters: Filters | None = None,
        decrypt: Callable[[int, bytes], Secret] = lambda _, value: Secret(value.decode()),
        meanwhile: Callable[[Worker, asyncio.AbstractEventLoop], None] | None = None,
        files_folder: Path | None = None,
        tracing: Tracing = OFF,
        **options: Any,
    ) -> None:
        settings = WorkerOptions(**{"forever": False, "concurrency": 300, "name": "test", **options})
        with closing(Database(parse_database_url(as_role(url, "worker")))) as db:
            queue = CountingQueue(db)
            queue.keep_files_in(files_folder)
            worker = Worker(
                queue,
                Models(db),
                decrypt,
                filters=filters or Filters(),
                options=settings,
                give_up=db.give_up,
                tracing=tracing,
            )

            async def work() -> Summary:
                if meanwhile is not None:
                    threading.Thread(target=meanwhile, args=(worker, asyncio.get_running_loop()), daemon=True).start()
                return await asyncio.wait_for(worker.run(), 60)

            self.summary = asyncio.run(work())
            self.claimed = queue.claimed


def add_model(sql: Sql, fake: FakeProvider | None, api: str, name: str, **columns: Any) -> int:
    """A model that costs 1 USD for a million tokens in and 2 out; `api` is one of APIS, or another provider's name."""
    provider = {"chat": "openai", "responses": "openai"}.get(api, api)
    url = None if fake is None else fake.gemini_url if api == "gemini" else fake.openai_url
    row = {"name": name, "provider": provider, "model": "fake", "base_url": url, "price_input": 1, "price_output": 2}
    if api == "responses":
        row["options"] = '{"api": "responses"}'
    if api == "gemini":
        row["api_key_encrypted"] = b"a-gemini-key"  # unlike an imitator of OpenAI, Google always wants one
    row |= columns
    sql(f"INSERT INTO ai_model ({', '.join(row)}) VALUES ({', '.join(['%s'] * len(row))})", list(row.values()))
    return _last(sql)


def add_task(sql: Sql, id_ai_model: int, texts: Sequence[str], **columns: Any) -> int:
    """A task with one item per text, as an application inserts it."""
    row = {"id_ai_model": id_ai_model, "description": "Popraw tekst.", **columns}
    sql(f"INSERT INTO task ({', '.join(row)}) VALUES ({', '.join(['%s'] * len(row))})", list(row.values()))
    id_task = _last(sql)
    for text in texts:
        sql("INSERT INTO task_item (id_task, text_original) VALUES (%s, %s)", [id_task, text])
    return id_task


def make_due(sql: Sql) -> int:
    """Lets the time pass until all deferred items are due; how many these are."""
    (row,) = sql("SELECT COUNT(*) AS n FROM task_item WHERE status_id = 4")
    sql("UPDATE task_item SET available_at = UTC_TIMESTAMP(6) - INTERVAL 1 SECOND WHERE status_id = 4")
    count: int = row["n"]
    return count


def items_of(sql: Sql, id_task: int) -> list[dict[str, Any]]:
    """The task's items, with `delay`: the seconds from the end of the last attempt until the item is due, None when it is not."""
    return sql(
        "SELECT i.*, s.name AS status, TIMESTAMPDIFF(MICROSECOND, (SELECT MAX(a.finished_at) FROM task_attempt a"
        " WHERE a.id_task_item = i.id_task_item), i.available_at) / 1000000 AS delay"
        " FROM task_item i JOIN task_item_status s ON s.status_id = i.status_id WHERE i.id_task = %s ORDER BY i.id_task_item",
        [id_task],
    )


def attempts_of(sql: Sql, id_task: int) -> list[dict[str, Any]]:
    """The task's attempts in the order in which they ended."""
    return sql("SELECT * FROM task_attempt WHERE id_task = %s ORDER BY finished_at, attempt", [id_task])


def task_of(sql: Sql, id_task: int) -> dict[str, Any]:
    """The task's row with the name of its status."""
    (row,) = sql(
        "SELECT t.*, s.name AS status FROM task t JOIN task_status s ON s.status_id = t.status_id WHERE id_task = %s", [id_task]
    )
    return row


def model_of(sql: Sql, id_ai_model: int) -> dict[str, Any]:
    """The model's row, with `probe_seconds`: from the stop until it is tried again."""
    (row,) = sql(
        "SELECT *, TIMESTAMPDIFF(MICROSECOND, stopped_at, probe_at) / 1000000 AS probe_seconds FROM ai_model"
        " WHERE id_ai_model = %s",
        [id_ai_model],
    )
    return row


def make_probes_due(sql: Sql) -> None:
    """Lets the time pass until every stopped model may be tried again."""
    sql("UPDATE ai_model SET probe_at = UTC_TIMESTAMP(6) - INTERVAL 1 SECOND WHERE stopped_at IS NOT NULL")


def _last(sql: Sql) -> int:
    (row,) = sql("SELECT LAST_INSERT_ID() AS id")
    last: int = row["id"]
    return last
