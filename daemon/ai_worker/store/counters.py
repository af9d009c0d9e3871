"""What workers have counted, as the tables keep it: written by each worker about itself, added up for the fleet."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import NamedTuple

from ai_worker.counts import Key, Work
from ai_worker.db import Database, Transaction


class Minute(NamedTuple):
    """Whose work of which minute, as one row of `worker_minute` holds it."""

    minute_at: datetime
    id_worker: int
    id_ai_model: int


class Counters:
    """The verbs on `worker_counter` and `worker_minute`. Callable from any thread."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def minute(self) -> datetime:
        """The present minute by the database's clock: UTC, without a zone."""
        now: datetime = self._db.query("server_clock")[0]["now"]
        return now.replace(second=0, microsecond=0)

    def write(self, id_worker: int, values: Mapping[Key, float], minutes: Mapping[Minute, Work]) -> None:
        """Writes these of a worker's counters, and its work by minute, in place of what was there: safe to repeat."""
        counters = [(id_worker, *key, float(value)) for key, value in sorted(values.items())]
        rows = [(*minute, *_columns(work)) for minute, work in sorted(minutes.items())]

        def work(tx: Transaction) -> None:
            if rows:
                tx.execute_many("write_minutes", rows)
            if counters:
                tx.execute_many("write_counters", counters)

        if rows or counters:
            self._db.transaction(work)

    def fold(self, workers: Iterable[int]) -> None:
        """Adds the counters of these workers, which are no longer there, to those of worker 0, and deletes theirs."""
        ids = sorted({*workers} - {0})

        def work(tx: Transaction) -> None:
            rows = [
                (0, row["name"], row["id_ai_model"], row["label"], row["value"])
                for row in tx.query("lock_counters", {"workers": ids})
            ]
            if rows:
                tx.execute_many("add_counters", sorted(rows))
                tx.execute("delete_counters", {"workers": ids})

        if ids:
            self._db.transaction(work)


def _columns(work: Work) -> tuple[object, ...]:
    counts = (work.processed, work.failed, work.retried, work.tokens_input, work.tokens_output)
    return (*counts, work.cost, json.dumps(work.latencies))
