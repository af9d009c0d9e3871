"""How idle workers wait for work: one listens for all, the next takes over, and nothing that comes in is missed."""

from __future__ import annotations

import asyncio
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from ai_worker.database_url import parse_database_url
from ai_worker.db import Database
from ai_worker.errors import DatabaseAway, DatabaseError
from ai_worker.models import Filters, ItemStatus, TaskStatus
from ai_worker.store import turns as turns_module
from ai_worker.store.queue import Queue
from ai_worker.store.turns import Turns
from ai_worker.worker.listener import Listener
from ai_worker.worker.picker import Picker
from tests.integration.lifecycle import EVERYTHING, Application, Sql, assert_ledger, claim, done
from tests.integration.worker_runs import Run, add_model, add_task, items_of
from tests.servers import Programs, TestServer

pytest_plugins = ["tests.integration.lifecycle"]


@pytest.fixture
def make_turns(database_url: str) -> Iterator[Callable[[], Turns]]:
    """Makes workers' turns, each with a connection of its own."""
    databases: list[Database] = []

    def make() -> Turns:
        databases.append(Database(parse_database_url(database_url), patience=0.0))
        return Turns(databases[-1])

    yield make
    for database in databases:
        database.give_up()
        database.close()


@pytest.fixture
def thread() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as executor:
        yield executor


def connection_of(turns: Turns) -> int:
    key: int = turns._db.transaction(lambda tx: tx.raw("SELECT CONNECTION_ID() AS id"))[0]["id"]
    return key


# ----- turns


def test_the_turn_is_one_workers_until_it_ends_it(make_turns: Callable[[], Turns]) -> None:
    one, two = make_turns(), make_turns()
    name = one.name(EVERYTHING, [])
    assert one.take(name, 1) is True
    assert two.take(name, 1) is False
    one.end(name)
    assert two.take(name, 1) is True
    assert one.listen(name, 0, 0.01) is None  # it is told that the turn is not its own


def test_the_next_in_the_queue_wakes_at_once_when_the_listener_dies(
    make_turns: Callable[[], Turns], thread: ThreadPoolExecutor, sql: Sql
) -> None:
    one, two = make_turns(), make_turns()
    name = one.name(EVERYTHING, [])
    assert one.take(name, 1)
    waiting = thread.submit(two.take, name, 20)
    time.sleep(0.2)
    assert not waiting.done()
    sql(f"KILL {connection_of(one)}")
    assert waiting.result(10) is True  # half of what it would wait for
    assert one.listen(name, 0, 0.01) is None  # over its new connection


def test_a_listener_that_says_nothing_loses_its_turn(make_turns: Callable[[], Turns], monkeypatch: pytest.MonkeyPatch) -> None:
    """A host without power, or a process that was stopped: to the server its connection looks as alive as any."""
    monkeypatch.setattr(turns_module, "SILENCE", 1)
    one, two = make_turns(), make_turns()
    name = one.name(EVERYTHING, [])
    assert one.take(name, 1)
    began = time.monotonic()
    assert two.take(name, 20) is True
    assert time.monotonic() - began < 10


def test_workers_that_want_different_things_do_not_wait_for_each_other(make_turns: Callable[[], Turns]) -> None:
    turns = make_turns()
    wants = [
        (EVERYTHING, [], "db"),
        (Filters(task_types=("translation",)), [], "db"),
        (Filters(models=("a",)), [], "db"),
        (Filters(id_task=7), [], "db"),
        (EVERYTHING, [3], "db"),
        (EVERYTHING, [], "other"),
    ]
    names = set()
    for filters, busy, database in wants:
        url = parse_database_url(f"mysql://u@h/{database}")
        names.add(Turns(Database(url)).name(filters, busy))
    assert len(names) == len(wants)
    assert all(len(name) <= 64 for name in names)
    assert turns.name(EVERYTHING, [3, 1, 3]) == turns.name(Filters(), [1, 3])


@pytest.mark.parametrize("wait", ["take", "listen"])
def test_closing_ends_a_wait(make_turns: Callable[[], Turns], thread: ThreadPoolExecutor, wait: str) -> None:
    one, two = make_turns(), make_turns()
    name = one.name(EVERYTHING, [])
    if wait == "take":
        two.take(name, 1)
    else:
        assert thread.submit(one.take, name, 1).result()  # a turn belongs to the thread's connection
    waiting = thread.submit(one.take, name, 20) if wait == "take" else thread.submit(one.listen, name, 2**62, 1.9)
    time.sleep(0.2)
    one.close()
    with pytest.raises(DatabaseAway):  # a wait that goes on to its end raises nothing
        waiting.result(10)
    with pytest.raises(DatabaseAway):
        one.take(name, 1)


