"""What people do with queues: set, take away and look at their limits, and see what waits in them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ai_worker.db import Database, Transaction
from ai_worker.store.limits import QueueLimit, limit_of_row

_COLUMNS = {"per_minute": "max_per_minute", "at_once": "max_in_flight", "time_limit": "time_limit"}


@dataclass(frozen=True, slots=True)
class QueueReport:
    """What is open in a queue: tasks, items by status, and for how many seconds its oldest pending item has been there."""

    queue: str
    tasks: int
    pending: int
    deferred: int
    in_flight: int
    oldest_seconds: float | None


class Queues:
    """The verbs of `queue_limit` for people. May be called from any thread."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def set(self, queue: str, task_type: str, limits: Mapping[str, int | None]) -> QueueLimit | None:
        """Changes these limits of a queue and type, either of them empty for all; None takes one away.

        `limits` are named as the fields of `QueueLimit`. What is then there; None where the last one was taken away.
        """
        which = {"queue": queue, "task_type": task_type}
        values: dict[str, int | bool | None] = {column: limits.get(name) for name, column in _COLUMNS.items()}
        for name, column in _COLUMNS.items():
            values[f"with_{column.removeprefix('max_')}"] = name in limits

        def work(tx: Transaction) -> QueueLimit | None:
            tx.execute("set_queue_limit", {**which, **values})
            tx.execute("drop_empty_queue_limit", which)
            found = (limit_of_row(row) for row in tx.query("queue_limits"))
            return next((each for each in found if each.key == (queue, task_type)), None)

        return self._db.transaction(work)

    def remove(self, queue: str, task_type: str) -> bool:
        """Takes all limits of a queue and type away; whether there were any."""
        return bool(self._db.execute("remove_queue_limit", {"queue": queue, "task_type": task_type}))

    def limits(self) -> list[QueueLimit]:
        """All limits."""
        return [limit_of_row(row) for row in self._db.query("queue_limits")]

    def reports(self) -> list[QueueReport]:
        """All queues in which something is open."""
        return [
            QueueReport(
                queue=row["queue"],
                tasks=int(row["tasks"]),
                pending=int(row["pending"]),
                deferred=int(row["deferred"]),
                in_flight=int(row["in_flight"]),
                oldest_seconds=None if row["oldest_seconds"] is None else float(row["oldest_seconds"]),
            )
            for row in self._db.query("queue_reports")
        ]
