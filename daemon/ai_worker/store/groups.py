"""Groups of tasks: a common progress, an end, and the callback that tells of it.

A group is closed by a person or an application: no further tasks come. When all of its tasks have ended it ends too, once, and in
that transaction its callback is written down; `store.callbacks` brings it to its receiver.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial
from typing import Any, Final, NamedTuple

from ai_worker.db import Database, Row, Transaction
from ai_worker.errors import DatabaseError, NotFound, UsageError
from ai_worker.models import ItemStatus, TaskStatus

LISTED_TASKS: Final = 500  # in a callback's body; of more only the totals
LONGEST_BODY: Final = 64_000  # bytes; the same of one that the tasks would make longer
LONGEST_NAME: Final = 190  # characters of task_group.name
_DUPLICATE: Final = 1062


class Delivery(NamedTuple):
    """How a group's callback stands: waiting, delivered or failed; `reason` is why the latest try went wrong."""

    state: str
    attempts: int
    due_at: datetime | None
    status: int | None
    reason: str | None


@dataclass(frozen=True, slots=True)
class Group:
    """A group as it stands. Times are in UTC without a zone, cost in USD.

    `items` are counted only where one group is looked at; `tasks` by status; `seconds` is how long its work has taken so far.
    """

    id_task_group: int
    name: str
    callback_url: str | None
    created_at: datetime
    closed_at: datetime | None
    ended_at: datetime | None
    tasks: dict[TaskStatus, int]
    records_processed: int
    records_failed: int
    cost: Decimal | None
    delivery: Delivery | None
    items: dict[ItemStatus, int]
    seconds: float | None

    @property
    def state(self) -> str:
        """open, closed (its tasks are still at work) or ended."""
        return "ended" if self.ended_at else "closed" if self.closed_at else "open"

    @property
    def eta_seconds(self) -> float | None:
        """Until all items are done, at the rate so far; None where nothing can be said."""
        done = self.records_processed + self.records_failed
        left = sum(self.items.get(each, 0) for each in (ItemStatus.PENDING, ItemStatus.IN_PROGRESS, ItemStatus.DEFERRED))
        return round(left * self.seconds / done, 1) if left and done and self.seconds else None


class EndedGroup(NamedTuple):
    """A group that has just ended, with its number of tasks."""

    name: str
    tasks: int


class Groups:
    """The verbs on groups. Each that names one raises UsageError when it is not there, or stands differently."""

    def __init__(self, db: Database) -> None:
        self._db = db

    # ----- what people do

    def add(self, name: str, callback_url: str | None = None, seal: Callable[[int], bytes] | None = None) -> int:
        """Makes an open group; its id. `seal` gives the encrypted secret once the id is known, to which it is bound."""
        if not 0 < len(name) <= LONGEST_NAME:
            raise UsageError(f"a group's name must have 1 to {LONGEST_NAME} characters")

        def work(tx: Transaction) -> int:
            id_task_group = tx.insert("group_add", {"name": name, "callback_url": callback_url})
            if seal is not None:
                tx.execute("group_set_secret", {"id_task_group": id_task_group, "secret_encrypted": seal(id_task_group)})
            return id_task_group

        try:
            return self._db.transaction(work)
        except DatabaseError as error:
            if error.code != _DUPLICATE:
                raise
            raise UsageError(f"there is a group {name!r} already; `ai-worker group show {name}` shows it") from None

    def id_of(self, name: str) -> int:
        """The id of a group, open or closed; whether a task may still join it is for `check_open` to say, when it does."""
        return _id(self._find(name))

    def close(self, name: str) -> bool:
        """No further tasks come. False: it was closed already."""
        return bool(self._db.execute("group_close", {"id_task_group": _id(self._find(name))}))

    def retry(self, name: str) -> None:
        """Sends a callback again now that was given up, or waits for its next try."""
        id_task_group = _id(self._find(name))
        if self._db.execute("callback_again", {"id_task_group": id_task_group}):
            return
        rows = self._db.query("callback_of_group", {"id_task_group": id_task_group})
        delivery = _delivery(rows[0]) if rows else None
        if delivery is None:
            raise UsageError(f"group {name!r} has no callback to be sent")
        if delivery.state == "waiting":  # it has not been tried yet
            return
        raise UsageError(f"the callback of group {name!r} is {delivery.state}; only one that did not arrive is sent again")

    def all(self) -> list[Group]:
        """All groups, the newest first, at most a thousand."""
        rows = self._db.query("group_list")
        totals: dict[int, list[Row]] = {}
        if rows:
            for row in self._db.query("group_totals", {"groups": [_id(row) for row in rows]}):
                totals.setdefault(_id(row), []).append(row)
        return [_group(row, totals.get(_id(row), [])) for row in rows]

    def get(self, name: str) -> Group:
        """One group, with its items counted."""
        row = self._find(name)
        totals = self._db.query("group_totals", {"groups": [_id(row)]})
        items = self._db.query("group_items", {"id_task_group": _id(row)})
        return _group(row, totals, {ItemStatus(each["status_id"]): int(each["items"]) for each in items})

    def _find(self, name: str) -> Row:
        rows = self._db.query("group_of_name", {"name": name})
        if not rows:
            raise NotFound(f"there is no group {name!r}; `ai-worker group list` shows those there are")
        return rows[0]

    def rekey(self, seal: Callable[[int, bytes], bytes | None]) -> int:
        """Replaces all secrets in one transaction and returns how many; as `Models.rekey` does."""

        def work(tx: Transaction) -> int:
            count = 0
            for row in tx.query("group_secrets_lock"):
                if (value := seal(_id(row), bytes(row["secret_encrypted"]))) is not None:
                    count += tx.execute("group_set_secret", {"id_task_group": _id(row), "secret_encrypted": value})
            return count

        return self._db.transaction(work)

    # ----- what workers do

    def end_some(self) -> list[EndedGroup]:
        """Ends closed groups all of whose tasks have ended, up to twenty, each with its callback in one transaction."""
        found = [_id(row) for row in self._db.query("groups_to_end")]
        return [ended for each in found if (ended := self._db.transaction(partial(_end, each))) is not None]


