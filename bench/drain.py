"""Items that cost nothing, from PENDING to PROCESSED: `python -m bench.drain [--items N] [--processes P] [--url URL]`.

The `echo` provider answers at once, so what is measured is the engine: claim, prompt, parse, commit with result, attempt and
counters. Beside it, in the same run and on the same server, the *floor*: a bare PyMySQL loop that does the least SQL for the
same durable effect (claim 100, write 100 results, bump the counter). The ratio of the two means something on a noisy machine;
the absolute figures belong to it. Without --url, a private server with its own folder is started, with fsync on commit.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pymysql

from ai_worker import embedded, migrate
from ai_worker.config import DatabaseUrl, parse_database_url
from ai_worker.db import Database

TEXT = "Zażółć gęślą jaźń: this is a sentense with some mistakes in it, number {}, for the drain. 🙂"
SCHEMA = "ai_worker_bench"
GROUP = 100


@contextlib.contextmanager
def database(url: str | None) -> Iterator[str]:
    """The URL of an empty, migrated database, dropped at the end."""
    with contextlib.ExitStack() as stack:
        if url is None:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="ai-worker-bench-"))
            url = stack.enter_context(embedded.running(Path(folder)))
        parsed = replace(parse_database_url(url), database=SCHEMA)
        with connect(replace(parsed, database="")) as connection, connection.cursor() as cursor:
            cursor.execute(f"DROP DATABASE IF EXISTS {SCHEMA}")
            cursor.execute(f"CREATE DATABASE {SCHEMA} CHARACTER SET utf8mb4")
        stack.callback(_drop, parsed)
        db = Database(parsed)
        migrate.migrate(db)
        db.close()
        yield _rendered(parsed)


def _drop(url: DatabaseUrl) -> None:
    with connect(replace(url, database="")) as connection, connection.cursor() as cursor:
        cursor.execute(f"DROP DATABASE IF EXISTS {SCHEMA}")


def _rendered(url: DatabaseUrl) -> str:
    where = "" if url.unix_socket else ",".join(f"{host}:{port}" for host, port in url.hosts)
    socket = f"?socket={url.unix_socket}" if url.unix_socket else "?ssl=off"
    return f"mysql://{url.user}:{url.password.reveal()}@{where}/{url.database}{socket}"


def connect(url: DatabaseUrl) -> pymysql.Connection[Any]:
    host, port = url.hosts[0] if url.hosts else ("localhost", 0)
    return pymysql.connect(
        host=host,
        port=port,
        unix_socket=url.unix_socket,
        user=url.user,
        password=url.password.reveal(),
        database=url.database or None,
        charset="utf8mb4",
        autocommit=True,
        ssl_disabled=True,
        init_command="SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED",
    )


def fill(url: str, items: int) -> int:
    """One task with so many pending items; its id."""
    with connect(parse_database_url(url)) as connection, connection.cursor() as cursor:
        cursor.execute("INSERT IGNORE INTO ai_model (name, provider) VALUES ('echo', 'echo')")
        cursor.execute("INSERT INTO task (id_ai_model, description) SELECT id_ai_model, '' FROM ai_model WHERE name = 'echo'")
        id_task: int = connection.insert_id()
        for start in range(0, items, 1000):
            rows = [(id_task, TEXT.format(number)) for number in range(start, min(items, start + 1000))]
            cursor.executemany("INSERT INTO task_item (id_task, text_original) VALUES (%s, %s)", rows)
    return id_task


def drain(url: str, items: int, processes: int) -> float:
    """Items per second of so many `ai-worker run` processes, from the first claim to the end of the task."""
    id_task = fill(url, items)
    environment = {**os.environ, "AI_WORKER_DB_URL": url, "AI_WORKER_CONCURRENCY": "1000"}
    command = [sys.executable, "-m", "ai_worker", "run", "--task", str(id_task)]
    workers = [
        subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for _ in range(processes)
    ]
    if any(worker.wait() for worker in workers):
        raise SystemExit("a worker failed")
    with connect(parse_database_url(url)) as connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT records_processed, status_id, TIMESTAMPDIFF(MICROSECOND, started_at, finished_at) / 1e6 FROM task"
            " WHERE id_task = %s",
            [id_task],
        )
        ((processed, status, seconds),) = cursor.fetchall()
        cursor.execute("SELECT COUNT(*) FROM task_item WHERE id_task = %s AND text_corrected = text_original", [id_task])
        ((correct,),) = cursor.fetchall()
    if (processed, status, correct) != (items, 2, items):
        raise SystemExit(f"wrong result: {processed} processed, status {status}, {correct} right of {items}")
    return items / float(seconds)


def _floor_worker(url: str, id_task: int) -> None:
    with connect(parse_database_url(url)) as connection, connection.cursor() as cursor:
        after = 0
        while True:
            connection.begin()
            cursor.execute(
                "SELECT id_task_item, text_original FROM task_item FORCE INDEX (k_task_item_claim) WHERE id_task = %s AND"
                " status_id = 0 AND id_task_item > %s ORDER BY id_task_item LIMIT %s FOR UPDATE SKIP LOCKED",
                [id_task, after, GROUP],
            )
            rows = cursor.fetchall()
            if not rows:
                connection.commit()
                return
            after = rows[-1][0]
            ids = tuple(row[0] for row in rows)
            cursor.execute(
                "UPDATE task_item SET status_id = 2, id_worker = 1, claim_token = REPEAT('x', 16), attempt = attempt + 1"
                " WHERE id_task_item IN %s",
                [ids],
            )
            connection.commit()
            connection.begin()
            document = json.dumps([{"i": id_item, "t": text} for id_item, text in rows], ensure_ascii=False)
            cursor.execute(
                "UPDATE JSON_TABLE(%s, '$[*]' COLUMNS (i BIGINT UNSIGNED PATH '$.i', t MEDIUMTEXT PATH '$.t')) r"
                " STRAIGHT_JOIN task_item t ON t.id_task_item = r.i"
                " SET t.status_id = 1, t.id_worker = NULL, t.finished_at = NOW(6), t.text_corrected = r.t",
                [document],
            )
            cursor.execute(
                "UPDATE task SET records_processed = records_processed + %s WHERE id_task = %s",
                [len(rows), id_task],
            )
            connection.commit()


def floor(url: str, items: int, processes: int) -> float:
    """Items per second of the bare loop."""
    id_task = fill(url, items)
    workers = [multiprocessing.Process(target=_floor_worker, args=(url, id_task)) for _ in range(processes)]
    began = time.monotonic()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    seconds = time.monotonic() - began
    with connect(parse_database_url(url)) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT records_processed FROM task WHERE id_task = %s", [id_task])
        ((processed,),) = cursor.fetchall()
    if processed != items:
        raise SystemExit(f"wrong result of the floor: {processed} of {items}")
    return items / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=20_000)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--url", help="a server of yours, on which a database of its own is made and dropped")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    options = parser.parse_args()
    engine: list[float] = []
    bare: list[float] = []
    with database(options.url) as url:
        for _ in range(options.rounds):
            bare.append(floor(url, options.items, options.processes))
            engine.append(drain(url, options.items, options.processes))
    figures = {
        "items": options.items,
        "processes": options.processes,
        "rounds": options.rounds,
        "drain_per_second": round(statistics.median(engine)),
        "floor_per_second": round(statistics.median(bare)),
        "ratio": round(statistics.median(one / other for one, other in zip(engine, bare, strict=True)), 3),
    }
    for name, value in figures.items():
        print(f"{name:18} {value:>10}")
    if options.json:
        options.json.write_text(json.dumps(figures) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