def test_an_item_is_heard_when_it_is_committed(
    make_turns: Callable[[], Turns],
    thread: ThreadPoolExecutor,
    application: Application,
    task: int,
    server: TestServer,
    database_url: str,
) -> None:
    turns = make_turns()
    name = turns.name(EVERYTHING, [])
    assert thread.submit(turns.take, name, 1).result()
    (old,) = application.items(task)
    assert turns.newest_item() == old
    assert thread.submit(turns.listen, name, old, 0.05).result() == old
    with server.connect(parse_database_url(database_url).database) as connection, connection.cursor() as cursor:
        hearing = thread.submit(turns.listen, name, old, 1.9)
        connection.begin()
        cursor.execute("INSERT INTO task_item (id_task, text_original) VALUES (%s, 'a'), (%s, 'b')", [task, task])
        time.sleep(0.1)
        assert not hearing.done()
        # Nor does it hold anything that others want: the row below those it waits for.
        assert len(application.sql("SELECT 1 FROM task_item WHERE id_task_item = %s FOR UPDATE SKIP LOCKED", [old])) == 1
        connection.commit()
        began = time.monotonic()
        assert hearing.result(5) == old + 1  # the first of them
        assert time.monotonic() - began < 0.5


def test_a_crowd_that_is_being_inserted_costs_the_server_little_and_is_heard_when_it_is_committed(
    make_turns: Callable[[], Turns],
    thread: ThreadPoolExecutor,
    application: Application,
    task: int,
    server: TestServer,
    database_url: str,
) -> None:
    """MariaDB keeps something for each row that is passed over, for as long as the statement goes on, and has died of it."""
    turns = make_turns()
    name = turns.name(EVERYTHING, [])
    assert thread.submit(turns.take, name, 1).result()
    (old,) = application.items(task)
    insert = "INSERT INTO task_item (id_task, text_original) VALUES " + ", ".join([f"({task}, 'x')"] * 1000)
    with server.connect(parse_database_url(database_url).database) as connection, connection.cursor() as cursor:
        connection.begin()
        cursor.execute(insert)
        hearing = thread.submit(turns.listen, name, old, 0.2)
        kept = [0]
        while not hearing.done():
            (row,) = application.sql("SHOW ENGINE INNODB STATUS")
            kept += [int(size) for size in re.findall(r"heap size (\d+)", row["Status"])]
        assert hearing.result() == old
        assert max(kept) < 1_000_000  # with all of them at each of 200 looks: 20 MB
        (other,) = application.items(task)
        assert thread.submit(turns.listen, name, old, 0.1).result(5) == other
        hearing = thread.submit(turns.listen, name, old, 0.9)
        time.sleep(0.1)  # the listener has looked by then, and must see what is committed after that
        began = time.monotonic()
        connection.commit()
        committed = time.monotonic()
        assert hearing.result(5) == old + 1 or committed - began > 0.5  # as long as this waiting may take
        assert thread.submit(turns.listen, name, old, 0.9).result(5) == old + 1


# ----- the claim on a new item


def test_a_new_item_is_claimed_with_its_task(queue: Queue, application: Application, worker: int, task: int, sql: Sql) -> None:
    (key,) = application.items(task)
    (item,) = queue.claim_new(worker, key, EVERYTHING)
    assert (item.id_task_item, item.attempt, item.task.id_task) == (key, 1, task)
    assert application.task_status(task) is TaskStatus.IN_PROGRESS
    assert queue.claim_new(worker, key, EVERYTHING) == []
    assert queue.commit(worker, [done(item)]).stored
    ended = application.task_row(task)
    assert ended["status_id"] == TaskStatus.COMPLETED

    (later,) = application.items(task)
    (item,) = queue.claim_new(worker, later, EVERYTHING)
    row = application.task_row(task)
    assert (row["status_id"], row["finished_at"]) == (TaskStatus.IN_PROGRESS, None)
    assert row["started_at"] == ended["started_at"]
    queue.commit(worker, [done(item)])
    assert application.task_row(task)["records_processed"] == 2
    assert_ledger(sql)


