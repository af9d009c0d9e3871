"""Items that cost nothing, from PENDING to PROCESSED: what the engine itself can do.

The `echo` provider answers at once, in process, so what is measured is claim, prompt, parse and commit, with results, attempts
and counters durable. The clock is the server's: from the moment when the tasks become runnable, with daemons ready and idle,
to the end of the last task.

Beside it, in the same run and on the same server, the *floor*: a bare PyMySQL loop that does the least SQL for the same durable
effect (claim 100, write 100 results, bump the counters of their tasks). It writes no attempts, checks no answers, ends no tasks.

Shapes: `one` task of many items, `replies`: as many tasks as items (a chat), `many` tasks of 500 items.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.synchronize import Event
from typing import Any

from bench.report import Report, WrongResultError, median
from bench.servers import Server

TEXT = "Zażółć gęślą jaźń: this is a sentense with some mistakes in it, number {}, for the drain. 🙂"
GROUP = 100  # of the floor
WARM_UP = 500  # items, so that every process has loaded what it needs
START_AT_ONCE = 8  # daemons
PATIENCE = 300.0  # seconds for anything here


@dataclass(frozen=True, slots=True)
class Shape:
    """So many tasks of so many items each."""

    tasks: int
    items: int


SHAPES = {"one": Shape(1, 50_000), "replies": Shape(10_000, 1), "many": Shape(100, 500)}
SMOKE = {"one": Shape(1, 1000), "replies": Shape(200, 1), "many": Shape(10, 50)}


def fill(cursor: Any, shape: Shape) -> None:
    """Empties the tables and puts the tasks in, without committing them: nothing is there to be run."""
    cursor.execute("SET foreign_key_checks = 0")  # what refers to items is empty here, and would forbid the TRUNCATE all the same
    for table in ("task_attempt", "task_item", "task"):
        cursor.execute(f"DELETE FROM {table}" if table == "task" else f"TRUNCATE {table}")
    cursor.execute("SET foreign_key_checks = 1")
    cursor.execute("INSERT IGNORE INTO ai_model (name, provider) VALUES ('echo', 'echo')")
    cursor.connection.begin()
    cursor.execute("SELECT id_ai_model FROM ai_model WHERE name = 'echo'")
    ((id_ai_model,),) = cursor.fetchall()
    cursor.executemany("INSERT INTO task (id_ai_model, description) VALUES (%s, %s)", [(id_ai_model, "")] * shape.tasks)
    cursor.execute("SELECT id_task FROM task ORDER BY id_task")
    tasks = [row[0] for row in cursor.fetchall()]
    rows = [(id_task, TEXT.format(number)) for id_task in tasks for number in range(shape.items)]
    for start in range(0, len(rows), 5000):
        cursor.executemany("INSERT INTO task_item (id_task, text_original) VALUES (%s, %s)", rows[start : start + 5000])


def release(cursor: Any) -> Any:
    """Commits the tasks, so that all are there in the same instant; the server's time before it."""
    cursor.execute("SELECT NOW(6)")
    ((now,),) = cursor.fetchall()
    cursor.connection.commit()
    return now


