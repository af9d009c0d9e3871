"""The harness itself, in its smallest form: some workers, one killed, one server killed, every item once."""

from __future__ import annotations

from tests.acceptance.fleet import Fake, insert_task
from tests.chaos import ledger
from tests.chaos.arena import Arena
from tests.chaos.fleet import LEASE_SECONDS, Fleet


def test_a_worker_and_the_server_killed_in_mid_work_lose_nothing(arena: Arena, fleet: Fleet, provider: Fake) -> None:
    id_task = insert_task(arena.sql, provider, ledger.texts(1500))
    workers = [fleet.start(), fleet.start()]
    provider.wait_for_requests(100)
    workers[0].kill()
    arena.kill()
    arena.start()
    fleet.start()
    ledger.wait_until(lambda: ledger.open_items(arena.sql, id_task) == 0, LEASE_SECONDS + 30, "all items done")
    assert set(fleet.drain()) == {0}
    account = ledger.audit(arena.sql, provider, id_task)
    assert account.processed == 1500
    assert account.extra_calls <= fleet.concurrency
    assert fleet.tracebacks() == []
