"""What is there now, as the metrics give it: one look at everything, cheap enough for every ten seconds.

Reads only, and never with a lock.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from ai_worker.db import Database
from ai_worker.models import TaskStatus
from ai_worker.store.backlog import Backlog, QueueBacklog
from ai_worker.store.reports import ModelReport, Reports


@dataclass(frozen=True, slots=True)
class Gauges:
    """How the fleet stands. `workers` counts processes by state (alive, draining, late, lost), `budget_used` is the largest share
    of its budget that an open task has spent, `schedule_overdue` the seconds that the most overdue schedule has been due."""

    queues: list[QueueBacklog]
    models: list[ModelReport]
    workers: Mapping[str, int]
    budget_used: float | None
    schedule_overdue: float
    schema_version: int

    @property
    def tasks(self) -> dict[TaskStatus, int]:
        """Open tasks by status."""
        return {status: sum(queue.tasks.get(status, 0) for queue in self.queues) for status in OPEN}


OPEN = (TaskStatus.NEW, TaskStatus.IN_PROGRESS, TaskStatus.PAUSED)


def look(db: Database) -> Gauges:
    """How the fleet stands now; see `backlog` for what is counted and what is estimated."""
    reports = Reports(db)
    row = db.query("gauges")[0]
    return Gauges(
        queues=Backlog(db).look(),
        models=reports.models(),
        workers=Counter(worker.state for worker in reports.workers()),
        budget_used=None if row["budget_used"] is None else float(row["budget_used"]),
        schedule_overdue=float(row["schedule_overdue"] or 0),
        schema_version=row["schema_version"],
    )