def check_open(id_task_group: int, tx: Transaction) -> None:
    """Raises UsageError when a task cannot join the group. Until the transaction ends, nobody closes or ends it."""
    rows = tx.query("share_group", {"id_task_group": id_task_group})
    if not rows:
        raise UsageError("the group is not there any more")
    if rows[0]["closed_at"] is not None:
        name = rows[0]["name"]
        raise UsageError(f"group {name!r} is closed: no further tasks come into it; `ai-worker group add` makes another one")


def _end(id_task_group: int, tx: Transaction) -> EndedGroup | None:
    """None where another worker has ended it, or somebody has put a task into it meanwhile."""
    rows = tx.query("lock_group", {"id_task_group": id_task_group})
    if not rows or tx.query("open_task_of_group", {"id_task_group": id_task_group}):
        return None
    (row,) = rows
    totals = tx.query("group_totals", {"groups": [id_task_group]})
    count = sum(int(each["tasks"]) for each in totals)
    tx.execute("end_group", {"id_task_group": id_task_group, "ended_at": row["now"]})
    if row["callback_url"] is not None:
        tasks = tx.query("tasks_of_group", {"id_task_group": id_task_group}) if count <= LISTED_TASKS else None
        tx.execute("insert_callback", {"id_task_group": id_task_group, "body": _body(row, totals, tasks)})
    return EndedGroup(row["name"], count)


def _body(group: Row, totals: Sequence[Row], tasks: Sequence[Row] | None) -> str:
    """What the receiver is told, as JSON; amounts are texts, so that nobody rounds them."""
    costs = [row["cost"] for row in totals if row["cost"] is not None]
    body: dict[str, Any] = {
        "type": "group.ended",
        "group": group["name"],
        "ended_at": group["now"].replace(tzinfo=UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "counts": {
            "tasks": sum(int(row["tasks"]) for row in totals),
            "completed": 0,
            "error": 0,
            "cancelled": 0,
            **{TaskStatus(row["status_id"]).name.lower(): int(row["tasks"]) for row in totals},
            "records_processed": sum(int(row["records_processed"]) for row in totals),
            "records_failed": sum(int(row["records_failed"]) for row in totals),
        },
        "cost": _amount(sum(costs, Decimal(0)) if costs else None),
    }
    if tasks is None:
        return json.dumps(body, ensure_ascii=False)
    listed = [
        {
            "id_task": row["id_task"],
            "status": TaskStatus(row["status_id"]).name,
            "records_processed": row["records_processed"],
            "records_failed": row["records_failed"],
            "cost": _amount(row["cost"]),
        }
        for row in tasks
    ]
    text = json.dumps(body | {"tasks": listed}, ensure_ascii=False)
    return text if len(text.encode()) <= LONGEST_BODY else json.dumps(body, ensure_ascii=False)


def _amount(cost: Decimal | None) -> str | None:
    return None if cost is None else format(cost.normalize(), "f")


def _group(row: Row, totals: Sequence[Row], items: dict[ItemStatus, int] | None = None) -> Group:
    costs = [each["cost"] for each in totals if each["cost"] is not None]
    return Group(
        id_task_group=_id(row),
        name=row["name"],
        callback_url=row["callback_url"],
        created_at=row["created_at"],
        closed_at=row["closed_at"],
        ended_at=row["ended_at"],
        tasks={TaskStatus(each["status_id"]): int(each["tasks"]) for each in totals},
        records_processed=sum(int(each["records_processed"]) for each in totals),
        records_failed=sum(int(each["records_failed"]) for each in totals),
        cost=sum(costs, Decimal(0)) if costs else None,
        delivery=_delivery(row) if row["attempts"] is not None else None,
        items=items or {},
        seconds=max((float(each["seconds"]) for each in totals if each["seconds"] is not None), default=None),
    )


def _delivery(row: Row) -> Delivery:
    state = "delivered" if row["delivered_at"] else "failed" if row["failed_at"] else "waiting"
    return Delivery(state, row["attempts"], row["due_at"], row["last_status"], row["last_error"])


def _id(row: Row) -> int:
    key: int = row["id_task_group"]
    return key
