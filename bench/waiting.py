"""How soon HTTP clients that wait for results have them, and what it costs the database that they wait.

Clients ask `GET /task-item/{id}?wait=30` of one web process, each for an item of its own; another application commits the results
at random moments. The time runs from the moment when that application has the answer to its COMMIT to that when the client has
the result. Queries per second are those that the server counts (Questions) while all wait, without that application's own.
"""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
import threading
import time
from typing import Any

import httpx2

from ai_worker.database_url import parse_database_url
from ai_worker.db import Database
from ai_worker.store.tokens import Scope, Tokens
from bench.pickup import quantile
from bench.report import Report, WrongResultError, median
from bench.servers import Server

MOST_MS = 300.0
MOST_QUERIES = 20.0


def waiting(server: Server, clients: int, seconds: float) -> dict[str, float]:
    """One round: all results come within so many seconds."""
    with server.connect() as connection, connection.cursor() as cursor:
        for table in ("task_item", "task", "api_token", "ai_model"):
            cursor.execute(f"DELETE FROM {table}")
        cursor.execute("INSERT INTO ai_model (name, provider) VALUES ('echo', 'echo')")
        cursor.execute("INSERT INTO task (id_ai_model) SELECT id_ai_model FROM ai_model")
        task = cursor.lastrowid
        cursor.executemany("INSERT INTO task_item (id_task, text_original) VALUES (%s, 'Zażółć')", [[task]] * clients)
        cursor.execute("SELECT id_task_item FROM task_item ORDER BY id_task_item")
        items = [row[0] for row in cursor.fetchall()]
    db = Database(parse_database_url(server.url))
    token = Tokens(db).add("bench", [Scope.READ])
    db.close()
    environment = {**os.environ, "AI_WORKER_DB_URL": server.url, "AI_WORKER_LOG_FORMAT": "json"}
    command = [sys.executable, "-m", "ai_worker", "web", "--port", "0"]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as web:
        reader: threading.Thread | None = None
        try:
            line = web.stderr.readline() if web.stderr else ""
            base = line.split('"address":"')[1].split('"')[0]
            reader = threading.Thread(target=lambda: [None for _ in web.stderr or ()], daemon=True)
            reader.start()
            return asyncio.run(_round(server, base, token, items, seconds))
        finally:
            web.terminate()
            if reader is not None:
                reader.join()  # to the end of the log, before the pipe is closed


async def _round(server: Server, base: str, token: str, items: list[int], seconds: float) -> dict[str, float]:
    answered: dict[int, float] = {}
    limits = httpx2.Limits(max_connections=len(items) + 1, max_keepalive_connections=len(items) + 1)
    async with httpx2.AsyncClient(
        base_url=base, headers={"Authorization": f"Bearer {token}"}, timeout=60, limits=limits
    ) as client:

        async def ask(item: int) -> None:
            answer = await client.get(f"/task-item/{item}", params={"wait": 30})
            answered[item] = time.monotonic()
            if answer.status_code != 200 or answer.json()["text_corrected"] != "Zażółć!":
                raise WrongResultError(f"item {item}: {answer.status_code} {answer.text}")

        asking = [asyncio.create_task(ask(item)) for item in items]
        await asyncio.sleep(3.0)  # until all of them wait
        committed, queries = await asyncio.to_thread(_commit, server, items, seconds)
        await asyncio.gather(*asking)
    times = [1000 * (answered[item] - committed[item]) for item in items]
    return {"p50_ms": quantile(times, 0.5), "p95_ms": quantile(times, 0.95), "max_ms": max(times), "queries_per_s": queries}


def _commit(server: Server, items: list[int], seconds: float) -> tuple[dict[int, float], float]:
    """Stores each result at a moment of its own; when that was, and how many queries a second others sent meanwhile."""
    begun = time.monotonic()
    moments = sorted((begun + random.uniform(0, seconds), item) for item in items)  # noqa: S311 -- moments
    committed = {}
    with server.connect() as connection, connection.cursor() as cursor:
        before = _questions(cursor)
        for moment, item in moments:
            time.sleep(max(0.0, moment - time.monotonic()))
            cursor.execute(
                "UPDATE task_item SET status_id = 1, attempt = 1, finished_at = NOW(6), text_corrected = 'Zażółć!' "
                "WHERE id_task_item = %s",
                [item],
            )
            committed[item] = time.monotonic()
        time.sleep(max(0.0, begun + seconds - time.monotonic()))
        queries = _questions(cursor) - before - len(items) - 1
    return committed, queries / (time.monotonic() - begun)


def _questions(cursor: Any) -> int:
    cursor.execute("SHOW GLOBAL STATUS LIKE 'Questions'")
    return int(cursor.fetchone()[1])


def main() -> None:
    report = Report("waiting", __doc__)
    report.parser.add_argument("--clients", type=int, default=200, help="who wait at once (default: 200)")
    report.parser.add_argument("--seconds", type=float, default=20.0, help="in which the results come (default: 20)")
    options = report.options()
    clients, seconds = (10, 1.0) if options.smoke else (options.given.clients, options.given.seconds)
    for server in report.servers(options):
        rounds = [waiting(server, clients, seconds) for _ in range(options.rounds)]
        figures = {name: median([each[name] for each in rounds]) for name in rounds[0]}
        report.add(server=server.name, clients=clients, **figures)
        if not options.smoke and (figures["max_ms"] > MOST_MS or figures["queries_per_s"] >= MOST_QUERIES):
            raise WrongResultError(f"{server.name}: {figures}")
    report.write(options)


if __name__ == "__main__":
    main()
