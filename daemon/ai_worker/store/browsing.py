"""What people look through in the dashboard: tasks by a search, items by filters, one item with all of its history.

Everything here is bounded, however much there is: a search looks at so many rows and says where it would go on, counts end at
`COUNTED` and say so. Reads only, and never with a lock.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from ai_worker.db import Database, Row
from ai_worker.errors import NotFound
from ai_worker.models import ItemStatus, Lane, ReviewStatus, Task, TaskStatus
from ai_worker.store.browsed import (
    SHOWN_CHARACTERS,
    AttemptLine,
    Counted,
    FullItem,
    ItemLine,
    ItemPage,
    ItemSearch,
    ReviewLine,
    TaskPage,
    TaskSearch,
    TaskWords,
    ToReview,
)
from ai_worker.store.claims import personal_data_of
from ai_worker.store.files import Files
from ai_worker.store.reports import StepProgress, dependency_of, error_of, report_of
from ai_worker.store.tasks import no_task

COUNTED: Final = 1001  # items of a task in one status, where many tasks are shown
COUNTED_OF_ONE: Final = 10_001
ERRORS: Final = 1000  # failed items whose reasons are looked at, and as many deferred ones: each is a row to be read
TASKS_SEARCHED: Final = 2000
ITEMS_SEARCHED: Final = 3000  # rows, too
RISK_SEARCHED: Final = 500  # of which the most edited ones are shown first
SHOWN_BYTES: Final = 200_000  # of a context or a structured result
_LINE_CHARACTERS: Final = 240
_HISTORY: Final = 200  # attempts, or reviews, of one item
_LAST: Final = 2**63 - 1
_COUNTED: Final = (ItemStatus.PENDING, ItemStatus.IN_PROGRESS, ItemStatus.DEFERRED, ItemStatus.CANCELLED)


class Browsing:
    """Questions of people who look around."""

    def __init__(self, db: Database) -> None:
        self._db = db

    # ----- tasks

    def tasks(self, search: TaskSearch, size: int = 25, before: int = _LAST) -> TaskPage:
        """Tasks with an id below `before`, the newest first: at most `size`, among the next TASKS_SEARCHED."""
        if not _is_ascii(search.task_type, search.queue):
            return TaskPage([], None, is_cut=False)
        text = search.text.strip() if search.text else ""
        number = int(text) if text.isdecimal() and len(text) < 19 else None
        where = search._asdict() | {"text": text or None, "status_id": search.status, "id_task": number}
        rows = self._db.query("search_tasks", {**where, "before": before, "scan": TASKS_SEARCHED, "size": size + 1})
        found = [row["id_task"] for row in rows]
        is_cut = False
        goes_on = found[size - 1] if len(found) > size else None
        if goes_on is None:
            end = self._db.query("end_of_search", {"before": before, "offset": TASKS_SEARCHED - 1})
            is_cut = bool(end)
            goes_on = end[0]["id_task"] if end else None
        if number is not None and before == _LAST and number not in found:
            found = [number, *found]  # also where the search does not come that far
        return TaskPage(self._counted(found[:size], COUNTED), goes_on, is_cut)

    def these(self, tasks: Sequence[int]) -> list[Counted]:
        """Tasks by their ids, in that order; those that are not there are left out."""
        found = {each.task.id_task: each for each in self._counted(tasks, COUNTED)}
        return [found[each] for each in tasks if each in found]

    def task(self, id_task: int) -> Counted:
        """One task with its errors, at least of the first ERRORS failed items. Raises NotFound when there is none."""
        found = self._counted([id_task], COUNTED_OF_ONE)
        if not found:
            raise no_task(id_task)
        counted = found[0]
        items = counted.task.items
        has_reasons = items[ItemStatus.ERROR] or items[ItemStatus.DEFERRED]
        errors = self._db.query("first_errors", {"id_task": id_task, "most": ERRORS}) if has_reasons else []
        steps = self._db.query("task_steps", {"id_task": id_task})[0] if items[ItemStatus.IN_PROGRESS] else None
        task = replace(
            counted.task,
            errors=[error_of(row) for row in errors],
            fallbacks=tuple(row["name"] for row in self._db.query("fallbacks_of_task", {"id_task": id_task})),
            after=tuple(dependency_of(row) for row in self._db.query("dependencies_of_task", {"id_task": id_task})),
            steps=StepProgress(steps["items"], int(steps["done"]), int(steps["total"])) if steps and steps["items"] else None,
        )
        return replace(counted, task=task)

    def _counted(self, tasks: Sequence[int], most: int) -> list[Counted]:
        if not tasks:
            return []
        found = []
        for row in self._db.query("task_reports_of", {"tasks": list(tasks)}):
            counts = {each["status_id"]: each["items"] for each in self._few(row, most)}
            at_least = frozenset(status for status in _COUNTED if counts.get(status, 0) >= most)
            counts |= {ItemStatus.PROCESSED: row["records_processed"], ItemStatus.ERROR: row["records_failed"]}
            found.append(Counted(report_of(row, counts, []), at_least))
        return found

    def _few(self, row: Row, most: int) -> list[Row]:
        return self._db.query("few_items", {"id_task": row["id_task"], "most": most})

    def counts(self, id_task: int) -> dict[ItemStatus, int]:
        """All items of a task by status, counted to the end: some 0.2 seconds for a million."""
        counts = {row["status_id"]: row["items"] for row in self._db.query("task_counts", {"id_task": id_task})}
        return {status: int(counts.get(status, 0)) for status in ItemStatus}

    def choices(self) -> tuple[list[str], list[str]]:
        """The task types, and the queues, of the newest tasks."""
        rows = self._db.query("task_choices", {"scan": TASKS_SEARCHED})
        return sorted({row["task_type"] for row in rows}), sorted({row["queue"] for row in rows})

    def words(self, id_task: int) -> TaskWords:
        """What was asked for. Raises NotFound when there is no such task."""
        row = self._in_words(id_task)
        prompt = None if row["prompt"] is None else f"{row['prompt']} {row['version']} ({row['origin']})"
        return TaskWords(
            json.loads(row["parameters"]) if row["parameters"] else {},
            row["lane"],
            row["pack"],
            row["cache_seconds"],
            row["result_seconds"],
            personal_data_of(row).value,
            row["expire_at"],
            row["submit_key"],
            prompt,
            row["task_group"],
            row["source"],
        )

    def as_task(self, id_task: int) -> Task:
        """A task as a worker would see it, to reckon what it takes. Raises NotFound when there is none."""
        row = self._in_words(id_task)
        return Task(
            id_task=id_task,
            id_ai_model=row["id_ai_model"],
            task_type=row["task_type"],
            description=row["description"] or "",
            parameters=json.loads(row["parameters"]) if row["parameters"] else {},
            max_attempts=row["max_attempts"],
            priority=row["priority"],
            status=TaskStatus(row["status_id"]),
            lane=Lane(row["lane"]),
            pack=row["pack"],
            cache_seconds=row["cache_seconds"],
            budget=row["budget"],
            queue=row["queue"],
            id_prompt=row["id_prompt"],
            personal_data=personal_data_of(row),
        )

    def _in_words(self, id_task: int) -> Row:
        rows = self._db.query("task_in_words", {"id_task": id_task})
        if not rows:
            raise no_task(id_task)
        return rows[0]

    # ----- items

    def items(self, id_task: int, search: ItemSearch, size: int = 50, after: int = 0) -> ItemPage:
        """Items with an id above `after`, in the order of their ids: at most `size`, among the next ITEMS_SEARCHED."""
        status = search.effective_status
        if status is None:
            rows = self._db.query("next_items", {"id_task": id_task, "after": after, "size": size + 1})
            found = [row["id_task_item"] for row in rows]
            return ItemPage(self._lines(found[:size]), found[size - 1] if len(found) > size else None, is_cut=False)
        is_filtered = search.review is not None or search.kind is not None
        scan = ITEMS_SEARCHED if is_filtered else size + 1
        found = self._matching(id_task, search, after, scan, size + 1)
        if len(found) > size:
            return ItemPage(self._lines(found[:size]), found[size - 1], is_cut=False)
        end = self._end(id_task, status, after, scan) if is_filtered else None
        return ItemPage(self._lines(found), end, is_cut=end is not None)

    def riskiest(self, id_task: int, size: int = 50, after: int = 0) -> ItemPage:
        """Of the next RISK_SEARCHED unreviewed items those that a correction has edited most, the most edited first."""
        search = ItemSearch(review=ReviewStatus.UNREVIEWED)
        found = self._matching(id_task, search, after, ITEMS_SEARCHED, RISK_SEARCHED)
        ratios = self._db.query("edit_ratios", {"items": found}) if found else []
        order = sorted(ratios, key=lambda row: (-(_ratio(row) or 0.0), row["id_task_item"]))
        chosen = [row["id_task_item"] for row in order[:size]]
        lines = {line.id_task_item: line for line in self._lines(chosen)}
        goes_on = found[-1] if len(found) == RISK_SEARCHED else self._end(id_task, ItemStatus.PROCESSED, after, ITEMS_SEARCHED)
        return ItemPage([lines[each] for each in chosen if each in lines], goes_on, is_cut=goes_on is not None)

    def sample(self, id_task: int, size: int, places: int = 10) -> list[tuple[int, str, Mapping[str, Any]]]:
        """Pending items from all over a task, about `size`: ids, texts and contexts, in the order of their ids."""
        ends = self._db.query("ends_of_task", {"id_task": id_task})[0]
        if ends["first_item"] is None:
            return []
        first, last = ends["first_item"], ends["last_item"]
        each = max(1, size // places)
        ids: list[int] = []
        for place in range(places):
            after = max(first - 1 + (last - first + 1) * place // places, ids[-1] if ids else 0)
            where = {"id_task": id_task, "status_id": int(ItemStatus.PENDING), "after": after, "size": each}
            ids += [row["id_task_item"] for row in self._db.query("items_in_status", where)]
        rows = self._db.query("item_results", {"items": ids})
        return [(row["id_task_item"], row["text_original"], json.loads(row["context"]) if row["context"] else {}) for row in rows]

    def item(self, id_task_item: int) -> FullItem:
        """One item with its attempts, reviews and files. Raises NotFound when there is none."""
        bounds = {"characters": SHOWN_CHARACTERS, "bytes": SHOWN_BYTES}
        rows = self._db.query("item_in_full", {"id_task_item": id_task_item, **bounds})
        if not rows:
            raise NotFound(f"no item {id_task_item}")
        row = rows[0]
        history = {"id_task_item": id_task_item, "most": _HISTORY}
        values = {name: row[name] for name in row if name not in {"status_id", "task_status_id", "review_status_id"}}
        for name in ("context", "result"):
            values[name] = json.loads(row[name]) if row[name] is not None else None
        return FullItem(
            **values,
            status=ItemStatus(row["status_id"]),
            task_status=TaskStatus(row["task_status_id"]),
            review=ReviewStatus(row["review_status_id"]),
            attempts=[AttemptLine(**each) for each in self._db.query("attempts_of_item", history)],
            reviews=[_review(each) for each in self._db.query("reviews_of_item", history)],
            files=Files(self._db).of_item(id_task_item, thumbnails=True),
        )

    def task_of(self, id_task_item: int) -> int:
        """The task of an item. Raises NotFound when there is none."""
        rows = self._db.query("item_state", {"id_task_item": id_task_item})
        if not rows:
            raise NotFound(f"no item {id_task_item}")
        id_task: int = rows[0]["id_task"]
        return id_task

    # ----- review

    def next_to_review(self, id_task: int, after: int) -> ToReview:
        """The first item behind `after` that nobody has reviewed, among the next ITEMS_SEARCHED processed ones."""
        found = self._matching(id_task, ItemSearch(review=ReviewStatus.UNREVIEWED), after, ITEMS_SEARCHED, 1)
        return (
            ToReview(found[0], None) if found else ToReview(None, self._end(id_task, ItemStatus.PROCESSED, after, ITEMS_SEARCHED))
        )

    def previous_to_review(self, id_task: int, before: int) -> int | None:
        """The last item before `before` that nobody has reviewed, among the ITEMS_SEARCHED processed ones before it."""
        where = {"id_task": id_task, "status_id": int(ItemStatus.PROCESSED), "before": before, "scan": ITEMS_SEARCHED, "size": 1}
        rows = self._db.query("matching_items_before", {**where, "review_status_id": int(ReviewStatus.UNREVIEWED)})
        return rows[0]["id_task_item"] if rows else None

    def left_off(self, id_task: int) -> int:
        """The item that a task's latest verdict was given to, behind which reviewing goes on; 0 where there is none."""
        rows = self._db.query("latest_verdict", {"id_task": id_task})
        return rows[0]["id_task_item"] if rows else 0

    def _matching(self, id_task: int, search: ItemSearch, after: int, scan: int, size: int) -> list[int]:
        if not _is_ascii(search.kind):
            return []
        where = {"status_id": search.effective_status, "review_status_id": search.review, "error_kind": search.kind}
        rows = self._db.query("matching_items", {"id_task": id_task, **where, "after": after, "scan": scan, "size": size})
        return [row["id_task_item"] for row in rows]

    def _end(self, id_task: int, status: ItemStatus, after: int, scan: int) -> int | None:
        where = {"id_task": id_task, "status_id": int(status), "after": after, "offset": scan - 1}
        rows = self._db.query("end_of_matching", where)
        return rows[0]["id_task_item"] if rows else None

    def _lines(self, items: Sequence[int]) -> list[ItemLine]:
        rows = self._db.query("item_lines", {"items": list(items), "characters": _LINE_CHARACTERS}) if items else []
        return [_line(row) for row in rows]


def _is_ascii(*words: str | None) -> bool:
    """Whether these can stand in columns of ASCII at all: the server refuses to compare such a column with anything else."""
    return all(word is None or word.isascii() for word in words)


def _line(row: Row) -> ItemLine:
    values = {name: row[name] for name in row if name not in {"status_id", "review_status_id", "ratio"}}
    return ItemLine(
        **values, status=ItemStatus(row["status_id"]), review=ReviewStatus(row["review_status_id"]), ratio=_ratio(row)
    )


def _ratio(row: Row) -> float | None:
    try:
        return None if row["ratio"] is None else float(row["ratio"])
    except ValueError:  # a plug-in's result may have anything under this name
        return None


def _review(row: Row) -> ReviewLine:
    status = ReviewStatus(row["review_status_id"])
    return ReviewLine(status, row["text_reviewed"], row["note"], row["reviewed_by"], row["reviewed_at"])
