"""The lease of a worker, and what any worker does for the whole fleet, on real servers with short leases."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from ai_worker.database_url import parse_database_url
from ai_worker.db import Database
from ai_worker.errors import DatabaseError
from ai_worker.models import Item, ItemStatus, TaskStatus
from ai_worker.store.queue import Queue
from ai_worker.worker.lease import SELF_FENCE, Lease
from ai_worker.worker.upkeep import Upkeep
from tests.integration.lifecycle import Application, Sql, assert_ledger, claim, done, failed_once, register
from tests.integration.proxy import Proxy

pytest_plugins = ["tests.integration.lifecycle", "tests.integration.proxy"]

LEASE = 1.2  # seconds


def until(condition: Callable[[], Any], timeout: float = 15.0) -> Any:
    """Waits for what `condition` gives to become true; gives it."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)
    return value


class Loop:
    """Stands for the worker's event loop: ticks, unless it is stuck."""

    def __init__(self, lease: Lease) -> None:
        self.lease = lease
        self.stuck = False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._ended.wait(0.03):
            if not self.stuck:
                self.lease.tick()

    def end(self) -> None:
        self._ended.set()
        self._thread.join()


@contextmanager
def leased(queue: Queue, seconds: float = LEASE) -> Iterator[Loop]:
    """A worker with a heartbeat, and the loop that keeps it going."""
    load = (3, 20, 1)
    lease = Lease(queue, lease_seconds=seconds, mode="daemon", concurrency=9, name="dąb")
    lease.start(lambda: load)
    loop = Loop(lease)
    try:
        yield loop
    finally:
        loop.end()
        lease.stop()


@pytest.fixture
def loop(queue: Queue) -> Iterator[Loop]:
    with leased(queue) as loop:
        yield loop


@pytest.fixture
def far(database_url: str, proxy: Proxy) -> Iterator[Queue]:
    """A Queue behind the proxy."""
    url = replace(parse_database_url(database_url), hosts=(("127.0.0.1", proxy.port),))
    database = Database(url, patience=0.1)
    yield Queue(database)
    database.close()


# ----- the lease


def test_a_lease_is_kept_by_its_heartbeat(application: Application, loop: Loop) -> None:
    first = application.row("worker", loop.lease.id_worker)
    assert (first["host"], first["mode"], first["concurrency"]) == ("dąb", "daemon", 9)
    later = until(lambda: (row := application.row("worker", first["id_worker"]))["heartbeat_at"] > first["lease_until"] and row)
    assert (later["in_flight"], later["items_processed"], later["items_failed"]) == (3, 20, 1)
    assert (later["lease_until"] - later["heartbeat_at"]).total_seconds() == LEASE
    assert (later["lost_at"], later["ended_at"]) == (None, None)
    assert loop.lease.may_claim
    assert loop.lease.may_rescue


def test_a_worker_that_stops_ends_its_row(application: Application, queue: Queue) -> None:
    with leased(queue) as loop:
        id_worker = loop.lease.id_worker
    row = application.row("worker", id_worker)
    assert row["ended_at"] is not None
    assert (row["in_flight"], row["items_processed"], row["lost_at"]) == (0, 20, None)


def test_a_lease_that_others_have_taken_is_lost_and_the_worker_registers_anew(
    application: Application, loop: Loop, sql: Sql
) -> None:
    old = loop.lease.id_worker
    sql("UPDATE worker SET lost_at = UTC_TIMESTAMP(6) WHERE id_worker = %s", [old])
    until(lambda: loop.lease.id_worker != old)
    assert application.row("worker", old)["ended_at"] is None  # its rescuer ends it, once it has given everything back
    first = application.row("worker", loop.lease.id_worker)
    until(lambda: application.row("worker", loop.lease.id_worker)["heartbeat_at"] > first["heartbeat_at"])
    assert loop.lease.may_claim


def test_a_stuck_loop_loses_its_lease(application: Application, queue: Queue, loop: Loop, task: int, sql: Sql) -> None:
    application.items(task)
    id_worker = loop.lease.id_worker
    claim(queue, id_worker)
    loop.stuck = True
    until(lambda: not loop.lease.may_claim)
    until(
        lambda: sql("SELECT lease_until < UTC_TIMESTAMP(6) AS is_over FROM worker WHERE id_worker = %s", [id_worker])[0][
            "is_over"
        ]
    )
    assert queue.rescue().items == 1
    loop.stuck = False
    until(lambda: loop.lease.id_worker != id_worker)
    until(lambda: loop.lease.may_claim)


