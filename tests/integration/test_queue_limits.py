"""Limits of queues and task types: exact for the whole fleet, whoever claims and whoever dies."""

from __future__ import annotations

import threading
import time
from collections import Counter
from contextlib import closing
from typing import Any

import pytest

from ai_worker.database_url import parse_database_url
from ai_worker.db import Database
from ai_worker.models import Filters, Item, QueueShare
from ai_worker.store import limits as module
from ai_worker.store.queue import Queue
from ai_worker.store.queues import Queues
from ai_worker.worker.picker import Picker
from tests.fake_provider import FakeProvider
from tests.fake_provider.faults import Rule
from tests.integration.commands import Commands
from tests.integration.lifecycle import Application, Sql, assert_ledger, done, register
from tests.integration.worker_runs import Run, add_model, add_task, items_of

pytest_plugins = ["tests.integration.lifecycle"]


@pytest.fixture
def ai_worker(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], database_url: str) -> Commands:
    monkeypatch.setenv("AI_WORKER_DB_URL", database_url)
    return Commands(monkeypatch, capsys)


def picker(queue: Queue, **filters: Any) -> Picker:
    return Picker(queue, Filters(**filters), lambda _: 1000, list)


def take(each: Picker, id_worker: int, size: int) -> list[Item]:
    each.forget()
    return each.take(id_worker, size)


def hold_over(queue: Queue) -> None:
    """What a worker knows of used up limits is over."""
    queue.limits._held.clear()


def test_no_more_are_in_progress_than_the_limit_and_the_rest_of_the_work_goes_on(
    application: Application, queue: Queue, database: Database, worker: int, model: int
) -> None:
    limited, free = application.task(model, queue="reply", priority=5), application.task(model)
    for each in (limited, free):
        application.items(each, 10)
    Queues(database).set("reply", "", {"at_once": 3})
    one = picker(queue)
    assert Counter(item.task.queue for item in take(one, worker, 8)) == {"reply": 3, "default": 5}
    hold_over(queue)
    assert Counter(item.task.queue for item in take(one, worker, 8)) == {"default": 5}
    assert [task.queue for task in queue.runnable(Filters())] == [], "it is left out of the look as long as it is used up"
    hold_over(queue)
    assert [task.queue for task in queue.runnable(Filters())] == ["reply"]


def test_what_ends_makes_room_at_once(
    application: Application, queue: Queue, database: Database, worker: int, model: int
) -> None:
    application.items(application.task(model, queue="reply"), 5)
    Queues(database).set("reply", "", {"at_once": 2})
    one = picker(queue)
    items = take(one, worker, 9)
    assert len(items) == 2
    assert queue.limits.new_wait() == module.HOLD_SECONDS
    assert queue.limits.new_wait() is None
    queue.commit(worker, [done(items[0])])
    assert (queue.limits.has_freed(), queue.limits.has_freed()) == (True, False)
    assert len(take(one, worker, 9)) == 1


def test_the_strictest_of_all_limits_counts(
    application: Application, queue: Queue, database: Database, worker: int, model: int
) -> None:
    queues = Queues(database)
    queues.set("reply", "", {"at_once": 5})
    queues.set("", "summary", {"at_once": 4})
    queues.set("reply", "summary", {"at_once": 3})
    queues.set("", "", {"at_once": 8})
    summaries, others = application.task(model, queue="reply", task_type="summary"), application.task(model, queue="reply")
    elsewhere, free = application.task(model, task_type="summary"), application.task(model, queue="batch")
    taken = {}
    for each in (summaries, others, elsewhere, free):
        application.items(each, 9)
        hold_over(queue)
        taken[each] = len(take(picker(queue, id_task=each), worker, 9))
    assert taken == {summaries: 3, others: 2, elsewhere: 1, free: 2}


def test_several_workers_at_the_same_time_keep_to_the_limit_together(
    application: Application, database_url: str, database: Database, sql: Sql, model: int
) -> None:
    tasks = [application.task(model, queue="reply") for _ in range(3)]
    for each in tasks:
        application.items(each, 40)
    Queues(database).set("reply", "", {"at_once": 5})
    most: list[int] = []
    start = threading.Barrier(3)

    def work() -> None:
        with closing(Database(parse_database_url(database_url))) as db:
            queue = Queue(db)
            id_worker, mine = register(queue), picker(queue)
            start.wait()
            for _ in range(12):
                hold_over(queue)
                items = take(mine, id_worker, 7)
                ((row,),) = [db.query("in_flight_of_limit", WHICH)]
                most.append(row["items"])
                queue.commit(id_worker, [done(item) for item in items])

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(most) == 36, "a worker has failed"
    assert max(most) <= 5
    assert sum(application.task_row(each)["records_processed"] for each in tasks) >= 36
    assert_ledger(sql)


