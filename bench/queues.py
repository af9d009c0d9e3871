"""How soon interactive work is begun while a worker is busy with bulk, and what that costs the bulk.

One daemon with so many slots, and a provider on this machine that takes 200 ms for each call. Replies are inserted by plain SQL,
a task with one item each, some per second at random times. The time runs from the moment when the application has the answer to
its COMMIT to that when the provider has the request.

`idle`: no batch is there. `bulk alone`: a task of 10,000 items in the queue `batch` and no reply. `shared`: both, with
`--queue reply:5 --queue batch:1`. `one list`: both, without `--queue`; replies have a higher priority. `vs_idle` is the ratio of
the 95th percentile to that of `idle`, `of_alone` that of the batch's items per second to `bulk alone`.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Iterator
from typing import Any

from bench.drain import daemons, wait_for
from bench.pickup import MOST, TEXT, Endpoint, quantile
from bench.report import Report, WrongResultError, median
from bench.servers import Server

SHARED = ("--queue", "reply:5", "--queue", "batch:1")
FIRST_OF_BATCH = 5000  # texts are numbered; replies come before
WARM_UP = 3.0  # seconds, for the worker to know how long calls take
ROWS = 500


class Application:
    """Fills the queues, and knows what came of it."""

    def __init__(self, server: Server, endpoint: Endpoint) -> None:
        self._connection = server.connect()
        self._cursor = self._connection.cursor()
        self._endpoint = endpoint
        self._replies = 0
        for table in ("task_item", "task", "ai_model"):
            self._cursor.execute(f"DELETE FROM {table}")
        self._cursor.execute(
            "INSERT INTO ai_model (name, provider, model, base_url) VALUES ('fake', 'openai', 'fake', %s)", [endpoint.url]
        )
        self._id_ai_model = self._cursor.lastrowid

    def close(self) -> None:
        self._connection.close()

    def bulk(self, items: int) -> None:
        """A task of so many items."""
        id_task = self._task("batch", 0)
        numbers = range(FIRST_OF_BATCH, FIRST_OF_BATCH + items)
        self._connection.begin()
        for start in range(0, items, ROWS):
            rows = [(id_task, TEXT.format(number)) for number in numbers[start : start + ROWS]]
            self._cursor.executemany("INSERT INTO task_item (id_task, text_original) VALUES (%s, %s)", rows)
        self._connection.commit()

    def replies(self, seconds: float, per_second: float) -> list[float]:
        """Inserts replies for so long; the milliseconds until the provider was asked for each."""
        committed: dict[int, float] = {}
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self._replies += 1
            self._connection.begin()
            row = [self._task("reply", 1), TEXT.format(self._replies)]
            self._cursor.execute("INSERT INTO task_item (id_task, text_original) VALUES (%s, %s)", row)
            self._connection.commit()
            committed[self._replies] = time.monotonic()
            time.sleep(random.uniform(0.5, 1.5) / per_second)  # noqa: S311 -- no secret
        wait_for(lambda: all(self._endpoint.arrived[number] for number in committed), "the last reply")
        return [1000 * (self._endpoint.arrived[number] - at) for number, at in committed.items()]

    def done_of_batch(self) -> int:
        """How many of the batch's items the provider was asked for."""
        return sum(self._endpoint.times[FIRST_OF_BATCH:])

    def check(self) -> None:
        """Nothing was asked for twice, and what was stored is right."""
        if any(times > 1 for times in self._endpoint.times):
            raise WrongResultError("some items were asked for more than once")
        self._cursor.execute("SELECT COUNT(*) FROM task_item WHERE status_id = 3 OR text_corrected <> text_original")
        ((wrong,),) = self._cursor.fetchall()
        if wrong:
            raise WrongResultError(f"{wrong} results are wrong")

    def _task(self, queue: str, priority: int) -> Any:
        row = [self._id_ai_model, queue, priority]
        self._cursor.execute("INSERT INTO task (id_ai_model, description, queue, priority) VALUES (%s, '', %s, %s)", row)
        return self._cursor.lastrowid


@contextlib.contextmanager
def at_work(server: Server, given: Any, *arguments: str, items: int) -> Iterator[Application]:
    """A daemon that has begun with so many items of a batch."""
    with Endpoint(given.delay) as endpoint, contextlib.closing(Application(server, endpoint)) as application:
        with daemons(server, 1, "--concurrency", str(given.concurrency), *arguments):
            if items:
                application.bulk(items)
                wait_for(lambda: application.done_of_batch() > 0, "the first item of the batch")
                time.sleep(given.warm_up)
            else:
                application.replies(given.warm_up, given.per_second)  # the first call loads the SDK
            yield application
        application.check()


def measured(application: Application, given: Any, per_second: float) -> tuple[list[float], float]:
    """Milliseconds of each reply, and the batch's items per second meanwhile."""
    before, began = application.done_of_batch(), time.monotonic()
    if per_second:
        times = application.replies(given.seconds, per_second)
    else:
        times = []
        time.sleep(given.seconds)
    return times, (application.done_of_batch() - before) / (time.monotonic() - began)


def main() -> None:
    report = Report("queues", __doc__)
    add = report.parser.add_argument
    add("--items", type=int, default=10_000, help="of the batch (default: 10,000)")
    add("--seconds", type=float, default=15.0, help="to insert replies for (default: 15)")
    add("--per-second", type=float, default=5.0, help="replies (default: 5)")
    add("--delay", type=float, default=0.2, help="of the provider's answers, in seconds (default: 0.2)")
    add("--concurrency", type=int, default=50, help="slots of the worker (default: 50)")
    options = report.options()
    given = options.given
    given.warm_up = 0.3 if options.smoke else WARM_UP
    if options.smoke:
        given.items, given.seconds, given.delay = 400, 0.8, 0.05
    given.items = min(given.items, MOST - FIRST_OF_BATCH)
    kinds = {
        "idle": (SHARED, 0, given.per_second),
        "bulk alone": (SHARED, given.items, 0.0),
        "shared": (SHARED, given.items, given.per_second),
        "one list": ((), given.items, given.per_second),
    }
    for server in report.servers(options):
        p95: dict[str, float] = {}
        rates: dict[str, float] = {}
        for kind, (arguments, items, per_second) in kinds.items():
            rounds = []
            for _ in range(options.rounds):
                with at_work(server, given, *arguments, items=items) as application:
                    rounds.append(measured(application, given, per_second))
            quantiles = {
                share: median([quantile(times, share / 100) for times, _ in rounds if times]) if per_second else None
                for share in (50, 95, 100)
            }
            p95[kind] = quantiles[95] or 0.0
            rates[kind] = median([rate for _, rate in rounds])
            report.add(
                server=server.name,
                kind=kind,
                p50_ms=quantiles[50],
                p95_ms=quantiles[95],
                max_ms=quantiles[100],
                vs_idle=p95[kind] / p95["idle"] if per_second else None,
                bulk_per_s=rates[kind] if items else None,
                of_alone=rates[kind] / rates["bulk alone"] if items and "bulk alone" in rates else None,
            )
    report.write(options)


if __name__ == "__main__":
    main()
