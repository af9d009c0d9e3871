"""Results for those who wait for them: which of many items have ended, in one look, and what came out."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any, Final

from ai_worker.db import Database, Row
from ai_worker.errors import UsageError
from ai_worker.models import ItemStatus, ReviewStatus
from ai_worker.store.files import Files, StoredFile

ENDED: Final = frozenset({ItemStatus.PROCESSED, ItemStatus.ERROR, ItemStatus.CANCELLED})
_LOOK: Final = 1000  # items asked about in one statement
_PAGE: Final = 250  # rows in memory at a time: texts may be long


@dataclass(frozen=True, slots=True)
class Finished:
    """An item as it stands, usually at its end.

    `text` is the main result, `summary` what was done in one line, `data` the whole structured answer, `cost` in USD (None where
    no price is known). `review` says what a person made of it, `text_reviewed` what that person wrote instead. Of one in ERROR
    `error_kind` and `error_message` say why. Of one whose result was to be kept for a while, and is cleared, `text`, `summary`,
    `data` and `files` are empty. Times are in UTC without a zone.
    """

    id_task_item: int
    id_task: int
    status: ItemStatus
    key: str | None
    context: Mapping[str, Any]
    context_key: str | None
    text_original: str
    text: str | None
    summary: str | None
    data: Mapping[str, Any]
    tokens_input: int
    tokens_output: int
    cost: Decimal | None
    error_kind: str | None
    error_message: str | None
    finished_at: datetime | None
    review: ReviewStatus
    text_reviewed: str | None
    reviewed_by: str | None
    reviewed_at: datetime | None
    files: tuple[StoredFile, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether there is a result."""
        return self.status is ItemStatus.PROCESSED


@dataclass(frozen=True, slots=True)
class ModelName:
    """What an application may know of a model."""

    id_ai_model: int
    name: str
    is_active: bool


class Answers:
    """Reads only, and never with a lock."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def ended(self, items: Collection[int]) -> dict[int, Finished | None]:
        """Those of the items that have ended, and None for those that are not there (any more). What is still open is left out.

        One look-up of the primary key for each thousand items, and a second statement where some have ended.
        """
        found: dict[int, Finished | None] = {}
        for some in _pages(list(items), _LOOK):
            states = {row["id_task_item"]: ItemStatus(row["status_id"]) for row in self._db.query("item_states", {"items": some})}
            found |= dict.fromkeys(each for each in some if each not in states)
            if ended := [each for each, status in states.items() if status in ENDED]:
                # One that was brought back in between is still waited for.
                found |= {each.id_task_item: each for each in self.items(ended) if each.status in ENDED}
        return found

    def items(self, items: Collection[int]) -> Iterator[Finished]:
        """Items as they stand, in the order of their keys, a page in memory at a time; those that are not there are left out."""
        for some in _pages(sorted(items), _PAGE):
            rows = self._db.query("item_results", {"items": some})
            with_files = [row["id_task_item"] for row in rows if row["files"]]
            files = Files(self._db).of_items(with_files)
            yield from (_finished(row, tuple(files.get(row["id_task_item"], ()))) for row in rows)

    def ids(self, id_task: int, only: ItemStatus | None = None) -> list[int]:
        """The ids of a task's items, all or those in one status, in order; eight bytes each and the object around them."""
        where = {"id_task": id_task, "any_status": only is None, "status_id": only}
        return [row["id_task_item"] for row in self._db.query("ids_of_task", where)]

    def page(self, id_task: int, only: ItemStatus | None = None, *, after: int = 0, size: int = 50) -> list[Finished]:
        """The next items of a task behind the item `after`, by their ids: all, or those in one status."""
        where = {"id_task": id_task, "after": after, "size": size}
        rows = (
            self._db.query("next_items", where)
            if only is None
            else self._db.query("items_in_status", {**where, "status_id": only})
        )
        return list(self.items([row["id_task_item"] for row in rows]))

    def models(self) -> list[ModelName]:
        """All models, the oldest first, without what an application must not see."""
        return [ModelName(row["id_ai_model"], row["name"], bool(row["is_active"])) for row in self._db.query("model_names")]

    def chain(self, names: Sequence[str]) -> tuple[int, ...]:
        """The ids of models by their names (or ids), in order; with no name, the only one there is.

        Raises UsageError where there is no such model, it is switched off, or named twice.
        """
        known = self.models()
        if not names:
            active = [each for each in known if each.is_active]
            if len(active) != 1:
                raise UsageError(f"name one of the models: {', '.join(each.name for each in active) or 'there is none yet'}")
            return (active[0].id_ai_model,)
        by_name = {each.name: each for each in known} | {str(each.id_ai_model): each for each in known}
        for name in names:
            if name not in by_name:
                raise UsageError(f"no model {name!r}; known ones: {', '.join(each.name for each in known) or 'none'}")
            if not by_name[name].is_active:
                raise UsageError(f"model {name!r} is switched off")
        chain = tuple(by_name[name].id_ai_model for name in names)
        if len(set(chain)) < len(chain):
            raise UsageError(f"a model is named twice: {', '.join(names)}")
        return chain


def _pages(items: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _finished(row: Row, files: tuple[StoredFile, ...]) -> Finished:
    return Finished(
        id_task_item=row["id_task_item"],
        id_task=row["id_task"],
        status=ItemStatus(row["status_id"]),
        key=row["external_key"],
        context=json.loads(row["context"]) if row["context"] else {},
        context_key=row["context_key"],
        text_original=row["text_original"],
        text=row["text_corrected"],
        summary=row["change_summary"],
        data=json.loads(row["result"]) if row["result"] else {},
        tokens_input=row["tokens_input"],
        tokens_output=row["tokens_output"],
        cost=row["cost"],
        error_kind=row["error_kind"],
        error_message=row["error_message"],
        finished_at=row["finished_at"],
        review=ReviewStatus(row["review_status_id"]),
        text_reviewed=row["text_reviewed"],
        reviewed_by=row["reviewed_by"],
        reviewed_at=row["reviewed_at"],
        files=files,
    )