@pytest.mark.parametrize(
    ("change", "filters", "busy"),
    [
        ("UPDATE task SET status_id = 4", EVERYTHING, False),
        ("UPDATE task SET status_id = 5", EVERYTHING, False),
        ("UPDATE task SET scheduled_at = '2999-01-01'", EVERYTHING, False),
        ("UPDATE ai_model SET is_active = 0", EVERYTHING, False),
        ("UPDATE ai_model SET stopped_at = NOW(), stopped_kind = 'x', stopped_reason = 'x', probe_at = NOW()", EVERYTHING, False),
        ("UPDATE task_item SET status_id = 5", EVERYTHING, False),
        ("DO 0", Filters(task_types=("translation",)), False),
        ("DO 0", Filters(models=("another",)), False),
        ("DO 0", Filters(id_task=2**40), False),
        ("DO 0", Filters(id_task_item=2**40), False),
        ("DO 0", EVERYTHING, True),
    ],
)
def test_a_new_item_that_is_not_for_us_is_left(
    queue: Queue,
    application: Application,
    worker: int,
    model: int,
    task: int,
    sql: Sql,
    change: str,
    filters: Filters,
    busy: bool,
) -> None:
    (key,) = application.items(task)
    sql(change)
    before = application.item_row(key), application.task_row(task)
    assert queue.claim_new(worker, key, filters, [model] if busy else []) == []
    assert (application.item_row(key), application.task_row(task)) == before


def test_a_claim_that_was_not_heard_of_is_given_back(
    queue: Queue, application: Application, worker: int, task: int, sql: Sql, monkeypatch: pytest.MonkeyPatch
) -> None:
    (key,) = application.items(task)

    def away(*_: Any) -> None:
        raise DatabaseAway("the connection was lost")

    with monkeypatch.context() as patch:
        patch.setattr(queue._db, "query", away)
        with pytest.raises(DatabaseAway):
            queue.claim_new(worker, key, EVERYTHING)
    assert application.item_status(key) is ItemStatus.IN_PROGRESS
    (item,) = claim(queue, worker)
    assert (item.id_task_item, item.attempt) == (key, 1)
    queue.commit(worker, [done(item)])
    assert_ledger(sql)


def test_an_item_that_is_committed_against_the_order_of_the_keys_is_not_missed(
    queue: Queue, application: Application, worker: int, task: int, server: TestServer, database_url: str
) -> None:
    """Two web servers write at the same time: the one that got the lower key commits last, into a task that had ended."""
    picker = Picker(queue, EVERYTHING, lambda _: 100, list)
    (first,) = application.items(task)
    queue.commit(worker, [done(*picker.take(worker, 9))])
    with server.connect(parse_database_url(database_url).database) as connection, connection.cursor() as cursor:
        connection.begin()
        cursor.execute("INSERT INTO task_item (id_task, text_original) VALUES (%s, 'niższy')", [task])
        (higher,) = application.items(task)
        assert higher > first + 1
        (item,) = picker.take(worker, 9, higher)
        assert item.id_task_item == higher
        queue.commit(worker, [done(item)])
        assert picker.take(worker, 9) == []
        connection.commit()
    assert [item.id_task_item for item in picker.take(worker, 9)] == [first + 1]


# ----- the listener


class Watched(Turns):
    """Counts what is asked of the server."""

    listens = takes = 0

    def listen(self, name: str, after: int, seconds: float) -> int | None:
        self.listens += 1
        return super().listen(name, after, seconds)

    def take(self, name: str, seconds: float) -> bool | None:
        self.takes += 1
        return super().take(name, seconds)


class NoLocks(Watched):
    """A server without named locks: NULL, or an error."""

    error: DatabaseError | None = None

    def take(self, name: str, seconds: float) -> bool | None:
        self.takes += 1
        if self.error:
            raise self.error
        return None


def make_listener(database_url: str) -> Listener:
    return Listener(Turns(Database(parse_database_url(database_url), patience=0.0)), EVERYTHING, list)


