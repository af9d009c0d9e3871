"""What a transaction of the queue writes: results, attempts, counters, and the ends of tasks, so that all sums always agree.

Used inside the transactions of `queue`, by whoever holds the items' rows locked.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache
from typing import Any, Final

from ai_worker.db import Transaction
from ai_worker.models import NO_USAGE, Item, ItemStatus, Lane, Outcome, OutcomeKind, Result, TaskStatus, Usage
from ai_worker.store.cache import settle_work
from ai_worker.store.encoding import decimal_text, document, exact_document, storable
from ai_worker.store.files import write_files
from ai_worker.text import clean

SUMMARY_CHARACTERS: Final = 16_000  # task_item.change_summary is TEXT: 65,535 bytes
MESSAGE_CHARACTERS: Final = 1000  # error_message
FACT_CHARACTERS: Final = 2000  # context_fact.fact
SHARDS: Final = 16  # rows of `ai_model_day` per model and day: workers that commit at the same time mostly write different ones
# An item lost with its worker this often is set aside: it may be what kills them. Many, because a host that crashes again and
# again claims the same oldest items each time, and they are not to blame.
MAX_LOSSES: Final = 20

STATUS_AFTER: Final[Mapping[OutcomeKind, ItemStatus]] = {
    OutcomeKind.PROCESSED: ItemStatus.PROCESSED,
    OutcomeKind.RETRY: ItemStatus.DEFERRED,
    OutcomeKind.FAILED: ItemStatus.ERROR,
    OutcomeKind.POSTPONED: ItemStatus.DEFERRED,
    OutcomeKind.PASSED_ON: ItemStatus.PENDING,
    OutcomeKind.RELEASED: ItemStatus.PENDING,
}
UNCHARGED: Final = frozenset({OutcomeKind.POSTPONED, OutcomeKind.PASSED_ON, OutcomeKind.RELEASED})

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


class NotAsClaimed(Exception):
    """Some item of the group is no longer as its claim left it: each has to be looked at."""


class Changes:
    """Collects what a commit writes, so that it takes a fixed number of statements however many items it has."""

    def __init__(self, id_worker: int, *, files_in_folder: bool = False) -> None:
        self._id_worker = id_worker
        self._files_in_folder = files_in_folder
        self._with_files: list[Outcome] = []
        self.given_back: dict[int, int] = {}  # item -> task, of those that are to be claimed again
        self._results: list[tuple[Any, ...]] = []
        self._items: list[dict[str, Any]] = []
        self._charges: dict[int, Counters] = {}  # by item
        self._attempts: list[tuple[Any, ...]] = []
        self._found_again: list[bytes] = []
        self._tasks: dict[int, Counters] = {}
        self._days: dict[int, DayCounters] = {}  # by model
        self._answers: list[tuple[bytes, int]] = []  # in the result cache: key, and the item that led it and has a result now
        self._freed: list[tuple[bytes, int]] = []  # the same, of those that have none
        self._joined: list[int] = []  # items whose parts are joined, and done with
        self._facts: list[tuple[str, str, int]] = []  # subject, fact, and the item that brought it

    def add_result(self, outcome: Outcome) -> None:
        """A result whose item nobody has looked at: `write` raises NotAsClaimed when it is no longer as it was claimed."""
        item, usage, result = outcome.item, outcome.usage, outcome.result
        if result is None:
            raise TypeError("an item is processed with a result")
        self._results.append(
            (
                item.id_task_item,
                item.attempt,
                item.claim_token,
                usage.tokens_input,
                usage.tokens_output,
                outcome.cost,
                *_columns(result),
            )
        )
        self._attempt(outcome, outcome.kind, False)
        if outcome.cache_key is not None:
            (self._answers if outcome.is_answer else self._freed).append((outcome.cache_key, item.id_task_item))
        if outcome.is_joined:
            self._joined.append(item.id_task_item)
        if result.facts:
            self._learnt(item, result)
        if result.files:
            self._with_files.append(outcome)
        counters = self._counters(item.task.id_task)
        counters.processed += 1
        counters.charge(outcome)

    def add(self, outcome: Outcome, before: ItemStatus) -> None:
        """An outcome whose item is locked, was in the status `before`, and is still this attempt's."""
        item, usage = outcome.item, outcome.usage
        after = STATUS_AFTER[outcome.kind]
        is_late = before is not ItemStatus.IN_PROGRESS
        is_processed = after is ItemStatus.PROCESSED
        text, summary, data = _columns(outcome.result) if outcome.result else (None, None, None)
        self._items.append(
            {
                "id": item.id_task_item,
                "at": item.attempt,
                "st": int(after),
                "ch": int(outcome.kind not in UNCHARGED),
                "fa": int(is_late),
                "rf": item.task.position + 1 if outcome.kind is OutcomeKind.PASSED_ON else 0,
                "de": int(outcome.delay * 1e6),
                "si": int(outcome.single),
                "ti": usage.tokens_input,
                "to": usage.tokens_output,
                "co": decimal_text(outcome.cost),
                "ek": None if is_processed else outcome.error_kind,
                "em": None if is_processed else _short(outcome.error_message),
                "tc": text,
                "cs": summary,
                "re": data,
            }
        )
        if not outcome.is_answer:
            self.add_freed(outcome)
        elif outcome.cache_key is not None:
            self._answers.append((outcome.cache_key, item.id_task_item))
        if outcome.is_joined:
            self._joined.append(item.id_task_item)
        if outcome.result is not None and outcome.result.facts:
            self._learnt(item, outcome.result)
        if outcome.result is not None and outcome.result.files:
            self._with_files.append(outcome)
        if after in {ItemStatus.PENDING, ItemStatus.DEFERRED}:
            self.given_back[item.id_task_item] = item.task.id_task
        if outcome.kind is OutcomeKind.RELEASED:
            return
        self._attempt(outcome, outcome.kind, is_late)
        counters = self._counters(item.task.id_task)
        counters.processed += is_processed
        counters.failed += (after is ItemStatus.ERROR) - (before is ItemStatus.ERROR)
        counters.charge(outcome)

    def add_lost(self, outcome: Outcome, *, is_there: bool, is_charged: bool) -> None:
        """An outcome that comes after somebody else's claim; `is_there` says whether there is still an item, `is_charged` whether
        the attempt is counted in it."""
        self.add_freed(outcome)
        if outcome.usage == NO_USAGE and outcome.kind is not OutcomeKind.PROCESSED:
            return  # nothing was paid for; if the attempt was rescued, that is on record
        if not is_charged:
            outcome = outcome._replace(error_kind=LATE)
        self._attempt(outcome, OutcomeKind.LOST if is_charged else OutcomeKind.POSTPONED, True)
        self._counters(outcome.item.task.id_task).charge(outcome)
        if is_there:
            self._charges.setdefault(outcome.item.id_task_item, Counters()).charge(outcome)

    def add_freed(self, outcome: Outcome) -> None:
        """Of an outcome that brings no answer: the work that its item led is anybody's now."""
        if outcome.cache_key is not None:
            self._freed.append((outcome.cache_key, outcome.item.id_task_item))

    def _learnt(self, item: Item, result: Result) -> None:
        """Facts of an item that is about nobody are its result alone."""
        if item.subject is not None:
            facts = (cleaned[:FACT_CHARACTERS] for fact in result.facts if (cleaned := clean(fact).strip()))
            self._facts += [(item.subject, fact, item.id_task_item) for fact in facts]

    def _counters(self, id_task: int) -> Counters:
        counters = self._tasks.get(id_task)
        if counters is None:
            counters = self._tasks[id_task] = Counters()
        return counters

    def _attempt(self, outcome: Outcome, kind: OutcomeKind, may_be_known: bool) -> None:
        item, usage = outcome.item, outcome.usage
        operation = uuid_bytes(item.operation_uuid)
        if outcome.lane is not Lane.CACHE:  # which has used nothing of the model
            day = self._days.get(item.task.id_ai_model)
            if day is None:
                day = self._days[item.task.id_ai_model] = DayCounters()
            day.add(usage, outcome.cost)
        if may_be_known:
            self._found_again.append(operation)
        if kind is OutcomeKind.PASSED_ON:  # its error says why; a value of its own would have the migration copy the whole ledger
            kind = OutcomeKind.POSTPONED
        self._attempts.append(
            (
                *(operation, item.task.id_task, item.id_task_item, item.attempt, self._id_worker, item.task.id_ai_model),
                *(kind.value, outcome.error_kind or (LATE if kind is OutcomeKind.LOST else None), _short(outcome.error_message)),
                *(usage.tokens_input, usage.tokens_output, usage.tokens_cached, usage.tokens_reasoning),
                *(outcome.cost, outcome.latency_ms, outcome.lane.value),
            )
        )

    def write(self, tx: Transaction, touched: Iterable[int]) -> list[EndedTask]:
        """Items, attempts, tasks, and the models' day last: hot rows are held shortest, and everybody locks in the same order.

        `touched` are the tasks that may have ended by this; those that have are ended, and returned.
        """
        if self._results and tx.execute_many("store_results", self._results) != len(self._results):
            raise NotAsClaimed
        if self._items and tx.execute("store_outcomes", {"rows": document(self._items)}) != len(self._items):
            raise AssertionError("an item that this transaction holds locked was not where it was seen")
        if self._joined:
            tx.execute("forget_parts", {"rows": document([{"id": each} for each in self._joined])})
        if self._with_files:
            write_files(tx, self._with_files, in_folder=self._files_in_folder)
        if self._charges:
            tx.execute("charge_items", {"rows": document([self._charges[each].row(each) for each in sorted(self._charges)])})
        if self._found_again:
            tx.execute("forget_lost_attempts", {"operations": self._found_again})
        if self._attempts:
            tx.execute_many("insert_attempts", self._attempts)
        if self._facts:
            tx.execute_many("keep_facts", sorted(self._facts))
        settle_work(tx, self._id_worker, self._answers, self._freed)
        ended = settle(tx, self._tasks, {*touched, *self.given_back.values()}, self.given_back)
        if self._days:
            shard = self._id_worker % SHARDS
            tx.execute_many("add_to_day", [(each, shard, *self._days[each].columns()) for each in sorted(self._days)])
        return ended


