"""Many workers at once: nobody gets what another has, a task ends once, nobody waits for a poll, no deadlock surfaces."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import pytest

from ai_worker.database_url import parse_database_url
from ai_worker.db import Database
from ai_worker.models import Filters, Item, Outcome, TaskStatus
from ai_worker.store.ledger import EndedTask
from ai_worker.store.queue import Queue
from tests.integration.lifecycle import (
    Application,
    Sql,
    assert_ledger,
    claim,
    done,
    failed,
    failed_once,
    postponed,
    register,
)
from tests.servers import TestServer

pytest_plugins = ["tests.integration.lifecycle"]

T = TypeVar("T")
Together = Callable[..., list[Any]]


@pytest.fixture(autouse=True)
def _ledger_at_the_end(sql: Sql) -> Any:
    """Whatever the threads did, all tables agree with each other at the end."""
    yield
    assert_ledger(sql)


@pytest.fixture
def together() -> Iterator[Together]:
    """`together(8, work)`: runs `work(number)` in 8 threads that start at the same instant; their results, by number."""
    with ThreadPoolExecutor(16) as pool:

        def run(threads: int, work: Callable[[int], T]) -> list[T]:
            barrier = threading.Barrier(threads)

            def begin(number: int) -> T:
                barrier.wait(20)
                return work(number)

            return [each.result(60) for each in [pool.submit(begin, number) for number in range(threads)]]

        yield run


def take_all(queue: Queue, id_worker: int, size: int) -> list[Item]:
    """Claims until there is nothing more."""
    items: list[Item] = []
    while True:
        tasks = queue.runnable(Filters())
        found = queue.claim(id_worker, tasks, size) if tasks else []
        if not found and not queue.runnable(Filters()):
            return items
        items += found


@pytest.mark.parametrize(("tasks", "items"), [(1, 1600), (80, 10)], ids=["one big task", "many small tasks"])
def test_eight_claimers_never_get_the_same_item_and_all_get_some(
    application: Application, queue: Queue, model: int, together: Together, tasks: int, items: int
) -> None:
    keys: set[int] = set()
    for _ in range(tasks):
        keys.update(application.items(application.task(model), items))
    workers = [register(queue) for _ in range(8)]
    taken = together(8, lambda number: take_all(queue, workers[number], 10))
    counts = Counter(item.id_task_item for found in taken for item in found)
    assert set(counts) == keys
    assert max(counts.values()) == 1
    assert all(taken)


def test_two_workers_that_finish_the_last_two_items_at_once_end_the_task_once(
    application: Application, queue: Queue, model: int, together: Together
) -> None:
    workers = [register(queue), register(queue)]
    for turn in range(50):
        id_task = application.task(model)
        application.items(id_task, 2)
        last = [claim(queue, each)[0] for each in workers]
        make = [done, failed if turn % 2 else done]

        def finish(number: int, last: list[Item] = last, make: list[Callable[[Item], Outcome]] = make) -> list[EndedTask]:
            return queue.commit(workers[number], [make[number](last[number])]).ended

        reports = together(2, finish)
        status = TaskStatus.ERROR if turn % 2 else TaskStatus.COMPLETED
        expected = EndedTask(id_task, status, 2 - turn % 2, turn % 2)
        assert [each for ended in reports for each in ended] == [expected]
        row = application.task_row(id_task)
        assert (row["status_id"], row["finished_at"] is None) == (status, False)


def test_two_workers_that_give_back_the_last_two_items_of_a_cancelled_task_at_once_finish_it(
    application: Application, queue: Queue, model: int, together: Together, sql: Sql
) -> None:
    """No counter changes here, so nothing but the look at the task itself holds the one back until the other is through."""
    workers = [register(queue), register(queue)]
    for _ in range(30):
        id_task = application.task(model)
        application.items(id_task, 2)
        last = [claim(queue, each)[0] for each in workers]
        sql("UPDATE task SET status_id = 5 WHERE id_task = %s", [id_task])
        together(2, lambda number, last=last: queue.commit(workers[number], [Outcome.released(last[number])]))
        assert application.task_row(id_task)["finished_at"] is not None


def test_one_item_committed_by_two_threads_counts_once(
    application: Application, queue: Queue, worker: int, task: int, together: Together
) -> None:
    """As when a worker repeats a commit whose first run still waits in the server."""
    application.items(task, 20)
    for item in claim(queue, worker, 20):
        together(2, lambda _, item=item: queue.commit(worker, [done(item)]))
    row = application.task_row(task)
    assert (row["records_processed"], row["status_id"]) == (20, TaskStatus.COMPLETED)


def test_four_rescuers_give_each_item_back_once(
    application: Application, queue: Queue, task: int, together: Together, sql: Sql
) -> None:
    application.items(task, 1000)
    for _ in range(5):
        dead = register(queue)
        while len(claim(queue, dead, 100)) == 100 and len(sql("SELECT 1 FROM task_item WHERE id_worker = %s", [dead])) < 200:
            pass
        application.kill_worker(dead)

    def rescue(_: int) -> int:
        total = 0
        while (report := queue.rescue()).more:
            total += report.items
        return total

    assert sum(together(4, rescue)) == 1000
    assert sql("SELECT DISTINCT status_id, lost_count, attempt FROM task_item") == [
        {"status_id": 0, "lost_count": 1, "attempt": 1}
    ]
    assert len(sql("SELECT 1 FROM worker WHERE ended_at IS NULL")) == 0


def test_a_rescue_and_a_late_commit_at_once_count_the_item_once(
    application: Application, queue: Queue, model: int, together: Together
) -> None:
    for _ in range(25):
        id_task = application.task(model)
        application.items(id_task)
        worker = register(queue)
        (item,) = claim(queue, worker)
        application.kill_worker(worker)
        verbs: list[Callable[[], Any]] = [lambda w=worker, i=item: queue.commit(w, [done(i)]), queue.rescue]
        together(2, lambda number, verbs=verbs: verbs[number]())
        while queue.rescue().more:
            pass
        assert application.task_row(id_task)["records_processed"] == 1
        assert application.task_status(id_task) is TaskStatus.COMPLETED


def test_commits_on_the_same_tasks_in_different_orders_do_not_fail(
    application: Application, queue: Queue, model: int, together: Together
) -> None:
    tasks = [application.task(model, max_attempts=9) for _ in range(6)]
    for id_task in tasks:
        application.items(id_task, 80)
    workers = [register(queue) for _ in range(6)]

    def work(number: int) -> int:
        chance = random.Random(number)  # noqa: S311 -- dice
        stored = 0
        for _ in range(8):
            items: list[Item] = []
            order = queue.runnable(Filters())
            chance.shuffle(order)
            for task in order:
                items += queue.claim(workers[number], [task], chance.randint(1, 4))
            chance.shuffle(items)
            makers = [done, done, failed, failed_once, postponed, Outcome.released]
            stored += len(queue.commit(workers[number], [chance.choice(makers)(item) for item in items]).stored)
            queue.promote_due()
        return stored

    assert all(together(6, work))


def test_the_same_items_deferred_promoted_claimed_and_committed_by_all(
    application: Application, queue: Queue, model: int, together: Together
) -> None:
    """Everything that a fleet does at once, until all is done."""
    tasks = [application.task(model, max_attempts=3) for _ in range(3)]
    for id_task in tasks:
        application.items(id_task, 60)
    workers = [register(queue) for _ in range(6)]

    def work(number: int) -> None:
        chance = random.Random(number)  # noqa: S311 -- dice
        while not all(application_is_done(queue, id_task) for id_task in tasks):
            for item in claim(queue, workers[number], chance.randint(1, 20)):
                make = chance.choice([done, done, lambda each: failed_once(each, 0.001), lambda each: postponed(each, 0.001)])
                queue.commit(workers[number], [make(item)])
            queue.promote_due()

    together(6, work)
    for id_task in tasks:
        row = application.task_row(id_task)
        assert row["records_processed"] + row["records_failed"] == 60
        assert row["status_id"] == (TaskStatus.ERROR if row["records_failed"] else TaskStatus.COMPLETED)


def application_is_done(queue: Queue, id_task: int) -> bool:
    """Whether nothing of a task is pending, deferred, or held by anybody."""
    waiting = queue.waiting(Filters(id_task=id_task))
    return not (waiting.pending or waiting.deferred or queue.others_at_work(0, Filters(id_task=id_task)))


# ----- applications are never held up


def test_polling_an_empty_queue_holds_up_no_insert(
    application: Application, database: Database, queue: Queue, task: int, sql: Sql
) -> None:
    """Under REPEATABLE READ the poll would lock the gap that the new row falls into."""
    sql("SET SESSION innodb_lock_wait_timeout = 1")
    known = queue.runnable(Filters())
    assert known == []

    def poll(tx: Any) -> None:
        assert tx.query("lock_pending_of_task", {"id_task": task, "after": 0, "size": 10}) == []
        assert tx.query("lock_pending_of_tasks", {"tasks": [task, task + 1], "size": 10}) == []
        assert tx.query("lock_due") == []
        application.items(task, 3)

    database.transaction(poll)
    assert len(claim(queue, register(queue), 9)) == 3


def test_an_open_insert_is_held_up_by_nothing_and_holds_up_nothing(
    application: Application, queue: Queue, worker: int, task: int, server: TestServer, database_url: str
) -> None:
    """An application inserts in a long transaction, into the task that is being worked on."""
    application.items(task, 20)
    with server.connect(parse_database_url(database_url).database) as slow, slow.cursor() as cursor:
        cursor.execute("SET SESSION innodb_lock_wait_timeout = 1")
        slow.begin()
        for turn in range(5):
            cursor.execute("INSERT INTO task_item (id_task, text_original) VALUES (%s, %s)", [task, f"w toku {turn}"])
            items = claim(queue, worker, 4)
            assert len(items) == 4
            cursor.execute("INSERT INTO task_item (id_task, text_original) VALUES (%s, %s)", [task, "jeszcze"])
            assert len(queue.commit(worker, [done(item) for item in items]).stored) == 4
        assert application.task_status(task) is TaskStatus.COMPLETED  # nobody can see the others yet
        slow.commit()
    assert queue.reopen_page() is None
    assert application.task_status(task) is TaskStatus.IN_PROGRESS
    assert len(claim(queue, worker, 50)) == 10


def test_an_insert_is_not_held_up_by_a_commit_under_way(
    application: Application, database: Database, queue: Queue, worker: int, claimed_item: Item, sql: Sql
) -> None:
    """A foreign key to the task would make it wait for the counters' row lock."""
    sql("SET SESSION innodb_lock_wait_timeout = 1")
    id_task = claimed_item.task.id_task

    def commit_slowly(tx: Any) -> None:
        tx.query("lock_committed", {"items": [claimed_item.id_task_item]})
        tx.query("lock_tasks", {"tasks": [id_task]})
        application.items(id_task, 2)

    database.transaction(commit_slowly)
    assert len(claim(queue, worker, 9)) == 2


def test_one_of_many_takes_the_probe(application: Application, queue: Queue, together: Together) -> None:
    id_ai_model = application.model(stopped_at="2020-01-01", stopped_kind="quota", stopped_reason="x", probe_at="2020-01-02")
    assert sum(together(8, lambda _: queue.take_probe(id_ai_model))) == 1
