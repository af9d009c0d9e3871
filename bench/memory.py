"""How much memory a worker holds: resident size in MB (VmRSS of a real `ai-worker daemon`).

`idle`: with one provider loaded and a few items done. `kb_per_call`: what each call in flight adds to that, with 200 and 1,000 of
them waiting for a loopback server (`bench.endpoint`). `growth_mb`: from the end of the first task of 20,000 items that cost
nothing (`echo`) to the end of the fifth, in one process.

Beside it, in the same run, a process that has done nothing but import what the provider builds on.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from ai_worker import keys
from bench import endpoint
from bench.bare_sdk import WARM_UP
from bench.calls import Load, add_models
from bench.drain import OPEN_TASK, daemons, wait_for
from bench.endpoint import TEXT, Endpoint
from bench.report import Report, WrongResultError, median
from bench.servers import Server

IMPORTS = {"echo": "pass", "chat": "import openai", "gemini": "import google.genai"}
IN_FLIGHT = (200, 1000)
DELAY = 8.0  # seconds; all calls are in flight long before the first one ends
TASKS, ITEMS = 5, 20_000  # all alike, so that what the fifth adds to the first is growth


def resident(pid: int) -> float:
    """MB (10^6 bytes) that a process holds in memory."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) * 1024 / 1e6


def imported(api: str) -> float:
    """The same for a process that only imports the SDK."""
    code = f"{IMPORTS[api]}\nfor line in open('/proc/self/status'):\n    if line.startswith('VmRSS'): print(line.split()[1])"
    return int(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout) * 1024 / 1e6


def submit(cursor: Any, model: str, items: int) -> None:
    """A task of so many items."""
    cursor.execute("INSERT INTO task (id_ai_model, description) SELECT id_ai_model, '' FROM ai_model WHERE name = %s", [model])
    rows = [(cursor.lastrowid, TEXT % number) for number in range(items)]
    for start in range(0, items, 5000):
        cursor.executemany("INSERT INTO task_item (id_task, text_original) VALUES (%s, %s)", rows[start : start + 5000])


def finish(cursor: Any, items: int) -> None:
    """Waits until no task is open, and looks whether so many items are done."""
    wait_for(lambda: not cursor.execute(OPEN_TASK), "the end of the tasks")
    cursor.execute("SELECT COUNT(*) FROM task_item WHERE status_id = 1 AND text_corrected = text_original")
    ((right,),) = cursor.fetchall()
    if right != items:
        raise WrongResultError(f"{right} of {items} items are right")
    for table in ("task_attempt", "task_item", "task", "result_cache"):
        cursor.execute(f"DELETE FROM {table}")


def in_flight(server: Server, served: Endpoint, load: Load) -> tuple[float, float]:
    """MB when idle, and with the load's calls in flight."""
    with (
        server.connect() as connection,
        connection.cursor() as cursor,
        daemons(server, 1, "--concurrency", str(load.in_flight)) as (worker,),
    ):
        submit(cursor, f"{load.api}-0", WARM_UP)
        finish(cursor, WARM_UP)
        idle = resident(worker.pid)
        served.seen()
        submit(cursor, load.model, load.in_flight)
        wait_for(lambda: served.seen().at_once >= load.in_flight, "all calls in flight")
        busy = resident(worker.pid)
        finish(cursor, load.in_flight)
    return idle, busy


def growth(server: Server, items: int) -> tuple[float, float, float]:
    """MB when idle, after the first task and after the last one, of one worker with the `echo` provider."""
    sizes = []
    with (
        server.connect() as connection,
        connection.cursor() as cursor,
        daemons(server, 1, "--concurrency", "200") as (worker,),
    ):
        for count in (WARM_UP, *[items] * TASKS):
            submit(cursor, "echo", count)
            finish(cursor, count)
            sizes.append(resident(worker.pid))
    return sizes[0], sizes[1], sizes[-1]


def main() -> None:
    report = Report("memory", __doc__)
    report.parser.add_argument("--only", choices=IMPORTS, help="one provider (default: all)")
    options = report.options()
    os.environ["AI_WORKER_MASTER_KEY"] = keys.generate_master_key()  # for the daemons, too
    apis = [api for api in ("chat", "gemini") if options.given.only in {api, None} and not options.smoke]
    items = 500 if options.smoke else ITEMS
    for server in report.servers(options):
        with endpoint.running() as served:
            add_models(server, served, [Load(api, 0, delay, 0) for api in apis for delay in (0.0, DELAY)])
            with server.connect() as connection, connection.cursor() as cursor:
                cursor.execute("INSERT INTO ai_model (name, provider) VALUES ('echo', 'echo')")
                cursor.execute("UPDATE ai_model SET is_active = 1, price_input = NULL, price_output = NULL")  # the list is loaded
            for api in apis:
                for calls in IN_FLIGHT:
                    pairs = [in_flight(server, served, Load(api, calls, DELAY, calls)) for _ in range(options.rounds)]
                    report.add(
                        server=server.name,
                        provider=api,
                        imported_mb=imported(api),
                        idle_mb=median([idle for idle, _ in pairs]),
                        in_flight=calls,
                        busy_mb=median([busy for _, busy in pairs]),
                        kb_per_call=median([(busy - idle) * 1000 / calls for idle, busy in pairs]),
                    )
            if options.given.only in {"echo", None}:
                sizes = [growth(server, items) for _ in range(options.rounds)]
                report.add(
                    server=server.name,
                    provider="echo",
                    imported_mb=imported("echo"),
                    idle_mb=median([idle for idle, _, _ in sizes]),
                    items=TASKS * items,
                    after_mb=median([after for _, _, after in sizes]),
                    growth_mb=median([after - before for _, before, after in sizes]),
                )
    report.write(options)


if __name__ == "__main__":
    main()
