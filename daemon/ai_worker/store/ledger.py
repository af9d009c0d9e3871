"""What a transaction of the queue writes: results, attempts, counters, and the ends of tasks, so that all sums always agree.

Used inside the transactions of `queue`, by whoever holds the items' rows locked.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache
from typing import Any, Final

from ai_worker.db import Transaction
from ai_worker.models import NO_USAGE, ItemStatus, Outcome, OutcomeKind, TaskStatus
from ai_worker.text import clean

SUMMARY_CHARACTERS: Final = 16_000  # task_item.change_summary is TEXT: 65,535 bytes
# An item lost with its worker this often is set aside: it may be what kills them. Many, because a host that crashes again and
# again claims the same oldest items each time, and they are not to blame.
MAX_LOSSES: Final = 20

STATUS_AFTER: Final[Mapping[OutcomeKind, ItemStatus]] = {
    OutcomeKind.PROCESSED: ItemStatus.PROCESSED,
    OutcomeKind.RETRY: ItemStatus.DEFERRED,
    OutcomeKind.FAILED: ItemStatus.ERROR,
    OutcomeKind.POSTPONED: ItemStatus.DEFERRED,
    OutcomeKind.RELEASED: ItemStatus.PENDING,
}
UNCHARGED: Final = frozenset({OutcomeKind.POSTPONED, OutcomeKind.RELEASED})

# `task_attempt.error_kind` of lost attempts: written by a rescue, or by the worker itself, too late and with what it cost.
LOST: Final = "lost"
LATE: Final = "late"


@dataclass(frozen=True, slots=True)
class EndedTask:
    """A task that a transaction ended, as it stands then."""

    id_task: int
    status: TaskStatus
    records_processed: int
    records_failed: int


def new_claim_token() -> bytes:
    """16 bytes: milliseconds since 1970 (6 bytes), then random. The time only keeps related keys together on disk."""
    return (time.time_ns() // 1_000_000).to_bytes(6) + os.urandom(10)


def operation_uuid(claim_token: bytes, id_task_item: int) -> str:
    """The attempt's own UUID, derived, so that whoever sees the item's claim token can name the attempt.

    Version 8 (RFC 9562, 5.8): the token's first 10 bytes (time, 26 random bits) and the item's id in the last 6.
    """
    return f"{_uuid_start(claim_token)}{id_task_item & 0xFFFF_FFFF_FFFF:012x}"


@lru_cache(maxsize=64)
def _uuid_start(claim_token: bytes) -> str:
    """What the UUIDs of one claim have in common, with its hyphens."""
    high = int.from_bytes(claim_token[:8]) & ~0xF000 | 0x8000
    low = 1 << 63 | (int.from_bytes(claim_token[8:10]) & 0x3FFF) << 48
    return str(uuid.UUID(int=high << 64 | low))[:-12]


def uuid_bytes(text: str) -> bytes:
    """A UUID as its column takes it."""
    return bytes.fromhex(text.replace("-", ""))


class Changes:
    """Collects what a commit writes, so that it takes a fixed number of statements however many items it has."""

    def __init__(self, id_worker: int) -> None:
        self._id_worker = id_worker
        self.given_back: dict[int, int] = {}  # item -> task, of those that are to be claimed again
        self._items: list[dict[str, Any]] = []
        self._charges: dict[int, Counters] = {}  # by item
        self._attempts: list[dict[str, Any]] = []
        self._found_again: list[bytes] = []
        self._tasks: dict[int, Counters] = {}

    def add(self, outcome: Outcome, before: ItemStatus) -> None:
        item, usage, result = outcome.item, outcome.usage, outcome.result
        summary = result.change_summary if result else None
        after = STATUS_AFTER[outcome.kind]
        is_late = before is not ItemStatus.IN_PROGRESS
        self._items.append(
            {
                "id": item.id_task_item,
                "at": item.attempt,
                "st": int(after),
                "ch": int(outcome.kind not in UNCHARGED),
                "fa": int(is_late),
                "de": int(outcome.delay * 1e6),
                "ti": usage.tokens_input,
                "to": usage.tokens_output,
                "co": _decimal(outcome.cost),
                "ek": outcome.error_kind,
                "em": _short(outcome.error_message),
                "tc": result.text_corrected if result else None,
                "cs": summary[:SUMMARY_CHARACTERS] if summary else summary,
                "re": json.dumps(result.data, ensure_ascii=False) if result else None,
            }
        )
        if after in {ItemStatus.PENDING, ItemStatus.DEFERRED}:
            self.given_back[item.id_task_item] = item.task.id_task
        if outcome.kind is OutcomeKind.RELEASED:
            return
        self._attempt(outcome, outcome.kind, is_late)
        counters = self._tasks.setdefault(item.task.id_task, Counters())
        counters.processed += after is ItemStatus.PROCESSED
        counters.failed += (after is ItemStatus.ERROR) - (before is ItemStatus.ERROR)
        counters.charge(outcome)

    def add_lost(self, outcome: Outcome, *, is_there: bool) -> None:
        if outcome.usage == NO_USAGE and outcome.kind is not OutcomeKind.PROCESSED:
            return  # nothing was paid for; if the attempt was rescued, that is on record
        self._attempt(outcome, OutcomeKind.LOST, True)
        self._tasks.setdefault(outcome.item.task.id_task, Counters()).charge(outcome)
        if is_there:
            self._charges.setdefault(outcome.item.id_task_item, Counters()).charge(outcome)

    def _attempt(self, outcome: Outcome, kind: OutcomeKind, may_be_known: bool) -> None:
        item, usage = outcome.item, outcome.usage
        if may_be_known:
            self._found_again.append(uuid_bytes(item.operation_uuid))
        self._attempts.append(
            {
                "operation_uuid": uuid_bytes(item.operation_uuid),
                "id_task": item.task.id_task,
                "id_task_item": item.id_task_item,
                "attempt": item.attempt,
                "id_worker": self._id_worker,
                "id_ai_model": item.task.id_ai_model,
                "outcome": kind.value,
                "error_kind": outcome.error_kind or (LATE if kind is OutcomeKind.LOST else None),
                "error_message": _short(outcome.error_message),
                "tokens_input": usage.tokens_input,
                "tokens_output": usage.tokens_output,
                "tokens_cached": usage.tokens_cached,
                "tokens_reasoning": usage.tokens_reasoning,
                "cost": outcome.cost,
                "latency_ms": outcome.latency_ms,
            }
        )

    def write(self, tx: Transaction) -> None:
        """Items, attempts, and the tasks' counters last: the hot row is held shortest, and everybody locks in the same order."""
        if self._items and tx.execute("store_outcomes", {"rows": _document(self._items)}) != len(self._items):
            raise AssertionError("an item that this transaction holds locked was not where it was seen")
        if self._charges:
            tx.execute("charge_items", {"rows": _document([self._charges[each].row(each) for each in sorted(self._charges)])})
        if self._found_again:
            tx.execute("forget_lost_attempts", {"operations": self._found_again})
        if self._attempts:
            tx.execute_many("insert_attempts", self._attempts)
        if self._tasks:
            tx.execute("count_outcomes", {"rows": _document([self._tasks[each].row(each) for each in sorted(self._tasks)])})


