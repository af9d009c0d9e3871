"""Imports: rows of a source table become the items of a task, page by page.

The task is made first and PAUSED, so that nothing begins, ends or follows it before it is whole. Each page's items and how far
the import has come are one transaction; so an import that was killed goes on where it stood, and no row is taken twice.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from ai_worker.database_url import parse_database_url
from ai_worker.db import Database, Row, Transaction
from ai_worker.errors import DatabaseError, UsageError
from ai_worker.models import TaskStatus
from ai_worker.store.new_tasks import NewTask, batches, write_task
from ai_worker.store.source_table import Page, SourceTable
from ai_worker.store.tasks import Tasks

BEING_IMPORTED: Final = "being imported"  # task.status_reason
_DUPLICATE: Final = 1062


@dataclass(frozen=True, slots=True)
class Imported:
    """A task and the rows that it has now. `was_finished`: an earlier import had finished it, and nothing was added.

    `id_task` is None when no row had any text: no task was made.
    """

    id_task: int | None
    items: int
    skipped: int
    was_finished: bool = False


class Imports:
    """Makes tasks of the rows of other tables."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def run(
        self,
        task: NewTask,
        source: SourceTable,
        where: str | None,
        url: str | None,
        progress: Callable[[int], None] = lambda _: None,
    ) -> Imported:
        """Makes the task with an item for each row, or goes on with it where an import of the same `submit_key` was cut short.

        `url` is where the table is, without the password; None: on AI Worker's own server. `progress` hears how many items there
        are so far. Raises UsageError when the rows cannot be read or kept, when the key belongs to something else, or when
        somebody else goes on with the same import now.
        """
        packet = Tasks(self._db).packet()
        source.check(where, packet)
        key = task.submit_key or str(uuid.uuid4())
        standing = self._standing(key, source, where, url) if task.submit_key else None
        if standing and standing["finished_at"]:
            return Imported(standing["id_task"], standing["rows_imported"], standing["rows_skipped"], was_finished=True)
        id_task: int | None = standing["id_task"] if standing else None
        through: str | None = standing["imported_through"] if standing else None
        items, skipped = (standing["rows_imported"], standing["rows_skipped"]) if standing else (0, 0)
        for page in source.pages(where, through, packet):
            items, skipped = items + len(page.items), skipped + page.skipped
            if id_task is None and page.items:
                id_task = self._begin(task, key, source, where, url)
            if id_task is not None:
                self._db.transaction(partial(_take, id_task, through, page, items, skipped))
                through = page.through
            progress(items)
        if id_task is not None:
            self._db.transaction(partial(_finish, id_task))
        return Imported(id_task, items, skipped)

    def _standing(self, key: str, source: SourceTable, where: str | None, url: str | None) -> Row | None:
        """How far an earlier import has come."""
        rows = self._db.query("import_of_key", {"submit_key": key})
        if not rows:
            return None
        row = rows[0]
        if row["table_name"] is None:
            raise UsageError(f"--key {key} belongs to task {row['id_task']}, which was not imported")
        then = (row["table_name"], row["key_column"], row["text_column"], row["where_clause"])
        if then != (now := _spelled(source, where)):
            raise UsageError(
                f"--key {key} belongs to task {row['id_task']}, which was imported from {_described(then)}; "
                f"this is {_described(now)}"
            )
        if _server(row["url"]) != _server(url):
            raise UsageError(
                f"--key {key} belongs to task {row['id_task']}, which was imported from another server: "
                f"{row['url'] or 'AI Worker’s own'}; another --key makes another task"
            )
        return row

    def _begin(self, task: NewTask, key: str, source: SourceTable, where: str | None, url: str | None) -> int:
        table, key_column, text_column, clause = _spelled(source, where)
        values = {"url": url, "table_name": table, "key_column": key_column, "text_column": text_column, "where_clause": clause}

        def work(tx: Transaction) -> int:
            if tx.in_doubt and (landed := tx.query("task_of_key", {"submit_key": key})):
                id_task: int = landed[0]["id_task"]
                return id_task
            id_task = write_task(tx, task, key)
            tx.execute("hold_task", {"id_task": id_task, "reason": BEING_IMPORTED})
            tx.execute("insert_source", {"id_task": id_task, **values})
            return id_task

        try:
            return self._db.transaction(work)
        except DatabaseError as error:
            if error.code != _DUPLICATE:
                raise
            raise _imported_elsewhere(f"the task of --key {key}") from None


def _server(url: str | None) -> object:
    """What tells one server from another; None for AI Worker's own. Who logs in there does not matter."""
    if url is None:
        return None
    parsed = parse_database_url(url)
    return parsed.hosts, parsed.unix_socket


def _take(id_task: int, before: str | None, page: Page, items: int, skipped: int, tx: Transaction) -> None:
    """Takes a page: fenced by how far the import had come, so that two of them never take the same rows."""
    if tx.in_doubt and tx.query("lock_source", {"id_task": id_task})[0]["imported_through"] == page.through:
        return  # the earlier run had landed
    for batch in batches(id_task, page.items):
        tx.execute_many("insert_items", batch)
    if [row["status_id"] for row in tx.query("lock_task", {"id_task": id_task})] in ([], [TaskStatus.CANCELLED]):
        raise UsageError(f"task {id_task} was cancelled while it was being imported")
    values = {"id_task": id_task, "before": before, "through": page.through, "items": items, "skipped": skipped}
    if not tx.execute("advance_import", values):
        raise _imported_elsewhere(f"task {id_task}")


def _finish(id_task: int, tx: Transaction) -> None:
    """From here on workers take it; unless somebody has paused, resumed or cancelled it, who then knew what they did."""
    tx.execute("release_task", {"id_task": id_task, "reason": BEING_IMPORTED})
    tx.execute("finish_import", {"id_task": id_task})


def _imported_elsewhere(what: str) -> UsageError:
    return UsageError(f"{what} is being imported by another process right now; what that one has taken is kept")


def _spelled(source: SourceTable, where: str | None) -> tuple[str, str, str, str | None]:
    return source.qualified, source.key, source.columns.text, where


def _described(what: tuple[Any, ...]) -> str:
    table, key, text, where = what
    return f"{table} (key {key}, column {text}, {f'where {where}' if where else 'all rows'})"