def test_without_a_beat_a_worker_soon_claims_nothing_more(far: Queue, proxy: Proxy, application: Application) -> None:
    with leased(far) as loop:
        assert loop.lease.may_claim
        began = time.monotonic()
        proxy.down()
        until(lambda: not loop.lease.may_claim)
        # Counted from the last beat, a sixth of a lease ago at most; and well before others may rescue.
        assert (SELF_FENCE - 1 / 6) * LEASE - 0.1 < time.monotonic() - began < 0.9 * LEASE
        proxy.up()
        until(lambda: loop.lease.may_claim)
        # Everybody's lease is stale now, and nobody is dead.
        assert not loop.lease.may_rescue
        back = time.monotonic()
        until(lambda: loop.lease.may_rescue)
        assert time.monotonic() - back > 0.8 * LEASE


# ----- upkeep


class Told:
    """Counts how often it was told of work."""

    times = 0

    def __call__(self) -> None:
        self.times += 1


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def upkeep(queue: Queue, loop: Loop, told: Told) -> Upkeep:
    return Upkeep(queue, loop.lease, LEASE, told)


def test_dead_workers_are_rescued_and_the_claimers_told(
    application: Application, queue: Queue, worker: int, claimed_item: Item, upkeep: Upkeep, told: Told, sql: Sql
) -> None:
    application.kill_worker(worker)
    upkeep.step()
    assert application.item_status(claimed_item.id_task_item) is ItemStatus.PENDING
    assert told.times == 1
    upkeep.step()
    assert told.times == 1
    assert_ledger(sql)


def test_a_lease_that_ends_between_two_sweeps_is_seen_at_the_next_step(
    application: Application, queue: Queue, loop: Loop, worker: int, claimed_item: Item, told: Told
) -> None:
    upkeep = Upkeep(queue, loop.lease, 0.001, told)
    upkeep.step()
    upkeep._next_sweep = time.monotonic() + 3600
    application.kill_worker(worker)
    upkeep.step()
    assert application.item_status(claimed_item.id_task_item) is ItemStatus.PENDING


def test_who_waited_for_the_database_at_the_start_takes_nobody_for_dead_at_once(far: Queue, proxy: Proxy) -> None:
    proxy.down()
    far.db.patience = 10
    waiting = threading.Timer(0.3, proxy.up)
    waiting.start()
    with leased(far) as loop:
        assert not loop.lease.may_rescue
        until(lambda: loop.lease.may_rescue)
        assert time.monotonic() - far.db.back_at >= LEASE
    waiting.join()


