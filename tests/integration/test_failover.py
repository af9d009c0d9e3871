"""What a fail-over to a replica that is behind does to workers that live on, in its smallest form: rows are put back by hand."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Collection

import pytest

from ai_worker.database_url import parse_database_url
from ai_worker.db import Database, Transaction
from ai_worker.errors import DatabaseAway
from ai_worker.log import Log
from ai_worker.models import Item
from ai_worker.store.queue import Queue
from ai_worker.store.strays import Held, Strays
from ai_worker.worker.strays import Strays as Watch
from tests.integration.lifecycle import COST, USAGE, Application, Sql, assert_ledger, claim, done, register

pytest_plugins = ["tests.integration.lifecycle"]


def never_claimed(sql: Sql, id_task_item: int) -> None:
    """As the replica has the item: it never heard of the claim."""
    sql(
        "UPDATE task_item SET status_id = 0, id_worker = NULL, claim_token = NULL, attempt = 0 WHERE id_task_item = %s",
        [id_task_item],
    )


def test_the_answer_of_a_claim_that_the_server_lost_is_on_the_bill_and_charges_no_attempt(
    queue: Queue, sql: Sql, worker: int, claimed_item: Item, application: Application
) -> None:
    never_claimed(sql, claimed_item.id_task_item)
    other = register(queue)
    (again,) = claim(queue, other)
    for _ in range(2):  # the second time as after a COMMIT whose answer was lost
        committed = queue.commit(worker, [done(claimed_item)])
        assert (committed.stored, len(committed.lost)) == ([], 1)
        assert_ledger(sql)
    assert queue.commit(other, [done(again)]).stored
    row = application.item_row(claimed_item.id_task_item)
    assert (row["attempt"], row["lost_count"], row["tokens_input"], row["cost"]) == (1, 0, 2 * USAGE.tokens_input, 2 * COST)
    kinds = [(each["outcome"], each["error_kind"]) for each in application.attempts(claimed_item.id_task_item)]
    assert sorted(kinds) == [("postponed", "late"), ("processed", None)]
    assert_ledger(sql)


def test_a_heartbeat_is_its_own_workers_alone(queue: Queue, worker: int) -> None:
    """The row's number may be another's, who registered where nobody had heard of the first."""
    beat = {"lease_seconds": 30.0, "in_flight": 0, "processed": 0, "failed": 0}
    assert queue.beat(worker, host="host", pid=1, **beat)  # type: ignore[arg-type]
    assert not queue.beat(worker, host="host", pid=2, **beat)  # type: ignore[arg-type]
    assert not queue.beat(worker, host="other", pid=1, **beat)  # type: ignore[arg-type]


def test_items_that_their_worker_knows_nothing_of_are_given_back(
    queue: Queue, database: Database, sql: Sql, worker: int, task: int, application: Application
) -> None:
    known, unknown = application.items(task, 2)
    first, second = sorted(claim(queue, worker, 2), key=lambda item: item.id_task_item)
    assert (first.id_task_item, second.id_task_item) == (known, unknown)
    strays = Strays(database)
    losses = 0

    async def find() -> list[Held]:
        return strays.held(worker)

    async def give_back(found: Collection[Held]) -> int:
        return strays.give_back(found)

    async def watch() -> None:
        nonlocal losses
        keeping = asyncio.create_task(
            Watch(
                find,
                give_back,
                lambda: {(first.id_task_item, first.claim_token)},
                lambda: losses,
                lease_seconds=0.2,
                on_work=seen.set,
                log=Log(),
            ).keep()
        )
        await asyncio.sleep(0.6)
        assert not seen.is_set()  # nothing was lost, so nobody looked
        losses = 1
        await asyncio.wait_for(seen.wait(), 10)
        keeping.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await keeping

    seen = asyncio.Event()
    asyncio.run(watch())
    assert [row["status_id"] for row in sql("SELECT status_id FROM task_item ORDER BY id_task_item")] == [2, 0]
    assert application.item_row(unknown)["attempt"] == 0
    assert_ledger(sql)
    (again,) = claim(queue, worker)
    assert queue.commit(worker, [done(again), done(first)]).ended
    assert_ledger(sql)


def test_a_server_without_room_is_waited_for(database_url: str) -> None:
    """Error 1114, of a table that holds no more; somebody makes room."""
    database = Database(parse_database_url(database_url), patience=30)
    runs = 0

    def work(tx: Transaction) -> int:
        nonlocal runs
        runs += 1
        fill(tx, 1 if runs > 2 else 1000)
        return runs

    try:
        assert database.transaction(work) == 3
    finally:
        database.close()


def test_a_server_that_stays_without_room_is_away(database_url: str) -> None:
    database = Database(parse_database_url(database_url), patience=0.1)
    try:
        with pytest.raises(DatabaseAway, match="cannot go on") as caught:
            database.transaction(lambda tx: fill(tx, 1000))
        assert caught.value.code == 1114
    finally:
        database.close()


def fill(tx: Transaction, rows: int) -> None:
    """Writes some rows of a kilobyte each into a table that has room for a few."""
    tx.raw("SET SESSION max_heap_table_size = 65536")
    tx.raw("DROP TEMPORARY TABLE IF EXISTS small")
    tx.raw("CREATE TEMPORARY TABLE small (text CHAR(250) CHARACTER SET utf8mb4) ENGINE = MEMORY")
    for _ in range(rows):
        tx.raw("INSERT INTO small VALUES ('x')")