def wait_for(condition: Callable[[], bool], what: str, pause: float = 0.05) -> None:
    """Polls until the condition holds."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise WrongResultError(f"{what}: not within {PATIENCE:.0f} s")
        time.sleep(pause)


def _has_rows(cursor: Any, sql: str, *parameters: object) -> bool:
    return bool(cursor.execute(sql, parameters))


OPEN_TASK = "SELECT 1 FROM task WHERE status_id IN (0, 1) LIMIT 1"


@contextlib.contextmanager
def daemons(server: Server, count: int, *arguments: str) -> Iterator[list[subprocess.Popen[bytes]]]:
    """So many `ai-worker daemon`s, registered; told to drain at the end, which they have to survive."""
    environment = {**os.environ, "AI_WORKER_DB_URL": server.url, "AI_WORKER_LOG_FORMAT": "json"}
    command = [sys.executable, "-m", "ai_worker", "daemon", *arguments]
    with tempfile.TemporaryFile() as log, server.connect() as connection, connection.cursor() as cursor:
        cursor.execute("UPDATE worker SET ended_at = COALESCE(ended_at, NOW(6))")
        workers: list[subprocess.Popen[bytes]] = []
        try:
            while len(workers) < count:  # not more at a time than need be: a hundred that start together take minutes
                number = min(START_AT_ONCE, count - len(workers))
                workers += [subprocess.Popen(command, env=environment, stdout=log, stderr=log) for _ in range(number)]
                _wait_for_registration(cursor, len(workers))
            yield workers
        finally:
            for worker in workers:
                worker.send_signal(signal.SIGTERM)
            codes = [worker.wait(PATIENCE) for worker in workers]
            if any(codes):
                log.seek(0)
                sys.stderr.write(log.read().decode(errors="replace")[-4000:])
        if any(codes):
            raise WrongResultError(f"daemons ended with {codes}")


def _wait_for_registration(cursor: Any, count: int) -> None:
    ready = "SELECT 1 FROM worker WHERE ended_at IS NULL HAVING COUNT(*) >= %s"
    wait_for(lambda: _has_rows(cursor, ready, count), "the daemons' start")


def drain(server: Server, shape: Shape, processes: int) -> float:
    """Items per second of so many daemons."""
    with server.connect() as connection, connection.cursor() as cursor:
        fill(cursor, Shape(processes, WARM_UP))
        with daemons(server, processes, "--concurrency", "1000"):
            release(cursor)
            wait_for(lambda: not _has_rows(cursor, OPEN_TASK), "the warm-up")
            fill(cursor, shape)
            began = release(cursor)
            wait_for(lambda: not _has_rows(cursor, OPEN_TASK), "the end of the tasks")
        return checked(cursor, shape, began, with_attempts=True)


def floor(server: Server, shape: Shape, processes: int) -> float:
    """Items per second of the bare loop."""
    with server.connect() as connection, connection.cursor() as cursor:
        fill(cursor, shape)
        context = multiprocessing.get_context("fork")
        start = context.Event()
        workers = [context.Process(target=_bare_loop, args=(server, start)) for _ in range(processes)]
        for worker in workers:
            worker.start()
        began = release(cursor)
        start.set()
        for worker in workers:
            worker.join(PATIENCE)
        cursor.execute("UPDATE task SET status_id = 2, started_at = NOW(6), finished_at = NOW(6)")
        return checked(cursor, shape, began, with_attempts=False)


def checked(cursor: Any, shape: Shape, began: Any, *, with_attempts: bool) -> float:
    """Items per second, after a look at every row."""
    items = shape.tasks * shape.items
    cursor.execute("SELECT SUM(records_processed), SUM(status_id = 2), MIN(records_processed), MAX(records_processed) FROM task")
    ((processed, completed, least, most),) = cursor.fetchall()
    if (processed, completed, least, most) != (items, shape.tasks, shape.items, shape.items):
        raise WrongResultError(f"{processed} of {items} counted, {completed} of {shape.tasks} tasks completed")
    cursor.execute("SELECT COUNT(*) FROM task_item WHERE status_id = 1 AND text_corrected = text_original")
    ((right,),) = cursor.fetchall()
    cursor.execute("SELECT COUNT(*), COUNT(DISTINCT id_task_item) FROM task_attempt WHERE outcome = 'processed'")
    ((attempts, distinct),) = cursor.fetchall()
    if right != items or (with_attempts and (attempts, distinct) != (items, items)):
        raise WrongResultError(f"{right} right and {attempts} attempts of {items}")
    cursor.execute("SELECT MAX(finished_at) FROM task_item" if not with_attempts else "SELECT MAX(finished_at) FROM task")
    ((ended,),) = cursor.fetchall()
    return items / float((ended - began).total_seconds())


def _bare_loop(server: Server, start: Event) -> None:
    with server.connect() as connection, connection.cursor() as cursor:
        start.wait()
        cursor.execute("SELECT id_task FROM task ORDER BY id_task")
        tasks: Sequence[int] = [row[0] for row in cursor.fetchall()]
        position = after = 0
        while position < len(tasks):
            group = tasks[position : position + GROUP] if len(tasks) > GROUP else tasks[position : position + 1]
            rows = _bare_claim(connection, cursor, group, after)
            if not rows:
                position, after = position + len(group), 0
                continue
            after = rows[-1][0] if len(group) == 1 else 0
            _bare_commit(connection, cursor, rows)


def _bare_claim(connection: Any, cursor: Any, tasks: Sequence[int], after: int) -> Sequence[tuple[int, int, str]]:
    connection.begin()
    if len(tasks) == 1:
        cursor.execute(
            "SELECT id_task_item, id_task, text_original FROM task_item FORCE INDEX (k_task_item_claim) WHERE id_task = %s AND"
            " status_id = 0 AND id_task_item > %s ORDER BY id_task_item LIMIT %s FOR UPDATE SKIP LOCKED",
            [tasks[0], after, GROUP],
        )
    else:
        cursor.execute(
            "SELECT id_task_item, id_task, text_original FROM task_item FORCE INDEX (k_task_item_claim) WHERE id_task IN %s AND"
            " status_id = 0 LIMIT %s FOR UPDATE SKIP LOCKED",
            [tasks, GROUP],
        )
    rows: Sequence[tuple[int, int, str]] = cursor.fetchall()
    if rows:
        cursor.execute(
            "UPDATE task_item SET status_id = 2, id_worker = 1, claim_token = REPEAT('x', 16), attempt = attempt + 1"
            " WHERE id_task_item IN %s",
            [[row[0] for row in rows]],
        )
    connection.commit()
    return rows


def _bare_commit(connection: Any, cursor: Any, rows: Sequence[tuple[int, int, str]]) -> None:
    counts: dict[int, int] = {}
    for _, id_task, _ in rows:
        counts[id_task] = counts.get(id_task, 0) + 1
    connection.begin()
    document = json.dumps([{"i": id_item, "t": text} for id_item, _, text in rows], ensure_ascii=False)
    cursor.execute(
        "UPDATE JSON_TABLE(%s, '$[*]' COLUMNS (i BIGINT UNSIGNED PATH '$.i', t MEDIUMTEXT PATH '$.t')) r"
        " STRAIGHT_JOIN task_item t ON t.id_task_item = r.i"
        " SET t.status_id = 1, t.id_worker = NULL, t.finished_at = NOW(6), t.text_corrected = r.t",
        [document],
    )
    if len(counts) == 1:
        ((id_task, count),) = counts.items()
        cursor.execute("UPDATE task SET records_processed = records_processed + %s WHERE id_task = %s", [count, id_task])
    else:
        document = json.dumps([{"i": id_task, "n": counts[id_task]} for id_task in sorted(counts)])
        cursor.execute(
            "UPDATE JSON_TABLE(%s, '$[*]' COLUMNS (i BIGINT UNSIGNED PATH '$.i', n INT PATH '$.n')) r"
            " STRAIGHT_JOIN task t ON t.id_task = r.i SET t.records_processed = t.records_processed + r.n",
            [document],
        )
    connection.commit()


def main() -> None:
    report = Report("drain", __doc__)
    report.parser.add_argument("--shape", choices=SHAPES, action="append", help="(default: all)")
    report.parser.add_argument(
        "--processes", type=int, action="append", metavar="N", help="may be repeated (default: 1, 2, 4, 8)"
    )
    options = report.options()
    shapes = SMOKE if options.smoke else SHAPES
    for server in report.servers(options):
        for name in options.given.shape or shapes:
            for processes in options.given.processes or ([2] if options.smoke else [1, 2, 4, 8]):
                bare, engine = [], []
                for _ in range(options.rounds):
                    bare.append(floor(server, shapes[name], processes))
                    engine.append(drain(server, shapes[name], processes))
                ratio = median([one / other for one, other in zip(engine, bare, strict=True)])
                figures = {"items_per_s": median(engine), "floor_per_s": median(bare), "ratio": ratio}
                report.add(server=server.name, shape=name, processes=processes, **figures)
    report.write(options)


if __name__ == "__main__":
    main()
