"""What workers count stands in the database and agrees with the ledger: over failures, losses, new leases, and ends."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from ai_worker.counts import Counts, Key, Metric
from ai_worker.db import Database
from ai_worker.errors import DatabaseError
from ai_worker.log import Log
from ai_worker.models import Item
from ai_worker.store.counters import Counters
from ai_worker.store.queue import Queue
from ai_worker.worker import loop as worker_loop
from ai_worker.worker.reporter import Reporter
from tests.conftest import Sql
from tests.fake_provider import FakeProvider, Rule
from tests.integration.counted import assert_counted, counted
from tests.integration.lifecycle import EVERYTHING, Application, done, failed, failed_once
from tests.integration.worker_runs import Run, add_model, add_task, make_due, steady_waits

pytest_plugins = ["tests.integration.lifecycle"]

NAME = Metric.CLAIMED_ITEMS.key


@pytest.fixture
def fake() -> Iterator[FakeProvider]:
    with FakeProvider() as fake, steady_waits():
        yield fake


@pytest.fixture
def counters(database: Database) -> Counters:
    return Counters(database)


class Present:
    """The worker's id, which changes with its lease."""

    def __init__(self) -> None:
        self.id_worker = 1

    def __call__(self) -> int:
        return self.id_worker


def test_a_fleet_counts_what_its_ledger_says(
    application: Application, queue: Queue, sql: Sql, database_url: str, fake: FakeProvider
) -> None:
    """Two runs after a dead worker: results, twins, failures now and later, and what was rescued."""
    model = add_model(sql, fake, "chat", "m")
    task = add_task(sql, model, ["Ala ma kota.", "Ala ma kota.", "Kot ma Alę.", "Pies ma budę.", "Dom ma dach."])
    add_task(sql, add_model(sql, None, "echo", "e"), ["echo"] * 3, cache_seconds=0)
    fake.script(Rule("wrong_shape", contains="Kot"), Rule("400_content_filter", contains="Pies"))
    dead = queue.register(host="h", pid=1, version="0", mode="run", concurrency=1, lease_seconds=30)
    (lost,) = queue.claim(dead, [each for each in queue.runnable(EVERYTHING) if each.id_task == task], 1)
    application.kill_worker(dead)
    Run(database_url, lease_seconds=5)
    assert make_due(sql) == 1
    Run(database_url)
    assert_counted(sql)
    attempts = counted(sql, "attempts_total")
    assert attempts[model, "lost/lost"] == 1
    assert {label.split("/")[0] for _, label in attempts} == {"processed", "retry", "failed", "lost"}
    assert counted(sql, "rescued_items_total") == {(0, ""): 1}
    assert counted(sql, "cache_hits_total") == {(0, ""): 1}
    assert counted(sql, NAME) == {(0, ""): 9}
    assert lost.id_task_item
    # Those that have ended in good order leave their counters to all.
    assert {row["id_worker"] for row in sql("SELECT id_worker FROM worker_counter")} == {0}


