"""The results of a task's items, for people and for files. Reads only, and never with a lock."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from itertools import islice
from typing import Any, Final, NamedTuple

from ai_worker.db import Database, Row
from ai_worker.models import ItemStatus, ReviewStatus
from ai_worker.store.files import Files, StoredFile

_PAGE: Final = 250  # rows in memory at a time: texts may be long


class ItemStep(NamedTuple):
    """A finished step of an item, or part of its long text (`part` from 1; 0: the whole). `model` is None where it is gone."""

    step: int
    part: int
    text: str
    result: Mapping[str, Any]
    finished_at: datetime
    model: str | None
    tokens_input: int
    tokens_output: int
    cost: Decimal | None


@dataclass(frozen=True, slots=True)
class ItemResult:
    """One item with its result. `error` is why it failed or waits, None where nothing is wrong."""

    id_task_item: int
    external_key: str | None
    status: ItemStatus
    text_original: str
    text_corrected: str | None
    change_summary: str | None
    error: str | None
    tokens_input: int
    tokens_output: int
    cost: Decimal | None
    context: Mapping[str, Any]
    review: ReviewStatus
    text_reviewed: str | None
    reviewed_by: str | None
    reviewed_at: datetime | None
    files: tuple[StoredFile, ...] = ()


class Results:
    """What became of items."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def of_task(self, id_task: int, only: ItemStatus | None = None, *, thumbnails: bool = False) -> Iterator[ItemResult]:
        """The items of a task in the order of their keys, all or those in one status, streamed: a page in memory at a time; with
        their files, and these with their thumbnails where that is asked for.

        No long transaction: what changes while it is read appears as it stands when its page is read, and only once.
        """
        name = "results_of_task" if only is None else "results_of_status"
        parameters = {"id_task": id_task, "status_id": only}
        rows = self._db.pages(name, parameters, key="id_task_item", size=_PAGE)
        files = Files(self._db)
        while page := list(islice(rows, _PAGE)):
            found = files.of_items([row["id_task_item"] for row in page], thumbnails=thumbnails)
            for row in page:
                result = _result(row)
                own = found.get(result.id_task_item)
                yield replace(result, files=tuple(own)) if own else result

    def steps(self, items: Sequence[int]) -> dict[int, list[ItemStep]]:
        """The finished steps of these items that are still there, in order."""
        found: dict[int, list[ItemStep]] = {}
        for row in self._db.query("steps_of_items", {"items": items}) if items else ():
            found.setdefault(row["id_task_item"], []).append(_step(row))
        return found


def _step(row: Row) -> ItemStep:
    return ItemStep(
        step=row["step"],
        part=row["part"],
        text=row["text"] or "",
        result=json.loads(row["result"]),
        finished_at=row["finished_at"],
        model=row["model"],
        tokens_input=row["tokens_input"] or 0,
        tokens_output=row["tokens_output"] or 0,
        cost=row["cost"],
    )


def _result(row: Row) -> ItemResult:
    return ItemResult(
        id_task_item=row["id_task_item"],
        external_key=row["external_key"],
        status=ItemStatus(row["status_id"]),
        text_original=row["text_original"],
        text_corrected=row["text_corrected"],
        change_summary=row["change_summary"],
        error=": ".join(filter(None, (row["error_kind"], row["error_message"]))) or None,
        tokens_input=row["tokens_input"],
        tokens_output=row["tokens_output"],
        cost=row["cost"],
        context=json.loads(row["context"]) if row["context"] else {},
        review=ReviewStatus(row["review_status_id"]),
        text_reviewed=row["text_reviewed"],
        reviewed_by=row["reviewed_by"],
        reviewed_at=row["reviewed_at"],
    )
