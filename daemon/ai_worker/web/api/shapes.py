"""What goes out as JSON. Times are ISO 8601 in UTC, amounts of money are strings in USD, so that none is rounded."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer

from ai_worker import formats
from ai_worker.models import ItemStatus, TaskStatus

TaskStatusName = Literal["NEW", "IN_PROGRESS", "COMPLETED", "ERROR", "PAUSED", "CANCELLED"]
ItemStatusName = Literal["PENDING", "PROCESSED", "IN_PROGRESS", "ERROR", "DEFERRED", "CANCELLED"]
ReviewName = Literal["UNREVIEWED", "ACCEPTED", "REJECTED"]
Moment = Annotated[datetime, PlainSerializer(formats.iso, return_type=str)]
Usd = Annotated[
    str, BeforeValidator(lambda value: formats.plain(value) if isinstance(value, Decimal) else value), Field(examples=["0.0123"])
]


class _Out(BaseModel):
    model_config = ConfigDict(from_attributes=True)


class Problem(BaseModel):
    """What is wrong (RFC 9457). `errors` names the fields of a request that cannot be understood."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    instance: str
    errors: list[dict[str, str]] | None = None


class SubmittedOut(_Out):
    """A task that was made, or was there: `is_new` is false where an earlier request with the same key had made it."""

    id_task: int
    items: int
    is_new: bool
    note: str | None = None


class ChangedOut(_Out):
    """A task's status after the change, and how many items were moved."""

    id_task: int
    status: TaskStatusName
    items: int


class ItemCounts(_Out):
    """How many items stand how."""

    pending: int
    in_progress: int
    deferred: int
    processed: int
    error: int
    cancelled: int


class ErrorExample(_Out):
    """The first item of a group, and its own message."""

    id_task_item: int
    message: str


class ErrorGroupOut(_Out):
    """Items that failed, or wait to be tried again, for one kind of reason."""

    status: ItemStatusName
    kind: str
    items: int
    example: ErrorExample


class AfterOut(_Out):
    """A task that this one waits for; without a status it is not there any more."""

    id_task: int
    needs: str
    status: TaskStatusName | None
    met: bool


class StepsOut(_Out):
    """How far items in progress have come that take several calls each."""

    items: int
    done: int
    total: int


class TaskOut(_Out):
    """A task as `ai-worker status ID --json` prints it. `counts_at_least` names counts of a list that end at 1001."""

    id_task: int
    status: TaskStatusName
    items: ItemCounts
    records_processed: int
    records_failed: int
    tokens_input: int
    tokens_output: int
    cost: Usd | None
    started_at: Moment | None
    finished_at: Moment | None
    status_reason: str | None
    task_type: str
    model: str
    model_stopped: str | None
    description: str
    queue: str
    priority: int
    max_attempts: int
    budget: Usd | None
    reserved: Usd | None
    resume_at: Moment | None
    fallbacks: list[str]
    after: list[AfterOut]
    steps: StepsOut | None
    created_at: Moment
    scheduled_at: Moment | None
    rate: float | None
    eta_seconds: float | None
    errors: list[ErrorGroupOut]
    counts_at_least: list[str] = []


class TasksOut(_Out):
    """A page of tasks, the newest first. `next` is the address of the page behind it, as in the header Link."""

    tasks: list[TaskOut]
    next: str | None


class FileOut(_Out):
    """A picture of an item; `url` gives its bytes."""

    position: int
    mime_type: str
    size: int
    sha256: str
    width: int | None
    height: int | None
    url: str


class ItemOut(_Out):
    """An item as it stands. `text_corrected` is the main result, `result` the whole structured answer."""

    id_task_item: int
    id_task: int
    status: ItemStatusName
    external_key: str | None
    context: dict[str, Any]
    context_key: str | None
    text_original: str
    text_corrected: str | None
    change_summary: str | None
    result: dict[str, Any]
    tokens_input: int
    tokens_output: int
    cost: Usd | None
    error_kind: str | None
    error_message: str | None
    finished_at: Moment | None
    review: ReviewName
    text_reviewed: str | None
    reviewed_by: str | None
    reviewed_at: Moment | None
    files: list[FileOut]


class ItemsOut(_Out):
    """A page of a task's items by their ids. `next` is the address of the page behind it, as in the header Link."""

    items: list[ItemOut]
    next: str | None


class ReviewedOut(_Out):
    """What stands now."""

    id_task_item: int
    review: ReviewName
    by: str


class PromptOut(_Out):
    """A prompt that would be sent, or why the item would end in ERROR."""

    id_task: int
    id_task_item: int
    model: str | None = None
    system: str | None = None
    user: str | None = None
    tokens_input: int | None = None
    tokens_output: int | None = None
    cost: Usd | None = None
    error: str | None = None


class PreviewOut(_Out):
    """What a run would send, roughly, and the first prompts. `is_cut` says that only so many items were looked at."""

    dry_run: Literal[True] = True
    items: int
    calls: int
    twins: int
    tokens_input: int
    tokens_output: int
    cost: Usd | None
    stopped_models: list[str]
    prompts: list[PromptOut]
    is_cut: bool


class RunOut(_Out):
    """A run of `POST /task/run`. It is a process of its own, which goes on when this server ends; what it leaves any worker does.

    `state`: `requested`, `running`, `ended` (with `exit_code` and `summary`), or `died`.
    """

    id_run_request: int
    state: Literal["requested", "running", "ended", "died"]
    task: int | None
    task_item: int | None
    max_item: int | None
    host: str | None
    pid: int | None
    id_worker: int | None
    exit_code: int | None
    summary: dict[str, int] | None
    message: str | None
    created_at: Moment
    started_at: Moment | None
    ended_at: Moment | None
    note: str | None = None


class ModelOut(_Out):
    """A model with its limits and what it has used on this UTC day; of its key nothing is known here."""

    name: str
    is_active: bool
    stopped_kind: str | None
    requests_per_minute: int | None
    tokens_per_minute: int | None
    is_learnt: bool
    in_flight: int
    max_in_flight: int | None
    attempts: int
    tokens: int
    cost: Usd | None
    budget_per_day: Usd | None


class WorkerOut(_Out):
    """A worker process: alive, draining, late, lost or ended."""

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
    started_at: Moment
    ended_at: Moment | None
    silent_seconds: float


class ScheduleOut(_Out):
    """A task that comes again and again; `message` says why it does not, where it does not."""

    name: str
    cron: str
    time_zone: str
    is_active: bool
    model: str
    task_type: str
    description: str
    queue: str
    items: int
    next_at: Moment | None
    last_due_at: Moment | None
    last_task: int | None
    message: str | None


class TokenOut(_Out):
    """A token, without what opens anything."""

    name: str
    scopes: list[str]
    is_valid: bool
    created_at: Moment
    expire_at: Moment | None
    last_used_at: Moment | None
    revoked_at: Moment | None


TASK_STATUSES: Final = {each.name: each for each in TaskStatus}
ITEM_STATUSES: Final = {each.name: each for each in ItemStatus}
