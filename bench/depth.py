"""What a claim costs as the table grows, and while a backup holds a snapshot.

`pending`: one task with all rows; `many`: a thousand tasks that share them; nothing is done yet. `done`: one task, of which all
but the last rows are processed. Each with 10 thousand rows, a million and ten million (--rows): what it costs must depend on what
is claimed, not on what is there. `of_small` compares with the smallest table, in the same run.

`snapshot`: another session holds a consistent snapshot under REPEATABLE READ, as a backup does, while 100,000 items are claimed
and committed: nothing that claims and commits leave behind can be purged meanwhile. Compared are the last 5,000 with the first
5,000. `reset_ms` is then what a claim costs that begins at the start of the task, as each worker's does once a minute.

A claim takes 100 items, by the engine's own `Picker` and `Queue`; `look_ms` is the look for runnable tasks that each worker takes
every second, and `cycle_ms` a claim with its commit. `upkeep_ms` is one round of all that workers do for the fleet.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ai_worker.database_url import parse_database_url
from ai_worker.db import Database
from ai_worker.models import Filters, Item, Outcome, Result, Usage
from ai_worker.store.queue import Queue
from ai_worker.worker.picker import Picker
from bench.report import Options, Report, WrongResultError, median
from bench.servers import Server

SIZE = 100  # items in a claim
LEFT = 10_000  # pending rows of the shape `done`
CHUNK = 200_000  # rows of one INSERT: one transaction of ten million would be mostly undo
TASKS = 1000  # of the shape `many`
TEXT = "Zażółć gęślą jaźń: this is a sentense with some mistakes in it."
SHAPES = ("pending", "many", "done")
EDGE = 50  # claims: the first and the last 5,000 items beside a snapshot


def fill(cursor: Any, shape: str, rows: int) -> None:
    """So many rows, copied by the server from those that are there already; statistics as a table has them after a while."""
    cursor.execute("SET foreign_key_checks = 0")  # steps and files refer to items: that forbids a TRUNCATE, even of empty tables
    for table in ("task_attempt", "task_item"):
        cursor.execute(f"TRUNCATE {table}")
    cursor.execute("SET foreign_key_checks = 1")
    cursor.execute("DELETE FROM task")
    cursor.execute("INSERT IGNORE INTO ai_model (id_ai_model, name, provider) VALUES (1, 'echo', 'echo')")
    tasks = TASKS if shape == "many" else 1
    cursor.executemany("INSERT INTO task (id_task, id_ai_model) VALUES (%s, %s)", [(1 + number, 1) for number in range(tasks)])
    done = rows - LEFT if shape == "done" else 0
    for start in range(0, rows, CHUNK):
        count = min(CHUNK, rows - start)
        cursor.execute(
            "INSERT INTO task_item (id_task_item, id_task, status_id, attempt, finished_at, text_original)"
            " WITH RECURSIVE n AS (SELECT 0 AS n UNION ALL SELECT n + 1 FROM n WHERE n < 999)"
            " SELECT %s + a.n * 1000 + b.n, 1 + (a.n * 1000 + b.n) %% %s, IF(%s + a.n * 1000 + b.n <= %s, 1, 0),"
            "        IF(%s + a.n * 1000 + b.n <= %s, 1, 0), IF(%s + a.n * 1000 + b.n <= %s, NOW(6), NULL), %s"
            "   FROM n a STRAIGHT_JOIN n b WHERE a.n * 1000 + b.n < %s AND a.n < %s",
            [start + 1, tasks, *[start + 1, done] * 3, TEXT, count, (count + 999) // 1000],
        )
    cursor.execute("SELECT COUNT(*) FROM task_item")
    if cursor.fetchall() != ((rows,),):
        raise WrongResultError(f"the table does not have {rows} rows")
    cursor.execute("UPDATE task SET status_id = 1, started_at = NOW(6), records_processed = %s", [done])
    cursor.execute("ANALYZE TABLE task, task_item")
    cursor.fetchall()


class Worker:
    """Claims and commits by the engine's own verbs, and notes how long each took."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self._id = queue.register(host="depth", pid=1, version="", mode="run", concurrency=SIZE, lease_seconds=3600)
        self._held: list[Item] = []
        self.forget()

    def forget(self) -> None:
        """As a worker that has just started, without watermarks; what it held is committed."""
        self._commit(self._held, set())
        self._held = []
        self.claims: list[float] = []
        self.cycles: list[float] = []
        self._picker = Picker(self._queue, Filters(), lambda _: SIZE, lambda: ())

    def go(self, count: int) -> None:
        """So many claims, each followed by the commit of the one before: a worker at work always holds something."""
        for _ in range(count):
            began = time.perf_counter()
            items = self._picker.take(self._id, SIZE)
            self.claims.append(1000 * (time.perf_counter() - began))
            if len(items) != SIZE:
                raise WrongResultError(f"{len(items)} items claimed instead of {SIZE}")
            self._commit(self._held, {item.task.id_task for item in items})
            self._held = items
            self.cycles.append(1000 * (time.perf_counter() - began))

    def _commit(self, items: Sequence[Item], held: set[int]) -> None:
        result = Result(TEXT, "No changes", {"text": TEXT, "changes": []})
        outcomes = [Outcome.processed(item, result, Usage(20, 20), None, 1) for item in items]
        if outcomes and len(self._queue.commit(self._id, outcomes, held).stored) != len(outcomes):
            raise WrongResultError("not all outcomes were stored")


