"""What people look at: tasks with their numbers, workers, models. Reads only, and never with a lock."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import date, datetime
from decimal import Decimal
from typing import Final, NamedTuple

from ai_worker.db import Database, Row
from ai_worker.errors import NotFound
from ai_worker.models import DEFAULT_QUEUE, ItemStatus, Need, TaskStatus

_OPEN: Final = (ItemStatus.PENDING, ItemStatus.IN_PROGRESS, ItemStatus.DEFERRED)
_LAST: Final = 2**63 - 1


@dataclass(frozen=True, slots=True)
class ErrorGroup:
    """Items of one task that failed, or wait to be tried again, for one kind of reason.

    `id_task_item` is the first of them and `message` its own; `due_seconds` says when the first deferred one is tried again.
    """

    status: ItemStatus
    kind: str
    items: int
    id_task_item: int
    message: str
    due_seconds: float | None


@dataclass(frozen=True, slots=True)
class Dependency:
    """A task that another one waits for. `status` is None where it is not there any more, which keeps nobody waiting."""

    id_task: int
    needs: Need
    status: TaskStatus | None
    is_met: bool


class StepProgress(NamedTuple):
    """Of `items` that are being worked on and take several calls each: how many of these are `done`, of `total`."""

    items: int
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class TaskReport:
    """A task as it stands. Times are in UTC without a zone; `seconds` is how long it has been, or was, at work.

    `is_ahead` says that its scheduled time has not come yet; `model_stopped` is why its model is stopped.
    `budget` is in USD, `reserved` what of it is set aside for items in flight; paused for a model's day, it goes on by itself at
    `resume_at`. `fallbacks` are its further models, `after` the tasks that it waits for, `steps` how far items in progress have
    come; these three are left out where many tasks are listed.
    """

    id_task: int
    status: TaskStatus
    status_reason: str | None
    task_type: str
    model: str
    model_stopped: str | None
    description: str
    priority: int
    max_attempts: int
    items: Mapping[ItemStatus, int]
    records_processed: int
    records_failed: int
    tokens_input: int
    tokens_output: int
    cost: Decimal | None
    created_at: datetime
    scheduled_at: datetime | None
    started_at: datetime | None
    finished_at: datetime | None
    seconds: float | None
    is_ahead: bool
    errors: list[ErrorGroup] = field(default_factory=list)
    budget: Decimal | None = None
    reserved: Decimal | None = None
    resume_at: datetime | None = None
    fallbacks: tuple[str, ...] = ()
    queue: str = DEFAULT_QUEUE
    after: tuple[Dependency, ...] = ()
    steps: StepProgress | None = None

    @property
    def total(self) -> int:
        """All items, cancelled ones too."""
        return sum(self.items.values())

    @property
    def open(self) -> int:
        """Items that still have to be worked on."""
        return sum(self.items[status] for status in _OPEN)

    @property
    def is_over(self) -> bool:
        """Whether nothing will happen to it by itself any more."""
        return self.finished_at is not None or (self.status is TaskStatus.CANCELLED and not self.items[ItemStatus.IN_PROGRESS])

    @property
    def rate(self) -> float | None:
        """Items finished per second, on average since the task was started; None before the first one."""
        done = self.records_processed + self.records_failed
        return done / self.seconds if done and self.seconds else None


@dataclass(frozen=True, slots=True)
class WorkerReport:
    """A worker process. `state` is alive, draining (claims nothing more), late (missed a beat), lost (its lease is over)
    or ended."""

    id_worker: int
    state: str
    host: str
    pid: int
    version: str
    mode: str
    concurrency: int
    in_flight: int
    items_processed: int
    items_failed: int
    started_at: datetime
    ended_at: datetime | None
    silent_seconds: float


@dataclass(frozen=True, slots=True)
class StoppedModel:
    """A model that is stopped for every worker; after `probe_seconds` one of them tries it again."""

    name: str
    kind: str
    reason: str
    stopped_at: datetime
    probe_seconds: float


@dataclass(frozen=True, slots=True)
class ModelReport:
    """A model's limits and what it has used on this UTC `day`: attempts, tokens sent and answered, USD.

    A limit is the one that was set, else the one that was learnt from its provider, else None; `is_learnt` says which.
    `in_flight` are the items claimed for it.
    """

    name: str
    is_active: bool
    stopped_kind: str | None
    requests_per_minute: int | None
    tokens_per_minute: int | None
    is_learnt: bool
    in_flight: int
    max_in_flight: int | None
    day: date
    attempts: int
    tokens: int
    cost: Decimal | None
    budget_per_day: Decimal | None


@dataclass(frozen=True, slots=True)
class ModelDay:
    """What one model has used in one UTC day, as far as attempts have ended; `cost` in USD, None where no price was known."""

    id_ai_model: int
    name: str
    day: date
    is_today: bool
    attempts: int
    tokens_input: int
    tokens_output: int
    tokens_cached: int
    tokens_reasoning: int
    cost: Decimal | None


@dataclass(frozen=True, slots=True)
class BatchReport:
    """A batch for people to look at. Times are in UTC without a zone."""

    id_batch: int
    state: str
    provider_batch_id: str | None
    items: int
    message: str | None
    failures: int
    created_at: datetime
    submitted_at: datetime | None
    cancelled_at: datetime | None
    ended_at: datetime | None


class Reports:
    """Questions about tasks and workers."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def task(self, id_task: int) -> TaskReport:
        """One task, with its items counted and its errors grouped. Raises UsageError when there is none."""
        rows = self._db.query("task_report", {"id_task": id_task})
        if not rows:
            raise NotFound(f"no task {id_task}; `ai-worker status` lists them")
        counts = {row["status_id"]: row["items"] for row in self._db.query("task_counts", {"id_task": id_task})}
        has_reasons = counts.get(ItemStatus.ERROR) or counts.get(ItemStatus.DEFERRED)
        errors = self._db.query("task_errors", {"id_task": id_task}) if has_reasons else []
        fallbacks = tuple(row["name"] for row in self._db.query("fallbacks_of_task", {"id_task": id_task}))
        after = tuple(dependency_of(row) for row in self._db.query("dependencies_of_task", {"id_task": id_task}))
        steps = self._steps(id_task) if counts.get(ItemStatus.IN_PROGRESS) else None
        report = report_of(rows[0], counts, [error_of(row) for row in errors])
        return replace(report, fallbacks=fallbacks, after=after, steps=steps)

    def _steps(self, id_task: int) -> StepProgress | None:
        row = self._db.query("task_steps", {"id_task": id_task})[0]
        return StepProgress(row["items"], int(row["done"]), int(row["total"])) if row["items"] else None

    def tasks(self, size: int = 20, before: int = _LAST) -> list[TaskReport]:
        """Tasks with an id below `before`, the newest first, at most `size`. Their errors are not looked at."""
        rows = self._db.query("task_reports", {"before": before, "size": size})
        if not rows:
            return []
        counts: dict[int, dict[int, int]] = {
            row["id_task"]: {ItemStatus.PROCESSED: row["records_processed"], ItemStatus.ERROR: row["records_failed"]}
            for row in rows
        }
        for row in self._db.query("open_counts", {"tasks": list(counts)}):
            counts[row["id_task"]][row["status_id"]] = row["items"]
        return [report_of(row, counts[row["id_task"]], []) for row in rows]

    def workers(self, *, with_ended: bool = False) -> list[WorkerReport]:
        """Workers that run or should run; with those that ended within the last day, if asked for."""
        return [
            WorkerReport(**{**row, "silent_seconds": float(row["silent_seconds"])})
            for row in self._db.query("workers", {"with_ended": with_ended})
        ]

    def stopped_models(self) -> list[StoppedModel]:
        """Models that no worker calls at the moment, and why."""
        return [
            StoppedModel(row["name"], row["stopped_kind"], row["stopped_reason"], row["stopped_at"], float(row["probe_seconds"]))
            for row in self._db.query("stopped_models")
        ]

    def models(self) -> list[ModelReport]:
        """All models with their limits and what they have used today."""
        return [_model(row) for row in self._db.query("model_reports")]

    def model_days(self, days: int = 1) -> list[ModelDay]:
        """What each model has used in the last `days` UTC days, today's first; days without an attempt are left out."""
        rows = self._db.query("model_days", {"days": days})
        tokens = ("tokens_input", "tokens_output", "tokens_cached", "tokens_reasoning")
        return [
            ModelDay(
                id_ai_model=row["id_ai_model"],
                name=row["name"],
                day=row["day"],
                is_today=bool(row["is_today"]),
                attempts=int(row["attempts"]),
                **{name: int(row[name]) for name in tokens},
                cost=row["cost"],
            )
            for row in rows
        ]

    def batches(self, id_task: int) -> list[BatchReport]:
        """A task's batches, in the order in which they were made."""
        return [BatchReport(**row) for row in self._db.query("batches_of_task", {"id_task": id_task})]


