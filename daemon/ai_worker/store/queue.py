"""How items move: claim, commit, release, rescue, and what keeps tasks' ends right. The protocol is in DB_Description.md.

Every method is one transaction and may be called from any thread. The fence of an item is its claim token and attempt: whoever
commits names both, and a new claim overwrites them.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Final

from ai_worker.db import Database, Row, Transaction
from ai_worker.errors import DatabaseAway
from ai_worker.models import NO_USAGE, Filters, Item, ItemStatus, Outcome, OutcomeKind, Task, TaskStatus
from ai_worker.text import clean

MAX_LOSSES: Final = 5  # an item lost with its worker this often is set aside: it may be what kills them

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


@dataclass(frozen=True, slots=True)
class Committed:
    """What became of a group of outcomes. `lost` ones came after somebody else's claim; their cost is on the books."""

    stored: list[Outcome] = field(default_factory=list)
    lost: list[Outcome] = field(default_factory=list)
    ended: list[EndedTask] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Rescued:
    """What one step of a rescue did. `more` says that there may be more to do at once."""

    id_worker: int | None = None
    items: int = 0
    more: bool = False
    ended: list[EndedTask] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Waiting:
    """What filters leave open: pending items, deferred ones, and the seconds until the first of these is due."""

    pending: int
    deferred: int
    due_seconds: float | None


