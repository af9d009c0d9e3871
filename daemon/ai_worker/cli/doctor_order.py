"""What `doctor` finds about order and time: circles of tasks, broken schedules, callbacks that were given up."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ai_worker.cli.findings import Finding, ok, problem
from ai_worker.db import Database
from ai_worker.formats import iso
from ai_worker.store.callbacks import Callbacks
from ai_worker.store.health import Health
from ai_worker.store.schedules import Schedules


def check_order(db: Database) -> Iterator[Finding]:
    """Findings about what waits in vain."""
    circle = circle_of(Health(db).open_dependencies())
    if circle:
        message = f"tasks wait for each other in a circle: {', '.join(map(str, sorted(circle)))}"
        yield problem("order", message, "Delete one of their rows from task_dependency, or cancel one of the tasks.")
    failed = Callbacks(db).given_up()
    for each in failed:
        message = f"the callback of group {each.group!r} was given up at {iso(each.failed_at)}: {each.reason}"
        yield problem("order", message, f"Put it right, then run `ai-worker group retry {each.group!r}`.")
    broken = Schedules(db).broken()
    for schedule in broken:
        remedy = f"Put it right, then run `ai-worker schedule resume {schedule.name!r}`, or make it anew."
        yield problem("order", f"schedule {schedule.name!r} does not fire: {schedule.message}", remedy)
    if not circle and not failed and not broken:
        yield ok("order", "no task waits in a circle, no callback was given up, every schedule can fire")


def circle_of(waits: Mapping[int, set[int]]) -> set[int]:
    """The tasks of one circle, if there is any; `waits` says for whom each task waits."""
    known: set[int] = set()  # these lead into no circle
    for start in waits:
        path: list[int] = []
        todo = [(start, iter(waits[start]))] if start not in known else []
        path.append(start)
        while todo:
            task, parents = todo[-1]
            parent = next(parents, None)
            if parent is None:
                known.add(task)
                todo.pop()
                path.pop()
            elif parent in path:
                return set(path[path.index(parent) :])
            elif parent not in known:
                todo.append((parent, iter(waits.get(parent, ()))))
                path.append(parent)
    return set()