@dataclass(slots=True)
class Counters:
    """By how much the counters of one task change, or the tokens and cost of one item."""

    processed: int = 0
    failed: int = 0
    tokens_input: int = 0
    tokens_output: int = 0
    cost: Decimal | None = None

    def charge(self, outcome: Outcome) -> None:
        self.tokens_input += outcome.usage.tokens_input
        self.tokens_output += outcome.usage.tokens_output
        if outcome.cost is not None:
            self.cost = (self.cost or Decimal(0)) + outcome.cost

    def row(self, key: int) -> dict[str, Any]:
        tokens = {"ti": self.tokens_input, "to": self.tokens_output, "co": _decimal(self.cost)}
        return {"id": key, "pr": self.processed, "fa": self.failed, **tokens}


def end_tasks(tx: Transaction, tasks: Iterable[int], given_back: Mapping[int, int]) -> list[EndedTask]:
    """Ends those of these tasks that have no open item: takes their rows' locks, then looks.

    `given_back` are the items, with their tasks, that this transaction has made claimable again. Those of a cancelled task are
    cancelled with it: whoever cancels comes before this lock, or sees them after it.
    """
    candidates = sorted(tasks)
    if not candidates:
        return []
    rows = tx.query("lock_tasks", {"tasks": candidates})
    cancelled = {row["id_task"] for row in rows if row["status_id"] == TaskStatus.CANCELLED}
    if items := [item for item, id_task in given_back.items() if id_task in cancelled]:
        tx.execute("cancel_items", {"items": items})
    ended = [row["id_task"] for row in tx.query("tasks_without_open_items", {"tasks": candidates})]
    if not ended:
        return []
    tx.execute("end_tasks", {"tasks": ended})
    return [
        EndedTask(row["id_task"], TaskStatus(row["status_id"]), row["records_processed"], row["records_failed"])
        for row in tx.query("ended_tasks", {"tasks": ended})
    ]


