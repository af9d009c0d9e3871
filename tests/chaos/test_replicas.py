"""A primary with a replica: planned switch-overs lose nothing; what a replica lacks when it has to take over is done again."""

from __future__ import annotations

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
