"""Runs that were asked for over HTTP. Each is an `ai-worker run` in a process of its own, which does what its row says."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from ai_worker.db import Database
from ai_worker.errors import NotFound

_LONGEST_MESSAGE: Final = 1000


@dataclass(frozen=True, slots=True)
class RunRequest:
    """A run as it stands. `state` is requested, running, ended, or died: without a word of its own about its end."""

    id_run_request: int
    state: str
    task: int | None
    task_item: int | None
    max_item: int | None
    host: str | None
    pid: int | None
    id_worker: int | None
    exit_code: int | None
    summary: Mapping[str, int] | None
    message: str | None
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None


class RunRequests:
    """The row's life: asked for by the web, begun and ended by the run."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def add(self, id_api_token: int | None, host: str, task: int | None, task_item: int | None, max_item: int | None) -> int:
        """Writes down what is to be done; its id."""
        values: dict[str, Any] = {"id_api_token": id_api_token, "max_items": max_item, "host": host[:255]}
        values["filters"] = json.dumps({"task": task, "task_item": task_item})
        return self._db.transaction(lambda tx: tx.insert("insert_run_request", values))

    def get(self, id_run_request: int) -> RunRequest:
        """One run. Raises NotFound."""
        rows = self._db.query("run_request", {"id_run_request": id_run_request})
        if not rows:
            raise NotFound(f"no run {id_run_request}")
        row = dict(rows[0])
        filters, summary = json.loads(row.pop("filters")), row.pop("summary")
        named = {"task": filters.get("task"), "task_item": filters.get("task_item"), "max_item": row.pop("max_items")}
        return RunRequest(**row, **named, summary=json.loads(summary) if summary else None)

    def note_process(self, id_run_request: int, pid: int) -> None:
        """Which process does it."""
        self._db.execute("note_run_process", {"id_run_request": id_run_request, "pid": pid})

    def begin(self, id_run_request: int, id_worker: int) -> None:
        """Its worker has begun."""
        self._db.execute("begin_run_request", {"id_run_request": id_run_request, "id_worker": id_worker})

    def end(
        self, id_run_request: int, exit_code: int | None, summary: Mapping[str, int] | None = None, message: str | None = None
    ) -> None:
        """It has ended, None: without an exit code of its own. Who says so later changes nothing."""
        values = {"exit_code": exit_code, "summary": json.dumps(summary) if summary else None}
        values["message"] = None if message is None else message[:_LONGEST_MESSAGE]
        self._db.execute("end_run_request", {"id_run_request": id_run_request, **values})
