"""Items whose model answers after a second, or five: does the engine keep hundreds of calls in flight, and what does it add?

A loopback server (`bench.endpoint`) answers each request after a fixed delay. A real `ai-worker daemon` takes items from the
database through their calls; `efficiency` is the ideal time (waves of as many calls as may be in flight, times the delay) by
the time from the moment when the items appear to the last one's commit.

Beside it, in the same run, the *bare SDK* (`bench.bare_sdk`): the same requests through the same SDK and transport in a plain
asyncio loop, without a database. `of_bare` is the engine's rate by the bare loop's, `cpu` the ratio of their CPU times a call
(user and system time of the one process, all threads). Both have connected to the server once before; both open the rest of
their connections within the time measured.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

from ai_worker import keys
from ai_worker.database_url import parse_database_url
from ai_worker.db import Database
from ai_worker.models import Item, Model, Secret, Task, TaskStatus
from ai_worker.store.models import Models
from ai_worker.task_types import task_type
from bench import bare_sdk, endpoint
from bench.bare_sdk import WARM_UP, Done, Job
from bench.drain import OPEN_TASK, daemons, wait_for
from bench.endpoint import APIS, TEXT, Endpoint
from bench.report import Report, WrongResultError, median
from bench.servers import Server

IN_FLIGHT = (200, 500, 1000)
WAVES = {1.0: 10, 5.0: 4}  # by delay in seconds; enough that the first one, which connects, does not decide


@dataclass(frozen=True, slots=True)
class Load:
    """One measurement: so many items, so many of them in flight, answered after `delay` seconds."""

    api: str
    in_flight: int
    delay: float
    items: int

    @property
    def model(self) -> str:
        return f"{self.api}-{self.delay:g}"


def add_models(server: Server, served: Endpoint, loads: list[Load]) -> None:
    """A model for each API and delay."""
    keyring = keys.Keyring(Secret(os.environ["AI_WORKER_MASTER_KEY"]))
    db = Database(parse_database_url(server.url))
    for name, load in {load.model: load for load in loads}.items():
        provider, options = ("gemini", {}) if load.api == "gemini" else ("openai", {"api": load.api})
        url = served.base_url(load.api, load.delay)
        model = Model(0, name, provider, "bench", url, options=options, price_input=1, price_output=2)
        Models(db).add(model, lambda number: keyring.encrypt(number, Secret("none")))
    db.close()


def engine(server: Server, served: Endpoint, load: Load) -> Done:
    """A daemon's time and CPU for these items."""
    with server.connect() as connection, connection.cursor() as cursor:
        for table in ("task_attempt", "task_item", "task", "result_cache"):
            cursor.execute(f"DELETE FROM {table}")
        with daemons(server, 1, "--concurrency", str(load.in_flight)) as (process,):
            _submit(connection, load, range(load.items, load.items + WARM_UP))
            wait_for(lambda: not cursor.execute(OPEN_TASK), "the warm-up")
            served.seen()
            cpu = _cpu(process.pid)
            began = _submit(connection, load, range(load.items))
            wait_for(lambda: not cursor.execute(OPEN_TASK), "the end of the task")
            cpu = _cpu(process.pid) - cpu
        cursor.execute("SELECT MAX(finished_at) FROM task")
        ((ended,),) = cursor.fetchall()
        _check_rows(cursor, load)
    _check_seen(served, load, 0)
    return Done((ended - began).total_seconds(), cpu)


def bare(served: Endpoint, load: Load) -> Done:
    """The bare loop's, for the same requests."""
    task = Task(1, 1, "correction", "", {}, 3, 0, TaskStatus.NEW)
    prompt = task_type("correction").prompt(Item(1, task, TEXT, {}, 1, 0, b"", UUID(int=0)))
    served.seen()
    url = served.base_url(load.api, load.delay)
    done = bare_sdk.run(Job(load.api, url, load.items, load.in_flight, prompt.system, prompt.user, dict(prompt.schema)))
    _check_seen(served, load, WARM_UP)
    return done


def _submit(connection: Any, load: Load, numbers: range) -> Any:
    """A task of these items; the server's time when they appear, all in the same instant."""
    connection.begin()
    with connection.cursor() as cursor:
        model = "SELECT id_ai_model, '' FROM ai_model WHERE name = %s"
        cursor.execute(f"INSERT INTO task (id_ai_model, description) {model}", [load.model])
        rows = [(cursor.lastrowid, TEXT % number) for number in numbers]
        for start in range(0, len(rows), 5000):
            cursor.executemany("INSERT INTO task_item (id_task, text_original) VALUES (%s, %s)", rows[start : start + 5000])
        cursor.execute("SELECT NOW(6)")
        ((now,),) = cursor.fetchall()
    connection.commit()
    return now


def _cpu(pid: int) -> float:
    """Seconds of CPU, user and system, that a process has used so far (proc(5), `stat`)."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _check_rows(cursor: Any, load: Load) -> None:
    cursor.execute("SELECT COUNT(*) FROM task_item WHERE status_id = 1 AND text_corrected = text_original AND cost > 0")
    ((right,),) = cursor.fetchall()
    cursor.execute("SELECT COUNT(*), COUNT(DISTINCT id_task_item) FROM task_attempt WHERE outcome = 'processed'")
    ((attempts, distinct),) = cursor.fetchall()
    if {right, attempts, distinct} != {load.items + WARM_UP}:
        raise WrongResultError(f"{load}: {right} right, {attempts} attempts at {distinct} items")


def _check_seen(served: Endpoint, load: Load, besides: int) -> None:
    seen = served.seen()
    if (seen.requests, seen.texts) != (load.items + besides, load.items + besides) or seen.at_once > load.in_flight:
        raise WrongResultError(f"{load}: the server saw {seen}")


def main() -> None:
    report = Report("calls", __doc__)
    add = report.parser.add_argument
    add("--api", choices=APIS, action="append", help="may be repeated (default: all)")
    add("--in-flight", type=int, action="append", metavar="N", help="may be repeated (default: 200, 500, 1000)")
    add("--delay", type=float, action="append", metavar="SECONDS", help="may be repeated (default: 1, 5)")
    options = report.options()
    given = options.given
    if options.smoke:
        loads = [Load(api, 50, 0.05, 200) for api in given.api or ("chat", "gemini")]
    else:
        loads = [
            Load(api, in_flight, delay, in_flight * WAVES.get(delay, 10))
            for api in given.api or APIS
            for in_flight in given.in_flight or IN_FLIGHT
            for delay in given.delay or WAVES
        ]
    os.environ["AI_WORKER_MASTER_KEY"] = keys.generate_master_key()  # for the daemons, too
    for server in report.servers(options):
        with endpoint.running() as served:
            add_models(server, served, loads)
            for load in loads:
                pairs = [(engine(server, served, load), bare(served, load)) for _ in range(options.rounds)]
                rates = [load.items / done.seconds for done, _ in pairs]
                report.add(
                    server=server.name,
                    api=load.api,
                    in_flight=load.in_flight,
                    delay_s=load.delay,
                    items_per_s=median(rates),
                    efficiency=median(rates) * load.delay / load.in_flight,
                    bare_per_s=median([load.items / other.seconds for _, other in pairs]),
                    of_bare=median([other.seconds / done.seconds for done, other in pairs]),
                    cpu_ms=median([done.cpu / load.items * 1000 for done, _ in pairs]),
                    bare_cpu_ms=median([other.cpu / load.items * 1000 for _, other in pairs]),
                    cpu=median([done.cpu / other.cpu for done, other in pairs]),
                )
    report.write(options)


if __name__ == "__main__":
    main()