def test_a_report_writes_only_what_has_changed(counters: Counters, sql: Sql, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = Counts()
    reporter = Reporter(counts, counters, Present(), Log())
    written: list[tuple[int, int]] = []
    write = Counters.write

    def noting(self: Counters, id_worker: int, values: Any, minutes: Any) -> None:
        written.append((len(values), len(minutes)))
        write(self, id_worker, values, minutes)

    monkeypatch.setattr(Counters, "write", noting)
    reporter.report()
    assert written == []
    counts.claimed(3)
    reporter.report()
    counts.claimed(1)
    counts.add(Metric.RATE_LIMITED, 1, 7)
    reporter.report()
    reporter.report()
    assert written == [(2, 0), (3, 0)]
    assert counted(sql, NAME) == {(0, ""): 4}
    assert counted(sql, "rate_limited_total") == {(7, ""): 1}


def test_a_new_lease_begins_new_rows_and_counts_nothing_twice(counters: Counters, sql: Sql, claimed_item: Item) -> None:
    counts, present = Counts(), Present()
    reporter = Reporter(counts, counters, present, Log())
    counts.claimed(3)
    reporter.report()
    counts.claimed(2)
    counts.attempted([done(claimed_item)])
    present.id_worker = 2  # what was counted until then is the former's
    reporter.report()
    counts.claimed(4)
    counts.attempted([done(claimed_item), failed(claimed_item)])
    reporter.report()
    rows = sql("SELECT id_worker, value FROM worker_counter WHERE name = %s ORDER BY id_worker", [NAME])
    assert [(row["id_worker"], row["value"]) for row in rows] == [(1, 5), (2, 4)]
    minutes = sql("SELECT id_worker, SUM(processed) AS p, SUM(failed) AS f FROM worker_minute GROUP BY id_worker ORDER BY 1")
    assert [(row["id_worker"], row["p"], row["f"]) for row in minutes] == [(1, 1, 0), (2, 1, 1)]
    reporter.close()
    rows = sql("SELECT id_worker, value FROM worker_counter WHERE name = %s ORDER BY id_worker", [NAME])
    assert [(row["id_worker"], row["value"]) for row in rows] == [(0, 4), (1, 5)]
    counts.claimed(9)
    reporter.report()  # after the end: nothing more
    assert counted(sql, NAME) == {(0, ""): 9}


def test_work_stays_in_its_minute_and_is_written_when_it_can_be(
    counters: Counters, sql: Sql, claimed_item: Item, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write that fails is made good by the next one, in the minute that it was for."""
    counts = Counts()
    said: list[object] = []
    monkeypatch.setattr(Log, "__call__", lambda *_, **fields: said.append(fields["message"]))
    reporter = Reporter(counts, counters, Present(), Log())
    (now,) = sql("SELECT UTC_TIMESTAMP() AS now")
    first = now["now"].replace(second=0, microsecond=0)
    minutes = [first, first, first.replace(year=first.year + 1)]
    monkeypatch.setattr(Counters, "minute", lambda _: minutes.pop(0))
    counts.attempted([done(claimed_item)])
    reporter.report()
    counts.attempted([failed_once(claimed_item)])
    with monkeypatch.context() as broken:

        def fails(*_: object) -> None:
            raise DatabaseError("no", 1142)

        broken.setattr(Counters, "write", fails)
        reporter.report()
        reporter.report()
    assert said == ["no"]  # once
    counts.attempted([done(claimed_item), failed(claimed_item)])
    reporter.report()
    rows = sql("SELECT minute_at, processed, failed, retried, latencies FROM worker_minute ORDER BY minute_at")
    assert [(row["processed"], row["failed"], row["retried"]) for row in rows] == [(1, 0, 1), (1, 1, 0)]
    assert rows[0]["minute_at"] == first
    assert [sum(map(int, row["latencies"].strip("[]").split(","))) for row in rows] == [2, 2]
    assert counted(sql, "attempts_total")[claimed_item.task.id_ai_model, "retry/bad_answer"] == 1


def test_counters_of_workers_that_are_no_longer_there_are_added_up(counters: Counters, sql: Sql) -> None:
    key, other = Key(NAME), Key("tokens_total", 7, "input")
    counters.write(1, {key: 3, other: 10}, {})
    counters.write(2, {key: 4}, {})
    counters.write(3, {key: 5}, {})
    counters.fold([1, 2])
    counters.fold([1, 2])  # nothing is left to add
    counters.fold([0])
    counters.fold([])
    rows = sql("SELECT id_worker, name, value FROM worker_counter ORDER BY id_worker, name")
    assert [tuple(row.values()) for row in rows] == [(0, NAME, 7), (0, "tokens_total", 10), (3, NAME, 5)]


def test_a_last_report_that_waits_for_an_absent_database_does_not_hold_up_the_exit(
    sql: Sql, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[bool] = []

    def close(self: Reporter) -> None:
        ended.append(self._counters._db._given_up.wait(10))

    monkeypatch.setattr(Reporter, "close", close)
    monkeypatch.setattr(worker_loop, "STORE_SECONDS", 0.1)
    add_task(sql, add_model(sql, None, "echo", "e"), ["echo"])
    assert Run(database_url).summary.processed == 1
    assert ended == [True]
