"""Finished steps of items, and parts of their long texts: each is stored, and paid for, at once when its answer is there.

One step is one transaction: its result, its row in the ledger, and its tokens and cost on the item, the task and the model's day.
What is stored so is not booked again by the commit that ends the attempt, and the next attempt does not ask for it again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from decimal import Decimal
from typing import Final, NamedTuple

from ai_worker.db import Database, Row, Transaction
from ai_worker.models import NO_USAGE, Filters, Item, ItemStatus, Lane, StepResult, TaskStatus, Usage
from ai_worker.store.budgets import SetAside, set_aside_for_step
from ai_worker.store.chains import ModelState, model_states
from ai_worker.store.claims import filter_columns
from ai_worker.store.encoding import plain_json, storable
from ai_worker.store.ledger import (
    SHARDS,
    Counters,
    DayCounters,
    new_claim_token,
    operation_uuid,
    settle,
    uuid_bytes,
)

MOST_PARTS: Final = 65_535  # what the columns count to


class Place(NamedTuple):
    """Where a result belongs: the step, from 1, and the part of a long text, from 1; 0 is the whole."""

    step: int
    part: int = 0

    @property
    def number(self) -> int:
        """In the ledger."""
        return self.part or self.step


class Finished(NamedTuple):
    """A finished step or part. `item` is for the model that answered; `digest` stands for what it was made of. Cost in USD.

    Whoever stores it again after a DatabaseError names the same `operation` as the first time, and says that it is `again`: the
    COMMIT may have landed whose answer was lost.
    """

    item: Item
    place: Place
    digest: bytes
    result: StepResult
    usage: Usage = NO_USAGE
    cost: Decimal | None = None
    latency_ms: int = 0
    lane: Lane = Lane.ONLINE
    operation: str | None = None
    again: bool = False


class ClaimLostError(Exception):
    """Somebody else has the item by now. `is_booked` says that the tokens and cost in question are on the books all the same."""

    def __init__(self, *, is_booked: bool) -> None:
        super().__init__()
        self.is_booked = is_booked


class Steps:
    """The verbs on `task_item_step`. Every method is one transaction and may be called from any thread."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def begin(self, item: Item, digests: Mapping[Place, bytes]) -> dict[Place, StepResult]:
        """What earlier attempts have finished of these steps; what was made of something else is forgotten.

        Notes how far the item has come. Raises ClaimLostError.
        """
        key = {"id_task_item": item.id_task_item}

        def work(tx: Transaction) -> dict[Place, StepResult]:
            _hold(tx, item, is_booked=False)
            rows = tx.query("item_steps", key)
            kept = {place: row for row in rows if digests.get(place := Place(row["step"], row["part"])) == row["digest"]}
            if stale := [row["operation_uuid"] for row in rows if Place(row["step"], row["part"]) not in kept]:
                tx.execute("forget_steps", {**key, "operations": stale})
            tx.execute("begin_steps", {**key, "done": len(kept), "total": len(digests)})
            return {place: StepResult(row["text"] or "", json.loads(row["result"])) for place, row in kept.items()}

        return self._db.transaction(work)

    def models(self) -> dict[str, ModelState]:
        """All models by name, as a step may name one: what each takes, and whether it may be called now."""
        rows = self._db.query("model_states", filter_columns(Filters()))
        states = model_states(rows)
        return {row["name"]: states[row["id_ai_model"]] for row in rows}

    def reserve(self, item: Item, need: Decimal | None) -> SetAside:
        """Sets so many USD aside on the day of the model that `item` is for; None: its price is not known. Raises ClaimLostError.

        See `budgets.set_aside_for_step`.
        """

        def work(tx: Transaction) -> SetAside:
            _hold(tx, item, is_booked=False)
            return set_aside_for_step(tx, item, need)

        return self._db.transaction(work)

    def store(self, id_worker: int, done: Finished) -> bool:
        """Stores a finished step with what it cost; whether the item goes on, since its task may have been paused or cancelled
        meanwhile. Raises ClaimLostError; ValueRefused, ValueError or TypeError where its result can never be stored.
        """
        item, usage = done.item, done.usage
        operation = uuid_bytes(done.operation or new_operation(item))
        result, text = plain_json(done.result.data), storable(done.result.text)
        tokens = {"tokens_input": usage.tokens_input, "tokens_output": usage.tokens_output, "cost": done.cost}
        key = {"id_task_item": item.id_task_item, "operation": operation}

        def goes_on(tx: Transaction) -> bool:
            rows = tx.query("task_states", {"tasks": [item.task.id_task]})
            return all(row["status_id"] not in {TaskStatus.PAUSED, TaskStatus.CANCELLED} for row in rows)

        def work(tx: Transaction) -> bool:
            has_landed = (done.again or tx.in_doubt) and bool(tx.query("landed_operations", {"operations": [operation]}))
            _hold(tx, item, is_booked=has_landed)
            if has_landed:
                return goes_on(tx)
            place = {"step": done.place.step, "part": done.place.part, "digest": done.digest}
            tx.execute("insert_step", {**key, **place, "result": result, "text": text})
            tx.execute(
                "insert_step_attempt",
                {
                    **key,
                    **tokens,
                    "id_task": item.task.id_task,
                    "attempt": item.attempt,
                    "id_worker": id_worker,
                    "id_ai_model": item.task.id_ai_model,
                    "tokens_cached": usage.tokens_cached,
                    "tokens_reasoning": usage.tokens_reasoning,
                    "latency_ms": done.latency_ms,
                    "lane": done.lane.value,
                    "number": done.place.number,
                },
            )
            tx.execute("book_step", {**key, **tokens})
            counters = Counters(tokens_input=usage.tokens_input, tokens_output=usage.tokens_output, cost=done.cost)
            settle(tx, {item.task.id_task: counters}, (), {})
            day = DayCounters()
            day.add(usage, done.cost)
            tx.execute_many("add_to_day", [(item.task.id_ai_model, id_worker % SHARDS, *day.columns())])
            return goes_on(tx)

        return self._db.transaction(work)


def new_operation(item: Item) -> str:
    """The UUID of a step's row in the ledger: not its attempt's, which has a row of its own."""
    return operation_uuid(new_claim_token(), item.id_task_item)


def _hold(tx: Transaction, item: Item, *, is_booked: bool) -> None:
    """Locks the item's row. Raises ClaimLostError where it is no longer in progress under this very claim."""
    rows = tx.query("lock_committed", {"items": [item.id_task_item]})
    if not any(_is_ours(item, row) for row in rows):
        raise ClaimLostError(is_booked=is_booked)


def _is_ours(item: Item, row: Row) -> bool:
    fence = (ItemStatus.IN_PROGRESS, item.claim_token, item.attempt)
    return (row["status_id"], row["claim_token"], row["attempt"]) == fence
