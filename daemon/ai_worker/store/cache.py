"""The result cache: which item holds the answer to a piece of work, or is just getting it, on any host.

A row names an item, and its answer is read from there: nothing is stored twice. While the call is under way the row belongs to
the worker that makes it, and is worth as much as that worker's lease. `Queue.commit` stores it or takes it away, in the
transaction that ends the item's attempt.

Everything here may be called from any thread.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from enum import Enum, auto
from typing import Final, NamedTuple

from ai_worker.db import Database, Row, Transaction
from ai_worker.models import Result

KEPT_DAYS: Final = 90  # however long a task would take an answer
LOOKS: Final = 5  # at work that others take over just as often; whoever still has none then waits, and asks again
FORGET_ROWS: Final = 1000  # looked at in one step


class Question(NamedTuple):
    """What is to be done by `id_task_item`, under its key; an answer may be `max_age` seconds old."""

    key: bytes
    id_task_item: int
    max_age: float


class Answer(NamedTuple):
    """The result of another item, stored `age` seconds ago."""

    result: Result
    age: float


class Standing(Enum):
    """What there is instead of an answer."""

    LEADS = auto()  # the item that was asked for makes the call
    UNDER_WAY = auto()  # another worker makes it just now


class Cache:
    """The verbs of a worker on the table `result_cache`."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def ask(self, id_worker: int, questions: Sequence[Question]) -> dict[bytes, Answer | Standing]:
        """The answer to each piece of work, by key. What nobody has done, nor is doing, is led by the item that was asked for.

        The keys differ, and this worker leads none of them: a row that says so is a remainder. One statement where all is known
        or under way, two where nothing is.
        """
        answers: dict[bytes, Answer | Standing] = {}
        asked = {question.key: question for question in sorted(questions)}
        for _ in range(LOOKS):
            seen: list[tuple[bytes, int, int]] = []
            for row in self._db.query("find_answers", {"keys": list(asked)}) if asked else ():
                question = asked[row["cache_key"]]
                if (answer := _answer(row, question, id_worker)) is None:
                    seen.append(_as_seen(row))
                else:
                    answers[question.key] = answer
                    del asked[question.key]
            if not asked:
                return answers
            if seen:
                self._db.execute("drop_answers", _seen(seen))
            rows = [(question.key, question.id_task_item, id_worker) for question in asked.values()]
            if self._db.execute_many("lead_work", rows) == len(rows):
                return answers | dict.fromkeys(asked, Standing.LEADS)
        return answers | dict.fromkeys(asked, Standing.UNDER_WAY)

    def abandon(self, id_worker: int, questions: Sequence[Question]) -> None:
        """The items that lead this work will not do it after all."""
        self._db.execute("drop_answers", _seen([(question.key, question.id_task_item, id_worker) for question in questions]))

    def forget(self, start: bytes | None = None) -> int:
        """Drops rows that nobody can use any more, among the next thousand from `start`, by default a random place; how many."""
        page = {"start": os.urandom(32) if start is None else start, "size": FORGET_ROWS, "days": KEPT_DAYS}
        seen = [_as_seen(row) for row in self._db.query("useless_answers", page)]
        return self._db.execute("drop_answers", _seen(seen)) if seen else 0


def settle_work(
    tx: Transaction, id_worker: int, stored: Sequence[tuple[bytes, int]], dropped: Sequence[tuple[bytes, int]]
) -> None:
    """Of (key, item) pairs that a worker's items lead: in the transaction that ends their attempts, with a result or without."""
    if stored:
        led = sorted(stored)
        tx.execute("store_answers", {"keys": [key for key, _ in led], "led": led})
    if dropped:
        tx.execute("drop_answers", _seen([(key, item, id_worker) for key, item in sorted(dropped)]))


def _answer(row: Row, question: Question, id_worker: int) -> Answer | Standing | None:
    """What a row means for the question; None when it is nobody's, and to be taken over."""
    if row["id_worker"] is None:
        if row["is_answered"] and row["age"] <= question.max_age:
            return Answer(Result(row["text_corrected"], row["change_summary"], _data(row["result"])), float(row["age"]))
        return None
    is_own = row["id_task_item"] == question.id_task_item  # claimed anew: whoever led it has lost it
    if row["id_worker"] == id_worker:
        return Standing.LEADS if is_own else None
    return Standing.UNDER_WAY if row["is_under_way"] and not is_own else None


def _as_seen(row: Row) -> tuple[bytes, int, int]:
    return row["cache_key"], row["id_task_item"], row["id_worker"] or 0


def _seen(rows: Sequence[tuple[bytes, int, int]]) -> dict[str, list[bytes] | list[tuple[bytes, int, int]]]:
    return {"keys": [key for key, _, _ in rows], "seen": list(rows)}


def _data(text: str | None) -> Mapping[str, object]:
    value = json.loads(text) if text else {}
    return value if isinstance(value, dict) else {"value": value}
