"""What a worker that is killed has counted: its ledger, but for what came after its last beat but one; and sums never shrink."""

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
LOOK = f"""
SELECT (SELECT COALESCE(SUM(value), 0) FROM worker_counter WHERE name = 'attempts_total' AND label = '{PROCESSED}') AS counted,
       COUNT(*) AS done,
       COALESCE(SUM(finished_at < (SELECT MAX(finished_at) FROM task_attempt WHERE finished_at <= %s)), 0) AS done_by_then,
       (SELECT MAX(heartbeat_at) FROM worker) AS beat
  FROM task_attempt WHERE outcome = 'processed'
"""


class Watch:
    """Looks at counters, ledger and beats, over and over."""

    def __init__(self, sql: Sql) -> None:
        self._sql = sql
        self._sums: dict[tuple[Any, ...], float] = {}
        self._beats: list[Any] = []
        self.counted = self.done = self.at_least = 0

    def look(self, *, beats: bool) -> None:
        """Takes in what there is now. Fails where a sum has shrunk, is above the ledger, or, with `beats`, is further behind it
        than the only worker's beats let it be."""
        rows = self._sql("SELECT name, id_ai_model, label, SUM(value) AS n FROM worker_counter GROUP BY name, id_ai_model, label")
        sums = {(row["name"], row["id_ai_model"], row["label"]): row["n"] for row in rows}
        for key, before in self._sums.items():
            assert sums.get(key, 0) >= before, key
        self._sums = sums

        # After the last beat but one its counters were written, in any case. What was stored until then had been counted, but for
        # the last group of results: these are stored at one time, before they are counted.
        (now,) = self._sql(LOOK, [self._beats[-2] if len(self._beats) > 1 else "1000-01-01"])
        self.counted, self.done = int(now["counted"]), now["done"]
        assert self.counted <= self.done
        if beats:
            self.at_least = int(now["done_by_then"])
            assert self.at_least <= self.counted
            if now["beat"] not in self._beats:
                self._beats.append(now["beat"])

    def until(self, condition: Callable[[], bool], *, beats: bool) -> None:
        deadline = time.monotonic() + 30
        while not condition():
            assert time.monotonic() < deadline, vars(self)
            self.look(beats=beats)
            time.sleep(0.02)


def test_counters_never_shrink_and_are_a_beat_behind_at_most(programs: Programs, application: Application, sql: Sql) -> None:
    echo = add_model(sql, None, "echo", "e", options=f'{{"delay_ms": {DELAY_MS}}}')
    add_task(sql, echo, [f"text {number}" for number in range(ITEMS)], cache_seconds=0)
    watch = Watch(sql)
    worker = programs.start("daemon", env=QUICK)
    # Two beats have been told of, and between beats there is more to tell: just before one, it might be told after all.
    watch.until(lambda: watch.at_least > 0 and 5 < watch.done - watch.counted < 30, beats=True)
    worker.process.kill()
    worker.wait()
    watch.look(beats=True)
    (dead,) = sql("SELECT id_worker FROM worker")
    application.kill_worker(dead["id_worker"])
    rescuer = programs.start("run", env={**QUICK, "AI_WORKER_CONCURRENCY": "50"})
    watch.until(lambda: rescuer.process.poll() is not None, beats=False)
    assert rescuer.process.returncode == 0
    watch.look(beats=False)
    (told,) = sql(
        f"SELECT SUM(value) AS n FROM worker_counter WHERE id_worker = %s AND name = 'attempts_total' AND label = '{PROCESSED}'",
        [dead["id_worker"]],
    )
    (done,) = sql("SELECT COUNT(*) AS n FROM task_attempt WHERE id_worker = %s AND outcome = 'processed'", [dead["id_worker"]])
    untold = done["n"] - told["n"]
    assert untold > 0
    assert (watch.done, watch.counted) == (ITEMS, ITEMS - untold)  # all else was counted, and once
