"""Schedules: tasks that come again and again, each time once, whoever makes them.

Whoever finds a schedule due takes its row's lock, and in that one transaction writes down that this time was fired (its key makes
a second fire impossible), makes the task with its items, and moves the schedule on. The clock is the database's; what the next
time is, is worked out from the last one, so that nothing is left out and nothing comes twice, however late the worker.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from typing import Any, Final, NamedTuple

from ai_worker.cron import Cron
from ai_worker.db import Database, Row, Transaction
from ai_worker.errors import DatabaseError, NotFound, UsageError, ValueRefused
from ai_worker.models import DEFAULT_QUEUE, Lane, PersonalData
from ai_worker.store.claims import personal_data_of

FIRES: Final = 50  # in one step of the upkeep, so that what was missed for long does not hold up the rest
LATE: Final = timedelta(seconds=60)  # a time that is older was missed: nobody was there
MOST_ITEMS: Final = 10_000  # of one fire: they are written in one transaction
LONGEST_NAME: Final = 100  # characters of schedule.name
MESSAGE_CHARACTERS: Final = 1000
_DUPLICATE: Final = 1062
_PLACEHOLDER: Final = re.compile(r"\{(date|time)\}")


class Missed(StrEnum):
    """What becomes of times that nobody was there for: `schedule.missed`."""

    ONCE = "once"  # one task for all of them, at the latest
    ALL = "all"  # a task for each, one after the other
    SKIP = "skip"  # none


@dataclass(frozen=True, slots=True)
class NewSchedule:
    """A schedule to be made. `items` are objects with `text` and, where wanted, `external_key`, `context`, `context_key`.

    `budget` is in USD, of each of its tasks, whose results are kept for `result_seconds` after its end (None: for good).
    `start` is in UTC, without a zone: the first time is the first one not before it; None: from now on.
    """

    name: str
    cron: str
    time_zone: str
    id_ai_model: int
    task_type: str
    items: Sequence[Mapping[str, Any]]
    missed: Missed = Missed.ONCE
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    priority: int = 0
    queue: str = DEFAULT_QUEUE
    max_attempts: int = 3
    lane: Lane = Lane.ONLINE
    budget: Decimal | None = None
    result_seconds: int | None = None
    personal_data: PersonalData = PersonalData.OFF
    start: datetime | None = None


@dataclass(frozen=True, slots=True)
class Schedule:
    """A schedule as it stands. `next_at` is in UTC, None: never; `message` says why where something is wrong with it."""

    id_schedule: int
    name: str
    cron: str
    time_zone: str
    missed: Missed
    is_active: bool
    model: str
    task_type: str
    description: str
    priority: int
    queue: str
    lane: Lane
    budget: Decimal | None
    result_seconds: int | None
    personal_data: PersonalData
    items: int
    next_at: datetime | None
    message: str | None
    last_due_at: datetime | None
    last_task: int | None


class Fired(NamedTuple):
    """One step of a schedule. `id_task` is None where the time was missed and skipped, or fired before."""

    name: str
    due_at: datetime
    id_task: int | None
    items: int


class Broken(NamedTuple):
    """A schedule that cannot fire as it is, and why; it does not until somebody has put it right."""

    name: str
    message: str


class _Unusable(Exception):
    """What the row says cannot be used."""


class Schedules:
    """The verbs on schedules. Those of people raise UsageError when there is no such one, or a value cannot be used."""

    def __init__(self, db: Database) -> None:
        self._db = db

    # ----- what people do

    def add(self, new: NewSchedule) -> datetime | None:
        """Makes a schedule; when it fires first, in UTC."""
        cron = Cron(new.cron, new.time_zone)
        if not 0 < len(new.name) <= LONGEST_NAME:
            raise UsageError(f"a schedule's name must have 1 to {LONGEST_NAME} characters")
        if not 0 < len(new.items) <= MOST_ITEMS:
            raise UsageError(f"a schedule must have 1 to {MOST_ITEMS:,} items; this one has {len(new.items):,}")
        first = cron.after(self._now() if new.start is None else new.start - timedelta(microseconds=1))
        if first is None:
            raise UsageError(f"cron {new.cron!r} never comes")
        values = {
            "name": new.name,
            "cron": new.cron,
            "time_zone": new.time_zone,
            "missed": new.missed.value,
            "id_ai_model": new.id_ai_model,
            "task_type": new.task_type,
            "description": new.description or None,
            "parameters": json.dumps(new.parameters, ensure_ascii=False) if new.parameters else None,
            "priority": new.priority,
            "queue": new.queue,
            "max_attempts": new.max_attempts,
            "lane": new.lane.value,
            "budget": new.budget,
            "result_seconds": new.result_seconds,
            "personal_data": new.personal_data.value,
            "items": json.dumps(list(new.items), ensure_ascii=False),
            "next_at": first,
        }
        try:
            self._db.transaction(lambda tx: tx.insert("schedule_add", values))
        except DatabaseError as error:
            if error.code != _DUPLICATE:
                raise
            raise UsageError(f"there is a schedule {new.name!r} already; `ai-worker schedule remove` takes it away") from None
        return first

    def all(self) -> list[Schedule]:
        """All schedules by name."""
        return [_schedule(row) for row in self._db.query("schedule_list")]

    def get(self, name: str) -> Schedule:
        """One schedule."""
        for each in self.all():
            if each.name == name:
                return each
        raise NotFound(f"there is no schedule {name!r}; `ai-worker schedule list` shows those there are")

    def remove(self, name: str) -> None:
        """Takes a schedule away; the tasks that it made stay."""
        self._db.execute("schedule_remove", {"id_schedule": self.get(name).id_schedule})

    def pause(self, name: str) -> None:
        """It does not fire until it is resumed."""
        self._db.execute("schedule_pause", {"id_schedule": self.get(name).id_schedule})

    def resume(self, name: str) -> datetime | None:
        """It fires again, from now on; what came in the meantime was not missed. When next, in UTC.

        Also what brings a schedule back that could not fire: raises UsageError when it still cannot.
        """
        found = self.get(name)
        next_at = Cron(found.cron, found.time_zone).after(self._now())
        self._db.execute("schedule_resume", {"id_schedule": found.id_schedule, "next_at": next_at})
        return next_at

    def broken(self) -> list[Broken]:
        """Those that cannot fire, and why."""
        return [Broken(each.name, each.message) for each in self.all() if each.message is not None]

    def _now(self) -> datetime:
        now: datetime = self._db.query("server_clock")[0]["now"]
        return now

    # ----- what workers do

    def fire_some(self) -> list[Fired | Broken]:
        """Fires what is due, a time of a schedule per transaction, up to fifty; what it did, for the log."""
        done: list[Fired | Broken] = []
        while len(done) < FIRES and (step := self.fire()) is not None:
            done.append(step)
        return done

    def fire(self) -> Fired | Broken | None:
        """Fires the schedule that has been due for longest; None: no one is due that nobody else is just firing."""
        due: list[Row] = []  # the one that the latest run of the transaction has locked

        def work(tx: Transaction) -> Fired | None:
            due[:] = tx.query("lock_due_schedule")
            return _fire(tx, due[0]) if due else None

        try:
            return self._db.transaction(work)
        except (UsageError, _Unusable, ValueRefused) as error:
            broken = Broken(due[0]["name"], str(error)[:MESSAGE_CHARACTERS])
            values = {"id_schedule": due[0]["id_schedule"], "message": broken.message, "next_at": due[0]["next_at"]}
            return broken if self._db.execute("break_schedule", values) else None


def _fire(tx: Transaction, row: Row) -> Fired:
    """One step of a schedule whose row is locked: the task, if there is to be one, and the next time."""
    cron = Cron(row["cron"], row["time_zone"])
    due, now = row["next_at"], row["now"]
    moment = due if row["missed"] == Missed.ALL else cron.latest(due, now)
    is_skipped = row["missed"] == Missed.SKIP and now - moment > LATE
    fire = {"id_schedule": row["id_schedule"], "due_at": moment}
    id_task, count = None, 0
    # Under the schedule's lock nobody else fires it; a time can be there already only when somebody has set `next_at` back.
    if not tx.query("fire_of_schedule", fire):
        if not is_skipped:
            items = _items(row["items"], cron.local(moment))
            id_task, count = _insert(tx, row, f"schedule:{row['id_schedule']}:{moment:%Y-%m-%dT%H:%M:%SZ}", items), len(items)
        tx.execute("insert_fire", {**fire, "id_task": id_task})
    tx.execute("move_schedule", {"id_schedule": row["id_schedule"], "next_at": cron.after(moment)})
    return Fired(row["name"], moment, id_task, count)


def _insert(tx: Transaction, row: Row, key: str, items: Sequence[Mapping[str, Any]]) -> int:
    """The task with its items; the one that is there already where its key is."""
    if known := tx.query("task_of_key", {"submit_key": key}):
        found: int = known[0]["id_task"]
        return found
    columns = {name: row[name] for name in _COPIED}
    id_task = tx.insert("insert_task", {**columns, **_DEFAULTS, "submit_key": key})
    tx.execute_many("insert_items", [{"id_task": id_task, **item} for item in items])
    return id_task


_COPIED: Final = (
    "id_ai_model",
    "task_type",
    "description",
    "parameters",
    "priority",
    "queue",
    "max_attempts",
    "lane",
    "budget",
    "result_seconds",
    "personal_data",
)
_DEFAULTS: Final[Mapping[str, Any]] = {
    "id_task": None,
    "scheduled_at": None,
    "pack": 1,
    "cache_seconds": 0,  # what is asked for every night is asked anew, though the words may be those of last night
    "id_prompt": None,
    "id_task_group": None,
}


def _items(text: str, local: datetime) -> list[dict[str, Any]]:
    """The rows for `insert_items`, with the due time put into their texts."""
    values = {"date": f"{local:%Y-%m-%d}", "time": f"{local:%H:%M}"}
    try:
        found = json.loads(text)
        return [
            {
                "text_original": _PLACEHOLDER.sub(lambda match: values[match[1]], item["text"]),
                "external_key": _text_of(item, "external_key"),
                "context": None if item.get("context") is None else json.dumps(item["context"], ensure_ascii=False),
                "context_key": _text_of(item, "context_key"),
            }
            for item in found
        ]
    except (ValueError, TypeError, KeyError, AttributeError):
        raise _Unusable('its items are not a list of objects like {"text": "…"}') from None


def _text_of(item: Mapping[str, Any], name: str) -> str | None:
    value = item.get(name)
    return None if value is None else str(value)


def _schedule(row: Row) -> Schedule:
    return Schedule(
        id_schedule=row["id_schedule"],
        name=row["name"],
        cron=row["cron"],
        time_zone=row["time_zone"],
        missed=Missed(row["missed"]),
        is_active=bool(row["is_active"]),
        model=row["model"],
        task_type=row["task_type"],
        description=row["description"] or "",
        priority=row["priority"],
        queue=row["queue"],
        lane=Lane(row["lane"]),
        budget=row["budget"],
        result_seconds=row["result_seconds"],
        personal_data=personal_data_of(row),
        items=int(row["items"] or 0),
        next_at=row["next_at"],
        message=row["message"],
        last_due_at=row["last_due_at"],
        last_task=row["last_task"],
    )
