"""What a worker costs the host and the database: connections, statements per second, memory.

`idle`: workers that wait. `busy`: while they call a model that takes DELAY milliseconds, with all slots full; statements are
counted by the server, all of them, and so are the connections. `pruned`: items per second of a drain that costs nothing (`echo`),
and of the same one while `ai-worker prune` deletes old tasks beside it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from bench.drain import OPEN_TASK, daemons, wait_for
from bench.memory import resident, submit
from bench.report import Report, median
from bench.servers import Server

WORKERS = (1, 4)
CONCURRENCY = 50
DELAY = 1000  # milliseconds of a call, as of a small model
OLD = 40_000  # items to be pruned


def counted(cursor: Any) -> tuple[int, int]:
    """Statements that the server has had, and connections that it has; ours is one of them."""
    cursor.execute("SHOW GLOBAL STATUS WHERE Variable_name IN ('Questions', 'Threads_connected')")
    found = {name: int(value) for name, value in cursor.fetchall()}
    return found["Questions"], found["Threads_connected"]


def window(cursor: Any, seconds: float) -> tuple[float, int, float]:
    """Statements per second, connections and items per second, over so many seconds."""
    cursor.execute("SELECT COALESCE(SUM(records_processed), 0) FROM task")
    ((items,),) = cursor.fetchall()
    first, _ = counted(cursor)
    began = time.monotonic()
    time.sleep(seconds)
    last, connections = counted(cursor)
    passed = time.monotonic() - began
    cursor.execute("SELECT COALESCE(SUM(records_processed), 0) FROM task")
    ((more,),) = cursor.fetchall()
    return (last - first) / passed, connections - 1, float(more - items) / passed


def footprint(server: Server, workers: int, seconds: float) -> Sequence[dict[str, Any]]:
    """A row for idle workers, and one for busy ones."""
    rows = []
    with (
        server.connect() as connection,
        connection.cursor() as cursor,
        daemons(server, workers, "--concurrency", str(CONCURRENCY)) as processes,
    ):
        for state in ("idle", "busy"):
            if state == "busy":
                submit(cursor, "slow", int(workers * CONCURRENCY * (seconds + 6) * 1000 / DELAY))
                time.sleep(2)  # until all slots are full
            statements, connections, items = window(cursor, seconds)
            rows.append(
                {
                    "server": server.name,
                    "workers": workers,
                    "state": state,
                    "statements_s": statements,
                    "connections": connections / workers,
                    "items_s": items,
                    "mb": median([resident(process.pid) for process in processes]),
                }
            )
        wait_for(lambda: not cursor.execute(OPEN_TASK), "the end of the tasks")
        for table in ("task_attempt", "task_item", "task"):
            cursor.execute(f"DELETE FROM {table}")
    return rows


def pruned(server: Server, items: int, old: int) -> dict[str, Any]:
    """The drain alone, and beside `prune`."""
    rates = []
    with (
        server.connect() as connection,
        connection.cursor() as cursor,
        daemons(server, 1, "--concurrency", "200"),
    ):
        for is_pruning in (False, True):
            if is_pruning:
                submit(cursor, "old", old)
                cursor.execute("UPDATE task_item SET status_id = 1, finished_at = NOW(6) WHERE status_id = 0")
                ago = "NOW(6) - INTERVAL 40 DAY"
                cursor.execute(f"UPDATE task SET status_id = 2, finished_at = {ago}, created_at = {ago}")
            submit(cursor, "old", 200)  # a warm-up
            environment = {**os.environ, "AI_WORKER_DB_URL": server.url}
            command = [sys.executable, "-m", "ai_worker", "prune", "--older-than", "30d", "--json"]
            wait_for(lambda: not cursor.execute(OPEN_TASK), "the warm-up")
            prune = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) if is_pruning else None
            if prune:
                time.sleep(1.0)  # until it deletes
            submit(cursor, "echo", items)
            began = time.monotonic()
            wait_for(lambda: not cursor.execute(OPEN_TASK), "the end of the tasks", pause=0.01)
            rates.append(items / (time.monotonic() - began))
            is_beside = prune is not None and prune.poll() is None
            if prune:
                prune.wait()
    return {"server": server.name, "items": items, "alone_s": rates[0], "beside_s": rates[1], "to_the_end": is_beside}


def main() -> None:
    report = Report("footprint", __doc__)
    options = report.options()
    seconds = 0.5 if options.smoke else 5.0
    for server in report.servers(options):
        with server.connect() as connection, connection.cursor() as cursor:
            slow = ("slow", f'{{"delay_ms": {DELAY}}}')
            cursor.executemany("INSERT INTO ai_model (name, provider, options) VALUES (%s, 'echo', %s)", [slow])
            cursor.execute("INSERT INTO ai_model (name, provider) VALUES ('echo', 'echo'), ('old', 'echo')")
        for workers in WORKERS[: 1 if options.smoke else None]:
            for row in footprint(server, workers, seconds):
                report.add(**row)
        report.add(**pruned(server, 500 if options.smoke else 20_000, 2000 if options.smoke else OLD))
    report.write(options)


if __name__ == "__main__":
    main()
