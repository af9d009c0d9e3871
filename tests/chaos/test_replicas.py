"""A primary with a replica: planned switch-overs lose nothing; what a replica lacks when it has to take over is done again."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.fleet import Fake, insert_task
from tests.chaos import ledger
from tests.chaos.arena import kinds
from tests.chaos.fleet import LEASE_SECONDS, Fleet
from tests.chaos.replicas import Pair, pair_on


@pytest.fixture(params=kinds())
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    with pair_on(request.param) as pair:
        yield pair


@pytest.mark.chaos
def test_planned_switch_overs_lose_nothing(pair: Pair, provider: Fake, tmp_path: Path) -> None:
    id_task = insert_task(pair.sql, provider, ledger.texts(3000))
    with Fleet(pair.worker_url, tmp_path) as fleet:
        fleet.start()
        fleet.start()
        for wanted in (300, 1000, 1800):
            provider.wait_for_requests(wanted)
            pair.switch_over()
        ledger.wait_until(lambda: ledger.open_items(pair.sql, id_task) == 0, LEASE_SECONDS + 30, "all items done")
        assert set(fleet.drain()) == {0}
        assert fleet.tracebacks() == []
    account = ledger.audit(pair.sql, provider, id_task)
    assert (account.processed, account.extra_calls, account.lost_attempts) == (3000, 0, 0)


@pytest.mark.chaos
def test_idle_workers_leave_a_former_primary_that_hears_nothing_more(pair: Pair, provider: Fake, tmp_path: Path) -> None:
    """It is there, takes questions, and knows of nothing new: who only asks would never notice that it has to go elsewhere."""
    with Fleet(pair.worker_url, tmp_path) as fleet:
        fleet.start()
        fleet.start()
        first = insert_task(pair.sql, provider, ledger.texts(100, "before "))
        ledger.wait_until(lambda: ledger.open_items(pair.sql, first) == 0, 30, "the first task is done")
        time.sleep(1)
        pair.switch_over()
        pair.stop_sending()
        second = insert_task(pair.sql, provider, ledger.texts(100, "after "))
        ledger.wait_until(lambda: ledger.open_items(pair.sql, second) == 0, 2 * LEASE_SECONDS, "the second task is done")
        assert set(fleet.drain()) == {0}
    ledger.audit(pair.sql, provider, first, second)


def test_what_the_replica_lacks_is_done_again(pair: Pair, provider: Fake, tmp_path: Path) -> None:
    """An unplanned fail-over to a replica that is behind. The workers live on, and believe of hundreds of items that they are
    stored: the database has these as theirs, and in progress."""
    id_task = insert_task(pair.sql, provider, ledger.texts(1500))
    with Fleet(pair.worker_url, tmp_path) as fleet:
        fleet.start()
        fleet.start()
        provider.wait_for_requests(500)
        pair.stop_sending()
        behind = processed(pair, id_task)
        time.sleep(1)
        fleet.start()  # a worker that the replica has never heard of
        time.sleep(1)
        ahead = processed(pair, id_task)
        pair.fail_over()
        assert ahead > behind
        assert processed(pair, id_task) <= behind + 300
        ledger.wait_until(lambda: ledger.open_items(pair.sql, id_task) == 0, 2 * LEASE_SECONDS + 30, "all items done")
        assert set(fleet.drain()) == {0}
        assert fleet.tracebacks() == []
    account = ledger.audit(pair.sql, provider, id_task)
    assert account.processed == 1500
    assert account.extra_calls <= ahead - behind + 3 * fleet.concurrency + 300


def processed(pair: Pair, id_task: int) -> int:
    count: int = pair.sql("SELECT records_processed AS n FROM task WHERE id_task = %s", [id_task])[0]["n"]
    return count
