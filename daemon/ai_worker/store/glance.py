"""What the overview looks at, every few seconds: a few rows each, however much there is. Reads only, and never with a lock."""

from __future__ import annotations

from typing import Final, NamedTuple

from ai_worker.db import Database
from ai_worker.models import TaskStatus

TASKS_SEARCHED: Final = 200  # the newest, for failures
TASKS_SHOWN: Final = 5  # whose failures are looked at


class Failure(NamedTuple):
    """An item in ERROR, and how many seconds ago it ended there."""

    id_task_item: int
    id_task: int
    kind: str | None
    message: str | None
    seconds: float


class Glance:
    """Callable from any thread."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def under_way(self, size: int) -> list[int]:
        """Tasks that are being worked on, then those that wait to be begun: each in the order in which items are claimed."""
        found: list[int] = []
        for status in (TaskStatus.IN_PROGRESS, TaskStatus.NEW):
            rows = self._db.query("tasks_under_way", {"status": status, "size": size})
            found += [row["id_task"] for row in rows if row["id_task"] not in found]  # one may be begun in between
        return found[:size]

    def failures(self, size: int) -> list[Failure]:
        """The latest failures: the last items in ERROR of the newest tasks that have any, the latest to end first."""
        tasks = self._db.query("tasks_with_failures", {"scan": TASKS_SEARCHED, "size": TASKS_SHOWN})
        found = [
            Failure(row["id_task_item"], row["id_task"], row["error_kind"], row["error_message"], float(row["seconds"]))
            for task in tasks
            for row in self._db.query("last_failures", {"id_task": task["id_task"], "size": size})
        ]
        return sorted(found, key=lambda each: (each.seconds, -each.id_task_item))[:size]