async def until_true(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 -- the thread that changes it tells nobody
            await asyncio.sleep(0.01)


async def has_turn(listener: Listener) -> None:
    """Has it look until it is its turn, and then no more."""
    looking = asyncio.create_task(look_for(listener, 30.0))
    await until_true(lambda: bool(listener._turn))
    looking.cancel()
    await asyncio.gather(looking, return_exceptions=True)


async def look_for(listener: Listener, seconds: float) -> int:
    """Looks again and again, and finds nothing; how often."""
    looks = 0
    woken = asyncio.Event()
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        woken.clear()
        try:
            await asyncio.wait_for(listener.wait(woken), ends - time.monotonic())
        except TimeoutError:
            break
        looks += 1
    return looks


def test_of_many_idle_workers_one_looks_and_does_the_upkeep(database_url: str) -> None:
    async def fleet() -> tuple[list[int], list[int], list[bool]]:
        turns = [Watched(Database(parse_database_url(database_url), patience=0.0)) for _ in range(5)]
        listeners = [Listener(each, EVERYTHING, list) for each in turns]
        looks = await asyncio.gather(*(look_for(each, 2.0) for each in listeners))
        duty = [each._on_duty.is_set() for each in listeners]
        await asyncio.gather(*(each.aclose() for each in listeners))
        return looks, [each.listens for each in turns], duty

    looks, listens, duty = asyncio.run(fleet())
    assert sorted(each > 0 for each in listens) == [False] * 4 + [True]
    assert [each > 0 for each in listens] == duty
    assert 4 <= max(looks) <= 25  # about five a second, and a few more at first
    assert sorted(looks)[:-1] == [0] * 4


def test_items_for_others_do_not_make_it_spin(database_url: str, application: Application) -> None:
    """A stopped model's, or another type's: whatever comes in leads to a look, but not each to one of its own."""
    stopped = application.model(stopped_at="2020-01-01", stopped_kind="quota", stopped_reason="x", probe_at="2999-01-01")
    task = application.task(stopped)

    async def listen() -> int:
        listener = make_listener(database_url)
        looking = asyncio.create_task(look_for(listener, 2.0))
        while not looking.done():
            await asyncio.to_thread(application.items, task)
            await asyncio.sleep(0.002)
        await listener.aclose()
        return looking.result()

    assert asyncio.run(listen()) < 45


@pytest.mark.parametrize("error", [None, DatabaseError("no such function", 1305), DatabaseAway("too many connections", 1040)])
def test_without_named_locks_it_polls(database_url: str, error: DatabaseError | None) -> None:
    async def listen() -> tuple[int, int, bool]:
        turns = NoLocks(Database(parse_database_url(database_url), patience=0.0))
        turns.error = error
        listener = Listener(turns, EVERYTHING, list)
        looks = await look_for(listener, 1.5)
        await listener.aclose()
        return looks, turns.takes, listener._on_duty.is_set()

    looks, takes, is_on_duty = asyncio.run(listen())
    assert 4 <= looks <= 30
    assert takes == 1
    assert is_on_duty


def test_a_worker_that_has_become_busy_passes_its_turn_on(database_url: str) -> None:
    async def hand_over() -> None:
        one, two = make_listener(database_url), make_listener(database_url)
        await has_turn(one)
        second = asyncio.create_task(look_for(two, 30.0))
        await asyncio.sleep(0.3)
        assert one._turn
        assert not two._turn
        one.leave()
        await until_true(lambda: bool(two._turn))
        assert not one._turn
        second.cancel()
        await asyncio.gather(one.aclose(), two.aclose(), second, return_exceptions=True)

    asyncio.run(hand_over())


def test_a_turn_that_comes_too_late_is_passed_on(database_url: str) -> None:
    """It has queued for it, has been given work in the meantime, and gets its turn while it is busy."""

    async def hand_over() -> None:
        listeners = [
            Listener(Turns(Database(parse_database_url(database_url), patience=0.0)), EVERYTHING, list) for _ in range(3)
        ]
        one, two, three = listeners
        await has_turn(one)
        tasks = []
        for each in (two, three):
            tasks.append(asyncio.create_task(look_for(each, 30.0)))
            await asyncio.sleep(0.3)
        tasks[0].cancel()
        two.leave()
        one.leave()
        await until_true(lambda: bool(three._turn))
        assert [bool(each._turn) for each in listeners] == [False, False, True]
        tasks[1].cancel()
        await asyncio.gather(*tasks, *(each.aclose() for each in listeners), return_exceptions=True)

    asyncio.run(hand_over())


# ----- whole workers


def test_a_drain_does_not_wait_for_the_turn(sql: Sql, database_url: str, make_turns: Callable[[], Turns]) -> None:
    other = make_turns()
    assert other.take(other.name(Filters(), []), 1)
    times: list[float] = []

    def drain(worker: Any, event_loop: asyncio.AbstractEventLoop) -> None:
        while worker._parts.listener._listening is None:
            time.sleep(0.01)
        time.sleep(0.5)  # it waits for the turn by now
        times.append(time.monotonic())
        event_loop.call_soon_threadsafe(worker.drain)

    Run(database_url, forever=True, meanwhile=drain)
    assert time.monotonic() - times[0] < 5.0  # in the queue for the turn it would be six at least
    assert {thread.name.partition("_")[0] for thread in threading.enumerate()} & {"listen"} == set()


@pytest.mark.slow
def test_when_the_listener_is_killed_the_next_takes_over_with_the_upkeep(
    sql: Sql, programs: Programs, application: Application
) -> None:
    """New items are picked up as before, deferred ones come due, and what the dead one held is rescued."""
    quick = add_model(sql, None, "echo", "quick")
    slow = add_model(sql, None, "echo", "slow", options='{"delay_ms": 300000}')
    daemons = {}
    for _ in range(3):
        started = programs.start("daemon", env={"AI_WORKER_LEASE_SECONDS": "5"})
        daemons[started.process.pid] = started
    until(lambda: len(sql("SELECT 1 FROM worker WHERE ended_at IS NULL")) == 3)
    held = add_task(sql, slow, ["Zażółć"])
    until(lambda: items_of(sql, held)[0]["status"] == "IN_PROGRESS")
    owner = items_of(sql, held)[0]["id_worker"]
    (row,) = sql("SELECT pid FROM worker WHERE id_worker = %s", [owner])
    daemons[row["pid"]].process.send_signal(signal.SIGKILL)
    daemons[row["pid"]].wait(10)

    for number in range(3):
        task = add_task(sql, quick, [f"gęślą {number}"])
        began = time.monotonic()
        until(lambda task=task: items_of(sql, task)[0]["status"] == "PROCESSED")  # type: ignore[misc]  # bound at once
        assert time.monotonic() - began < (5.0 if number == 0 else 2.0)
    (item,) = application.items(task)
    until(lambda: application.item_status(item) is ItemStatus.PROCESSED)
    later = add_task(sql, quick, [])
    sql(
        "INSERT INTO task_item (id_task, text_original, status_id, available_at)"
        " VALUES (%s, 'jaźń', 4, UTC_TIMESTAMP(6) + INTERVAL 1 SECOND)",
        [later],
    )
    until(lambda: items_of(sql, later)[0]["status"] == "PROCESSED", 5)
    until(lambda: items_of(sql, held)[0]["id_worker"] not in {owner, None}, 12)
    assert items_of(sql, held)[0]["lost_count"] == 1


def until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.02)