@dataclass(slots=True)
class DayCounters:
    """What the attempts of one commit have used of one model."""

    attempts: int = 0
    tokens_input: int = 0
    tokens_output: int = 0
    tokens_cached: int = 0
    tokens_reasoning: int = 0
    cost: Decimal | None = None

    def add(self, usage: Usage, cost: Decimal | None) -> None:
        self.attempts += 1
        if usage is not NO_USAGE:
            self.tokens_input += usage.tokens_input
            self.tokens_output += usage.tokens_output
            self.tokens_cached += usage.tokens_cached
            self.tokens_reasoning += usage.tokens_reasoning
        if cost is not None:
            self.cost = cost if self.cost is None else self.cost + cost

    def columns(self) -> tuple[Any, ...]:
        """In the order of `add_to_day`."""
        tokens = (self.tokens_input, self.tokens_output, self.tokens_cached, self.tokens_reasoning)
        return (self.attempts, *tokens, self.cost)


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
            self.cost = outcome.cost if self.cost is None else self.cost + outcome.cost

    def row(self, key: int, ended_as: TaskStatus | None = None) -> dict[str, Any]:
        tokens = {"ti": self.tokens_input, "to": self.tokens_output, "co": decimal_text(self.cost)}
        return {"id": key, "pr": self.processed, "fa": self.failed, **tokens, "en": ended_as}