def report_of(row: Row, counts: Mapping[int, int], errors: list[ErrorGroup]) -> TaskReport:
    """A row of `task_report` or its like, with the items counted by status."""
    return TaskReport(
        id_task=row["id_task"],
        status=TaskStatus(row["status_id"]),
        status_reason=row["status_reason"],
        task_type=row["task_type"],
        model=row["model"],
        model_stopped=f"{row['stopped_kind']}: {row['stopped_reason']}" if row["stopped_kind"] else None,
        description=row["description"] or "",
        priority=row["priority"],
        max_attempts=row["max_attempts"],
        items={status: int(counts.get(status, 0)) for status in ItemStatus},
        records_processed=row["records_processed"],
        records_failed=row["records_failed"],
        tokens_input=row["tokens_input"],
        tokens_output=row["tokens_output"],
        cost=row["cost"],
        created_at=row["created_at"],
        scheduled_at=row["scheduled_at"],
        started_at=row["started_at"],
        finished_at=row["finished_at"],
        seconds=None if row["seconds"] is None else float(row["seconds"]),
        is_ahead=bool(row["is_ahead"]),
        errors=errors,
        budget=row["budget"],
        reserved=row["reserved"],
        resume_at=row["resume_at"],
        queue=row["queue"],
    )


def dependency_of(row: Row) -> Dependency:
    """A row of `dependencies_of_task`."""
    status = None if row["status_id"] is None else TaskStatus(row["status_id"])
    return Dependency(row["after_id_task"], Need(row["needs"]), status, bool(row["is_met"]))


