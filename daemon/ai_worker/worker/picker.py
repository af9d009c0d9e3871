"""What to claim next: the best runnable tasks first, big ones by a watermark, small ones many at a time."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Final

from ai_worker.errors import DatabaseError
from ai_worker.models import Filters, Item, Task
from ai_worker.store.queue import Queue

REFRESH_SECONDS: Final = 1.0  # how long a list of tasks is trusted: a better task is noticed within this time
RESET_SECONDS: Final = 60.0  # what was given back or retried lies behind the watermark, and must not wait for the task's end
# Tasks in one claim, as many as `runnable_tasks` gives. More than the items of a claim: where each task has one item, a second
# worker steps over those that the first is just claiming, and still finds some behind them.
SMALL_TASKS: Final = 500
SETTLE_SECONDS: Final = 1.0  # two applications that insert at the same time may commit against the order of their keys


class Picker:
    """Claims items for one worker. Used by one thread.

    `room(task)` says how many more items of a task's model may be taken on now, `busy_models()` which models take none, and
    `is_for_batches(task)` whether a task's items are handed in by the thousand: of those only what came back is taken here.
    With `patient_with` it keeps to tasks whose models are busy, but for those that this names, and tries them at each `take`.
    """

    def __init__(
        self,
        queue: Queue,
        filters: Filters,
        room: Callable[[Task], int],
        busy_models: Callable[[], Iterable[int]],
        is_for_batches: Callable[[Task], bool] = lambda _: False,
        *,
        patient_with: Callable[[], Iterable[int]] | None = None,
    ) -> None:
        self._queue = queue
        self._filters = filters
        self._room = room
        self._busy_models = busy_models
        self._is_for_batches = is_for_batches
        self._patient_with = patient_with
        self._tasks: list[Task] = []
        self._are_full = False  # whether these are all waiting for their models
        self._for_batches: list[Task] = []  # tasks with items that wait for a batch, as the latest look has found them
        self._fetched_at = float("-inf")
        # Of big tasks: the key of the last item claimed. Behind it lie dead index entries that a claim need not wade through.
        self._watermarks: dict[int, int] = {}
        self._reset_at = time.monotonic()
        self._newest = self._settled = 0  # item keys: seen, and long enough ago that lower ones are there too
        self._moved_at = float("-inf")

    def forget(self) -> None:
        """The next claim looks at the tasks anew: something has changed. Callable from any thread."""
        self._fetched_at = float("-inf")

    @property
    def has_tasks(self) -> bool:
        """Whether the latest look has found tasks that are not exhausted yet."""
        return bool(self._tasks)

    def look(self) -> None:
        """Looks at the tasks, unless some are known that have room."""
        if not self._tasks or self._are_full:
            self._refresh()

    def taken_for_batches(self) -> list[Task]:
        """Tasks with items that wait for a batch, each time that they were looked for; between two calls of `take`."""
        found, self._for_batches = self._for_batches, []
        return found

    def take(self, id_worker: int, size: int, new_item: int | None = None) -> list[Item]:
        """Claims up to `size` items, from as many tasks as it takes; or `new_item` alone, when it is for us."""
        if new_item is not None and (items := self._queue.claim_new(id_worker, new_item, self._filters, self._busy_models())):
            return items
        taken: list[Item] = []
        try:
            self._take(id_worker, size, taken)
        except DatabaseError:
            if not taken:
                raise
            # What was claimed before it failed is ours, and must be worked on; the next call meets the error again.
        return taken

    def _take(self, id_worker: int, size: int, taken: list[Item]) -> None:
        if not self._tasks or time.monotonic() - self._fetched_at > REFRESH_SECONDS:
            self._refresh()
        of_model: Counter[int] = Counter()  # in `taken`, of which `room` does not know yet
        full: list[Task] = []
        while self._tasks and len(taken) < size:
            group = self._next_group()
            model = group[0].id_ai_model
            count = min(size - len(taken), self._room(group[0]) - of_model[model])
            if group[0].is_probe:
                count = int(count > 0 and self._queue.take_probe(model))
            before = len(taken)
            if count > 0:
                self._claim(id_worker, group, count, taken)
            claimed = len(taken) - before
            if group[0].is_probe and count > 0 and not claimed:  # all was refused by that model: another task may have something
                self._queue.leave_probe(model)
            of_model[model] += claimed
            if claimed < count or count <= 0 or group[0].is_probe:
                done = {(task.id_task, model) for task in group}
                if count <= 0 and self._patient_with is not None:
                    full += [task for task in self._tasks if (task.id_task, task.id_ai_model) in done]
                self._tasks = [task for task in self._tasks if (task.id_task, task.id_ai_model) not in done]
        self._are_full = bool(full) and not self._tasks
        self._tasks[:0] = full

    def _refresh(self) -> None:
        self._fetched_at = time.monotonic()
        self._are_full = False
        self._tasks = self._runnable()
        if not self._tasks and self._reopen():
            self._tasks = self._runnable()
        self._for_batches = self._without_batches()
        if self._fetched_at - self._reset_at > RESET_SECONDS:
            self._reset_at = self._fetched_at
            self._watermarks.clear()

    def _runnable(self) -> list[Task]:
        if self._patient_with is None:
            return self._queue.runnable(self._filters, self._busy_models())
        tasks = self._queue.runnable(self._filters, self._patient_with())
        if len(tasks) < SMALL_TASKS:
            return tasks
        # So many may all wait for one model, and hide what another could take.
        known = {(task.id_task, task.id_ai_model) for task in tasks}
        others = self._queue.runnable(self._filters, self._busy_models())
        return tasks + [task for task in others if (task.id_task, task.id_ai_model) not in known]

    def _without_batches(self) -> list[Task]:
        """Takes the tasks with items that wait for a batch out of the list, and returns them.

        What came back from a batch is taken when nothing of its task waits for one, so that nobody has to wade through that.
        """
        candidates = [task for task in self._tasks if self._is_for_batches(task)]
        if not candidates:
            return []
        waiting = self._queue.with_items_for_batches([task.id_task for task in candidates])
        found = [task for task in candidates if task.id_task in waiting]
        self._tasks = [task for task in self._tasks if task not in found]
        return found

    def _reopen(self) -> bool:
        """With nothing to do: whether somebody has just inserted into a task that had ended, which then goes on."""
        newest, now = self._queue.newest_item(), time.monotonic()
        if newest > self._newest:
            self._newest, self._moved_at = newest, now
        if self._settled >= newest:
            return False
        # The last thousand are enough to see the task of any usual INSERT; the upkeep's pages find the rest.
        after = max(self._settled, newest - 1000)
        if now - self._moved_at > SETTLE_SECONDS:
            self._settled = newest
        return self._queue.reopen_for_new_items(after) > 0

    def _next_group(self) -> list[Task]:
        """The best task alone when it is big, stopped, has a budget, or is named item by item; else it and its equals."""
        first = self._tasks[0]
        if (
            first.is_probe
            or first.budget is not None
            or first.id_task in self._watermarks
            or self._filters.id_task_item is not None
        ):
            return [first]
        if self._is_for_batches(first):
            return [first]
        limits = self._queue.limits
        equals = [
            task
            for task in self._tasks
            if (task.priority, task.id_ai_model) == (first.priority, first.id_ai_model)
            and (not limits or limits.of(task) == limits.of(first))
            and not task.is_probe
            and task.budget is None
            and task.id_task not in self._watermarks
            and not self._is_for_batches(task)
        ]
        return equals[:SMALL_TASKS]

    def _claim(self, id_worker: int, group: list[Task], count: int, taken: list[Item]) -> None:
        """Adds up to `count` items of these tasks to `taken`, at once when they are claimed."""
        busy = self._busy_models() if len(group[0].chain) > 1 else ()
        if self._filters.id_task_item is not None:
            taken += self._queue.claim(id_worker, group, count, id_task_item=self._filters.id_task_item, busy_models=busy)
            return
        if self._is_for_batches(group[0]):
            taken += self._queue.claim(id_worker, group, count, single=True, busy_models=busy)
            return
        after = self._watermarks.get(group[0].id_task, 0) if len(group) == 1 else 0
        items = self._queue.claim(id_worker, group, count, after=after, busy_models=busy)
        taken += items
        if self._queue.limits.holds(group[0]):
            count = len(items)  # as many as may begin now
        if after and len(items) < count:
            # The end of the range: what was given back, retried or deferred lies behind the watermark.
            self._watermarks.pop(group[0].id_task, None)
            count -= len(items)
            items = self._queue.claim(id_worker, group, count, busy_models=busy)
            taken += items
        tasks = {item.task.id_task for item in items}
        if items and len(items) == count and len(tasks) == 1:
            self._watermarks[tasks.pop()] = items[-1].id_task_item