def new_claim_token() -> bytes:
    """16 bytes: milliseconds since 1970 (6 bytes), then random. The time only keeps related keys together on disk."""
    return (time.time_ns() // 1_000_000).to_bytes(6) + os.urandom(10)


def operation_uuid(claim_token: bytes, id_task_item: int) -> uuid.UUID:
    """The attempt's own UUID, derived, so that whoever sees the item's claim token can name the attempt.

    Version 8 (RFC 9562, 5.8): the token's first 10 bytes (time, 26 random bits) and the item's id in the last 6.
    """
    high = int.from_bytes(claim_token[:8]) & ~0xF000 | 0x8000
    low = 1 << 63 | (int.from_bytes(claim_token[8:10]) & 0x3FFF) << 48 | id_task_item & 0xFFFF_FFFF_FFFF
    return uuid.UUID(int=high << 64 | low)


class Queue:
    """The verbs of a worker on the tables `task`, `task_item`, `task_attempt` and `worker`."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._doubtful: list[_Claim] = []  # claims whose COMMIT had no answer before the database went away

    # ----- the worker's own row

    def register(self, *, host: str, pid: int, version: str, mode: str, concurrency: int, lease_seconds: float) -> int:
        """A new worker row with a fresh lease; its id."""
        parameters = {"host": host, "pid": pid, "version": version, "mode": mode, "concurrency": concurrency}
        idle = {"in_flight": 0, "items_processed": 0, "items_failed": 0, **_lease(lease_seconds)}
        written: list[int] = []  # survives a repeat of the transaction

        def work(tx: Transaction) -> int:
            if not (tx.in_doubt and written and tx.execute("beat", {"id_worker": written[0], **idle})):
                written[:] = [tx.insert("register_worker", {**parameters, **_lease(lease_seconds)})]
            return written[0]

        return self._db.transaction(work)

    def beat(self, id_worker: int, *, lease_seconds: float, in_flight: int, processed: int, failed: int) -> bool:
        """The heartbeat. False when the lease is gone: others have begun to give this worker's items back."""
        numbers = {"in_flight": in_flight, "items_processed": processed, "items_failed": failed}
        return bool(self._db.execute("beat", {"id_worker": id_worker, **numbers, **_lease(lease_seconds)}))

    def end_worker(self, id_worker: int, *, processed: int, failed: int) -> None:
        """The worker has stopped in good order and holds nothing."""
        self._db.execute("end_worker", {"id_worker": id_worker, "items_processed": processed, "items_failed": failed})

    # ----- claim

    def runnable(self, filters: Filters, busy_models: Iterable[int] = ()) -> list[Task]:
        """Tasks with pending items that may be worked on now, the best first; `busy_models` are left out."""
        rows = self._db.query("runnable_tasks", {**_filter(filters), "busy_models": (0, *busy_models)})
        rows.sort(key=lambda row: (-row["priority"], row["id_task"]))
        return [
            Task(
                id_task=row["id_task"],
                id_ai_model=row["id_ai_model"],
                task_type=row["task_type"],
                description=row["description"] or "",
                parameters=_json(row["parameters"]),
                max_attempts=row["max_attempts"],
                priority=row["priority"],
                status=TaskStatus(row["status_id"]),
                is_probe=bool(row["is_probe"]),
            )
            for row in rows
        ]

    def claim(
        self, id_worker: int, tasks: Sequence[Task], size: int, *, after: int = 0, id_task_item: int | None = None
    ) -> list[Item]:
        """Takes up to `size` pending items of these tasks, in the order of the key where it is one task.

        `after` is the watermark of the single task: items up to this key are passed over. An empty list means that nothing
        was there to take now, above the watermark.
        """
        self._resolve_doubts()
        by_id = {task.id_task: task for task in tasks}
        token = new_claim_token()
        chosen: dict[int, int] = {}  # item -> task; survives a repeat of the transaction

        def work(tx: Transaction) -> list[Row]:
            fence = {"id_worker": id_worker, "claim_token": token}
            if tx.in_doubt and chosen and (landed := tx.query("claimed_items", {"items": list(chosen), **fence})):
                return landed
            chosen.clear()
            rows = self._lock_pending(tx, list(by_id), size, after, id_task_item)
            if not rows:
                return []
            found = sorted({row["id_task"] for row in rows})
            states = {row["id_task"]: TaskStatus(row["status_id"]) for row in tx.query("task_states", {"tasks": found})}
            allowed = {each for each, state in states.items() if state not in {TaskStatus.PAUSED, TaskStatus.CANCELLED}}
            chosen.update({row["id_task_item"]: row["id_task"] for row in rows if row["id_task"] in allowed})
            if not chosen:
                return []
            tx.execute("mark_claimed", {"items": list(chosen), **fence})
            if starting := sorted(each for each in allowed if states[each] is not TaskStatus.IN_PROGRESS):
                tx.execute("start_tasks", {"tasks": starting})
            return tx.query("claimed_items", {"items": list(chosen), **fence})

        try:
            claimed = self._db.transaction(work)
        except DatabaseAway:
            if chosen:
                self._doubtful.append(_Claim(token, chosen))
            raise
        return [
            Item(
                id_task_item=row["id_task_item"],
                task=by_id[row["id_task"]],
                text_original=row["text_original"],
                context=_json(row["context"]),
                attempt=row["attempt"],
                lost_count=row["lost_count"],
                claim_token=token,
                operation_uuid=operation_uuid(token, row["id_task_item"]),
            )
            for row in claimed
        ]

    def _resolve_doubts(self) -> None:
        """Gives back what earlier claims took without our hearing of it: nobody else would, as long as this worker lives."""
        while self._doubtful:
            claim = self._doubtful[-1]

            def work(tx: Transaction, claim: _Claim = claim) -> None:
                if tx.execute("unclaim", {"items": list(claim.items), "claim_token": claim.token}):
                    _end_tasks(tx, set(claim.items.values()), claim.items)

            self._db.transaction(work)
            self._doubtful.remove(claim)

    @staticmethod
    def _lock_pending(tx: Transaction, tasks: list[int], size: int, after: int, id_task_item: int | None) -> list[Row]:
        if id_task_item is not None:
            return tx.query("lock_pending_item", {"id_task_item": id_task_item, "id_task": tasks[0]})
        if len(tasks) == 1:
            return tx.query("lock_pending_of_task", {"id_task": tasks[0], "after": after, "size": size})
        return tx.query("lock_pending_of_tasks", {"tasks": tasks, "size": size})

    # ----- commit

    def commit(self, id_worker: int, outcomes: Sequence[Outcome], held_tasks: Iterable[int] = ()) -> Committed:
        """Writes a group of outcomes, their attempts and their tasks' counters in one transaction.

        An outcome whose item has been claimed by somebody else since is refused: only its tokens and cost are recorded, as a
        lost attempt. A result (not a failure) of an item that was given back and not yet claimed again still counts.
        `held_tasks` are those of which the caller holds more items: they cannot have ended yet, and are not looked at.
        """
        group = sorted(outcomes, key=lambda outcome: outcome.item.id_task_item)
        if not group:
            return Committed()
        held = frozenset(held_tasks)

        def work(tx: Transaction) -> Committed:
            ids = [outcome.item.id_task_item for outcome in group]
            rows = {row["id_task_item"]: row for row in tx.query("lock_committed", {"items": ids})}
            landed = _landed(tx, [each for each in group if not _is_held(each.item, rows.get(each.item.id_task_item))])
            report = Committed()
            changes = _Changes(id_worker)
            for outcome in group:
                row = rows.get(outcome.item.id_task_item)
                if (known := landed.get(outcome.item.operation_uuid.bytes)) is not None:
                    (report.lost if known is OutcomeKind.LOST else report.stored).append(outcome)
                elif row is not None and _fence_holds(outcome, row):
                    changes.add(outcome, ItemStatus(row["status_id"]))
                    report.stored.append(outcome)
                elif outcome.kind is OutcomeKind.RELEASED:
                    report.stored.append(outcome)  # given back already, by an earlier run of this or by a rescue
                else:
                    changes.add_lost(outcome, is_there=row is not None)
                    report.lost.append(outcome)
            changes.write(tx)
            # Also after an earlier run landed: it is cheap to look again, and what it returned was lost with its answer.
            touched = {outcome.item.task.id_task for outcome in group} - held
            report.ended.extend(_end_tasks(tx, touched | set(changes.given_back.values()), changes.given_back))
            return report

        return self._db.transaction(work)

    # ----- rescue and upkeep

    def rescue(self) -> Rescued:
        """Gives back up to 500 items of one worker whose lease is over; the worker's row ends with its last item."""

        def work(tx: Transaction) -> Rescued:
            stale = tx.query("lock_stale_worker")
            if not stale:
                return Rescued()
            id_worker = stale[0]["id_worker"]
            tx.execute("mark_worker_lost", {"id_worker": id_worker})
            candidates = [row["id_task_item"] for row in tx.query("items_of_worker", {"id_worker": id_worker})]
            count, ended = _give_back(tx, candidates)
            if len(candidates) < 500:
                tx.execute("end_worker", {"id_worker": id_worker, "items_processed": 0, "items_failed": 0})
            return Rescued(id_worker, count, True, ended)

        return self._db.transaction(work)

    def rescue_orphans(self) -> Rescued:
        """Gives back up to 500 items whose owner has ended or is unknown: claims that landed after their worker was given up."""
        candidates = [row["id_task_item"] for row in self._db.query("orphaned_items")]
        if not candidates:
            return Rescued()
        count, ended = self._db.transaction(lambda tx: _give_back(tx, candidates))
        return Rescued(None, count, len(candidates) == 500, ended)

    def uptime(self) -> float:
        """Seconds since the database server started."""
        return float(self._db.query("uptime")[0]["Value"])

    def promote_due(self) -> int:
        """Makes up to 500 deferred items pending whose time has come; how many."""

        def work(tx: Transaction) -> int:
            items = [row["id_task_item"] for row in tx.query("lock_due")]
            return tx.execute("promote_due", {"items": items}) if items else 0

        return self._db.transaction(work)

    def next_due(self) -> float | None:
        """Seconds until the next deferred item of any task is due; zero or less when one is; None when there is none."""
        seconds = self._db.query("next_due")[0]["seconds"]
        return None if seconds is None else float(seconds)

    def newest_item(self) -> int:
        """The highest item key there is."""
        newest: int = self._db.query("newest_item")[0]["id_task_item"]
        return newest

    def reopen_for_new_items(self, after: int) -> int:
        """Reopens finished tasks that have open items with keys above `after`; how many."""
        return self._reopen([row["id_task"] for row in self._db.query("finished_tasks_of_new_items", {"after": after})])

    def reopen_page(self, before: int | None = None) -> int | None:
        """Reopens finished tasks with open items among the next thousand below `before`; where to go on, None at the end."""
        page = self._db.query("finished_tasks_page", {"before": before or 2**63})
        self._reopen([row["id_task"] for row in page if row["is_open"]])
        return page[-1]["id_task"] if len(page) == 1000 else None

    def _reopen(self, tasks: list[int]) -> int:
        return self._db.execute("reopen_tasks", {"tasks": tasks}) if tasks else 0

    def end_forgotten(self) -> list[EndedTask]:
        """Ends tasks in progress that have no open item left because somebody deleted the last ones."""
        tasks = {row["id_task"] for row in self._db.query("open_tasks_without_open_items")}
        return self._db.transaction(lambda tx: _end_tasks(tx, tasks, {})) if tasks else []

    def take_probe(self, id_ai_model: int, seconds: int = 60) -> bool:
        """Whether this worker may try a stopped model with one item; nobody else may for the next `seconds`."""
        return bool(self._db.execute("take_probe", {"id_ai_model": id_ai_model, "seconds": seconds}))

    # ----- looking ahead

    def waiting(self, filters: Filters) -> Waiting:
        """What is left open for these filters."""
        row = self._db.query("waiting_items", _filter(filters))[0]
        due = row["due_seconds"]
        return Waiting(int(row["pending"] or 0), int(row["deferred"] or 0), None if due is None else float(due))

    def others_at_work(self, id_worker: int, filters: Filters) -> list[float]:
        """For each other worker that holds items these filters want: the seconds since its last heartbeat."""
        rows = self._db.query("others_at_work", {"id_worker": id_worker, **_filter(filters)})
        return [float(row["silent_seconds"]) for row in rows]

    def has_task(self, id_task: int) -> bool:
        """Whether there is such a task."""
        return bool(self._db.query("task_states", {"tasks": [id_task]}))

    def task_of(self, id_task_item: int) -> tuple[int, ItemStatus] | None:
        """The task of an item, and the item's status; None when there is no such item."""
        rows = self._db.query("item_of", {"id_task_item": id_task_item})
        return (rows[0]["id_task"], ItemStatus(rows[0]["status_id"])) if rows else None

    def preview(self, task: Task, id_task_item: int | None = None) -> Iterable[Item]:
        """The pending items of a task as a claim would see them, without a claim, streamed."""
        parameters = {"id_task": task.id_task, "id_task_item": id_task_item}
        for row in self._db.pages("preview_items", parameters, key="id_task_item", size=500):
            yield Item(
                id_task_item=row["id_task_item"],
                task=task,
                text_original=row["text_original"],
                context=_json(row["context"]),
                attempt=row["attempt"] + 1,
                lost_count=row["lost_count"],
                claim_token=bytes(16),
                operation_uuid=uuid.UUID(int=0),
            )


@dataclass(frozen=True, slots=True)
class _Claim:
    """What a claim marked: its token, and the items with their tasks."""

    token: bytes
    items: Mapping[int, int]


def _landed(tx: Transaction, outcomes: Sequence[Outcome]) -> dict[bytes, OutcomeKind]:
    """Which of these attempts are on record already, and how: an earlier commit of theirs landed and its answer was lost."""
    if not outcomes:
        return {}
    operations = [outcome.item.operation_uuid.bytes for outcome in outcomes]
    rows = tx.query("landed_operations", {"operations": operations})
    return {row["operation_uuid"]: OutcomeKind(row["outcome"]) for row in rows}


def _is_held(item: Item, row: Row | None) -> bool:
    """Whether the row is in progress under this very claim: the plain case."""
    return row is not None and row["status_id"] == ItemStatus.IN_PROGRESS and row["claim_token"] == item.claim_token


def _fence_holds(outcome: Outcome, row: Row) -> bool:
    """Whether the item is still this attempt's: by token and attempt; of an item given back since, only a result is taken."""
    item = outcome.item
    if row["claim_token"] != item.claim_token or row["attempt"] != item.attempt:
        return False
    return bool(row["status_id"] == ItemStatus.IN_PROGRESS or outcome.kind is OutcomeKind.PROCESSED)


class _Changes:
    """Collects what a commit writes, so that it takes a fixed number of statements however many items it has."""

    def __init__(self, id_worker: int) -> None:
        self._id_worker = id_worker
        self.given_back: dict[int, int] = {}  # item -> task, of those that are to be claimed again
        self._items: list[dict[str, Any]] = []
        self._charges: dict[int, _Counters] = {}  # by item
        self._attempts: list[dict[str, Any]] = []
        self._found_again: list[bytes] = []
        self._tasks: dict[int, _Counters] = {}

    def add(self, outcome: Outcome, before: ItemStatus) -> None:
        item, usage, result = outcome.item, outcome.usage, outcome.result
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
                "cs": result.change_summary if result else None,
                "re": json.dumps(result.data, ensure_ascii=False) if result else None,
            }
        )
        if after in {ItemStatus.PENDING, ItemStatus.DEFERRED}:
            self.given_back[item.id_task_item] = item.task.id_task
        if outcome.kind is OutcomeKind.RELEASED:
            return
        self._attempt(outcome, outcome.kind, is_late)
        counters = self._tasks.setdefault(item.task.id_task, _Counters())
        counters.processed += after is ItemStatus.PROCESSED
        counters.failed += (after is ItemStatus.ERROR) - (before is ItemStatus.ERROR)
        counters.charge(outcome)

    def add_lost(self, outcome: Outcome, *, is_there: bool) -> None:
        if outcome.usage == NO_USAGE and outcome.kind is not OutcomeKind.PROCESSED:
            return  # nothing was paid for; if the attempt was rescued, that is on record
        self._attempt(outcome, OutcomeKind.LOST, True)
        self._tasks.setdefault(outcome.item.task.id_task, _Counters()).charge(outcome)
        if is_there:
            self._charges.setdefault(outcome.item.id_task_item, _Counters()).charge(outcome)

    def _attempt(self, outcome: Outcome, kind: OutcomeKind, may_be_known: bool) -> None:
        item, usage = outcome.item, outcome.usage
        if may_be_known:
            self._found_again.append(item.operation_uuid.bytes)
        self._attempts.append(
            {
                "operation_uuid": item.operation_uuid.bytes,
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
class _Counters:
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


def _end_tasks(tx: Transaction, tasks: Iterable[int], given_back: Mapping[int, int]) -> list[EndedTask]:
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


def _give_back(tx: Transaction, candidates: Sequence[int]) -> tuple[int, list[EndedTask]]:
    """Takes items from their dead owners: pending again, or set aside, or cancelled with their task. How many, and what ended."""
    if not candidates:
        return 0, []
    rows = tx.query("lock_lost_items", {"items": candidates})
    if not rows:
        return 0, []
    tasks = {row["id_task"]: row for row in tx.query("task_states", {"tasks": sorted({row["id_task"] for row in rows})})}
    groups: dict[str, list[int]] = {"give_back_lost": [], "bury_lost": [], "cancel_lost": []}
    counters: dict[int, _Counters] = {}
    attempts: list[dict[str, Any]] = []
    for row in rows:
        task = tasks.get(row["id_task"])
        if task is None or task["status_id"] == TaskStatus.CANCELLED:
            verb = "cancel_lost"
        elif row["lost_count"] + 1 >= MAX_LOSSES:
            verb = "bury_lost"
            counters.setdefault(row["id_task"], _Counters()).failed += 1
        else:
            verb = "give_back_lost"
        groups[verb].append(row["id_task_item"])
        attempts.append(
            {
                "operation_uuid": operation_uuid(row["claim_token"], row["id_task_item"]).bytes,
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
    return len(rows), _end_tasks(tx, set(tasks), given_back)


def _lease(seconds: float) -> dict[str, int]:
    return {"lease_us": int(seconds * 1e6)}


def _filter(filters: Filters) -> dict[str, Any]:
    return {
        "id_task": filters.id_task,
        "id_task_item": filters.id_task_item,
        "any_type": not filters.task_types,
        "task_types": filters.task_types or ("",),
        "any_model": not filters.models,
        "model_names": filters.models or ("",),
    }


def _json(text: str | None) -> Mapping[str, Any]:
    value = json.loads(text) if text else {}
    return value if isinstance(value, dict) else {"value": value}


def _document(rows: list[dict[str, Any]]) -> str:
    """The rows as JSON. Half a surrogate pair, which models do answer in escapes, is no text: it becomes U+FFFD."""
    return clean(json.dumps(rows, ensure_ascii=False, separators=(",", ":")))


def _decimal(value: Decimal | None) -> str | None:
    return None if value is None else str(value)


def _short(message: str | None) -> str | None:
    return clean(message)[:1000] if message else None
