"""The claim: which tasks can be worked on, and taking their items, each for one model of its task's chain."""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Final

from ai_worker.db import Database, Row, Transaction
from ai_worker.errors import DatabaseAway
from ai_worker.log import Event, Log
from ai_worker.models import NOTHING, Filters, Item, Lane, PersonalData, Task, TaskStatus
from ai_worker.store.budgets import Estimator, SetAside, is_limited, set_aside
from ai_worker.store.chains import model_columns, model_states, successor, variants
from ai_worker.store.crowd import Crowd
from ai_worker.store.encoding import decimal_text, document
from ai_worker.store.ledger import new_claim_token, operation_uuid, settle
from ai_worker.store.limits import Admission, Key, QueueLimits, admit, begun

PROBE_LOOK: Final = 20  # items looked at for one that a stopped model has not refused before
PROBE_SECONDS: Final = 60  # nobody else tries it meanwhile
SHORT_SECONDS: Final = 0.5  # a task all of whose money is set aside is left alone so long, or until one of its items is stored
SPENT_SECONDS: Final = 10.0  # a model whose day is spent: its budget may be raised

_ANY_MODEL: Final = Filters()

log = Log()

Rows = Sequence[tuple[Any, ...]]


class Claims:
    """The claims of one worker: what `Queue.runnable`, `claim` and `claim_new` say."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._crowd = Crowd(db)
        self.limits: Final = QueueLimits(db)
        self._doubtful: list[_Claim] = []  # claims whose COMMIT had no answer before the database went away
        self._estimate: Estimator | None = None
        self.limited: set[int] = set()  # tasks with a budget that this worker has come across
        self._short: dict[int, float] = {}  # task -> until when it is left alone: the money for it is set aside
        self._spent: dict[int, float] = {}  # model -> the same: its day is spent, and other models stand in for it

    def estimate_with(self, estimate: Estimator) -> None:
        self._estimate = estimate

    def share_money(self, other: Claims) -> None:
        """What is known of money from now on is known to both."""
        self._estimate, self.limited, self._short, self._spent = other._estimate, other.limited, other._short, other._spent

    def paid(self, tasks: Iterable[int]) -> None:
        """Items of these tasks have been stored: money that was set aside may have come back. Callable from any thread."""
        for each in tasks if self._short else ():
            self._short.pop(each, None)

    @property
    def spent_models(self) -> list[int]:
        """Models whose day is spent while others stand in for them, as far as this worker knows."""
        return _lasting(self._spent)

    def runnable(self, filters: Filters, busy: Collection[int]) -> list[Task]:
        self._resolve_doubts()
        self.limits.refresh()
        rows = self._db.query(
            "runnable_tasks", {**filter_columns(filters), **limit_columns(self.limits.held), "busy_models": (0, *busy)}
        )
        rows.sort(key=lambda row: (-row["priority"], row["id_task"]))
        short = _lasting(self._short)
        tasks = [self.limits.timed(task_of_row(row)) for row in rows if row["id_task"] not in short]
        self.limited.update([task.id_task for task in tasks if is_limited(task)])
        if not any(row["fallbacks"] for row in rows):
            return tasks
        states = model_states(self._db.query("model_states", filter_columns(filters)))
        spent = self.spent_models
        return [each for task in tasks for each in (variants(task, states, busy, spent) if _has_chain(task) else [task])]

    def claim(
        self,
        id_worker: int,
        tasks: Sequence[Task],
        size: int,
        after: int,
        id_task_item: int | None,
        single: bool | None,
        busy: Collection[int],
    ) -> list[Item]:
        self._resolve_doubts()
        by_id = {task.id_task: task for task in tasks}
        is_plain = not any(_has_chain(task) or is_limited(task) for task in tasks)
        looked_at = size if is_plain or not tasks[0].is_probe else max(size, PROBE_LOOK)
        token = new_claim_token()
        if not is_plain and self._estimate is not None:
            self._estimate.prepare({each for task in tasks for each in task.chain}, tasks)
        chosen: dict[int, Task] = {}  # by item; survives a repeat of the transaction
        aside = SetAside()  # the same
        limits = self.limits.of(tasks[0])  # the same for all of them
        admission = Admission(size, {})

        def work(tx: Transaction) -> Iterable[tuple[Any, ...]]:
            nonlocal aside, admission
            fence = {"id_worker": id_worker, "claim_token": token}
            if tx.in_doubt and chosen and (landed := tx.tuples("claimed_items", {"items": list(chosen), **fence})):
                return landed
            chosen.clear()
            if limits:
                admission = admit(tx, limits, size)
            if not (room := admission.room):
                return []
            rows = _lock_pending(tx, list(by_id), min(looked_at, room) if is_plain else looked_at, after, id_task_item, single)
            if not rows:
                return []
            found = sorted({row[1] for row in rows})
            states, pinned = _states(tx, found)
            allowed = {
                each: _with_prompt(by_id[each], pinned[each])
                for each, state in states.items()
                if state not in {TaskStatus.PAUSED, TaskStatus.CANCELLED}
            }
            chosen.update((row[0], allowed[row[1]]) for row in rows if row[1] in allowed)
            if not is_plain:
                _choose_models(tx, {row[0]: row[6] for row in rows}, chosen, room, busy, self.spent_models)
                if any(is_limited(task) for task in chosen.values()):
                    aside = self._set_aside(tx, [_item(row, chosen[row[0]], token) for row in sorted(rows) if row[0] in chosen])
                    for item in chosen.keys() - aside.items.keys():
                        del chosen[item]
            if not chosen:
                return []
            if limits:
                begun(tx, limits, len(chosen))
            marked = tx.execute("mark_claimed", {"items": list(chosen), **fence}) if is_plain else _mark(tx, chosen, aside, fence)
            starting = {each.id_task: each for each in chosen.values() if states[each.id_task] != TaskStatus.IN_PROGRESS}
            if starting and _start(tx, starting.values()) != len(starting):  # another worker has begun some at the same instant
                _, pinned = _states(tx, sorted(starting))
                chosen.update({item: _with_prompt(task, pinned.get(task.id_task)) for item, task in chosen.items()})
            if marked != len(chosen):  # SKIP LOCKED was parsed and ignored (TiDB), and another claim came first
                return tx.tuples("claimed_items", {"items": list(chosen), **fence})
            return sorted(row for row in rows if row[0] in chosen)

        try:
            with self._crowd.one_at_a_time():
                claimed = self._db.transaction(work)
        except DatabaseAway:
            if chosen:
                self._doubtful.append(_Claim(token, {item: task.id_task for item, task in chosen.items()}))
            raise
        if len(chosen) >= admission.room:
            self.limits.hold(admission.holds)
        self.note(aside)
        return [_item(row, chosen[row[0]], token) for row in claimed]

    def note(self, aside: SetAside) -> None:
        """What setting money aside has told of tasks and models. Callable from any thread."""
        self.limited.update(aside.paused)
        for id_task, reason in aside.paused.items():
            log(Event.TASK_PAUSED, task=id_task, reason=reason)
        now = time.monotonic()
        self._short.update(dict.fromkeys(aside.short, now + SHORT_SECONDS))
        self._spent.update(dict.fromkeys(aside.spent, now + SPENT_SECONDS))

    def claim_new(self, id_worker: int, id_task_item: int, filters: Filters, busy: Collection[int]) -> list[Item]:
        self._resolve_doubts()
        token = new_claim_token()
        fence = {"id_worker": id_worker, "new_item": id_task_item, "claim_token": token}
        try:
            limits = limit_columns(self.limits.claimed_by)
            self._db.execute("claim_new_item", {**filter_columns(filters), **limits, **fence, "busy_models": (0, *busy)})
            rows = self._db.query("claimed_new_item", fence)
        except DatabaseAway:
            self._doubtful.append(_Claim(token, {id_task_item: None}))
            raise
        columns = (
            "id_task_item",
            "id_task",
            "text_original",
            "context",
            "attempt_before",
            "lost_count",
            "refused",
            "is_single",
            "context_key",
        )
        return [_item(tuple(row[name] for name in columns), self.limits.timed(task_of_row(row)), token) for row in rows]

    def _set_aside(self, tx: Transaction, items: Sequence[Item]) -> SetAside:
        if self._estimate is None:
            raise RuntimeError("items of tasks with a budget are claimed by those alone who can tell what they will cost")
        return set_aside(tx, items, self._estimate, self.spent_models)

    def _resolve_doubts(self) -> None:
        """Gives back what earlier claims took without our hearing of it: nobody else would, as long as this worker lives."""
        while self._doubtful:
            claim = self._doubtful[-1]

            def work(tx: Transaction, claim: _Claim = claim) -> None:
                if tx.execute("unclaim", {"items": list(claim.items), "claim_token": claim.token}):
                    items = {
                        item: task or tx.query("item_of", {"id_task_item": item})[0]["id_task"]
                        for item, task in claim.items.items()
                    }
                    settle(tx, {}, items.values(), items)

            self._db.transaction(work)
            with suppress(ValueError):  # another thread was at it too, and found nothing left to give back
                self._doubtful.remove(claim)


@dataclass(frozen=True, slots=True)
class _Claim:
    """What a claim marked: its token, and the items with their tasks, where these were known."""

    token: bytes
    items: Mapping[int, int | None]


def _lock_pending(
    tx: Transaction, tasks: list[int], size: int, after: int, id_task_item: int | None, single: bool | None
) -> Rows:
    if single is not None:
        verb = "lock_pending_singles" if single else "lock_pending_for_batch"
        return tx.tuples(verb, {"id_task": tasks[0], "after": after, "size": size})
    if id_task_item is not None:
        return tx.tuples("lock_pending_item", {"id_task_item": id_task_item, "id_task": tasks[0]})
    if len(tasks) == 1:
        return tx.tuples("lock_pending_of_task", {"id_task": tasks[0], "after": after, "size": size})
    return tx.tuples("lock_pending_of_tasks", {"tasks": tasks, "size": size})


def _states(tx: Transaction, tasks: Sequence[int]) -> tuple[dict[int, int], dict[int, int | None]]:
    """By task: its status, and the prompt that it is pinned to."""
    rows = tx.tuples("task_states", {"tasks": tasks})
    return {row[0]: row[1] for row in rows}, {row[0]: row[3] for row in rows}


def _with_prompt(task: Task, id_prompt: int | None) -> Task:
    """The task with the prompt that it was pinned to since it was looked at."""
    return task if id_prompt is None or id_prompt == task.id_prompt else replace(task, id_prompt=id_prompt)


def _start(tx: Transaction, tasks: Iterable[Task]) -> int:
    """Begins the tasks, each pinned to the prompt that its items are claimed with; how many. As a rule one statement."""
    by_prompt: dict[int | None, list[int]] = {}
    for task in tasks:
        by_prompt.setdefault(task.id_prompt, []).append(task.id_task)
    groups = sorted(by_prompt.items(), key=lambda group: min(group[1]))
    return sum([tx.execute("start_tasks", {"tasks": sorted(group), "id_prompt": prompt}) for prompt, group in groups])


def _choose_models(
    tx: Transaction,
    refused: Mapping[int, int],
    chosen: dict[int, Task],
    size: int,
    busy: Collection[int],
    spent: Collection[int],
) -> None:
    """Gives items that have gone past the claim's model to the next one, or puts them off; leaves `size` items in `chosen`.

    A probe takes only what its model has not refused yet: anything else would say nothing of it.
    """
    states = None
    put_off: dict[float, list[int]] = {}
    probes: dict[int, bool] = {}  # asked once in a claim: for one item

    def take_probe(id_ai_model: int) -> bool:
        if id_ai_model in probes:
            return False
        probes[id_ai_model] = bool(tx.execute("take_probe", {"id_ai_model": id_ai_model, "seconds": PROBE_SECONDS}))
        return probes[id_ai_model]

    for item in sorted(chosen):
        task = chosen[item]
        if refused[item] <= task.position:
            continue
        if task.is_probe:
            del chosen[item]
            continue
        if states is None:
            states = model_states(tx.query("model_states", filter_columns(_ANY_MODEL)))
        target = successor(task, refused[item], states, busy, spent, take_probe)
        if isinstance(target, Task):
            chosen[item] = target
        else:
            put_off.setdefault(target, []).append(item)
            del chosen[item]
    for item in sorted(chosen)[size:]:
        del chosen[item]
    for delay, items in put_off.items():
        tx.execute("put_off_items", {"items": items, "delay_us": int(delay * 1e6)})


def _mark(tx: Transaction, chosen: Mapping[int, Task], aside: SetAside, fence: Mapping[str, Any]) -> int:
    """Makes items ours that are for another model than their task's own, or that money is set aside for; how many."""
    rows = [
        {
            "id": item,
            "mo": None if task.id_ai_model == task.chain[0] else task.id_ai_model,
            "re": decimal_text(aside.items.get(item)),
        }
        for item, task in sorted(chosen.items())
    ]
    return tx.execute("mark_claimed_each", {"rows": document(rows), **fence})


