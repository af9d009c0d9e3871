"""Fixtures and builders named by lifecycle: `model`, `task`, `item` -> `claimed_item` -> `processed_item`; the ledger's audit.

Rows come in by plain SQL with the fewest columns, as another application inserts them. A test module that wants these says
`pytest_plugins = ["tests.integration.lifecycle"]`.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any, Final

import pytest

from ai_worker.db import Database
from ai_worker.models import NO_USAGE, Filters, Item, ItemStatus, Outcome, Result, TaskStatus, Usage
from ai_worker.store.queue import Queue

Sql = Callable[..., list[dict[str, Any]]]

POLISH = "Zażółć gęślą jaźń, powiedział „żółw” — i poszedł."
USAGE = Usage(tokens_input=100, tokens_output=20, tokens_cached=40, tokens_reasoning=5)
COST = Decimal("0.001234567")
EVERYTHING = Filters()

_numbers = itertools.count(1)


class Application:
    """Another application: inserts and looks, by plain SQL, in autocommit mode."""

    def __init__(self, sql: Sql) -> None:
        self.sql = sql

    def model(self, name: str | None = None, **columns: Any) -> int:
        return self._insert("ai_model", name=name or f"korektor {next(_numbers)}", provider="echo", **columns)

    def task(self, id_ai_model: int, **columns: Any) -> int:
        return self._insert("task", id_ai_model=id_ai_model, description="Popraw błędy", **columns)

    def items(self, id_task: int, texts: int | Sequence[str] = 1) -> list[int]:
        """Inserts items, by number or by their texts; their keys."""
        if isinstance(texts, int):
            texts = [f"{POLISH} {number}" for number in range(texts)]
        first = 0
        for start in range(0, len(texts), 1000):
            chunk = texts[start : start + 1000]
            values = ", ".join(["(%s, %s)"] * len(chunk))
            arguments = [each for text in chunk for each in (id_task, text)]
            self.sql(f"INSERT INTO task_item (id_task, text_original) VALUES {values}", arguments)
            first = first or self._last_id()
        rows = self.sql("SELECT id_task_item FROM task_item WHERE id_task = %s AND id_task_item >= %s", [id_task, first])
        return sorted(row["id_task_item"] for row in rows)

    def row(self, table: str, key: int) -> dict[str, Any]:
        return self.sql(f"SELECT * FROM {table} WHERE id_{table} = %s", [key])[0]

    def task_row(self, id_task: int) -> dict[str, Any]:
        return self.row("task", id_task)

    def item_row(self, id_task_item: int) -> dict[str, Any]:
        return self.row("task_item", id_task_item)

    def task_status(self, id_task: int) -> TaskStatus:
        return TaskStatus(self.task_row(id_task)["status_id"])

    def item_status(self, id_task_item: int) -> ItemStatus:
        return ItemStatus(self.item_row(id_task_item)["status_id"])

    def attempts(self, id_task_item: int) -> list[dict[str, Any]]:
        """The item's rows in the ledger, in the order of their claims."""
        return self.sql("SELECT * FROM task_attempt WHERE id_task_item = %s ORDER BY attempt, operation_uuid", [id_task_item])

    def kill_worker(self, id_worker: int) -> None:
        """As if it had died long ago: its lease is over."""
        self.sql(
            "UPDATE worker SET heartbeat_at = UTC_TIMESTAMP(6) - INTERVAL 60 SECOND,"
            " lease_until = UTC_TIMESTAMP(6) - INTERVAL 30 SECOND WHERE id_worker = %s",
            [id_worker],
        )

    def make_due(self) -> None:
        """Time passes: every deferred item is due."""
        self.sql("UPDATE task_item SET available_at = UTC_TIMESTAMP(6) - INTERVAL 1 SECOND WHERE status_id = 4")

    def _insert(self, table: str, **columns: Any) -> int:
        places = ", ".join(["%s"] * len(columns))
        self.sql(f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({places})", list(columns.values()))
        return self._last_id()

    def _last_id(self) -> int:
        key: int = self.sql("SELECT LAST_INSERT_ID() AS id")[0]["id"]
        return key


PROCESS: Final[dict[str, Any]] = {"host": "host", "pid": 1}


def register(queue: Queue, lease_seconds: float = 30.0) -> int:
    """A worker's row."""
    return queue.register(**PROCESS, version="0", mode="run", concurrency=1, lease_seconds=lease_seconds)


def claim(queue: Queue, id_worker: int, size: int = 1, *, filters: Filters = EVERYTHING) -> list[Item]:
    """Claims as a worker does: from the runnable tasks, in their order, one after the other."""
    items: list[Item] = []
    for task in queue.runnable(filters):
        if len(items) < size:
            items += queue.claim(id_worker, [task], size - len(items), id_task_item=filters.id_task_item)
    return items


def done(
    item: Item, text: str = POLISH, *, usage: Usage = USAGE, cost: Decimal | None = COST, data: dict[str, Any] | None = None
) -> Outcome:
    """A result."""
    return Outcome.processed(item, Result(text, "poprawiono", data or {"text": text}), usage, cost, 250)


def failed_once(item: Item, delay: float = 10.0) -> Outcome:
    """A failure that another attempt may mend."""
    return Outcome.retry(item, "bad_answer", "odpowiedź była pusta", delay, USAGE, COST, 250)


def failed(item: Item) -> Outcome:
    """A failure for good."""
    return Outcome.failed(item, "content_refused", "odmówiono", USAGE, None, 250)


def postponed(item: Item, delay: float = 10.0) -> Outcome:
    """Not the item's fault."""
    return Outcome.postponed(item, "rate_limited", "429", delay, NO_USAGE, None, 250)


def snapshot(sql: Sql) -> dict[str, list[dict[str, Any]]]:
    """All rows that work changes, to compare them with themselves later."""
    return {table: sql(f"SELECT * FROM {table} ORDER BY 1") for table in ("task", "task_item", "task_attempt")}


def assert_ledger(sql: Sql) -> None:
    """All tables agree with each other (invariant 3): counters, sums of tokens and cost, attempts, owners, ends of tasks.

    Holds at any moment between transactions, also for deleted items, whose attempts stay on their task's bill. Items whose
    attempts somebody counted anew (`retry`) are outside of it.
    """
    tasks, items = sql("SELECT * FROM task"), sql("SELECT * FROM task_item")
    attempts = sql("SELECT * FROM task_attempt")
    workers = {row["id_worker"]: row for row in sql("SELECT * FROM worker")}
    attempts_of: defaultdict[int, list[dict[str, Any]]] = defaultdict(list)
    billed_to: defaultdict[int, list[dict[str, Any]]] = defaultdict(list)
    items_of: defaultdict[int, list[dict[str, Any]]] = defaultdict(list)
    for row in attempts:
        attempts_of[row["id_task_item"]].append(row)
        billed_to[row["id_task"]].append(row)
    for row in items:
        items_of[row["id_task"]].append(row)
        _audit_item(row, attempts_of[row["id_task_item"]])
        if row["id_worker"] is not None:
            assert row["id_worker"] in workers, f"item {row['id_task_item']} is owned by nobody"
    for task in tasks:
        _audit_task(task, items_of[task["id_task"]], billed_to[task["id_task"]])
    _audit_days(sql, attempts)


def _audit_item(item: dict[str, Any], attempts: list[dict[str, Any]]) -> None:
    name = f"item {item['id_task_item']}"
    outcomes = [row["outcome"] for row in attempts if row["step"] is None]
    charged = sum(outcome in {"processed", "retry", "failed", "lost"} for outcome in outcomes)
    assert item["attempt"] == charged + (item["status_id"] == ItemStatus.IN_PROGRESS), f"{name}: attempts"
    assert item["lost_count"] == outcomes.count("lost"), f"{name}: lost"
    assert outcomes.count("processed") == (item["status_id"] == ItemStatus.PROCESSED), f"{name}: processed once"
    assert (item["text_corrected"] is not None) == (item["status_id"] == ItemStatus.PROCESSED), f"{name}: text"
    _audit_sums(name, item, attempts)


def _audit_task(task: dict[str, Any], items: list[dict[str, Any]], attempts: list[dict[str, Any]]) -> None:
    name = f"task {task['id_task']}"
    kept = {row["id_task_item"] for row in items}
    gone = {(row["id_task_item"], row["outcome"]) for row in attempts if row["id_task_item"] not in kept and row["step"] is None}
    by_status = [sum(row["status_id"] == status for row in items) for status in ItemStatus]
    done_before_deletion = sum(outcome == "processed" for _, outcome in gone)
    failed_before_deletion = sum(outcome == "failed" for _, outcome in gone)
    assert task["records_processed"] == by_status[ItemStatus.PROCESSED] + done_before_deletion, f"{name}: processed"
    assert task["records_failed"] == by_status[ItemStatus.ERROR] + failed_before_deletion, f"{name}: failed"
    _audit_sums(name, task, attempts)
    is_open = bool(by_status[ItemStatus.PENDING] + by_status[ItemStatus.IN_PROGRESS] + by_status[ItemStatus.DEFERRED])
    if task["status_id"] == TaskStatus.CANCELLED:
        assert not (is_open and task["finished_at"]), f"{name} ended too early"
    if task["status_id"] == TaskStatus.COMPLETED:
        assert task["records_failed"] == 0, f"{name} is COMPLETED with failures"
    if task["status_id"] == TaskStatus.ERROR:
        assert task["records_failed"] > 0, f"{name} is in ERROR without failures"
    if attempts:
        assert task["started_at"] is not None, f"{name} never started"


def _audit_days(sql: Sql, attempts: list[dict[str, Any]]) -> None:
    """What models have used per day is what their attempts have: all but those that a rescue wrote, of which nothing is known,
    and those that were answered from the cache, which used none."""
    counted = [row for row in attempts if (row["outcome"], row["error_kind"]) != ("lost", "lost") and row["lane"] != "cache"]
    used = {row["id_ai_model"]: row for row in sql(
        "SELECT id_ai_model, SUM(attempts) AS attempts, SUM(tokens_input) AS tokens_input, SUM(tokens_output) AS tokens_output,"
        " SUM(tokens_cached) AS tokens_cached, SUM(tokens_reasoning) AS tokens_reasoning, SUM(cost) AS cost"
        " FROM ai_model_day GROUP BY id_ai_model"
    )}  # fmt: skip
    assert used.keys() == {row["id_ai_model"] for row in counted}
    for model, row in used.items():
        its = [each for each in counted if each["id_ai_model"] == model]
        assert row["attempts"] == len(its), f"model {model}: attempts per day"
        for column in ("tokens_cached", "tokens_reasoning"):
            assert row[column] == sum(each[column] for each in its), f"model {model}: {column} per day"
        _audit_sums(f"model {model}", row, its)


def _audit_sums(name: str, row: dict[str, Any], attempts: list[dict[str, Any]]) -> None:
    for column in ("tokens_input", "tokens_output"):
        assert row[column] == sum(each[column] for each in attempts), f"{name}: {column}"
    known = [each["cost"] for each in attempts if each["cost"] is not None]
    assert row["cost"] == (sum(known) if known else None), f"{name}: cost"


@pytest.fixture
def application(sql: Sql) -> Application:
    return Application(sql)


@pytest.fixture
def queue(database: Database) -> Queue:
    return Queue(database)


@pytest.fixture
def worker(queue: Queue) -> int:
    """The id of a worker with a fresh lease."""
    return register(queue)


@pytest.fixture
def model(application: Application) -> int:
    """The id of a model."""
    return application.model()


@pytest.fixture
def task(application: Application, model: int) -> int:
    """The id of a task without items."""
    return application.task(model)


@pytest.fixture
def item(application: Application, task: int) -> int:
    """The id of a pending item, the only one of its task."""
    return application.items(task)[0]


@pytest.fixture
def claimed_item(queue: Queue, worker: int, item: int) -> Item:
    """The same, in progress."""
    (claimed,) = claim(queue, worker)
    assert claimed.id_task_item == item
    return claimed


@pytest.fixture
def processed_item(queue: Queue, worker: int, claimed_item: Item) -> Item:
    """The same, done."""
    assert queue.commit(worker, [done(claimed_item)]).stored
    return claimed_item
