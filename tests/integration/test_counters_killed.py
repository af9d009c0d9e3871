"""What a killed worker leaves counted: less than its ledger by what came after its last beat but one, and nothing ever less."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from tests.conftest import Sql
from tests.integration.lifecycle import Application
from tests.integration.worker_runs import add_model, add_task
from tests.marks import ON_ONE_SERVER
from tests.servers import Programs

pytest_plugins = ["tests.integration.lifecycle"]
pytestmark = ON_ONE_SERVER

ITEMS = 300
IN_FLIGHT = 4
DELAY_MS = 50  # so some seventy results in a beat
QUICK = {"AI_WORKER_LEASE_SECONDS": "5", "AI_WORKER_CONCURRENCY": str(IN_FLIGHT)}  # the shortest lease has the quickest beat

PROCESSED = "processed/"
COUNTED = f"(SELECT COALESCE(SUM(value), 0) FROM worker_counter WHERE name = 'attempts_total' AND label = '{PROCESSED}')"
DONE = "(SELECT COUNT(*) FROM task_attempt WHERE outcome = 'processed' AND finished_at <= %s)"


class Watch:
    """Looks at counters, ledger and beats, over and over."""

    def __init__(self, sql: Sql) -> None:
        self._sql = sql
        self._sums: dict[tuple[Any, ...], float] = {}
        self._beats: list[Any] = []
        self.counted = self.done = self.at_least = 0

    def look(self) -> None:
        """Takes in what there is now. Fails where a sum has shrunk, or is not what the ledger lets it be."""
        rows = self._sql("SELECT name, id_ai_model, label, SUM(value) AS n FROM worker_counter GROUP BY name, id_ai_model, label")
        sums = {(row["name"], row["id_ai_model"], row["label"]): row["n"] for row in rows}
        for key, before in self._sums.items():
            assert sums.get(key, 0) >= before, key
        self._sums = sums

        last_but_one = self._beats[-2] if len(self._beats) > 1 else "1000-01-01"
        (now,) = self._sql(
            f"SELECT {COUNTED} AS counted, {DONE} AS done, {DONE} AS done_then, (SELECT MAX(heartbeat_at) FROM worker) AS beat",
            ["9999-12-31", last_but_one],
        )
        # What is committed and not yet told, or not yet seen here, is in flight.
        self.counted, self.done, self.at_least = int(now["counted"]), now["done"], now["done_then"] - IN_FLIGHT
        assert self.at_least <= self.counted <= self.done
        if now["beat"] not in self._beats:
            self._beats.append(now["beat"])

    def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 30
        while not condition():
            assert time.monotonic() < deadline, vars(self)
            self.look()
            time.sleep(0.01)


def test_counters_never_shrink_and_are_a_beat_behind_at_most(programs: Programs, application: Application, sql: Sql) -> None:
    echo = add_model(sql, None, "echo", "e", options=f'{{"delay_ms": {DELAY_MS}}}')
    add_task(sql, echo, [f"text {number}" for number in range(ITEMS)], cache_seconds=0)
    watch = Watch(sql)
    worker = programs.start("daemon", env=QUICK)
    watch.until(lambda: watch.at_least > 0 and watch.done > watch.counted + 2 * IN_FLIGHT)  # beats are told, and there is more
    worker.process.kill()
    worker.wait()
    (dead,) = sql("SELECT id_worker FROM worker")
    application.kill_worker(dead["id_worker"])
    rescuer = programs.start("run", env={**QUICK, "AI_WORKER_CONCURRENCY": "50"})
    watch.until(lambda: rescuer.process.poll() is not None)
    assert rescuer.process.returncode == 0
    watch.look()
    (told,) = sql(
        f"SELECT SUM(value) AS n FROM worker_counter WHERE id_worker = %s AND name = 'attempts_total' AND label = '{PROCESSED}'",
        [dead["id_worker"]],
    )
    (done,) = sql("SELECT COUNT(*) AS n FROM task_attempt WHERE id_worker = %s AND outcome = 'processed'", [dead["id_worker"]])
    untold = done["n"] - told["n"]
    assert untold > 0
    assert (watch.done, watch.counted) == (ITEMS, ITEMS - untold)  # all else was counted, and once
