"""What `store.browsing` is asked for, and gives: values for pages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from typing import Any, Final, NamedTuple

from ai_worker.models import ItemStatus, ReviewStatus, TaskStatus
from ai_worker.store.files import StoredFile
from ai_worker.store.reports import TaskReport

SHOWN_CHARACTERS: Final = 100_000  # of a text; longer ones are shown, and edited, elsewhere


class TaskSearch(NamedTuple):
    """Which tasks; None: any. `text` is looked for in instructions and submit keys, and, being a number, is a task's own."""

    text: str | None = None
    status: TaskStatus | None = None
    task_type: str | None = None
    model: str | None = None
    queue: str | None = None


class ItemSearch(NamedTuple):
    """Which items of a task; None: any. A review implies PROCESSED, a kind of error ERROR where no status is given."""

    status: ItemStatus | None = None
    review: ReviewStatus | None = None
    kind: str | None = None

    @property
    def effective_status(self) -> ItemStatus | None:
        """The status that it comes to."""
        if self.status is None and self.review is not None:
            return ItemStatus.PROCESSED
        return ItemStatus.ERROR if self.status is None and self.kind is not None else self.status


@dataclass(frozen=True, slots=True)
class Counted:
    """A task whose items were counted as far as it is cheap: of the statuses in `at_least` there are so many, or more."""

    task: TaskReport
    at_least: frozenset[ItemStatus]

    @property
    def is_exact(self) -> bool:
        return not self.at_least

    def completed(self, counts: Mapping[ItemStatus, int]) -> Counted:
        """The same with `counts` of a moment ago in place of what was not counted to its end.

        What has been finished since is no longer pending: the task's own counters say how much that is.
        """
        if self.is_exact:
            return self
        items = {status: max(counts[status], self.task.items[status]) for status in self.at_least}
        if ItemStatus.PENDING in items:
            standing = {**self.task.items, **items}
            others = sum(standing[status] for status in ItemStatus if status is not ItemStatus.PENDING)
            items[ItemStatus.PENDING] = max(self.task.items[ItemStatus.PENDING], sum(counts.values()) - others)
        return Counted(replace(self.task, items={**self.task.items, **items}), frozenset())


class TaskPage(NamedTuple):
    """Tasks that were found. `before` is where the search goes on, None at its end; `is_cut`: it ended for its length."""

    tasks: list[Counted]
    before: int | None
    is_cut: bool


class TaskWords(NamedTuple):
    """What was asked for beside the numbers."""

    parameters: Mapping[str, Any]
    lane: str
    pack: int
    cache_seconds: int
    result_seconds: int | None
    personal_data: str
    expire_at: datetime | None
    submit_key: str | None
    prompt: str | None
    group: str | None
    source: str | None


class ItemLine(NamedTuple):
    """An item in a list: the beginnings of its texts; `ratio` is the share of its words that a correction has changed."""

    id_task_item: int
    external_key: str | None
    status: ItemStatus
    attempt: int
    error_kind: str | None
    error_message: str | None
    cost: Decimal | None
    text_original: str
    text_corrected: str | None
    review: ReviewStatus
    reviewed_by: str | None
    ratio: float | None


class ItemPage(NamedTuple):
    """Items that were found; `after` and `is_cut` as in `TaskPage`."""

    items: list[ItemLine]
    after: int | None
    is_cut: bool


class AttemptLine(NamedTuple):
    """An attempt that ended, or a step of one. `latency_ms` is how long its calls took."""

    attempt: int
    outcome: str
    error_kind: str | None
    error_message: str | None
    tokens_input: int
    tokens_output: int
    tokens_cached: int
    cost: Decimal | None
    latency_ms: int | None
    finished_at: datetime
    lane: str
    step: int | None
    model: str | None


class ReviewLine(NamedTuple):
    """What somebody has said of an item."""

    review: ReviewStatus
    text: str | None
    note: str | None
    by: str
    at: datetime


@dataclass(frozen=True, slots=True)
class FullItem:
    """One item with all of its history. Of texts the first SHOWN_CHARACTERS; `*_length` is how many there are.

    `context` and `result` are None where they are too large to be shown.
    """

    id_task_item: int
    id_task: int
    status: ItemStatus
    task_status: TaskStatus
    task_type: str
    model: str
    max_attempts: int
    attempt: int
    lost_count: int
    external_key: str | None
    context_key: str | None
    error_kind: str | None
    error_message: str | None
    created_at: datetime
    finished_at: datetime | None
    available_at: datetime | None
    tokens_input: int
    tokens_output: int
    cost: Decimal | None
    steps_done: int
    steps_total: int
    text_original: str
    original_length: int
    text_corrected: str | None
    corrected_length: int | None
    text_reviewed: str | None
    reviewed_length: int | None
    context: Mapping[str, Any] | None
    result: Mapping[str, Any] | None
    change_summary: str | None
    review: ReviewStatus
    reviewed_by: str | None
    reviewed_at: datetime | None
    attempts: list[AttemptLine]
    reviews: list[ReviewLine]
    files: list[StoredFile]

    @property
    def is_whole(self) -> bool:
        """Whether all of its texts is here."""
        return max(self.original_length, self.corrected_length or 0, self.reviewed_length or 0) <= SHOWN_CHARACTERS


class ToReview(NamedTuple):
    """The next item to be reviewed; without one, `goes_on` is where the search would go on, None at the end."""

    id_task_item: int | None
    goes_on: int | None
