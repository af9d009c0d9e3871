"""What has ended long ago goes: tasks with all that hangs on them, workers, logins, and what else would only grow.

Every step is a transaction of at most a few hundred rows that are named by key, locked, and looked at again; after each comes a
pause as long as it took, so that others have the server for at least half of the time. Cut short, the next run goes on: a task's
row goes after its items, and its counters say at any moment what is left of it. Several runs at once do each other's work, not
harm.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any, Final

from ai_worker.db import Database, Row, Transaction
from ai_worker.models import ItemStatus
from ai_worker.store.counters import Counters
from ai_worker.store.encoding import decimal_text, document
from ai_worker.store.exports import is_written
from ai_worker.store.files import remove_folders, remove_from_folder

ITEMS: Final = 250  # in one transaction; an attempt or two goes with each
ROWS: Final = 500  # of tables whose rows are short
PAGE: Final = 1000  # rows of a look
TASKS: Final = 100  # that may go in one transaction
LONGEST_PAUSE: Final = 1.0  # seconds
MINUTES_SECONDS: Final = 8 * 86_400  # the charts reach back a week
SHORTEST_AGE: Final = 3600
"""Seconds. A worker whose COMMIT was not answered looks for its attempts in the ledger; one thought dead may still hand in."""

_EPOCH: Final = datetime(1970, 1, 1)  # noqa: DTZ001 -- times of the database are UTC without a zone

# A task that has ended and stays, and why.
OPEN: Final = "open"
WAITED_FOR: Final = "waited for"
IN_OPEN_GROUP: Final = "in an open group"
NOT_EXPORTED: Final = "not exported"


@dataclass(slots=True)
class Pruned:
    """What a run has deleted, or would delete: rows by table, and files of a folder.

    `kept` are ended tasks of that age which stay, by the reason. `files_left` lie in a folder that this host was not told of,
    `files_missing` were not in the one that it was told of.
    """

    rows: Counter[str] = field(default_factory=Counter)
    kept: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    files_removed: int = 0
    files_missing: int = 0
    files_left: int = 0


class Pruning:
    """One run. `folder` is where files lie that are not in the database, as far as this host knows.

    `told` is called after every transaction. `pause` waits for so many seconds.
    """

    def __init__(
        self,
        db: Database,
        folder: Path | None = None,
        *,
        told: Callable[[Pruned], None] = lambda _: None,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._db = db
        self._folder = folder
        self._told = told
        self._pause = pause
        self._pruned = Pruned()

    def run(
        self, seconds: int, *, task_types: Collection[str] = (), with_unexported: bool = False, dry_run: bool = False
    ) -> Pruned:
        """Deletes what ended more than `seconds` ago; with `task_types` only tasks of these, and what belongs to them.

        A task stays while it has an open item or batch, while another one that has not ended waits for it, while its group has
        not ended, and, unless `with_unexported`, while it was imported and has accepted results that were not written back.
        With `dry_run` nothing is deleted.
        """
        ages = self._db.query("prune_before", {"seconds": seconds, "minutes_seconds": max(seconds, MINUTES_SECONDS)})[0]
        before: datetime = ages["age"]
        for tasks in self._tasks(before, task_types, with_unexported):
            if dry_run:
                self._count(tasks)
            else:
                self._prune_tasks(tasks, before)
        if task_types:
            return self._pruned
        if dry_run:
            rest = self._db.query("prune_count_rest", {"before": before, "minutes_before": ages["minutes_age"]})[0]
            self._add(rest)
            return self._pruned
        self._prune_groups(before)
        self._prune_workers(before)
        self._prune_fires(before)
        for table, verb in _PLAIN:
            self._prune_plain(table, verb, ages["minutes_age"] if table == "worker_minute" else before)
        self._walk("result_cache", "prune_answers_page", "cache_key", {"before": before}, partial(_prune_answers, before))
        # Keys of attempts begin with the milliseconds since 1970, see `operation_uuid`.
        until = int((before - _EPOCH).total_seconds() * 1000).to_bytes(6, "big") + bytes(10)
        where = {"before": before, "until": until}
        self._walk("task_attempt", "prune_attempts_page", "operation_uuid", where, partial(_prune_attempts, before))
        return self._pruned

    # ----- tasks

    def _tasks(self, before: datetime, task_types: Collection[str], with_unexported: bool) -> Iterator[list[int]]:
        """Tasks to be pruned, a few at a time."""
        after = 0
        while True:
            rows = self._db.query("prune_tasks_page", {"before": before, "after": after, "size": PAGE})
            if not rows:
                return
            after = rows[-1]["id_task"]
            over = [row["id_task"] for row in rows if row["is_over"] and (not task_types or row["task_type"] in task_types)]
            for start in range(0, len(over), TASKS):
                if free := self._free(over[start : start + TASKS], with_unexported):
                    yield free
            if len(rows) < PAGE or not any(row["is_old"] for row in rows):
                return

    def _free(self, tasks: list[int], with_unexported: bool) -> list[int]:
        """Those that nothing keeps; the others are noted."""
        free = []
        for row in sorted(self._db.query("prune_look", {"tasks": tasks}), key=itemgetter("id_task")):
            reason = _reason(row)
            if reason is None and row["has_source"] and not with_unexported and self._has_unexported(row["id_task"]):
                reason = NOT_EXPORTED
            if reason is None:
                free.append(row["id_task"])
            else:
                self._pruned.kept[reason].append(row["id_task"])
        return free

    def _has_unexported(self, id_task: int) -> bool:
        rows = self._db.pages("accepted_items", {"id_task": id_task}, key="id_task_item", size=PAGE)
        return any(row["target"] is not None and not is_written(row) for row in rows)

    def _count(self, tasks: list[int]) -> None:
        self._add({"task": len(tasks), **self._db.query("prune_count", {"tasks": tasks})[0]})

    def _prune_tasks(self, tasks: list[int], before: datetime) -> None:
        """Small tasks by the dozen, a large one by itself: its items up the claim index, so that what is deleted already, and
        still lies there for somebody's snapshot, is not read again and again."""
        left = tasks
        while left:
            rows = self._db.query("prune_items", {"tasks": left, "size": ITEMS + 1})
            if len(rows) <= ITEMS:
                self._prune(left, [row["id_task_item"] for row in rows], before, are_whole=True)
                return
            large = rows[-1]["id_task"]
            whole = [each for each in left if each < large]  # the index gives them in this order
            if whole:
                items = [row["id_task_item"] for row in rows if row["id_task"] != large]
                self._prune(whole, items, before, are_whole=True)
            else:
                self._prune_large(large, before)
            left = [each for each in left if each > large or (each == large and whole)]

    def _prune_large(self, id_task: int, before: datetime) -> None:
        for status in ItemStatus:
            after, is_more = 0, True
            while is_more:
                where = {"id_task": id_task, "status_id": int(status), "after": after, "size": ITEMS}
                items = [row["id_task_item"] for row in self._db.query("items_in_status", where)]
                if items:
                    if not self._prune([id_task], items, before, are_whole=False):
                        return  # somebody has brought it back
                    after = items[-1]
                is_more = len(items) == ITEMS
        self._prune([id_task], [], before, are_whole=True)

    def _prune(self, tasks: list[int], items: list[int], before: datetime, *, are_whole: bool) -> bool:
        """Deletes these items, and those of the tasks that have none left where `are_whole`; whether the tasks are still over."""

        def work(tx: Transaction) -> _Step:
            return self._in_transaction(tx, tasks, items, before, are_whole)

        began = time.monotonic()
        step = self._db.transaction(work)
        self._pruned.files_removed += step.files.count(True)
        self._pruned.files_missing += step.files.count(False)
        self._pruned.files_left += step.files.count(None)
        self._add(step.rows)
        self._rest(began)
        return step.is_over

    def _in_transaction(self, tx: Transaction, tasks: list[int], items: list[int], before: datetime, are_whole: bool) -> _Step:
        step = _Step()
        locked = tx.query("lock_pruned_items", {"items": items}) if items else []
        over = {row["id_task"] for row in tx.query("lock_pruned_tasks", {"tasks": tasks, "before": before})}
        if over:
            over = {row["id_task"] for row in tx.query("prune_look", {"tasks": sorted(over)}) if _reason(row) is None}
        step.is_over = bool(over)
        if not over:
            return step
        going = [row for row in locked if row["id_task"] in over]
        if going:
            keys = [row["id_task_item"] for row in going]
            step.files = [self._remove(row["path"]) for row in tx.query("paths_of_items", {"items": keys})]
            _delete(tx, step.rows, _OF_ITEMS, keys)
        empty = [row["id_task"] for row in tx.query("tasks_without_items", {"tasks": sorted(over)})] if are_whole else []
        if empty:
            _delete(tx, step.rows, _OF_TASKS, empty)
            if self._folder is not None:
                remove_folders(self._folder, empty)
        if halves := _sums(row for row in going if row["id_task"] not in set(empty)):
            tx.execute("uncount_pruned", {"rows": document(halves)})
        return step

    def _remove(self, path: str) -> bool | None:
        """Before the row that names it has gone: one without a name would lie there for good."""
        return None if self._folder is None else remove_from_folder(self._folder, path)

    # ----- the rest

    def _prune_groups(self, before: datetime) -> None:
        def delete(rows: Sequence[Row], tx: Transaction) -> dict[str, int]:
            which = {"rows": document([{"id": row["id_task_group"]} for row in rows])}
            return {"task_group": tx.execute("prune_groups", which), "callback": tx.execute("prune_callbacks", which)}

        self._walk("task_group", "prune_groups_page", "id_task_group", {"before": before, "after": 0}, delete)

    def _prune_workers(self, before: datetime) -> None:
        def delete() -> int:
            rows = self._db.query("ended_workers", {"before": before, "size": ROWS})
            if not rows:
                return 0
            workers = [row["id_worker"] for row in rows]
            Counters(self._db).fold(workers)  # sums over all rows must never shrink
            return self._db.transaction(partial(_prune_workers, workers))

        self._until_less("worker", delete)

    def _prune_fires(self, before: datetime) -> None:
        for schedule in self._db.query("schedules_with_fires"):
            last = self._db.query("last_fire", schedule)
            where = {**schedule, "before": before, "last": last[0]["due_at"] if last else before, "size": ROWS}
            self._until_less("schedule_fire", partial(self._db.execute, "prune_fires", where))

    def _prune_plain(self, table: str, verb: str, before: datetime) -> None:
        self._until_less(table, partial(self._db.execute, verb, {"before": before, "size": ROWS}))

    def _until_less(self, table: str, delete: Callable[[], int]) -> None:
        is_more = True
        while is_more:
            began = time.monotonic()
            gone = delete()
            self._add({table: gone})
            is_more = gone >= ROWS
            if is_more:
                self._rest(began)

    def _walk(
        self,
        table: str,
        verb: str,
        key: str,
        where: Mapping[str, Any],
        delete: Callable[[Sequence[Row], Transaction], Mapping[str, int] | int],
    ) -> None:
        """Up a key, page by page: what a look says is over is deleted."""
        after: Any = where.get("after", b"")
        while True:
            began = time.monotonic()
            rows = self._db.query(verb, {**where, "after": after, "size": PAGE})
            for start in range(0, len(over := [row for row in rows if row["is_over"]]), ROWS):
                gone = self._db.transaction(partial(delete, over[start : start + ROWS]))
                self._add({table: gone} if isinstance(gone, int) else gone)
            if len(rows) < PAGE:
                return
            after = rows[-1][key]
            self._rest(began)

    def _add(self, rows: Mapping[str, int]) -> None:
        self._pruned.rows.update({table: int(count) for table, count in rows.items()})
        self._told(self._pruned)

    def _rest(self, began: float) -> None:
        self._pause(min(time.monotonic() - began, LONGEST_PAUSE))