def _model(row: Row) -> ModelReport:
    requests, tokens = row["max_requests_per_minute"], row["max_tokens_per_minute"]
    learnt_requests, learnt_tokens = row["learnt_requests"], row["learnt_tokens"]
    return ModelReport(
        name=row["name"],
        is_active=bool(row["is_active"]),
        stopped_kind=row["stopped_kind"],
        requests_per_minute=learnt_requests if requests is None else requests,
        tokens_per_minute=learnt_tokens if tokens is None else tokens,
        is_learnt=(requests is None and learnt_requests is not None) or (tokens is None and learnt_tokens is not None),
        in_flight=int(row["in_flight"]),
        max_in_flight=row["max_in_flight"],
        day=row["day"],
        attempts=int(row["attempts"]),
        tokens=int(row["tokens"]),
        cost=row["cost"],
        budget_per_day=row["budget_per_day"],
    )


def error_of(row: Row) -> ErrorGroup:
    """A row of `task_errors` or its like."""
    due = row["due_seconds"]
    return ErrorGroup(
        status=ItemStatus(row["status_id"]),
        kind=row["error_kind"] or "scheduled",  # by the application, and not tried yet
        items=row["items"],
        id_task_item=row["id_task_item"],
        message=row["error_message"] or "",
        due_seconds=None if due is None else float(due),
    )