def _lasting(until: Mapping[int, float]) -> list[int]:
    now = time.monotonic()
    return [each for each, end in list(until.items()) if end > now]


def _has_chain(task: Task) -> bool:
    return len(task.chain) > 1


def _item(row: tuple[Any, ...], task: Task, token: bytes) -> Item:
    key, _, text_original, context, attempt, lost_count, refused, is_single, context_key = row
    return Item(
        key,
        task,
        text_original,
        json_object(context) if context else NOTHING,
        attempt + 1,
        lost_count,
        token,
        operation_uuid(token, key),
        refused,
        bool(is_single),
        context_key,
    )


def task_of_row(row: Row) -> Task:
    """A task as `runnable_tasks` and its siblings read it: for its own model, or for another one of its chain."""
    own: int = row["own_model"] if "own_model" in row else row["id_ai_model"]
    fallbacks = row["fallbacks"]
    return Task(
        id_task=row["id_task"],
        task_type=row["task_type"],
        description=row["description"] or "",
        parameters=json_object(row["parameters"]),
        max_attempts=row["max_attempts"],
        priority=row["priority"],
        status=TaskStatus(row["status_id"]),
        is_probe=bool(row["is_probe"]),
        lane=Lane(row["lane"]),
        pack=row["pack"],
        cache_seconds=row["cache_seconds"],
        budget=row["budget"],
        queue=row["queue"],
        id_prompt=row["id_prompt"],
        personal_data=personal_data_of(row),
        chain=(own, *map(int, fallbacks.split(","))) if fallbacks else (own,),
        **model_columns(row),
    )


def personal_data_of(row: Row) -> PersonalData:
    """What the task says of personal data. An unknown word, which a server that is not strict made empty, is the strictest."""
    return PersonalData(row["personal_data"] or PersonalData.BLOCK)


def filter_columns(filters: Filters) -> dict[str, Any]:
    """What statements know of filters."""
    return {
        "id_task": filters.id_task,
        "id_task_item": filters.id_task_item,
        "any_type": not filters.task_types,
        "task_types": filters.task_types or ("",),
        "any_model": not filters.models,
        "model_names": filters.models or ("",),
        "any_queue": not filters.queues,
        "queues": tuple(queue.name for queue in filters.queues) or ("",),
        **limit_columns(()),
    }


def limit_columns(limits: Sequence[Key]) -> dict[str, Any]:
    """What statements know of the limits whose tasks they leave alone."""
    return {"no_limits": not limits, "limits": tuple(limits) or (("", ""),)}


def json_object(text: str | None) -> Mapping[str, Any]:
    """The value of a column that should hold an object; any other value becomes the member `value` of one."""
    value = json.loads(text) if text else {}
    return value if isinstance(value, dict) else {"value": value}
