"""What `top` shows: the fleet at one moment, with rates from the looks before. A look is bounded, however much there is."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from ai_worker.cli.pace import Pace
from ai_worker.counts import Work
from ai_worker.db import Database
from ai_worker.models import ItemStatus, TaskStatus
from ai_worker.store.backlog import Backlog, QueueBacklog
from ai_worker.store.browsed import Counted, TaskSearch
from ai_worker.store.browsing import Browsing
from ai_worker.store.counters import Counters
from ai_worker.store.reports import ModelReport, Reports, StoppedModel, TaskReport, WorkerReport

WINDOW: Final = 30.0  # seconds over which rates are taken
TASKS: Final = 20
MINUTES: Final = 30  # of the chart
RECOUNT: Final = 60.0  # seconds after which a large task is counted to its end again


@dataclass(frozen=True, slots=True)
class Task:
    """A task with its rate in items per second, None as long as nothing moves; `is_exact`: all items were counted."""

    report: TaskReport
    rate: float | None
    is_exact: bool

    @property
    def done(self) -> int:
        return self.report.records_processed + self.report.records_failed

    @property
    def eta(self) -> float | None:
        """Seconds until the last open item, at this rate."""
        return self.report.open / self.rate if self.rate and self.is_exact and self.report.open else None


@dataclass(frozen=True, slots=True)
class Worker:
    """A worker with its rate in items per second."""

    report: WorkerReport
    rate: float | None


@dataclass(frozen=True, slots=True)
class Picture:
    """The fleet at one moment. `minutes` are what was done in each of the last minutes, the present one last."""

    now: datetime
    tasks: list[Task]
    workers: list[Worker]
    models: list[ModelReport]
    pace: list[tuple[object, ...]]
    stopped: list[StoppedModel]
    queues: list[QueueBacklog]
    minutes: list[Work]

    @property
    def per_minute(self) -> int:
        """Items finished in the last full minute."""
        last = self.minutes[-2]
        return last.processed + last.failed


class Look:
    """Looks, and remembers the looks of the last half minute."""

    def __init__(self, db: Database) -> None:
        self._reports = Reports(db)
        self._browsing = Browsing(db)
        self._backlog = Backlog(db)
        self._counters = Counters(db)
        self._pace = Pace()
        self._seen: deque[tuple[float, Mapping[tuple[str, int], int]]] = deque()
        self._counts: dict[int, tuple[float, Mapping[ItemStatus, int]]] = {}

    def __call__(self) -> Picture:
        """Some fifteen short statements, and two per task."""
        tasks = self._tasks()
        workers = self._reports.workers()
        models = self._reports.models()
        series = self._counters.series(MINUTES)
        self._pace.look(models)
        now = time.monotonic()
        done = {("task", each.task.id_task): each.task.records_processed + each.task.records_failed for each in tasks}
        done |= {("worker", each.id_worker): each.items_processed + each.items_failed for each in workers}
        self._seen.append((now, done))
        while now - self._seen[0][0] > WINDOW:
            self._seen.popleft()
        return Picture(
            now=datetime.now(UTC),
            tasks=[Task(each.task, self._rate("task", each.task.id_task), each.is_exact) for each in tasks],
            workers=[Worker(each, self._rate("worker", each.id_worker)) for each in workers],
            models=models,
            pace=self._pace.rows(),
            stopped=self._reports.stopped_models(),
            queues=self._backlog.look(),
            minutes=series.fleet,
        )

    def _tasks(self) -> list[Counted]:
        """Those at work first, then the newest."""
        at_work = self._browsing.tasks(TaskSearch(status=TaskStatus.IN_PROGRESS), TASKS).tasks
        known = {each.task.id_task for each in at_work}
        newest = self._browsing.tasks(TaskSearch(), TASKS).tasks if len(at_work) < TASKS else []
        tasks = [*at_work, *(each for each in newest if each.task.id_task not in known)][:TASKS]
        self._recount(tasks)
        return [
            each.completed(self._counts[each.task.id_task][1]) if each.task.id_task in self._counts else each for each in tasks
        ]

    def _recount(self, tasks: list[Counted]) -> None:
        """Counts one large task to its end, the one whose count is oldest; the others have their turn in the looks to come."""
        now = time.monotonic()
        large = [each.task.id_task for each in tasks if not each.is_exact]
        self._counts = {id_task: self._counts[id_task] for id_task in large if id_task in self._counts}
        ages = {id_task: now - self._counts[id_task][0] if id_task in self._counts else float("inf") for id_task in large}
        if ages and max(ages.values()) > RECOUNT:
            oldest = max(ages, key=lambda each: ages[each])
            self._counts[oldest] = now, self._browsing.counts(oldest)

    def _rate(self, kind: str, key: int) -> float | None:
        began, first = next(((at, seen[kind, key]) for at, seen in self._seen if (kind, key) in seen), (0.0, 0))
        now, last = self._seen[-1]
        grown = last[kind, key] - first
        return grown / (now - began) if grown > 0 and now > began else None


def as_dict(picture: Picture) -> dict[str, Any]:
    """For programs. Rates of a single look are averages: of a task since it was started, of the fleet over the last minute."""
    return {
        "at": picture.now,
        "items_per_minute": picture.per_minute,
        "tasks": [
            {
                "id_task": each.report.id_task,
                "status": each.report.status.name,
                "task_type": each.report.task_type,
                "model": each.report.model,
                "done": each.done,
                "failed": each.report.records_failed,
                "open": each.report.open,
                "open_is_exact": each.is_exact,
                "rate": each.rate or each.report.rate,
                "cost": each.report.cost,
            }
            for each in picture.tasks
        ],
        "workers": [
            {
                "id_worker": each.report.id_worker,
                "state": each.report.state,
                "host": each.report.host,
                "pid": each.report.pid,
                "version": each.report.version,
                "in_flight": each.report.in_flight,
                "concurrency": each.report.concurrency,
                "silent_seconds": each.report.silent_seconds,
                "rate": each.rate,
            }
            for each in picture.workers
        ],
        "models": [
            {
                "name": each.name,
                "is_active": each.is_active,
                "stopped": each.stopped_kind,
                "in_flight": each.in_flight,
                "attempts_today": each.attempts,
                "tokens_today": each.tokens,
                "cost_today": each.cost,
                "budget_per_day": each.budget_per_day,
            }
            for each in picture.models
        ],
        "queues": [
            {
                "queue": each.queue,
                "pending": each.pending,
                "deferred": each.deferred,
                "in_progress": each.in_progress,
                "paused": each.paused,
                "is_exact": each.is_exact,
                "oldest_seconds": each.oldest_seconds,
            }
            for each in picture.queues
        ],
    }
