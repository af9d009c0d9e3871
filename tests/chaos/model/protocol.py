"""A small model of the protocol, in plain Python: what each verb does to tasks, items, attempts and workers.

Written from DB_Description.md ("Statuses", "Protocol"), not from the SQL. It knows nothing of locks or statements: a verb is one
step. Where a verb may choose (which items a claim gets), the model is told what was chosen, and raises Disagreement when that was
not to be had; everything else it works out by itself.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, NamedTuple

from ai_worker.models import Item, ItemStatus, Outcome, OutcomeKind, TaskStatus
from ai_worker.store.ledger import operation_uuid, uuid_bytes

OPEN = frozenset({ItemStatus.PENDING, ItemStatus.IN_PROGRESS, ItemStatus.DEFERRED})
FINISHED = frozenset({TaskStatus.COMPLETED, TaskStatus.ERROR})
RUNNABLE = frozenset({TaskStatus.NEW, TaskStatus.IN_PROGRESS})


class Disagreement(AssertionError):
    """The database has done what the model does not allow."""


class Refused(NamedTuple):
    """A verb that raised UsageError."""


REFUSED = Refused()


def require(condition: bool, message: str) -> None:
    if not condition:
        raise Disagreement(message)


class Spent(NamedTuple):
    """Tokens in and out, and cost in USD: None as long as nothing is known of any."""

    tokens_input: int = 0
    tokens_output: int = 0
    cost: Decimal | None = None

    def plus(self, other: Spent) -> Spent:
        cost = self.cost if other.cost is None else other.cost if self.cost is None else self.cost + other.cost
        return Spent(self.tokens_input + other.tokens_input, self.tokens_output + other.tokens_output, cost)


NOTHING_SPENT = Spent()


def spent(outcome: Outcome) -> Spent:
    return Spent(outcome.usage.tokens_input, outcome.usage.tokens_output, outcome.cost)


@dataclass(slots=True)
class TaskState:
    priority: int
    status: TaskStatus = TaskStatus.NEW
    is_started: bool = False
    is_finished: bool = False
    processed: int = 0
    failed: int = 0
    spent: Spent = NOTHING_SPENT

    def row(self) -> tuple[Any, ...]:
        flags = (int(self.status), int(self.is_started), int(self.is_finished))
        return (*flags, self.priority, self.processed, self.failed, *self.spent)


@dataclass(slots=True)
class ItemState:
    task: int
    status: ItemStatus = ItemStatus.PENDING
    attempt: int = 0
    lost_count: int = 0
    token: bytes | None = None
    owner: int | None = None
    is_due: bool | None = None
    spent: Spent = NOTHING_SPENT
    text: str | None = None
    error_kind: str | None = None

    def row(self) -> tuple[Any, ...]:
        due = None if self.is_due is None else int(self.is_due)
        claim = (self.attempt, self.lost_count, self.token, self.owner, due)
        return (self.task, int(self.status), *claim, *self.spent, self.text, self.error_kind)

    def move(self, status: ItemStatus) -> None:
        """Into a status in which nobody owns it and it is not put off."""
        self.status, self.owner, self.is_due = status, None, None


class Attempt(NamedTuple):
    """A row of the ledger."""

    task: int
    item: int
    attempt: int
    worker: int
    outcome: str
    error_kind: str | None
    spent: Spent = NOTHING_SPENT

    def row(self) -> tuple[Any, ...]:
        return (*self[:6], *self.spent)

    @property
    def is_rescues(self) -> bool:
        """Whether a rescue wrote it: its worker may know better."""
        return self.outcome == "lost" and self.error_kind == "lost"


@dataclass(slots=True)
class WorkerState:
    over: int | None = None  # its lease is over; the lowest was over first
    is_lost: bool = False
    is_ended: bool = False

    def row(self) -> tuple[int, ...]:
        return int(self.is_lost), int(self.is_ended), int(self.over is not None)


class Ended(NamedTuple):
    """A task that a verb says it ended."""

    id_task: int
    status: TaskStatus
    processed: int
    failed: int


@dataclass
class Protocol:
    """The model. Verbs return what the real ones are to return."""

    max_losses: int
    tasks: dict[int, TaskState] = field(default_factory=dict)
    items: dict[int, ItemState] = field(default_factory=dict)
    attempts: dict[bytes, Attempt] = field(default_factory=dict)
    workers: dict[int, WorkerState] = field(default_factory=dict)
    used: Spent = NOTHING_SPENT  # of the only model, today
    calls: int = 0  # the same: attempts of which it is known what they used
    locked: frozenset[int] = frozenset()  # items that somebody else is looking at just now: who seeks work passes them over

    def copy(self) -> Protocol:
        return copy.deepcopy(self)

    def rows(self) -> dict[str, dict[Any, tuple[Any, ...]]]:
        """All tables, as they must look now."""
        return {
            "task": {key: each.row() for key, each in self.tasks.items()},
            "task_item": {key: each.row() for key, each in self.items.items()},
            "task_attempt": {key: each.row() for key, each in self.attempts.items()},
            "worker": {key: each.row() for key, each in self.workers.items()},
            "ai_model_day": {"all": (self.calls, *self.used)} if self.calls else {},
        }

    def of_task(self, id_task: int, *statuses: ItemStatus) -> list[int]:
        wanted = statuses or tuple(ItemStatus)
        return sorted(key for key, each in self.items.items() if each.task == id_task and each.status in wanted)

    def is_open(self, id_task: int) -> bool:
        return any(each.task == id_task and each.status in OPEN for each in self.items.values())

    def is_anybody_stale(self) -> bool:
        """Whether there is a worker to be rescued."""
        return any(each.over is not None and not each.is_ended for each in self.workers.values())

    # ----- claims

    def runnable(self) -> list[int]:
        """Tasks to be worked on, the best first."""
        tasks = [key for key, each in self.tasks.items() if each.status in RUNNABLE and self.of_task(key, ItemStatus.PENDING)]
        return sorted(tasks, key=lambda key: (-self.tasks[key].priority, key))

    def claim(self, worker: int, tasks: Sequence[int], size: int, after: int, got: Mapping[int, bytes]) -> None:
        """`got` are the items claimed, with their tokens."""
        pending = [item for each in tasks for item in self.of_task(each, ItemStatus.PENDING) if item not in self.locked]
        blocked = {TaskStatus.PAUSED, TaskStatus.CANCELLED}
        free = [item for item in pending if self.tasks[self.items[item].task].status not in blocked]
        if len(tasks) == 1:
            wanted = sorted(item for item in free if item > after)[:size]
            require(sorted(got) == wanted, f"a claim got {sorted(got)}, and was to get {wanted}")
        else:
            require(set(got) <= set(free), f"a claim got {sorted(got)}, of which only {free} were free")
            least = min(size, len(pending)) - (len(pending) - len(free))
            require(least <= len(got) <= size, f"a claim got {len(got)} of {len(free)} free items, wanting {size}")
        for item, token in got.items():
            self._take(worker, item, token)

    def claim_new(self, worker: int, item: int, token: bytes | None) -> None:
        """One item that was heard of; `token` is None when it was not got."""
        state = self.items.get(item)
        is_free = state is not None and state.status is ItemStatus.PENDING and item not in self.locked
        is_free = is_free and self.tasks[state.task].status not in {TaskStatus.PAUSED, TaskStatus.CANCELLED}  # type: ignore[union-attr]
        require(is_free == (token is not None), f"item {item} was {'' if is_free else 'not '}free, and was claimed or not")
        if token is not None:
            self._take(worker, item, token)

    def _take(self, worker: int, item: int, token: bytes) -> None:
        state = self.items[item]
        state.status, state.owner, state.token = ItemStatus.IN_PROGRESS, worker, token
        state.attempt += 1
        task = self.tasks[state.task]
        task.status, task.is_started, task.is_finished = TaskStatus.IN_PROGRESS, True, False

    def unclaim(self, token: bytes, items: Iterable[int]) -> None:
        """A claim that nobody heard of is given back."""
        given_back = set()
        for item in items:
            state = self.items.get(item)
            if state is not None and state.token == token and state.status is ItemStatus.IN_PROGRESS:
                state.move(ItemStatus.PENDING)
                state.token = None
                state.attempt -= 1
                given_back.add(item)
        if given_back:
            self._settle({self.items[item].task for item in given_back}, given_back)

    # ----- commits

    def commit(self, worker: int, group: Sequence[Outcome], held: Iterable[int]) -> tuple[list[bytes], list[bytes], list[Ended]]:
        """What of the group is stored and what is lost, by operation, and the tasks that have ended."""
        touched = {each.item.task.id_task for each in group}.difference(held)
        stored: list[bytes] = []
        lost: list[bytes] = []
        given_back: set[int] = set()
        for outcome in sorted(group, key=lambda each: each.item.id_task_item):
            item, operation = outcome.item, uuid_bytes(outcome.item.operation_uuid)
            state, known = self.items.get(item.id_task_item), self.attempts.get(operation)
            if known is not None and not known.is_rescues:
                (lost if known.outcome == "lost" else stored).append(operation)
            elif state is not None and self._is_still_its(outcome, state):
                self._store(worker, operation, outcome, state)
                stored.append(operation)
                if state.status in {ItemStatus.PENDING, ItemStatus.DEFERRED}:
                    given_back.add(item.id_task_item)
            elif outcome.kind is OutcomeKind.RELEASED:
                stored.append(operation)
            else:
                lost.append(operation)
                if outcome.kind is OutcomeKind.PROCESSED or outcome.usage.tokens_input:
                    self._charge(worker, operation, outcome, "lost", outcome.error_kind or "late")
        return stored, lost, self._settle(touched | {self.items[each].task for each in given_back}, given_back)

    @staticmethod
    def _is_still_its(outcome: Outcome, state: ItemState) -> bool:
        if (state.token, state.attempt) != (outcome.item.claim_token, outcome.item.attempt):
            return False
        return state.status is ItemStatus.IN_PROGRESS or outcome.kind is OutcomeKind.PROCESSED

    def _store(self, worker: int, operation: bytes, outcome: Outcome, state: ItemState) -> None:
        before, kind = state.status, outcome.kind
        after = {
            OutcomeKind.PROCESSED: ItemStatus.PROCESSED,
            OutcomeKind.RETRY: ItemStatus.DEFERRED,
            OutcomeKind.FAILED: ItemStatus.ERROR,
            OutcomeKind.POSTPONED: ItemStatus.DEFERRED,
            OutcomeKind.RELEASED: ItemStatus.PENDING,
        }[kind]
        state.move(after)
        if kind in {OutcomeKind.POSTPONED, OutcomeKind.RELEASED}:  # not charged
            state.attempt -= 1
            state.token = None
        state.lost_count -= before is not ItemStatus.IN_PROGRESS
        state.is_due = outcome.delay == 0 if after is ItemStatus.DEFERRED else None
        state.text = outcome.result.text_corrected if outcome.result else None
        state.error_kind = outcome.error_kind
        if kind is OutcomeKind.RELEASED:
            return
        self._charge(worker, operation, outcome, kind.value, outcome.error_kind)
        task = self.tasks[state.task]
        task.processed += after is ItemStatus.PROCESSED
        task.failed += (after is ItemStatus.ERROR) - (before is ItemStatus.ERROR)

    def _charge(self, worker: int, operation: bytes, outcome: Outcome, kind: str, error_kind: str | None) -> None:
        """Into the ledger, in place of what a rescue wrote there, and onto the bills of item, task and model."""
        item, cost = outcome.item, spent(outcome)
        self.attempts[operation] = Attempt(item.task.id_task, item.id_task_item, item.attempt, worker, kind, error_kind, cost)
        self.tasks[item.task.id_task].spent = self.tasks[item.task.id_task].spent.plus(cost)
        if item.id_task_item in self.items:
            self.items[item.id_task_item].spent = self.items[item.id_task_item].spent.plus(cost)
        self.used, self.calls = self.used.plus(cost), self.calls + 1

    def _settle(self, touched: Iterable[int], given_back: Iterable[int]) -> list[Ended]:
        """Cancels what went back to a cancelled task, and ends the tasks that have no open item."""
        for item in given_back:
            if self.tasks[self.items[item].task].status is TaskStatus.CANCELLED:
                self.items[item].move(ItemStatus.CANCELLED)
        ended = []
        for id_task in sorted(touched):
            task = self.tasks[id_task]
            if self.is_open(id_task):
                continue
            if task.status is not TaskStatus.CANCELLED:
                task.status = TaskStatus.ERROR if task.failed else TaskStatus.COMPLETED
            task.is_finished = True
            ended.append(Ended(id_task, task.status, task.processed, task.failed))
        return ended

    # ----- the dead, and time

    def rescue(self) -> tuple[int | None, int, list[Ended]]:
        """The worker whose lease was over first; how many items it held; what ended."""
        stale = sorted((each.over, key) for key, each in self.workers.items() if each.over is not None and not each.is_ended)
        if not stale:
            return None, 0, []
        worker = stale[0][1]
        self.workers[worker].is_lost = self.workers[worker].is_ended = True
        return worker, *self._give_back({worker})

    def rescue_orphans(self) -> tuple[None, int, list[Ended]]:
        """Items of workers that have ended."""
        return None, *self._give_back({key for key, each in self.workers.items() if each.is_ended})

    def _give_back(self, dead: set[int]) -> tuple[int, list[Ended]]:
        given_back: set[int] = set()
        touched: set[int] = set()
        count = 0
        for key, item in self.items.items():
            if item.owner not in dead or item.owner is None or item.token is None or key in self.locked:
                continue
            count += 1
            touched.add(item.task)
            operation = uuid_bytes(operation_uuid(item.token, key))
            self.attempts[operation] = Attempt(item.task, key, item.attempt, item.owner, "lost", "lost")
            item.lost_count += 1
            item.error_kind = "lost"
            if item.lost_count >= self.max_losses:
                item.move(ItemStatus.ERROR)
                self.tasks[item.task].failed += 1
            else:
                item.move(ItemStatus.PENDING)
                given_back.add(key)
        return count, self._settle(touched, given_back)

    def promote(self) -> int:
        """What was put off and is due waits again; how many."""
        deferred = [each for key, each in self.items.items() if each.status is ItemStatus.DEFERRED and key not in self.locked]
        due = [each for each in deferred if each.is_due]
        for each in due:
            each.move(ItemStatus.PENDING)
        return len(due)

    def reopen(self, after: int) -> int:
        """Finished tasks with open items above a key go on; how many."""
        new = {
            each.task
            for key, each in self.items.items()
            if key > after and each.status in {ItemStatus.PENDING, ItemStatus.DEFERRED}
        }
        tasks = [self.tasks[each] for each in new if self.tasks[each].status in FINISHED]
        for task in tasks:
            task.status, task.is_finished = TaskStatus.IN_PROGRESS, False
        return len(tasks)

    def end_forgotten(self) -> list[Ended]:
        """Ends tasks whose last open items were deleted, or finished by somebody whose worker thought it held more."""
        return self._settle([key for key, each in self.tasks.items() if each.status is TaskStatus.IN_PROGRESS], [])

    # ----- people

    def retry(self, id_task: int, item: int | None = None) -> int | Refused:
        """Items in ERROR begin anew; how many."""
        task = self.tasks[id_task]
        items = [each for each in self.of_task(id_task, ItemStatus.ERROR) if item in {None, each}]
        if task.status is TaskStatus.CANCELLED or (item is not None and not items):
            return REFUSED
        for each in items:
            state = self.items[each]
            state.move(ItemStatus.PENDING)
            state.attempt = state.lost_count = 0
            state.token = state.error_kind = None
        if items:
            task.failed -= len(items)
            task.is_finished = False
            if task.status in FINISHED:
                task.status = TaskStatus.IN_PROGRESS
        return len(items)

    def pause(self, id_task: int) -> Refused | None:
        task = self.tasks[id_task]
        if task.status is TaskStatus.CANCELLED or (task.status in FINISHED and not self.is_open(id_task)):
            return REFUSED
        task.status, task.is_finished = TaskStatus.PAUSED, False
        return None

    def resume(self, id_task: int) -> int | Refused:
        """How many items were restored."""
        task = self.tasks[id_task]
        if task.status in FINISHED:
            return REFUSED
        if task.status in RUNNABLE:
            return 0
        restored = self.of_task(id_task, ItemStatus.CANCELLED) if task.status is TaskStatus.CANCELLED else []
        for each in restored:
            self.items[each].move(ItemStatus.PENDING)
        task.status = TaskStatus.IN_PROGRESS if task.is_started else TaskStatus.NEW
        task.is_finished = False
        if self.of_task(id_task):
            self._settle([id_task], [])
        return len(restored)

    def cancel(self, id_task: int) -> int | Refused:
        """How many items were cancelled."""
        task = self.tasks[id_task]
        if task.status in FINISHED and not self.is_open(id_task):
            return REFUSED
        if task.status is not TaskStatus.CANCELLED:
            task.status, task.is_finished = TaskStatus.CANCELLED, False
        items = self.of_task(id_task, ItemStatus.PENDING, ItemStatus.DEFERRED)
        for each in items:
            self.items[each].move(ItemStatus.CANCELLED)
        self._settle([id_task], [])
        return len(items)


def tokens_of(items: Iterable[Item]) -> dict[int, bytes]:
    """What a claim got, as the model is told."""
    return {each.id_task_item: each.claim_token for each in items}