@dataclass(slots=True)
class _Step:
    """What one transaction did. `files`: removed, not there, or (None) left because nobody has said where they lie."""

    rows: Counter[str] = field(default_factory=Counter)
    files: list[bool | None] = field(default_factory=list)
    is_over: bool = False


_OF_ITEMS: Final = (
    ("context_fact", "prune_rejected_facts"),
    ("task_item_step", "clear_steps"),
    ("task_item_file", "clear_files"),
    ("task_item_review", "prune_reviews"),
    ("task_item_export", "prune_exports"),
    ("task_attempt", "prune_attempts"),
    ("task_item", "prune_these_items"),
)
_OF_TASKS: Final = (
    ("task_fallback", "prune_fallbacks"),
    ("task_dependency", "prune_dependencies"),
    ("task_dependency", "prune_dependents"),
    ("task_source", "prune_sources"),
    ("batch", "prune_batches"),
    ("task", "prune_these_tasks"),
)
_PLAIN: Final = (
    ("worker_minute", "prune_minutes"),
    ("web_session", "prune_sessions"),
    ("web_request", "prune_requests"),
    ("web_failure", "prune_failures"),
    ("api_token", "prune_tokens"),
    ("run_request", "prune_runs"),
    ("run_request", "prune_dead_runs"),
)


