"""Reviews: a person accepts or rejects what a model made of an item, or puts a text of their own in its place.

The item carries the latest review, `task_item_review` all of them. Only PROCESSED items can be reviewed. An item that is
processed anew loses its review on the way back (`Tasks.retry`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Final, NamedTuple

from ai_worker.db import Database, Row, Transaction
from ai_worker.errors import NotFound, UsageError
from ai_worker.models import ItemStatus, ReviewStatus
from ai_worker.store.tasks import no_task

LONGEST_NAME: Final = 190  # characters of task_item.reviewed_by
LONGEST_NOTE: Final = 1000  # characters of task_item_review.note
LONGEST_TEXT: Final = 16_777_215  # bytes of task_item.text_reviewed

_BATCH: Final = 500  # items that are locked at once
_PAGE: Final = 100  # items whose texts are in memory at once


class Span(NamedTuple):
    """Items from one id to another, both among them; a single item where the two are equal."""

    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Review:
    """What a person says of an item.

    `text` takes the place of the model's result, for ACCEPTED only; None: as the model has it. UNREVIEWED takes back what was
    said before. Raises UsageError for what cannot be stored.
    """

    verdict: ReviewStatus
    by: str
    text: str | None = None
    note: str | None = None

    def __post_init__(self) -> None:
        if not 0 < len(self.by) <= LONGEST_NAME:
            raise UsageError(f"the reviewer's name must have 1 to {LONGEST_NAME} characters")
        if self.note is not None and len(self.note) > LONGEST_NOTE:
            raise UsageError(f"the note is longer than {LONGEST_NOTE:,} characters")
        if self.text is None:
            return
        if self.verdict is not ReviewStatus.ACCEPTED:
            raise UsageError("only who accepts an item can give it a text")
        if not self.text:
            raise UsageError("the text is empty; reject the item when nothing is to be kept of it")
        if len(self.text.encode("utf-8", "replace")) > LONGEST_TEXT:
            raise UsageError(f"the text is longer than {LONGEST_TEXT:,} bytes")


@dataclass(frozen=True, slots=True)
class Reviewed:
    """A processed item as a reviewer sees it."""

    id_task_item: int
    external_key: str | None
    text_original: str
    text_corrected: str | None
    change_summary: str | None
    review: ReviewStatus
    text_reviewed: str | None
    reviewed_by: str | None
    reviewed_at: datetime | None


class Reviews:
    """What reviewers ask for and say."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def items(
        self, id_task: int, only: ReviewStatus | None = ReviewStatus.UNREVIEWED, *, after: int = 0, limit: int = _PAGE
    ) -> list[Reviewed]:
        """The next `limit` processed items of a task behind the item `after`, by their ids: those reviewed so, or all.

        A page that is not full is the last one. Raises UsageError when there is no such task.
        """
        if not self._db.query("task_state", {"id_task": id_task}):
            raise no_task(id_task)
        where = {"id_task": id_task, "review_status_id": only, "after": after, "size": limit}
        return [_reviewed(row) for row in self._db.query("items_to_review", where)]

    def item(self, id_task_item: int) -> Reviewed:
        """One processed item. Raises UsageError when there is none, or when it has no result."""
        rows = self._db.query("item_to_review", {"id_task_item": id_task_item})
        if not rows:
            raise NotFound(f"no item {id_task_item}")
        _refuse_unprocessed(id_task_item, rows[0]["status_id"])
        return _reviewed(rows[0])

    def review(self, spans: Sequence[Span], review: Review, *, id_task: int | None = None) -> int:
        """Gives the items of `spans` this review; to how many.

        `id_task` is the task that they must be of: then a span of several ids means those among them that are the task's. Raises
        UsageError, having changed nothing, when a single item is not there, when none of a span is, or when one is not PROCESSED.
        More than 500 items are several transactions: cut short, the verb is simply called again.
        """
        if review.text is not None and (len(spans) != 1 or spans[0].first != spans[0].last):
            raise UsageError("a text goes to one item")
        for span in spans:
            if not sum(len(batch) for batch in self._batches(span, id_task)):
                if id_task is not None and not self._db.query("task_state", {"id_task": id_task}):
                    raise no_task(id_task)
                whose, remedy = (
                    ("", "") if id_task is None else (f"task {id_task} has ", f"; `ai-worker results {id_task}` names them")
                )
                what = f"item {span.first}" if span.first == span.last else f"item from {span.first} to {span.last}"
                raise UsageError(f"{whose}no {what}{remedy}")
        batches = (batch for span in spans for batch in self._batches(span, id_task))
        return sum(self._db.transaction(partial(_review, batch, review, False)) for batch in batches)

    def review_rest(self, id_task: int, review: Review) -> int:
        """Gives all processed items that nobody has reviewed yet this review, in batches; to how many."""
        if review.text is not None:
            raise UsageError("a text goes to one item")
        total = after = 0
        while True:
            rows = self._db.query("unreviewed_items", {"id_task": id_task, "after": after, "size": _BATCH})
            if not rows and not self._db.query("task_state", {"id_task": id_task}):
                raise no_task(id_task)
            items = [row["id_task_item"] for row in rows]
            total += self._db.transaction(partial(_review, items, review, True)) if items else 0
            if len(items) < _BATCH:
                return total
            after = items[-1]

    def _batches(self, span: Span, id_task: int | None) -> Iterator[list[int]]:
        after = span.first - 1
        while True:
            where = {"id_task": id_task, "after": after, "last": span.last, "size": _BATCH}
            rows = self._db.query("items_of_span", where)
            for row in rows:
                _refuse_unprocessed(row["id_task_item"], row["status_id"])
            if rows:
                yield [row["id_task_item"] for row in rows]
            if len(rows) < _BATCH:
                return
            after = rows[-1]["id_task_item"]


