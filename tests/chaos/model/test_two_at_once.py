"""Two verbs, one inside the other, at each statement: what the state machine has found, kept as tests of their own."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pytest

from ai_worker.database_url import parse_database_url
from ai_worker.models import Filters, ItemStatus, TaskStatus
from ai_worker.store.queue import Queue
from ai_worker.store.tasks import Tasks
from tests.chaos.model.runs import world_on
from tests.chaos.model.sweep import BROKEN, SCENARIOS, sweep
from tests.chaos.model.watched import Pair, WatchedDatabase
from tests.integration.lifecycle import Application, Sql, assert_ledger, claim, done, register
from tests.servers import TestServer

pytest_plugins = ["tests.integration.lifecycle"]

STATEMENTS = range(1, 9)  # of the first verb, before the second one runs


@pytest.fixture
def watched(database_url: str) -> Iterator[WatchedDatabase]:
    db = WatchedDatabase(parse_database_url(database_url))
    yield db
    db.close()


@pytest.fixture
def pair(watched: WatchedDatabase) -> Iterator[Pair]:
    pair = Pair(watched)
    yield pair
    pair.close()


@pytest.mark.parametrize("step", [pytest.param(3), pytest.param(1, marks=pytest.mark.chaos)])
def test_a_verb_inside_another_one_is_like_one_after_the_other(
    server: TestServer, database_url: str, seed: int, step: int
) -> None:
    """In short at each third place: the seed says which."""
    with world_on(server, database_url) as world:
        assert set(sweep(world, seed % step, step)) == {*SCENARIOS, *BROKEN}


@pytest.mark.parametrize("verb", ["pause", "cancel"])
def test_items_claimed_while_their_new_task_is_stopped_are_rescued(
    application: Application, watched: WatchedDatabase, pair: Pair, sql: Sql, model: int, verb: str
) -> None:
    """The task has begun then, whoever comes first: else a rescue would not look for items of it once it is resumed."""
    queue, tasks = Queue(watched), Tasks(watched)
    for statements in STATEMENTS:
        task = application.task(model)
        application.items(task)
        worker = register(queue)
        (listed,) = queue.runnable(Filters(id_task=task))

        claiming, stopping = partial(queue.claim, worker, [listed], 5), partial(getattr(tasks, verb), task)
        items, _ = pair.run(claiming, stopping, statements, 99)

        row = application.task_row(task)
        assert row["status_id"] == (TaskStatus.PAUSED if verb == "pause" else TaskStatus.CANCELLED)
        assert (row["started_at"] is not None) == bool(items)
        tasks.resume(task)
        application.kill_worker(worker)
        while queue.rescue().more:
            pass
        (again,) = claim(queue, register(queue), filters=Filters(id_task=task))
        assert queue.commit(1, [done(again)]).stored
        assert application.task_status(task) == TaskStatus.COMPLETED
    assert_ledger(sql)


def test_a_task_resumed_during_a_rescue_gets_back_what_was_lost(
    application: Application, watched: WatchedDatabase, pair: Pair, model: int
) -> None:
    queue, tasks = Queue(watched), Tasks(watched)
    for statements in STATEMENTS:
        task = application.task(model)
        (item,) = application.items(task)
        worker = register(queue)
        assert claim(queue, worker, filters=Filters(id_task=task))
        tasks.cancel(task)
        application.kill_worker(worker)

        pair.run(queue.rescue, partial(tasks.resume, task), statements, 99)

        assert application.item_status(item) == ItemStatus.PENDING
        assert application.task_status(task) == TaskStatus.IN_PROGRESS
        tasks.cancel(task)