def _delete(tx: Transaction, gone: Counter[str], verbs: Sequence[tuple[str, str]], keys: Sequence[int]) -> None:
    rows = {"rows": document([{"id": key} for key in keys])}
    for table, verb in verbs:
        gone[table] += tx.execute(verb, rows)


def _reason(row: Row) -> str | None:
    """Why a task that has ended stays."""
    if row["is_open"]:
        return OPEN
    if row["is_waited_for"]:
        return WAITED_FOR
    return IN_OPEN_GROUP if row["is_in_open_group"] else None


def _sums(items: Iterable[Row]) -> list[dict[str, Any]]:
    """What the counters of each task are to lose with these items."""
    by_task: dict[int, list[Row]] = defaultdict(list)
    for row in items:
        by_task[row["id_task"]].append(row)
    return [
        {
            "id": id_task,
            "pr": sum(row["status_id"] == ItemStatus.PROCESSED for row in rows),
            "fa": sum(row["status_id"] == ItemStatus.ERROR for row in rows),
            "ti": sum(row["tokens_input"] for row in rows),
            "to": sum(row["tokens_output"] for row in rows),
            "co": decimal_text(sum((row["cost"] or Decimal(0) for row in rows), Decimal(0))),
        }
        for id_task, rows in sorted(by_task.items())
    ]


def _prune_workers(workers: Sequence[int], tx: Transaction) -> int:
    tx.execute("prune_shares", {"workers": workers})
    return tx.execute("prune_workers", {"workers": workers})


def _prune_answers(before: datetime, rows: Sequence[Row], tx: Transaction) -> int:
    return tx.execute("prune_answers", {"keys": [row["cache_key"] for row in rows], "before": before})


def _prune_attempts(before: datetime, rows: Sequence[Row], tx: Transaction) -> int:
    return tx.execute("prune_these_attempts", {"operations": [row["operation_uuid"] for row in rows], "before": before})