def settle(
    tx: Transaction, counters: Mapping[int, Counters], touched: Iterable[int], given_back: Mapping[int, int]
) -> list[EndedTask]:
    """Adds to the tasks' counters, and ends those of the `touched` ones that have no open item: locks their rows, then looks.

    `given_back` are the items, with their tasks, that this transaction has made claimable again. Those of a cancelled task are
    cancelled with it: whoever cancels comes before this lock, or sees them after it.
    """
    candidates = frozenset(touched)
    ends: dict[int, EndedTask] = {}
    changing: dict[int, TaskStatus | None] = dict.fromkeys(counters)
    if candidates:
        # All of them in one order, also those that are only counted: two workers must not wait for each other.
        rows = {row["id_task"]: row for row in tx.query("lock_tasks", {"tasks": sorted(candidates | counters.keys())})}
        cancelled = {id_task for id_task, row in rows.items() if row["status_id"] == TaskStatus.CANCELLED}
        if items := [item for item, id_task in given_back.items() if id_task in cancelled]:
            tx.execute("cancel_items", {"items": items})
        for (id_task,) in tx.tuples("tasks_without_open_items", {"tasks": sorted(candidates)}):
            row, change = rows[id_task], counters.get(id_task, _NO_CHANGE)
            failed = row["records_failed"] + change.failed
            status = TaskStatus.CANCELLED if id_task in cancelled else TaskStatus.ERROR if failed else TaskStatus.COMPLETED
            ends[id_task] = EndedTask(id_task, status, row["records_processed"] + change.processed, failed)
            if not (row["is_finished"] and row["status_id"] == status):  # one that has ended just so keeps its time
                changing[id_task] = status
    if changing and not counters:
        tx.execute("end_tasks", {"tasks": sorted(changing)})
    elif changing:
        rows_changed = [counters.get(each, _NO_CHANGE).row(each, changing[each]) for each in sorted(changing)]
        tx.execute("settle_tasks", {"rows": document(rows_changed)})
    return [ends[each] for each in sorted(ends)]