def wait_until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_worker_that_was_woken_by_its_upkeep_still_hears(sql: Sql, database_url: str) -> None:
    """The listening that went on meanwhile has ended by then, and nobody was told."""
    model = add_model(sql, None, "echo", "slow", options='{"delay_ms": 300}')

    heard: list[bool] = []  # an assertion that fails in the other thread fails no test

    def work(worker: Any, event_loop: asyncio.AbstractEventLoop) -> None:
        time.sleep(0.5)
        task = add_task(sql, model, texts=[])
        for _ in range(8):
            sql(
                "INSERT INTO task_item (id_task, text_original, status_id, attempt, available_at)"
                " VALUES (%s, 'odłożony', 4, 1, NOW(6) + INTERVAL 1 SECOND)",
                [task],
            )
        sql("UPDATE task SET status_id = 1, started_at = NOW(6) WHERE id_task = %s", [task])
        wait_until(lambda: len(sql("SELECT 1 FROM task_item WHERE status_id = 1")) == 8)
        time.sleep(0.5)
        sql("INSERT INTO task_item (id_task, text_original) VALUES (%s, 'nowy')", [task])
        deadline = time.monotonic() + 5.0
        while len(sql("SELECT 1 FROM task_item WHERE status_id = 1")) < 9 and time.monotonic() < deadline:
            time.sleep(0.02)
        heard.append(time.monotonic() < deadline)
        event_loop.call_soon_threadsafe(worker.drain)

    Run(database_url, forever=True, concurrency=2, meanwhile=work)
    assert heard == [True]


def test_keys_used_up_by_what_was_rolled_back_do_not_deafen(
    server: TestServer, application: Application, make_turns: Callable[[], Turns], database_url: str, task: int
) -> None:
    turns = make_turns()
    listener = Listener(turns, EVERYTHING, list)

    async def hear() -> None:
        woken = asyncio.Event()
        first = application.items(task, 1)[0]
        while listener._turn is None or listener._newest < first:
            woken.clear()
            await listener.wait(woken)
        with server.connect(parse_database_url(database_url).database) as other, other.cursor() as cursor:
            other.begin()
            cursor.executemany("INSERT INTO task_item (id_task, text_original) VALUES (%s, 'x')", [(task,)] * 1500)
            other.rollback()
        beyond = application.items(task, 1)[0]
        assert beyond > first + 1000
        while listener._newest < beyond:
            woken.clear()
            await listener.wait(woken)
        await listener.aclose()

    asyncio.run(asyncio.wait_for(hear(), 10))
