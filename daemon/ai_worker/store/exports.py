"""Exports: accepted results go back to the rows that they came from.

Each row is guarded by the text that it must still hold: the item's original, or what was written last. The source's transaction
is committed first, its audit second. A run that is killed between the two has written rows that the audit does not know of; the
next one finds them holding the new text, and writes the audit alone. So each row is written once, however often a run is killed,
and a row that somebody else has changed is left alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from ai_worker.db import Database, Row, Transaction
from ai_worker.errors import UsageError
from ai_worker.store.source_table import Change, Columns, ExportOutcome, SourceTable
from ai_worker.store.tasks import no_task

LARGEST_BATCH: Final = 1000
_BATCH_BYTES: Final = 4_000_000  # of text in one transaction, but for a single row
_LONGEST_MESSAGE: Final = 1000  # characters of task_item_export.message
_DONE: Final = frozenset({ExportOutcome.WRITTEN, ExportOutcome.UNCHANGED})


@dataclass(frozen=True, slots=True)
class Origin:
    """Where the items of a task came from. `url` is without a password; None: AI Worker's own server and user."""

    url: str | None
    columns: Columns


@dataclass(frozen=True, slots=True)
class Exported:
    """What became of an item. `is_news` is False when an earlier run had done it; `message` is the source's, for FAILED."""

    id_task_item: int
    external_key: str | None
    outcome: ExportOutcome
    message: str | None = None
    is_news: bool = True


class Exports:
    """Writes accepted results back."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def origin(self, id_task: int) -> Origin:
        """Where a task was imported from. Raises UsageError when it was not, or when the import has not finished."""
        rows = self._db.query("source_of_task", {"id_task": id_task})
        if not rows:
            raise no_task(id_task)
        row = rows[0]
        if row["table_name"] is None:
            raise UsageError(
                f"task {id_task} was not imported: there is no table to write to; `ai-worker results {id_task}` gives its results"
            )
        if row["finished_at"] is None:
            raise UsageError(f"task {id_task} is still being imported; `ai-worker import` with the same --key goes on with it")
        return Origin(row["url"], Columns(row["table_name"], row["key_column"], row["text_column"]))

    def run(self, id_task: int, source: SourceTable, by: str, *, size: int = 200, dry_run: bool = False) -> Iterator[Exported]:
        """Writes what was accepted, `size` rows in a transaction; what became of each item, as it is known.

        `by` is for the audit. With `dry_run` nothing is written anywhere, and the outcomes are what they would be; which rows the
        source will refuse it cannot tell.
        """
        after = 0
        while rows := self._db.query("accepted_items", {"id_task": id_task, "after": after, "size": size}):
            after = rows[-1]["id_task_item"]
            for batch in _bounded(rows):
                yield from self._batch(id_task, source, by, batch, dry_run)

    def _batch(self, id_task: int, source: SourceTable, by: str, rows: Sequence[Row], dry_run: bool) -> list[Exported]:
        results: list[Exported] = []
        left: list[Row] = []
        for row in rows:
            is_done = is_written(row)
            if is_done or row["target"] is None:
                outcome = ExportOutcome(row["outcome"]) if is_done else ExportOutcome.EXPIRED
                results.append(Exported(row["id_task_item"], row["external_key"], outcome, is_news=not is_done))
            else:
                left.append(row)
        if not left:
            return results
        texts = dict(self._db.transaction(partial(_texts, [row["id_task_item"] for row in left])))
        entries: list[_Entry] = []
        open_: list[_Entry] = []
        for row in left:
            text = texts.get(row["id_task_item"])
            if text is None:
                continue  # taken back since the page was read
            change = Change(
                row["external_key"] or "", text, row["written"] or row["original"], hashlib.sha256(text.encode()).digest()
            )
            entry = _Entry(row["id_task_item"], row["external_key"], change)
            entries.append(entry)
            if entry.external_key is None:
                continue
            if change.before == change.after:
                entry.outcome = ExportOutcome.UNCHANGED
            else:
                open_.append(entry)
        do = source.foretell if dry_run else source.write
        for entry, (outcome, message) in zip(open_, do([entry.change for entry in open_]) if open_ else [], strict=True):
            entry.outcome, entry.message = outcome, message and message[:_LONGEST_MESSAGE]
        if not dry_run:
            self._db.transaction(partial(_record, id_task, by, entries))
        return results + [entry.result() for entry in entries]


def is_written(row: Row) -> bool:
    """Whether the source has what this row of `accepted_items` stands for, or has had what was cleared since."""
    return row["outcome"] in _DONE and row["target"] in {row["hash_after"], None}


@dataclass(slots=True)
class _Entry:
    id_task_item: int
    external_key: str | None
    change: Change
    outcome: ExportOutcome = ExportOutcome.MISSING  # without a key there is no row to look for
    message: str | None = None

    def result(self) -> Exported:
        return Exported(self.id_task_item, self.external_key, self.outcome, self.message)

    def audit(self) -> dict[str, Any]:
        return {
            "outcome": self.outcome,
            "hash_before": self.change.before,
            "hash_after": self.change.after,
            "message": self.message,
        }


def _texts(items: list[int], tx: Transaction) -> Sequence[tuple[Any, ...]]:
    return tx.tuples("accepted_texts", {"items": items})


def _record(id_task: int, by: str, entries: Sequence[_Entry], tx: Transaction) -> None:
    """Writes the audit: what is news in it. A conflict that was told before, and a COMMIT that had landed, are none."""
    tx.query("lock_source", {"id_task": id_task})  # two exports of a task tell the same things one after the other
    latest = {
        row.pop("id_task_item"): row for row in tx.query("latest_exports", {"items": [each.id_task_item for each in entries]})
    }
    news = [
        {"id_task": id_task, "id_task_item": entry.id_task_item, "exported_by": by, **entry.audit()}
        for entry in entries
        if latest.get(entry.id_task_item) != entry.audit()
    ]
    if news:
        tx.execute_many("insert_exports", news)


def _bounded(rows: Sequence[Row]) -> Iterator[list[Row]]:
    batch: list[Row] = []
    size = 0
    for row in rows:
        if batch and size + row["size"] > _BATCH_BYTES:
            yield batch
            batch, size = [], 0
        batch.append(row)
        size += row["size"]
    if batch:
        yield batch
