"""Many workers at once: 1 to 64, on one task and on a hundred.

Each worker is a process with a database session of its own that claims, makes up results and commits them, by the engine's own
verbs (`Picker`, `Queue`) and in its group sizes; a whole daemon each would measure how 64 Python programs start on this machine.
It claims and commits in turns where a daemon does both at once, but as in a daemon the next items are in hand before the last
ones are committed. The clock is the server's: from the moment when the tasks become runnable, with all workers connected and
waiting, to the end of the last task.

`of_best` is the throughput beside the best so far, in the lines above of the same shape. `conflicts` are transactions that were
run again after a deadlock or a lock time-out; `deadlocks`, `lock_waits` and `queries_per_item` are the server's own counts.
An error that reaches a worker fails the benchmark.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import random
import sys
import tempfile
from dataclasses import dataclass, replace
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

from ai_worker import log
from ai_worker.database_url import parse_database_url
from ai_worker.db import Database
from ai_worker.models import Filters, Item, Outcome, Result, Usage
from ai_worker.store.queue import Queue
from ai_worker.worker.claiming import CLAIM_ROWS
from ai_worker.worker.commits import COMMIT_ROWS
from ai_worker.worker.picker import Picker
from bench.drain import OPEN_TASK, PATIENCE, Shape, checked, fill, release, wait_for
from bench.report import Report, WrongResultError, median
from bench.servers import Server

SHAPES = {"one": Shape(1, 200_000), "many": Shape(100, 2000)}
SMOKE = {"one": Shape(1, 3000), "many": Shape(20, 100)}
CROWDS = (1, 2, 4, 8, 16, 32, 64)
IDLE_SECONDS, IDLE_AT_MOST = 0.02, 0.5  # about so long a worker waits that has found nothing, at first and in the end
COUNTS = """
SELECT name, count FROM information_schema.innodb_metrics WHERE name IN ('lock_deadlocks', 'lock_row_lock_waits')
"""


@dataclass(frozen=True, slots=True)
class Crowd:
    """What one round was: items per second, and how often the server and the workers had to wait or to begin again."""

    rate: float
    deadlocks: int
    conflicts: int
    lock_waits: int
    queries: int


def crowd(server: Server, shape: Shape, workers: int) -> Crowd:
    """Lets so many workers do all items."""
    context = multiprocessing.get_context("fork")
    start, end, ready = context.Event(), context.Event(), context.Semaphore(0)
    with tempfile.TemporaryDirectory() as folder, server.connect() as connection, connection.cursor() as cursor:
        fill(cursor, shape)
        files = [Path(folder) / f"{number}.log" for number in range(workers)]
        processes = [context.Process(target=_work, args=(server.url, file, ready, start, end)) for file in files]
        for process in processes:
            process.start()
        for _ in processes:
            if not ready.acquire(timeout=PATIENCE):
                raise WrongResultError("the workers' start took too long")
        before = _counts(cursor)
        began = release(cursor)
        start.set()
        try:
            wait_for(lambda: not cursor.execute(OPEN_TASK) or any(process.exitcode for process in processes), "the tasks' end")
            after = _counts(cursor)
        finally:
            end.set()
            for process in processes:
                process.join(PATIENCE)
        said = "".join(file.read_text(encoding="utf-8") for file in files)
        if any(process.exitcode for process in processes):
            raise WrongResultError(f"a worker failed: {said[-2000:]}")
        rate = checked(cursor, shape, began, with_attempts=True)
    spent = {name: after[name] - before[name] for name in after}
    return Crowd(
        rate,
        spent["lock_deadlocks"],
        said.count(f'"{log.Event.CONFLICT.name}"'),
        spent["lock_row_lock_waits"],
        spent["Questions"],
    )


def _work(url: str, file: Path, ready: Any, start: Event, end: Event) -> None:
    sys.stderr = file.open("w", encoding="utf-8")
    log.configure("debug", "json")
    db = Database(parse_database_url(url))
    queue = Queue(db)
    id_worker = queue.register(
        host="crowd", pid=os.getpid(), version="", mode="run", concurrency=CLAIM_ROWS, lease_seconds=PATIENCE
    )
    picker = Picker(queue, Filters(), lambda _: CLAIM_ROWS, lambda: ())
    ready.release()
    start.wait()
    in_hand: list[Item] = []
    pause = IDLE_SECONDS
    while not end.is_set():
        group, in_hand = in_hand, picker.take(id_worker, CLAIM_ROWS)
        for start_at in range(0, len(group), COMMIT_ROWS):
            rest = itertools.chain(in_hand, group[start_at + COMMIT_ROWS :])
            outcomes = [_outcome(item) for item in group[start_at : start_at + COMMIT_ROWS]]
            queue.commit(id_worker, outcomes, {item.task.id_task for item in rest})
        if group or in_hand:
            pause = IDLE_SECONDS
        else:
            end.wait(pause * random.uniform(0.5, 1.5))  # noqa: S311 -- jitter
            pause = min(2 * pause, IDLE_AT_MOST)
    queue.end_worker(id_worker, processed=0, failed=0)
    db.close()


def _outcome(item: Item) -> Outcome:
    result = Result(item.text_original, "No changes", {"text": item.text_original, "changes": []})
    return Outcome.processed(item, result, Usage(20, 20), None, 1)


def _counts(cursor: Any) -> dict[str, int]:
    cursor.execute(COUNTS)
    counts = dict(cursor.fetchall())
    cursor.execute("SHOW GLOBAL STATUS LIKE 'Questions'")
    return {name: int(count) for name, count in {**counts, **dict(cursor.fetchall())}.items()}


def main() -> None:
    report = Report("crowd", __doc__)
    report.parser.add_argument("--shape", choices=SHAPES, action="append", help="(default: both)")
    report.parser.add_argument("--workers", type=int, action="append", metavar="N", help=f"may be repeated (default: {CROWDS})")
    report.parser.add_argument("--items", type=int, help="of all tasks together (default: 100,000)")
    options = report.options()
    shapes = SMOKE if options.smoke else SHAPES
    for server in report.servers(options):
        for name in options.given.shape or shapes:
            shape = shapes[name]
            if options.given.items:
                shape = replace(shape, items=options.given.items // shape.tasks)
            best = 0.0
            for workers in options.given.workers or ([8] if options.smoke else CROWDS):
                rounds = [crowd(server, shape, workers) for _ in range(options.rounds)]
                rate = median([each.rate for each in rounds])
                best = max(best, rate)
                report.add(
                    server=server.name,
                    shape=name,
                    workers=workers,
                    items_per_s=rate,
                    of_best=rate / best,
                    deadlocks=sum(each.deadlocks for each in rounds),
                    conflicts=sum(each.conflicts for each in rounds),
                    lock_waits=sum(each.lock_waits for each in rounds),
                    queries_per_item=median([each.queries for each in rounds]) / (shape.tasks * shape.items),
                )
    report.write(options)


if __name__ == "__main__":
    main()