WHICH = {"queue": "reply", "any_queue": False, "task_type": "", "any_type": True, "most": 1000}


def test_a_killed_workers_items_count_until_they_are_given_back(
    application: Application, queue: Queue, database: Database, worker: int, model: int
) -> None:
    application.items(application.task(model, queue="reply"), 5)
    Queues(database).set("reply", "", {"at_once": 2})
    dead = register(queue)
    assert len(take(picker(queue), dead, 9)) == 2
    hold_over(queue)
    other = picker(queue)
    assert take(other, worker, 9) == []
    application.kill_worker(dead)
    queue.rescue()
    hold_over(queue)
    assert len(take(other, worker, 9)) == 2


def test_a_rate_is_kept_by_two_workers_together_over_any_time(
    application: Application, database_url: str, database: Database, model: int
) -> None:
    """1,200 in a minute are twenty in a second; nothing was begun before, so that half a second's worth may come at first."""
    application.items(application.task(model, queue="reply"), 200)
    Queues(database).set("reply", "", {"per_minute": 1200})
    begun: list[float] = []
    end = time.monotonic() + 1.5

    def work() -> None:
        with closing(Database(parse_database_url(database_url))) as db:
            queue = Queue(db)
            id_worker, mine = register(queue), picker(queue)
            while time.monotonic() < end:
                items = take(mine, id_worker, 50)
                begun.extend([time.monotonic()] * len(items))
                time.sleep(queue.limits.new_wait() or 0.01)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    step = (60 + module.CREDIT_SECONDS) / 1200
    most = int((1.5 + 2 * module.CREDIT_SECONDS) / step) + 1
    assert 20 <= len(begun) <= most
    assert max(Counter(begun).values()) <= module.CREDIT_SECONDS / step + 1


def test_a_rate_that_is_used_up_says_when_the_next_one_is_due(
    application: Application, queue: Queue, database: Database, worker: int, model: int
) -> None:
    application.items(application.task(model, queue="reply"), 3)
    queues = Queues(database)
    queues.set("reply", "", {"per_minute": 6})
    one = picker(queue)
    assert len(take(one, worker, 9)) == 1
    wait = queue.limits.new_wait()
    assert wait is not None
    assert 9 < wait < 10.1
    hold_over(queue)
    assert take(one, worker, 9) == []
    queues.set("reply", "", {"per_minute": 60_000})
    queue.limits._refreshed_at = float("-inf")
    assert len(take(one, worker, 9)) == 2, "a change is known when the limits are read again, whatever was held"


def test_a_new_item_with_a_limit_is_left_to_the_long_way(
    application: Application, queue: Queue, database: Database, worker: int, model: int
) -> None:
    Queues(database).set("reply", "", {"at_once": 1})
    keys = [application.items(application.task(model, queue=name))[0] for name in ("reply", "batch")]
    queue.runnable(Filters())  # reads the limits
    assert queue.claim_new(worker, keys[0], Filters()) == []
    assert len(queue.claim_new(worker, keys[1], Filters())) == 1


def test_a_limited_tasks_watermark_stays_where_it_is(
    application: Application, queue: Queue, database: Database, worker: int, model: int
) -> None:
    items = application.items(application.task(model, queue="reply"), 6)
    Queues(database).set("reply", "", {"at_once": 2})
    one = picker(queue)
    first = take(one, worker, 2)
    queue.commit(worker, [done(each) for each in first])
    hold_over(queue)
    assert [each.id_task_item for each in take(one, worker, 9)] == items[2:4]
    hold_over(queue)
    assert take(one, worker, 9) == []
    assert list(one._watermarks.values()) == [items[3]]


