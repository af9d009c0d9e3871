"""Calls in flight of a whole fleet: fair shares, never more than the limit together, and free again when a worker has died."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import closing
from typing import Any

import pytest

from ai_worker.database_url import parse_database_url
from ai_worker.db import Database
from ai_worker.store.queue import Queue
from ai_worker.store.shares import Shares, fair_share
from tests.conftest import Sql
from tests.fake_provider import FakeProvider
from tests.integration.worker_runs import Run, add_model, add_task

MODEL = 7


def register(database: Database, count: int) -> list[int]:
    values: dict[str, Any] = {"host": "h", "pid": 1, "version": "1", "mode": "run", "concurrency": 9, "lease_seconds": 30.0}
    return [Queue(database).register(**values) for _ in range(count)]


@pytest.mark.parametrize(
    ("wanted", "others", "share"),
    [
        (10, [], 10),
        (50, [], 30),
        (10, [10], 10),
        (50, [50], 15),
        (50, [5], 25),
        (50, [5, 50], 13),
        (0, [50], 0),
        (50, [1] * 40, 1),
    ],
)
def test_who_wants_little_gets_it_and_the_rest_is_even(wanted: int, others: Sequence[int], share: int) -> None:
    assert fair_share(30, wanted, others) == share


def test_what_one_gives_up_another_gets_once_the_calls_have_ended(database: Database) -> None:
    first, second = register(database, 2)
    shares = Shares(database)
    assert shares.renew(first, MODEL, 20, 0, 10) == 10
    assert shares.renew(second, MODEL, 20, 0, 10) == 0  # all is in use
    assert shares.renew(first, MODEL, 20, 10, 10) == 5
    assert shares.renew(second, MODEL, 20, 0, 10) == 0  # still
    assert shares.renew(first, MODEL, 20, 7, 10) == 5
    assert shares.renew(second, MODEL, 20, 0, 10) == 3
    assert shares.renew(first, MODEL, 20, 5, 10) == 5
    assert shares.renew(second, MODEL, 20, 3, 10) == 5
    assert shares.renew(first, MODEL, 0, 0, 10) == 0
    assert shares.renew(second, MODEL, 20, 5, 10) == 10


def test_a_dead_workers_share_is_free_when_its_lease_is_over(database: Database, sql: Sql) -> None:
    first, second = register(database, 2)
    shares = Shares(database)
    assert shares.renew(first, MODEL, 10, 0, 10) == 10
    sql("UPDATE worker SET lease_until = UTC_TIMESTAMP(6) - INTERVAL 1 SECOND WHERE id_worker = %s", [first])
    assert shares.renew(second, MODEL, 10, 0, 10) == 10
    assert [row["id_worker"] for row in sql("SELECT id_worker FROM ai_model_share")] == [second]


def test_however_many_ask_at_once_together_they_get_the_limit(database_url: str, database: Database, sql: Sql) -> None:
    got: dict[int, int] = {}

    def ask(worker: int) -> None:
        with closing(Database(parse_database_url(database_url))) as db:
            for _ in range(10):
                got[worker] = Shares(db).renew(worker, MODEL, 10, 0, 10)

    threads = [threading.Thread(target=ask, args=(worker,)) for worker in register(database, 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (row,) = sql("SELECT CAST(SUM(granted) AS SIGNED) AS granted FROM ai_model_share")
    assert row["granted"] <= 10
    assert sum(got.values()) >= 8


def test_two_workers_together_keep_to_the_limit(sql: Sql, database_url: str) -> None:
    with FakeProvider(latency_ms=100) as fake:
        add_task(sql, add_model(sql, fake, "chat", "narrow", max_in_flight=6), [f"t{n}" for n in range(150)])
        runs: list[Run] = []
        threads = [threading.Thread(target=lambda: runs.append(Run(database_url, concurrency=20))) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sum(run.summary.processed for run in runs) == 150
        assert fake.peak_in_flight <= 6
        assert sql("SELECT * FROM ai_model_share") == [] or fake.peak_in_flight > 3


def test_a_model_with_a_limit_is_not_held_up_by_it_when_there_is_room(sql: Sql, database_url: str) -> None:
    with FakeProvider(latency_ms=20, gather=21) as fake:
        add_task(sql, add_model(sql, fake, "chat", "wide", max_in_flight=40), [f"t{n}" for n in range(200)])
        assert Run(database_url, concurrency=50).summary.processed == 200
        assert fake.peak_in_flight <= 40