def test_a_schedule_that_the_database_refuses_holds_up_no_group(
    queue: Queue, loop: Loop, model: int, application: Application, sql: Sql, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise DatabaseError("INSERT command denied", 1142)

    schedule = "(name, cron, id_ai_model, task_type, items, next_at) VALUES ('s', '* * * * *', %s, '', '[]', NOW(6))"
    sql(f"INSERT INTO schedule {schedule}", [model])
    sql("INSERT INTO task_group (name, callback_url, closed_at) VALUES ('g', 'http://127.0.0.1:1/', NOW(6))")
    group = sql("SELECT id_task_group FROM task_group")[0]["id_task_group"]
    busy = application.task(model, id_task_group=group)
    monkeypatch.setattr(queue.schedules, "fire_some", refuse)
    upkeep = Upkeep(queue, loop.lease, LEASE, Told(), told)
    with pytest.raises(DatabaseError, match="denied"):
        upkeep.keep_time()
    assert told.times == 0, "nothing is to be sent"
    sql("UPDATE task SET status_id = 2, finished_at = NOW(6) WHERE id_task = %s", [busy])
    with pytest.raises(DatabaseError, match="denied"):
        upkeep.keep_time()
    assert (told.times, sql("SELECT COUNT(*) AS n FROM callback")) == (1, [{"n": 1}])


def test_a_worker_is_rescued_one_lease_after_its_last_beat(
    application: Application, queue: Queue, task: int, loop: Loop, upkeep: Upkeep
) -> None:
    (item,) = application.items(task)
    began = time.monotonic()
    claim(queue, register(queue, LEASE))

    def is_rescued() -> bool:
        upkeep.step()
        return application.item_status(item) is ItemStatus.PENDING

    until(is_rescued)
    assert LEASE <= time.monotonic() - began < 3 * LEASE


def test_nobody_is_rescued_while_the_server_has_only_just_started(
    application: Application, queue: Queue, worker: int, claimed_item: Item, loop: Loop, told: Told
) -> None:
    """Every lease is stale then. The server is made young by a lease that is longer than it has been up."""
    application.kill_worker(worker)
    Upkeep(queue, loop.lease, queue.uptime() + 3600, told).step()
    assert application.item_status(claimed_item.id_task_item) is ItemStatus.IN_PROGRESS
    Upkeep(queue, loop.lease, 0.5, told).step()
    assert application.item_status(claimed_item.id_task_item) is ItemStatus.PENDING


def test_nobody_is_rescued_right_after_a_gap_in_ones_own_heartbeat(
    application: Application, queue: Queue, worker: int, claimed_item: Item, loop: Loop, upkeep: Upkeep
) -> None:
    loop.stuck = True
    until(lambda: not loop.lease.may_claim)
    loop.stuck = False
    until(lambda: loop.lease.may_claim)
    application.kill_worker(worker)
    upkeep.step()
    assert application.item_status(claimed_item.id_task_item) is ItemStatus.IN_PROGRESS

    def is_rescued() -> bool:
        upkeep.step()
        return application.item_status(claimed_item.id_task_item) is ItemStatus.PENDING

    until(is_rescued)


def test_all_orphans_are_given_back(
    application: Application, queue: Queue, worker: int, task: int, upkeep: Upkeep, told: Told, sql: Sql
) -> None:
    application.items(task, 700)
    for _ in range(3):
        claim(queue, worker, 250)
    queue.end_worker(worker, processed=0, failed=0)
    upkeep.step()
    assert sql("SELECT DISTINCT status_id FROM task_item") == [{"status_id": ItemStatus.PENDING}]
    assert told.times == 2
    assert_ledger(sql)


def test_due_items_become_pending_and_others_stay(
    application: Application, queue: Queue, worker: int, task: int, upkeep: Upkeep, told: Told, sql: Sql
) -> None:
    application.items(task, 1201)
    items = [each for _ in range(5) for each in claim(queue, worker, 250)]
    queue.commit(worker, [failed_once(item, 3600.0) for item in items])
    upkeep.step()
    assert told.times == 0
    application.make_due()
    sql("UPDATE task_item SET available_at = '2999-01-01' WHERE id_task_item = %s", [items[600].id_task_item])
    upkeep.step()
    statuses = {row["status_id"]: row["n"] for row in sql("SELECT status_id, COUNT(*) AS n FROM task_item GROUP BY status_id")}
    assert statuses == {ItemStatus.PENDING: 1200, ItemStatus.DEFERRED: 1}
    assert told.times == 3
    assert_ledger(sql)


def test_items_that_became_visible_late_reopen_their_task(
    application: Application, queue: Queue, worker: int, processed_item: Item, upkeep: Upkeep, sql: Sql
) -> None:
    """An INSERT in a long transaction: its keys are lower than what everybody has seen already."""
    id_task = processed_item.task.id_task
    (newest,) = application.items(application.task(processed_item.task.id_ai_model, status_id=4))
    sql("UPDATE task_item SET id_task = %s, id_task_item = %s WHERE id_task_item = %s", [id_task, newest + 5, newest])
    application.items(application.task(processed_item.task.id_ai_model, status_id=4))
    assert queue.reopen_for_new_items(queue.newest_item()) == 0
    upkeep.step()
    row = application.task_row(id_task)
    assert (row["status_id"], row["finished_at"]) == (TaskStatus.IN_PROGRESS, None)


def test_finished_tasks_are_looked_through_page_by_page(application: Application, queue: Queue, model: int, sql: Sql) -> None:
    columns = "INSERT INTO task (id_ai_model, status_id, records_failed, finished_at) VALUES "
    sql(columns + ", ".join([f"({model}, 2, 0, UTC_TIMESTAMP(6))"] * 1100))
    oldest = sql("SELECT MIN(id_task) AS id FROM task")[0]["id"]
    application.items(oldest)
    page = queue.reopen_page()
    assert page is not None
    assert application.task_status(oldest) is TaskStatus.COMPLETED
    assert queue.reopen_page(page) is None
    assert application.task_status(oldest) is TaskStatus.IN_PROGRESS
    assert len(sql("SELECT 1 FROM task WHERE status_id = 1")) == 1


def test_a_task_whose_last_open_items_were_deleted_is_ended(
    application: Application, queue: Queue, worker: int, task: int, upkeep: Upkeep, sql: Sql
) -> None:
    application.items(task, 3)
    (first,) = claim(queue, worker)
    queue.commit(worker, [done(first)])
    sql("DELETE FROM task_item WHERE id_task = %s AND status_id = 0", [task])
    upkeep.step()
    row = application.task_row(task)
    assert (row["status_id"], row["records_processed"]) == (TaskStatus.COMPLETED, 1)
    assert row["finished_at"] is not None