def _review(items: list[int], review: Review, only_unreviewed: bool, tx: Transaction) -> int:
    """Reviews items in one transaction, the items and the record of it."""
    standing = tx.query("lock_to_review", {"items": items})
    wanted = (review.verdict, review.text, None if review.verdict is ReviewStatus.UNREVIEWED else review.by)
    chosen = []
    for row in standing:
        _refuse_unprocessed(row["id_task_item"], row["status_id"])
        # After a COMMIT whose answer was lost, what stands there so is from the run before.
        if tx.in_doubt and (row["review_status_id"], row["text_reviewed"], row["reviewed_by"]) == wanted:
            continue
        if row["is_cleared"] and review.verdict is ReviewStatus.ACCEPTED and review.text is None:
            raise UsageError(
                f"item {row['id_task_item']} has no result any more: its time to live is over; only a text of your own can be "
                "accepted in its place"
            )
        if not only_unreviewed or row["review_status_id"] == ReviewStatus.UNREVIEWED:
            chosen.append(row["id_task_item"])
    if chosen:
        values = {"review_status_id": review.verdict, "text_reviewed": review.text, "reviewed_by": review.by, "note": review.note}
        tx.execute("review_items", {**values, "items": chosen})
        tx.execute("record_reviews", {**values, "items": chosen})
    return len(standing) if tx.in_doubt else len(chosen)


def _refuse_unprocessed(id_task_item: int, status_id: int) -> None:
    status = ItemStatus(status_id)
    if status is not ItemStatus.PROCESSED:
        raise UsageError(f"item {id_task_item} is {status.name}; only a PROCESSED item can be reviewed")


def _reviewed(row: Row) -> Reviewed:
    return Reviewed(
        row["id_task_item"],
        row["external_key"],
        row["text_original"],
        row["text_corrected"],
        row["change_summary"],
        ReviewStatus(row["review_status_id"]),
        row["text_reviewed"],
        row["reviewed_by"],
        row["reviewed_at"],
    )