def timed(work: Callable[[], object], times: int = 5) -> float:
    """Milliseconds, the median of a few."""
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        work()
        taken.append(1000 * (time.perf_counter() - began))
    return median(taken)


def upkeep(queue: Queue) -> None:
    """What one worker does for all of them, each second or several times a minute."""
    queue.next_due()
    queue.promote_due()
    queue.rescue()
    queue.rescue_orphans()
    queue.newest_item()
    queue.reopen_page()
    queue.end_forgotten()


def p99(values: Sequence[float]) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[98]


@contextmanager
def worker(server: Server) -> Iterator[tuple[Queue, Worker]]:
    """A worker on a connection of its own."""
    db = Database(parse_database_url(server.url))
    queue = Queue(db)
    try:
        yield queue, Worker(queue)
    finally:
        db.close()


def deep(server: Server, shape: str, rows: int, options: Options) -> dict[str, float]:
    """A row of the table: what claims and the rest cost at this size."""
    with server.connect() as connection, connection.cursor() as cursor:
        fill(cursor, shape, rows)
        with worker(server) as (queue, one):
            look = timed(lambda: queue.runnable(Filters()))
            round_of_upkeep = timed(lambda: upkeep(queue))
            one.go(5)  # pages come into memory, plans are made
            one.forget()
            one.go(10 if options.smoke else 80)
            figures = {"claim_ms": median(one.claims), "p99_ms": p99(one.claims), "cycle_ms": median(one.cycles)}
            one.forget()
    return {**figures, "look_ms": look, "upkeep_ms": round_of_upkeep}


def beside_a_snapshot(server: Server, items: int) -> dict[str, float]:
    """Claims and commits items while another session holds a snapshot; what the last ones cost beside the first ones."""
    edge = min(EDGE, items // SIZE // 4)
    with server.connect() as connection, connection.cursor() as cursor, server.connect() as backup, backup.cursor() as held:
        fill(cursor, "pending", items + 10 * SIZE)
        held.execute("SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        held.execute("START TRANSACTION WITH CONSISTENT SNAPSHOT")
        with worker(server) as (queue, one):
            look_before = timed(lambda: queue.runnable(Filters()))
            one.go(items // SIZE)
            claims, cycles = one.claims, one.cycles
            look = timed(lambda: queue.runnable(Filters()))
            one.forget()
            one.go(1)
            reset = one.claims[0]
            one.forget()
        held.execute("SELECT COUNT(*) FROM task_item WHERE status_id = 0")
        if held.fetchall() != ((items + 10 * SIZE,),):
            raise WrongResultError("the snapshot did not hold")
    return {
        "first_ms": median(claims[:edge]),
        "last_ms": median(claims[-edge:]),
        "last_p99_ms": p99(claims[-edge:]),
        "of_first": median(claims[-edge:]) / median(claims[:edge]),
        "cycle_of_first": median(cycles[-edge:]) / median(cycles[:edge]),
        "look_of_first": look / look_before,
        "max_ms": max(claims),
        "reset_ms": reset,
    }


def main() -> None:
    report = Report("depth", __doc__)
    add = report.parser.add_argument
    add("--rows", type=int, action="append", metavar="N", help="may be repeated (default: 10,000, 1,000,000, 10,000,000)")
    add("--shape", choices=[*SHAPES, "snapshot"], action="append", help="(default: all)")
    add("--items", type=int, default=100_000, help="claimed beside a snapshot (default: %(default)s)")
    options = report.options()
    sizes = sorted(options.given.rows or ([10_000, 20_000] if options.smoke else [10_000, 1_000_000, 10_000_000]))
    chosen = options.given.shape or [*SHAPES, "snapshot"]
    for server in report.servers(options):
        for shape in (each for each in SHAPES if each in chosen):
            small = 0.0
            for rows in sizes:
                figures = deep(server, shape, rows, options)
                small = small or figures["claim_ms"]
                report.add(server=server.name, shape=shape, rows=rows, of_small=figures["claim_ms"] / small, **figures)
        if "snapshot" in chosen:
            items = 2000 if options.smoke else options.given.items
            report.add(server=server.name, shape="snapshot", items=items, **beside_a_snapshot(server, items))
    report.write(options)


if __name__ == "__main__":
    main()