_NO_CHANGE: Final = Counters()


def give_back(tx: Transaction, candidates: Mapping[int, int]) -> tuple[dict[int, int], list[EndedTask]]:
    """Takes items from their dead owners: pending again, or set aside, or cancelled with their task. How many, by model, and what
    ended.

    `candidates` names the dead owner of each item: one that a living worker has claimed since is left to it.
    """
    if not candidates:
        return {}, []
    locked = tx.query("lock_lost_items", {"items": list(candidates)})
    rows = [row for row in locked if row["id_worker"] == candidates[row["id_task_item"]]]
    if not rows:
        return {}, []
    tasks = {row["id_task"]: row for row in tx.query("task_states", {"tasks": sorted({row["id_task"] for row in rows})})}
    groups: dict[str, list[int]] = {"give_back_lost": [], "bury_lost": [], "cancel_lost": []}
    counters: dict[int, Counters] = {}
    attempts: list[tuple[Any, ...]] = []
    models: dict[int, int] = {}
    for row in rows:
        task = tasks.get(row["id_task"])
        if task is None:
            verb = "cancel_lost"
        elif row["lost_count"] + 1 >= MAX_LOSSES:
            verb = "bury_lost"
            counters.setdefault(row["id_task"], Counters()).failed += 1
        else:
            # Of a cancelled task too: `settle` cancels it under the task's lock, unless somebody has just brought the task back.
            verb = "give_back_lost"
        groups[verb].append(row["id_task_item"])
        operation = uuid_bytes(operation_uuid(row["claim_token"], row["id_task_item"]))
        id_ai_model = row["id_ai_model"] or (task["id_ai_model"] if task else 0)
        models[id_ai_model] = models.get(id_ai_model, 0) + 1
        attempts.append(
            (
                *(operation, row["id_task"], row["id_task_item"], row["attempt"], row["id_worker"], id_ai_model),
                *(OutcomeKind.LOST.value, LOST, None),
                *(0, 0, 0, 0),
                *(None, None, Lane.ONLINE.value),
            )
        )
    for verb, items in groups.items():
        if items:
            tx.execute(verb, {"items": items})
    tx.execute_many("insert_attempts", attempts)
    given_back = {row["id_task_item"]: row["id_task"] for row in rows if row["id_task_item"] in groups["give_back_lost"]}
    return models, settle(tx, counters, tasks, given_back)


def _columns(result: Result) -> tuple[str | None, str | None, str]:
    """`text_corrected`, `change_summary` and `result`, as the columns take them."""
    summary = result.change_summary
    summary = summary[:SUMMARY_CHARACTERS] if summary else summary
    return storable(result.text_corrected), storable(summary), exact_document(result.data)


def _short(message: str | None) -> str | None:
    return clean(message)[:MESSAGE_CHARACTERS] if message else None
