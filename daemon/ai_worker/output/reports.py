"""Tasks and workers for programs: the same shapes on the command line (`--json`) and over HTTP."""

from __future__ import annotations

from typing import Any

from ai_worker import formats
from ai_worker.models import ItemStatus, TaskStatus
from ai_worker.store.reports import TaskReport, WorkerReport


def as_dict(task: TaskReport) -> dict[str, Any]:
    """A task as `status --json` prints it: first the keys that scripts rely on, then what may be of use."""
    return {
        "id_task": task.id_task,
        "status": task.status.name,
        "items": {name: task.items[ItemStatus[name.upper()]] for name in _ITEM_KEYS},
        "records_processed": task.records_processed,
        "records_failed": task.records_failed,
        "tokens_input": task.tokens_input,
        "tokens_output": task.tokens_output,
        "cost": formats.plain(task.cost),
        "started_at": task.started_at,
        "finished_at": task.finished_at,
        "status_reason": task.status_reason,
        "task_type": task.task_type,
        "model": task.model,
        "model_stopped": task.model_stopped,
        "description": task.description,
        "queue": task.queue,
        "priority": task.priority,
        "max_attempts": task.max_attempts,
        "budget": formats.plain(task.budget),
        "reserved": formats.plain(task.reserved),
        "resume_at": task.resume_at,
        "fallbacks": list(task.fallbacks),
        "after": [
            {"id_task": each.id_task, "needs": each.needs, "status": each.status and each.status.name, "met": each.is_met}
            for each in task.after
        ],
        "steps": None if task.steps is None else task.steps._asdict(),
        "created_at": task.created_at,
        "scheduled_at": task.scheduled_at,
        "rate": None if task.rate is None else round(task.rate, 3),
        "eta_seconds": eta(task),
        "errors": [
            {
                "status": group.status.name,
                "kind": group.kind,
                "items": group.items,
                "example": {"id_task_item": group.id_task_item, "message": group.message},
            }
            for group in task.errors
        ],
    }


_ITEM_KEYS = ("pending", "in_progress", "deferred", "processed", "error", "cancelled")


def worker_as_dict(worker: WorkerReport) -> dict[str, Any]:
    """A worker as `workers --json` prints it: its fields, in their order."""
    return {name: getattr(worker, name) for name in WorkerReport.__slots__}


def eta(task: TaskReport) -> float | None:
    """Seconds until a task is done, as its rate so far has it; None where that is not known."""
    if task.status is not TaskStatus.IN_PROGRESS or not task.open or not task.rate:
        return None
    return round(task.open / task.rate, 1)
