"""A model's sending time in the database: stretches follow one another, for however many workers, and pass when one has died."""

from __future__ import annotations

import threading
import time
from contextlib import closing
from typing import Any

import pytest

from ai_worker.database_url import parse_database_url
from ai_worker.db import Database
from ai_worker.store import pace as module
from ai_worker.store.pace import Pace
from ai_worker.worker import Worker
from tests.conftest import Sql
from tests.fake_provider import FakeProvider
from tests.fake_provider.limits import Limits
from tests.integration.worker_runs import Run, add_model, add_task, items_of

MODEL = 7


@pytest.fixture
def pace(database: Database) -> Pace:
    return Pace(database)


def is_due(wait: float, seconds: float, began: float) -> bool:
    """Whether what has to be waited for comes so many seconds after something that has happened since `began`."""
    return seconds - (time.monotonic() - began) - 0.002 <= wait <= seconds + 0.002


def test_stretches_follow_one_another_from_now_on(pace: Pace) -> None:
    began = time.monotonic()
    waits = [pace.lease(MODEL, 0.5) for _ in range(4)]
    assert all(stretch.is_leased for stretch in waits)
    assert all(is_due(stretch.wait, number * 0.5, began) for number, stretch in enumerate(waits)), waits
    assert pace.lease(MODEL + 1, 0.5).wait == 0  # another model's line is its own


def test_time_that_nobody_leased_is_not_saved_up(pace: Pace, sql: Sql) -> None:
    pace.lease(MODEL, 0.5)
    sql("UPDATE ai_model_pace SET paced_until = UTC_TIMESTAMP(6) - INTERVAL 1 HOUR")
    began = time.monotonic()
    assert pace.lease(MODEL, 0.5) == (True, 0.0)
    assert is_due(pace.lease(MODEL, 0.5).wait, 0.5, began)


def test_nothing_is_leased_far_ahead(pace: Pace, sql: Sql) -> None:
    """A whole fleet may die: what its workers had leased is lost, so it must not be much."""
    began = time.monotonic()
    pace.lease(MODEL, module.AHEAD_SECONDS + 1)
    before = sql("SELECT * FROM ai_model_pace")
    stretch = pace.lease(MODEL, 0.5)
    assert not stretch.is_leased
    assert is_due(stretch.wait, module.AHEAD_SECONDS + 1, began)
    assert sql("SELECT * FROM ai_model_pace") == before


def test_a_pause_pushes_the_line_back_and_never_forward(pace: Pace) -> None:
    began = time.monotonic()
    pace.hold(MODEL, 5.0)
    pace.hold(MODEL, 1.0)
    assert is_due(pace.lease(MODEL, 0.5).wait, 5.0, began)


def test_no_two_workers_get_the_same_stretch(database_url: str, sql: Sql) -> None:
    """The line is as long as all of them together. When each begins is known to within the time that its lease took: so there is
    a moment from which they follow one another, however slow this machine is."""
    asked: list[float] = []
    answered: list[float] = []

    def take() -> None:
        with closing(Database(parse_database_url(database_url))) as db:
            for _ in range(25):
                before = time.monotonic()
                wait = Pace(db).lease(MODEL, 0.1).wait
                asked.append(before + wait)
                answered.append(time.monotonic() + wait)

    (row,) = sql("SELECT UTC_TIMESTAMP(6) AS began")
    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (line,) = sql("SELECT TIMESTAMPDIFF(MICROSECOND, %s, paced_until) / 1000000 AS ends FROM ai_model_pace", [row["began"]])
    assert 100 * 0.1 <= float(line["ends"]) < 100 * 0.1 + 2
    earliest = max(begin - number * 0.1 for number, begin in enumerate(sorted(asked)))
    latest = min(begin - number * 0.1 for number, begin in enumerate(sorted(answered)))
    assert earliest < latest + 0.002


# ----- workers


def rates(fake: FakeProvider) -> list[float]:
    """When each request came, from the first one on."""
    times = [request.received_at for request in fake.requests]
    return [at - times[0] for at in times]


def test_a_worker_keeps_to_the_models_rate(sql: Sql, database_url: str) -> None:
    # Fifteen within any second: what was late, too. It does not say so: who reads fifteen takes them for a minute's.
    with FakeProvider(limits=Limits(requests_per_minute=900, seconds=1.0, headers=False)) as fake:
        task = add_task(sql, add_model(sql, fake, "chat", "paced", max_requests_per_minute=600), [f"t{n}" for n in range(30)])
        assert Run(database_url).summary.processed == 30
        assert {item["status"] for item in items_of(sql, task)} == {"PROCESSED"}
        assert fake.counts()["requests"] == 30  # none was refused
        assert 2.5 <= rates(fake)[-1] < 15


def test_two_workers_share_a_models_rate(sql: Sql, database_url: str) -> None:
    with FakeProvider() as fake:
        add_task(sql, add_model(sql, fake, "chat", "paced", max_requests_per_minute=1200), [f"t{n}" for n in range(80)])
        runs: list[Any] = []
        threads = [threading.Thread(target=lambda: runs.append(Run(database_url))) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        times = rates(fake)
        assert sum(run.summary.processed for run in runs) == 80
        assert min(run.summary.processed for run in runs) > 0
        for start in range(80 - 25):
            assert times[start + 25] - times[start] > 24 * 0.05 - 0.8  # never much faster: some is late, the machine busy


def test_tokens_count_as_well(sql: Sql, database_url: str) -> None:
    with FakeProvider() as fake:  # a text is billed its words twice, and ten, and one
        texts = [f"{n} " + "słowo " * 44 for n in range(24)]
        add_task(sql, add_model(sql, fake, "chat", "paced", max_tokens_per_minute=60_000), texts)
        assert Run(database_url).summary.processed == 24
        assert rates(fake)[-1] >= 23 * 0.1 - 0.5


def test_other_models_items_flow_on(sql: Sql, database_url: str) -> None:
    with FakeProvider() as fake:
        slow = add_task(
            sql, add_model(sql, fake, "chat", "slow", max_requests_per_minute=30), [f"slow{n}" for n in range(4)], priority=9
        )
        fast = add_task(sql, add_model(sql, fake, "chat", "fast"), [f"fast{n}" for n in range(300)])
        assert Run(database_url).summary.processed == 304
        ends = {task: max(item["finished_at"] for item in items_of(sql, task)) for task in (slow, fast)}
        assert ends[slow] > ends[fast]
        claimed_ahead = [request.text for request in fake.requests].index("slow3")
        assert claimed_ahead > 250


def test_items_that_wait_for_their_turn_are_given_back_on_a_drain(sql: Sql, database_url: str) -> None:
    with FakeProvider() as fake:
        task = add_task(sql, add_model(sql, fake, "chat", "paced", max_requests_per_minute=6), ["a", "b", "c"])

        def drain(worker: Worker, loop: Any) -> None:
            fake.wait_for_requests(1)
            loop.call_soon_threadsafe(worker.drain)

        began = time.monotonic()
        summary = Run(database_url, meanwhile=drain).summary
        assert time.monotonic() - began < 8
        assert summary.processed == 1
        assert sorted((item["status"], item["attempt"]) for item in items_of(sql, task)) == [
            ("PENDING", 0),
            ("PENDING", 0),
            ("PROCESSED", 1),
        ]