def give_back(tx: Transaction, candidates: Mapping[int, int]) -> tuple[int, list[EndedTask]]:
    """Takes items from their dead owners: pending again, or set aside, or cancelled with their task. How many, and what ended.

    `candidates` names the dead owner of each item: one that a living worker has claimed since is left to it.
    """
    if not candidates:
        return 0, []
    locked = tx.query("lock_lost_items", {"items": list(candidates)})
    rows = [row for row in locked if row["id_worker"] == candidates[row["id_task_item"]]]
    if not rows:
        return 0, []
    tasks = {row["id_task"]: row for row in tx.query("task_states", {"tasks": sorted({row["id_task"] for row in rows})})}
    groups: dict[str, list[int]] = {"give_back_lost": [], "bury_lost": [], "cancel_lost": []}
    counters: dict[int, Counters] = {}
    attempts: list[dict[str, Any]] = []
    for row in rows:
        task = tasks.get(row["id_task"])
        if task is None or task["status_id"] == TaskStatus.CANCELLED:
            verb = "cancel_lost"
        elif row["lost_count"] + 1 >= MAX_LOSSES:
            verb = "bury_lost"
            counters.setdefault(row["id_task"], Counters()).failed += 1
        else:
            verb = "give_back_lost"
        groups[verb].append(row["id_task_item"])
        attempts.append(
            {
                "operation_uuid": uuid_bytes(operation_uuid(row["claim_token"], row["id_task_item"])),
                "id_task": row["id_task"],
                "id_task_item": row["id_task_item"],
                "attempt": row["attempt"],
                "id_worker": row["id_worker"],
                "id_ai_model": task["id_ai_model"] if task else 0,
                "outcome": OutcomeKind.LOST.value,
                "error_kind": LOST,
                "error_message": None,
                "tokens_input": 0,
                "tokens_output": 0,
                "tokens_cached": 0,
                "tokens_reasoning": 0,
                "cost": None,
                "latency_ms": None,
            }
        )
    for verb, items in groups.items():
        if items:
            tx.execute(verb, {"items": items})
    tx.execute_many("insert_attempts", attempts)
    if counters:
        tx.execute("count_outcomes", {"rows": _document([counters[each].row(each) for each in sorted(counters)])})
    given_back = {row["id_task_item"]: row["id_task"] for row in rows if row["id_task_item"] in groups["give_back_lost"]}
    return len(rows), end_tasks(tx, set(tasks), given_back)


def _document(rows: list[dict[str, Any]]) -> str:
    """The rows as JSON. Half a surrogate pair, which models do answer in escapes, is no text: it becomes U+FFFD."""
    return clean(json.dumps(rows, ensure_ascii=False, separators=(",", ":")))


def _decimal(value: Decimal | None) -> str | None:
    return None if value is None else str(value)


def _short(message: str | None) -> str | None:
    return clean(message)[:1000] if message else None