def test_two_runs_at_once_keep_to_both_limits_and_do_all(sql: Sql, database_url: str, database: Database) -> None:
    with FakeProvider(latency_ms=20) as fake:
        model = add_model(sql, fake, "chat", "m")
        tasks = [add_task(sql, model, [f"tekst {name} {n}" for n in range(15)], queue=name) for name in ("reply", "batch")]
        Queues(database).set("reply", "", {"at_once": 2})
        filters = Filters(queues=(QueueShare("reply", 5), QueueShare("batch")))
        runs: list[Run] = []
        threads = [threading.Thread(target=lambda: runs.append(Run(database_url, filters=filters))) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sum(run.summary.processed for run in runs) == 30
        replies = [each for each in fake.requests if each.text.startswith("tekst reply")]
        times = [(each.received_at, 1) for each in replies] + [(each.finished_at or 0.0, -1) for each in replies]
        at_once = peak = 0
        for _, change in sorted(times):
            at_once += change
            peak = max(peak, at_once)
        assert peak <= 2
    assert {item["status"] for task in tasks for item in items_of(sql, task)} == {"PROCESSED"}
    assert_ledger(sql)


def test_an_attempt_ends_at_its_queues_time_limit(sql: Sql, database_url: str, database: Database) -> None:
    with FakeProvider() as fake:
        fake.script(Rule("hang", times=1))
        task = add_task(sql, add_model(sql, fake, "chat", "m"), ["tekst"], queue="reply", max_attempts=1)
        Queues(database).set("reply", "correction", {"time_limit": 1})
        began = time.monotonic()
        assert Run(database_url).summary.failed == 1
        assert time.monotonic() - began < 20  # the request's own limit is a minute
    (item,) = items_of(sql, task)
    assert "within 1 s" in item["error_message"]


def test_limits_are_set_shown_and_removed(ai_worker: Commands, application: Application, model: int) -> None:
    application.items(application.task(model, queue="reply"), 4)
    assert ai_worker("queue", "set", "reply", "--per-minute", "60").out == "queue reply: 60 a minute\n"
    set_more = ai_worker("queue", "set", "reply", "--at-once", "4", "--time-limit", "2m", "--per-minute", "none")
    assert set_more.out == "queue reply: 4 at once, 120 s for an attempt\n"
    assert ai_worker("queue", "set", "--any", "--type", "summary", "--at-once", "2").code == 0
    assert "nobody here knows a task type 'sumary'; known ones: analysis, " in (
        ai_worker("queue", "set", "-", "--type", "sumary", "--at-once", "none").err
    )
    assert ai_worker("queue", "set", "-", "--per-minute", "1000").out == "all queues together: 1,000 a minute\n"
    listed = ai_worker("queue", "list", "--json").json
    (found,) = listed["queues"]
    assert (found["queue"], found["tasks"], found["pending"], found["in_flight"]) == ("reply", 1, 4, 0)
    assert found["oldest_seconds"] >= 0
    assert [
        (each["queue"], each["task_type"], each["per_minute"], each["at_once"], each["time_limit"]) for each in listed["limits"]
    ] == [
        (None, None, 1000, None, None),
        (None, "summary", None, 2, None),
        ("reply", None, None, 4, 120),
    ]
    out = ai_worker("queue", "list").out
    assert "limit of all queues together, type summary: 2 at once" in out
    assert ai_worker("queue", "remove", "--any", "--type", "summary").code == 0
    assert ai_worker("queue", "remove", "-").code == 0
    assert ai_worker("queue", "set", "reply", "--at-once", "none", "--time-limit", "none").out == "queue reply: no limits\n"
    assert ai_worker("queue", "list", "--json").json["limits"] == []
    ended = ai_worker("queue", "remove", "reply")
    assert (ended.code, "has no limits" in ended.err) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("set", "reply"), "name a limit"),
        (("set", "--at-once", "3"), "name a queue"),
        (("set", "reply", "--any", "--at-once", "3"), "not both"),
        (("set", "two words", "--at-once", "3"), "no name of a queue"),
        (("set", "reply", "--at-once", "-3"), "is no limit"),
        (("set", "reply", "--at-once", "0"), "lets nothing through"),
        (("set", "reply", "--time-limit", "0s"), "lets nothing through"),
        (("set", "reply", "--per-minute", "1.5"), "is no limit"),
        (("set", "reply", "--time-limit", "30"), "has no unit"),
        (("set", "reply", "--time-limit", "soon"), "is no limit"),
        (("set", "reply", "--type", "t" * 51, "--at-once", "3"), "no name of a task type"),
        (("remove",), "name a queue"),
    ],
)
def test_what_is_no_limit_is_refused(ai_worker: Commands, arguments: tuple[str, ...], said: str) -> None:
    ended = ai_worker("queue", *arguments)
    assert (ended.code, said in ended.err) == (2, True), ended.err
