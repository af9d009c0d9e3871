"""What workers have counted, as the tables keep it: written by each worker about itself, added up for the fleet."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import NamedTuple

from ai_worker.counts import LATENCY_BUCKETS, Key, Work
from ai_worker.db import Database, Row, Transaction


class Minute(NamedTuple):
    """Whose work of which minute, as one row of `worker_minute` holds it."""

    minute_at: datetime
    id_worker: int
    id_ai_model: int


class Total(NamedTuple):
    """A counter's sum over the fleet; `model` is the name of the key's model, empty where it is of none."""

    key: Key
    model: str
    value: float


class Series(NamedTuple):
    """Work by minute: `minutes` are their beginnings (UTC, without a zone), and each list has one entry for each of them."""

    minutes: list[datetime]
    fleet: list[Work]
    models: dict[str, list[Work]]


class Counters:
    """The verbs on `worker_counter` and `worker_minute`. Callable from any thread."""

    def __init__(self, db: Database) -> None:
        self._db = db

    @property
    def connections(self) -> int:
        """How many connections this process holds to the database."""
        return self._db.connections

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

    def sums(self) -> list[Total]:
        """The fleet's counters: what all workers have counted so far, those too that are no longer there."""
        return [
            Total(Key(row["name"], row["id_ai_model"], row["label"]), row["model"] or _unknown(row["id_ai_model"]), row["value"])
            for row in self._db.query("counter_sums")
        ]

    def series(self, minutes: int = 180) -> Series:
        """What the fleet has done in each of the last `minutes`, the present one, which is not over, last."""
        present = self.minute()
        times = [present - timedelta(minutes=back) for back in range(minutes - 1, -1, -1)]
        place = {each: number for number, each in enumerate(times)}
        series = Series(times, [Work() for _ in times], {})
        for row in self._db.query("minutes_since", {"since": present - timedelta(minutes=minutes)}):
            number = place.get(row["minute_at"])
            if number is None:  # begun since
                continue
            model = row["model"] or _unknown(row["id_ai_model"])
            own = series.models.get(model)
            if own is None:
                own = series.models[model] = [Work() for _ in times]
            work = _work(row)
            series.fleet[number] += work
            own[number] += work
        return series

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


def _unknown(id_ai_model: int) -> str:
    """What a model is called that was removed."""
    return f"#{id_ai_model}" if id_ai_model else ""


def _work(row: Row) -> Work:
    tokens = {"tokens_input": int(row["tokens_input"]), "tokens_output": int(row["tokens_output"])}
    latencies: list[int] = json.loads(row["latencies"]) if row["latencies"] else []
    if len(latencies) != len(LATENCY_BUCKETS) + 1:  # of a version with other buckets
        latencies = [0] * (len(LATENCY_BUCKETS) + 1)
    return Work(row["processed"], row["failed"], row["retried"], **tokens, cost=row["cost"], latencies=latencies)


def _columns(work: Work) -> tuple[object, ...]:
    counts = (work.processed, work.failed, work.retried, work.tokens_input, work.tokens_output)
    return (*counts, work.cost, json.dumps(work.latencies))
