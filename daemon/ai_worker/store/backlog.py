"""How much waits, and for how long: per queue, bounded in cost however many tasks and items there are.

For whoever looks often: `/metrics`, the dashboard, `ai-worker top`. A look reads a few index entries per open task, and no more
than about COUNTED entries beside them. Up to there all numbers are exact. Beyond, they are estimates by the keys: of a task with
many items the latest SAMPLE are counted, and the others taken to lie as close together in the key as these do, which is exact for
rows that were inserted together; of more than OPEN_TASKS tasks of one status, those first in line stand for the others.

Reads only, and never with a lock.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple

from ai_worker.db import Database, Row
from ai_worker.models import ItemStatus, TaskStatus

OPEN_TASKS: Final = 200  # of each status, looked at one by one; the LIMIT of `open_spans`
COUNTED: Final = 20_000  # entries of the claim index, in all, for tasks with few items
SAMPLE: Final = 2000  # ... and of each task with many
SAMPLED: Final = 10  # such tasks, the largest


@dataclass(frozen=True, slots=True)
class QueueBacklog:
    """What is open in one queue.

    `tasks` counts its open tasks by status. `pending`, `deferred` and `in_progress` are items of tasks that go on, now or at
    their time; `paused` those of paused tasks. `is_exact` says whether the first two and `paused` were counted to the end.
    `oldest_seconds` is for how long the oldest item that may be claimed now has been claimable: since it was inserted, or since
    its task's scheduled time. None where there is none; items of tasks that wait for others do not count.
    """

    queue: str
    tasks: Mapping[TaskStatus, int] = field(default_factory=dict)
    pending: int = 0
    deferred: int = 0
    in_progress: int = 0
    paused: int = 0
    is_exact: bool = True
    oldest_seconds: float | None = None


class _Span(NamedTuple):
    """Where in the key a task's items of one status lie; there are no more of them than `width`."""

    id_task: int
    queue: str
    task_status: TaskStatus
    status: ItemStatus
    first: int
    last: int

    @property
    def width(self) -> int:
        return self.last - self.first + 1


class _Count(NamedTuple):
    items: int
    is_exact: bool


class Backlog:
    """The look at it. Callable from any thread."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def look(self) -> list[QueueBacklog]:
        """Every queue in which a task is open, by name. Takes some ten milliseconds, also with millions of items."""
        tasks: defaultdict[str, dict[TaskStatus, int]] = defaultdict(dict)
        for row in self._db.query("open_tasks"):
            tasks[row["queue"]][TaskStatus(row["status_id"])] = row["tasks"]
        if not tasks:
            return []
        rows = self._db.query("open_spans")
        counts = self._count([span for row in rows for span in _spans(row)])
        in_progress = {row["queue"]: row["items"] for row in self._db.query("items_in_progress")}
        found = []
        for queue in sorted(tasks):
            own = [row for row in rows if row["queue"] == queue]
            ages = [float(row["oldest_seconds"]) for row in own if row["oldest_seconds"] is not None]
            report = QueueBacklog(
                queue, tasks[queue], in_progress=in_progress.get(queue, 0), oldest_seconds=max(ages, default=None)
            )
            for status, number in tasks[queue].items():
                report = _with(report, status, number, [row for row in own if row["status_id"] == status], counts)
            found.append(report)
        return found

    def _count(self, spans: Iterable[_Span]) -> dict[tuple[int, ItemStatus], _Count]:
        """How many items each span holds: counted where its task has few, else sampled, else by how full the sampled ones are."""
        counts: dict[tuple[int, ItemStatus], _Count] = {}
        by_task: defaultdict[int, list[_Span]] = defaultdict(list)
        for span in spans:
            by_task[span.id_task].append(span)
        left, near = COUNTED, set[int]()
        for id_task in sorted(by_task, key=lambda each: _width(by_task[each])):
            left -= _width(by_task[id_task])
            if left < 0:
                break
            near.add(id_task)
        if near:
            for row in self._db.query("count_waiting", {"tasks": sorted(near)}):
                counts[row["id_task"], ItemStatus(row["status_id"])] = _Count(row["items"], True)
        wide = sorted((span for id_task in by_task.keys() - near for span in by_task[id_task]), key=lambda span: span.width)
        seen = room = 0
        for span in wide[-SAMPLED:]:
            parameters = {"id_task": span.id_task, "status_id": int(span.status), "size": SAMPLE}
            (row,) = self._db.query("sample_waiting", parameters)
            items, first = row["items"], row["first"] or span.first
            is_all = items < SAMPLE
            width = span.width if is_all else span.last - first + 1
            seen, room = seen + items, room + width
            rest = 0 if is_all else _share(first - span.first, items, width)
            counts[span.id_task, span.status] = _Count(items + rest, is_all)
        for span in wide[:-SAMPLED]:
            counts[span.id_task, span.status] = _Count(max(1, _share(span.width, seen, room)), False)
        return counts


def _spans(row: Row) -> Iterable[_Span]:
    for status, name in ((ItemStatus.PENDING, "pending"), (ItemStatus.DEFERRED, "deferred")):
        first, last = row[f"first_{name}"], row[f"last_{name}"]
        if first is not None and last is not None:  # else one was claimed between the two looks
            yield _Span(row["id_task"], row["queue"], TaskStatus(row["status_id"]), status, min(first, last), last)


def _width(spans: Iterable[_Span]) -> int:
    return sum(span.width for span in spans)


def _share(width: int, items: int, of_width: int) -> int:
    """How many items so wide a span holds, if they lie as close together as those."""
    return round(width * items / of_width) if of_width > 0 else width


def _with(
    report: QueueBacklog,
    status: TaskStatus,
    tasks: int,
    rows: list[Row],
    counts: Mapping[tuple[int, ItemStatus], _Count],
) -> QueueBacklog:
    """The report with what is open in these tasks of it: all of one status, of which `rows` were looked at."""
    sums = {ItemStatus.PENDING: 0, ItemStatus.DEFERRED: 0}
    is_exact = len(rows) >= tasks
    for row in rows:
        for each in sums:
            count = counts.get((row["id_task"], each), _Count(0, True))
            sums[each] += count.items
            is_exact = is_exact and count.is_exact
    if len(rows) < tasks:
        if rows:
            sums = {each: round(items * tasks / len(rows)) for each, items in sums.items()}
        else:  # none was first in line: at least one item each
            sums[ItemStatus.PENDING] = tasks
    is_exact = is_exact and report.is_exact
    if status is TaskStatus.PAUSED:
        return replace(report, paused=report.paused + sum(sums.values()), is_exact=is_exact)
    return replace(
        report,
        pending=report.pending + sums[ItemStatus.PENDING],
        deferred=report.deferred + sums[ItemStatus.DEFERRED],
        is_exact=is_exact,
    )
