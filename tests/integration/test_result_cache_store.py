"""The verbs of the result cache: who leads, who is answered, who takes over, and what the upkeep forgets."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from typing import Any, Literal

import pytest

from ai_worker.database_url import parse_database_url
from ai_worker.db import Database
from ai_worker.models import Item, ItemStatus, Outcome, Result
from ai_worker.store.cache import LOOKS, Answer, Cache, Question, Standing
from ai_worker.store.queue import Queue
from tests.conftest import Sql
from tests.integration.lifecycle import (
    POLISH,
    Application,
    assert_ledger,
    claim,
    done,
    failed,
    failed_once,
    postponed,
    register,
)
from tests.integration.proxy import Proxy

pytest_plugins = ["tests.integration.lifecycle", "tests.integration.proxy"]

KEY = b"\x07" * 32
OTHER = b"\xf1" * 32
DAY = 86_400.0


@pytest.fixture
def cache(queue: Queue) -> Cache:
    return queue.cache


def ask(cache: Cache, id_worker: int, item: Item | int, key: bytes = KEY, max_age: float = DAY) -> Answer | Standing:
    key_of_item = item if isinstance(item, int) else item.id_task_item
    return cache.ask(id_worker, [Question(key, key_of_item, max_age)])[key]


def leads(outcome: Outcome, key: bytes = KEY) -> Outcome:
    return outcome._replace(cache_key=key)


def rows(sql: Sql) -> list[tuple[bytes, int, int | None, bool]]:
    found = sql("SELECT * FROM result_cache ORDER BY cache_key")
    return [(row["cache_key"], row["id_task_item"], row["id_worker"], row["stored_at"] is not None) for row in found]


@pytest.fixture
def two(application: Application, queue: Queue, worker: int, task: int) -> list[Item]:
    """Two claimed items of one worker."""
    application.items(task, 2)
    return claim(queue, worker, 2)


def test_the_first_leads_the_next_waits_and_is_answered(
    cache: Cache, queue: Queue, worker: int, two: list[Item], sql: Sql
) -> None:
    other = register(queue)
    assert ask(cache, worker, two[0]) is Standing.LEADS
    assert ask(cache, other, two[1]) is Standing.UNDER_WAY
    assert rows(sql) == [(KEY, two[0].id_task_item, worker, False)]
    queue.commit(worker, [leads(done(two[0], data={"text": POLISH, "n": [1, None, {"ż": 0.5}]}))])
    assert rows(sql) == [(KEY, two[0].id_task_item, None, True)]
    answer = ask(cache, other, two[1])
    assert isinstance(answer, Answer)
    assert answer.result == Result(POLISH, "poprawiono", {"text": POLISH, "n": [1, None, {"ż": 0.5}]})
    assert 0 <= answer.age < 60
    assert_ledger(sql)


def test_many_questions_are_one_or_two_statements(
    cache: Cache, queue: Queue, worker: int, application: Application, task: int, database: Database, monkeypatch: Any
) -> None:
    application.items(task, 200)
    items = claim(queue, worker, 200)
    questions = [Question(bytes([number]) * 32, item.id_task_item, DAY) for number, item in enumerate(items)]
    sent: list[str] = []
    for verb in ("query", "execute", "execute_many"):
        send = getattr(database, verb)
        monkeypatch.setattr(database, verb, lambda name, rows, send=send: (sent.append(name), send(name, rows))[1])
    assert set(cache.ask(worker, questions).values()) == {Standing.LEADS}
    assert sent == ["find_answers", "lead_work"]
    sent.clear()
    twins = [question._replace(id_task_item=10**9 + question.id_task_item) for question in questions]
    assert set(cache.ask(register(queue), twins).values()) == {Standing.UNDER_WAY}
    assert sent == ["find_answers"]


def test_no_question_no_statement(cache: Cache, worker: int) -> None:
    assert cache.ask(worker, []) == {}


@pytest.mark.parametrize("outcome", [failed, failed_once, postponed, Outcome.released], ids=lambda each: each.__name__)
def test_a_leader_without_a_result_frees_the_work_as_it_ends(
    cache: Cache, queue: Queue, worker: int, two: list[Item], sql: Sql, outcome: Callable[[Item], Outcome]
) -> None:
    other = register(queue)
    assert ask(cache, worker, two[0]) is Standing.LEADS
    queue.commit(worker, [leads(outcome(two[0]))])
    assert rows(sql) == []
    assert ask(cache, other, two[1]) is Standing.LEADS


def test_a_group_of_all_kinds(cache: Cache, queue: Queue, worker: int, two: list[Item], sql: Sql) -> None:
    assert ask(cache, worker, two[0]) is Standing.LEADS
    assert ask(cache, worker, two[1], OTHER) is Standing.LEADS
    queue.commit(worker, [leads(done(two[0])), leads(failed(two[1]), OTHER)])
    assert rows(sql) == [(KEY, two[0].id_task_item, None, True)]


def test_a_commit_stores_only_what_its_items_lead(cache: Cache, queue: Queue, worker: int, two: list[Item], sql: Sql) -> None:
    """Whoever was taken over has a result all the same, and takes nothing from the one who leads now."""
    other = register(queue)
    assert ask(cache, other, two[1]) is Standing.LEADS
    queue.commit(worker, [leads(done(two[0]))])
    assert rows(sql) == [(KEY, two[1].id_task_item, other, False)]
    queue.commit(worker, [leads(failed(two[1]))])  # not by the worker who leads
    assert rows(sql) == [(KEY, two[1].id_task_item, other, False)]


def test_an_answer_that_is_too_old_is_led_anew(cache: Cache, queue: Queue, worker: int, two: list[Item], sql: Sql) -> None:
    ask(cache, worker, two[0])
    queue.commit(worker, [leads(done(two[0]))])
    sql("UPDATE result_cache SET stored_at = stored_at - INTERVAL 2 HOUR")
    sql("UPDATE task_item SET finished_at = finished_at - INTERVAL 2 HOUR WHERE finished_at IS NOT NULL")
    answer = ask(cache, worker, two[1], max_age=7300)
    assert isinstance(answer, Answer)
    assert 7200 <= answer.age < 7260
    assert ask(cache, worker, two[1], max_age=7100) is Standing.LEADS
    assert rows(sql) == [(KEY, two[1].id_task_item, worker, False)]


@pytest.mark.parametrize(
    "change",
    [
        "DELETE FROM task_item WHERE id_task_item = %s",
        "UPDATE task_item SET review_status_id = 2 WHERE id_task_item = %s",
        "UPDATE task_item SET status_id = 0 WHERE id_task_item = %s",  # to be done again
        "UPDATE task_item SET finished_at = finished_at + INTERVAL 1 SECOND WHERE id_task_item = %s",  # and was, somehow
        "UPDATE task_item SET status_id = 3 WHERE id_task_item = %s",
    ],
    ids=["deleted", "rejected", "pending", "done anew", "error"],
)
def test_an_item_that_holds_the_answer_no_longer(
    cache: Cache, queue: Queue, worker: int, two: list[Item], sql: Sql, change: str
) -> None:
    ask(cache, worker, two[0])
    queue.commit(worker, [leads(done(two[0]))])
    assert isinstance(ask(cache, worker, two[1]), Answer)
    sql(change, [two[0].id_task_item])
    assert ask(cache, worker, two[1]) is Standing.LEADS
    assert rows(sql) == [(KEY, two[1].id_task_item, worker, False)]


def test_an_accepted_answer_is_an_answer(cache: Cache, queue: Queue, worker: int, two: list[Item], sql: Sql) -> None:
    ask(cache, worker, two[0])
    queue.commit(worker, [leads(done(two[0]))])
    sql("UPDATE task_item SET review_status_id = 1 WHERE id_task_item = %s", [two[0].id_task_item])
    assert isinstance(ask(cache, worker, two[1]), Answer)


DEATHS = {
    "its lease is over": "UPDATE worker SET lease_until = NOW(6) - INTERVAL 1 SECOND WHERE id_worker = %s",
    "rescued": "UPDATE worker SET lost_at = NOW(6) WHERE id_worker = %s",
    "ended": "UPDATE worker SET ended_at = NOW(6) WHERE id_worker = %s",
    "gone": "DELETE FROM worker WHERE id_worker = %s",
}


@pytest.mark.parametrize("death", DEATHS.values(), ids=DEATHS)
def test_a_dead_workers_lead_is_taken_over(
    cache: Cache, queue: Queue, worker: int, two: list[Item], sql: Sql, death: str
) -> None:
    dead, other = register(queue), register(queue)
    ask(cache, dead, two[0])
    assert ask(cache, worker, two[1]) is Standing.UNDER_WAY
    sql(death, [dead])
    assert ask(cache, worker, two[1]) is Standing.LEADS
    assert ask(cache, other, two[0].id_task_item + 10) is Standing.UNDER_WAY
    assert rows(sql) == [(KEY, two[1].id_task_item, worker, False)]


def test_one_of_many_takes_a_dead_workers_lead_over(
    cache: Cache, queue: Queue, database_url: str, two: list[Item], application: Application, sql: Sql
) -> None:
    """Forty pieces of work and eight workers with connections of their own: each piece is led by one of them."""
    dead = register(queue)
    keys = [bytes([number]) * 32 for number in range(40)]
    cache.ask(dead, [Question(key, two[0].id_task_item, DAY) for key in keys])
    application.kill_worker(dead)
    led = race(queue, database_url, keys, first_item=1_000_000)
    assert sorted(led) == keys
    assert len(rows(sql)) == 40


def test_one_of_many_leads_new_work(queue: Queue, database_url: str, sql: Sql) -> None:
    keys = [bytes([number]) * 32 for number in range(100)]
    led = race(queue, database_url, keys, first_item=1_000_000)
    assert sorted(led) == keys
    assert len(rows(sql)) == 100


def race(queue: Queue, database_url: str, keys: list[bytes], first_item: int) -> list[bytes]:
    """Eight workers ask about the same work at the same time, in different orders: which keys were led, once per leader."""
    workers = [register(queue) for _ in range(8)]
    barrier = threading.Barrier(len(workers))
    led: list[bytes] = []
    failures: list[BaseException] = []

    def run(number: int) -> None:
        try:
            with closing(Database(parse_database_url(database_url))) as db:
                db.connect()
                barrier.wait(30)
                shuffled = keys[number * 5 :] + keys[: number * 5]
                questions = [Question(key, first_item + number * 1000 + at, DAY) for at, key in enumerate(shuffled)]
                answers = Cache(db).ask(workers[number], questions)
                led.extend(key for key, answer in answers.items() if answer is Standing.LEADS)
        except BaseException as error:
            failures.append(error)
            raise

    threads = [threading.Thread(target=run, args=[number]) for number in range(len(workers))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures
    return led


def test_the_same_item_claimed_again_leads_again(
    cache: Cache, queue: Queue, worker: int, two: list[Item], application: Application, sql: Sql
) -> None:
    """After a crash its own row is still there, of a worker whose lease may even go on."""
    before = register(queue)
    for gone in (False, True):
        ask(cache, before, two[0])
        if gone:
            application.kill_worker(before)
        assert ask(cache, worker, two[0]) is Standing.LEADS
        assert rows(sql) == [(KEY, two[0].id_task_item, worker, False)]
        sql("DELETE FROM result_cache")
    ask(cache, worker, two[0])
    assert ask(cache, worker, two[0]) is Standing.LEADS  # the answer to the first question was lost


def test_a_remainder_of_the_asking_worker_is_taken_over(cache: Cache, worker: int, two: list[Item], sql: Sql) -> None:
    ask(cache, worker, two[0])
    assert ask(cache, worker, two[1]) is Standing.LEADS
    assert rows(sql) == [(KEY, two[1].id_task_item, worker, False)]


def test_work_is_abandoned_only_by_who_leads_it(cache: Cache, queue: Queue, worker: int, two: list[Item], sql: Sql) -> None:
    other = register(queue)
    ask(cache, worker, two[0])
    for id_worker, item in ((other, two[0]), (worker, two[1])):
        cache.abandon(id_worker, [Question(KEY, item.id_task_item, DAY)])
        assert len(rows(sql)) == 1
    cache.abandon(worker, [Question(KEY, two[0].id_task_item, DAY)])
    assert rows(sql) == []


def test_a_late_result_of_a_lost_worker_is_an_answer(
    cache: Cache, queue: Queue, worker: int, two: list[Item], application: Application, sql: Sql
) -> None:
    """It lost its lease and comes back: nobody has claimed the item or asked for the work since."""
    ask(cache, worker, two[0])
    application.kill_worker(worker)
    assert queue.rescue().items == 2
    assert application.item_status(two[0].id_task_item) is ItemStatus.PENDING
    committed = queue.commit(worker, [leads(done(two[0]))])
    assert [outcome.item for outcome in committed.stored] == [two[0]]
    assert rows(sql) == [(KEY, two[0].id_task_item, None, True)]
    assert isinstance(ask(cache, register(queue), two[1]), Answer)
    assert_ledger(sql)


def test_a_late_result_leaves_the_lead_to_who_took_it_over(
    cache: Cache, queue: Queue, worker: int, two: list[Item], application: Application, sql: Sql
) -> None:
    ask(cache, worker, two[0])
    application.kill_worker(worker)
    queue.rescue()
    other = register(queue)
    assert ask(cache, other, two[1]) is Standing.LEADS
    assert queue.commit(worker, [leads(done(two[0]))]).stored
    assert rows(sql) == [(KEY, two[1].id_task_item, other, False)]


def test_who_lost_its_claim_takes_nothing_away(
    cache: Cache, queue: Queue, worker: int, two: list[Item], application: Application, sql: Sql
) -> None:
    """The item is another worker's now, and leads there under the same key."""
    ask(cache, worker, two[0])
    application.kill_worker(worker)
    queue.rescue()
    other = register(queue)
    (again,) = claim(queue, other, 1)
    assert again.id_task_item == two[0].id_task_item
    assert ask(cache, other, again) is Standing.LEADS
    for late in (done(two[0]), failed(two[0]), Outcome.released(two[0])):
        queue.commit(worker, [leads(late)])
        assert rows(sql) == [(KEY, again.id_task_item, other, False)]
    assert_ledger(sql)


def test_a_takeover_and_the_leaders_commit_at_the_same_time(
    cache: Cache, queue: Queue, worker: int, two: list[Item], database_url: str, application: Application, sql: Sql
) -> None:
    """The leader's transaction is open while a twin takes over: the twin waits for it, and is answered."""
    ask(cache, worker, two[0])
    application.kill_worker(worker)
    answers: list[Answer | Standing] = []
    with closing(Database(parse_database_url(database_url))) as db:
        twin = register(queue)
        thread = threading.Thread(target=lambda: answers.append(ask(Cache(db), twin, two[1])))

        def commit(tx: Any) -> None:
            led = [(KEY, two[0].id_task_item)]
            tx.raw(
                "UPDATE task_item SET status_id = 1, id_worker = NULL, finished_at = NOW(6), text_corrected = 'x',"
                " result = '{}'"
                f" WHERE id_task_item = {two[0].id_task_item}"
            )
            tx.execute("store_answers", {"keys": [KEY], "led": led})
            thread.start()
            wait_for_lock(sql)

        Database.transaction(queue._db, commit)
        thread.join(30)
    (answer,) = answers
    assert isinstance(answer, Answer)
    assert answer.result.text_corrected == "x"
    assert rows(sql) == [(KEY, two[0].id_task_item, None, True)]


def wait_for_lock(sql: Sql) -> None:
    """Until some session waits for a row of another."""
    for _ in range(50):
        if sql("SELECT trx_id FROM information_schema.innodb_trx WHERE trx_state = 'LOCK WAIT'"):
            return
        time.sleep(0.15)  # the table is a cache, which is filled anew only 0.1 s after it was last read
    raise AssertionError("nobody waits")


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("outcome", [done, failed], ids=["done", "failed"])
def test_the_answer_to_the_leaders_commit_is_lost(
    database_url: str,
    proxy: Proxy,
    queue: Queue,
    worker: int,
    two: list[Item],
    sql: Sql,
    when: Literal["before", "after"],
    outcome: Callable[[Item], Outcome],
) -> None:
    with closing(Database(far(database_url, proxy))) as db:
        far_queue = Queue(db)
        ask(far_queue.cache, worker, two[0])
        proxy.break_at("COMMIT", when)
        assert far_queue.commit(worker, [leads(outcome(two[0]))]).stored
    assert proxy.broken == 1
    assert rows(sql) == ([(KEY, two[0].id_task_item, None, True)] if outcome is done else [])
    assert_ledger(sql)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("statement", ["SELECT c.", "DELETE c", "INSERT IGNORE"])
def test_the_answer_to_a_question_is_lost(
    database_url: str,
    proxy: Proxy,
    queue: Queue,
    worker: int,
    two: list[Item],
    application: Application,
    sql: Sql,
    statement: str,
    when: Literal["before", "after"],
) -> None:
    dead = register(queue)
    ask(queue.cache, dead, two[0])
    application.kill_worker(dead)
    with closing(Database(far(database_url, proxy))) as db:
        db.connect()
        proxy.break_at(statement, when)
        assert ask(Cache(db), worker, two[1]) is Standing.LEADS
    assert proxy.broken == 1
    assert rows(sql) == [(KEY, two[1].id_task_item, worker, False)]


def far(database_url: str, proxy: Proxy) -> Any:
    return replace(parse_database_url(database_url), hosts=(("127.0.0.1", proxy.port),))


def test_who_is_always_too_late_waits(
    cache: Cache, queue: Queue, worker: int, two: list[Item], database: Database, sql: Sql, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often others take the work over between a look and the claim on it, the question ends."""
    send = database.execute_many
    monkeypatch.setattr(database, "query", lambda *_: [])
    tries: list[int] = []

    def too_late(name: str, rows: Any) -> int:
        tries.append(1)
        sql("INSERT IGNORE INTO result_cache (cache_key, id_task_item, id_worker) VALUES (%s, 1, 1)", [KEY])
        return send(name, rows)

    monkeypatch.setattr(database, "execute_many", too_late)
    assert ask(cache, worker, two[0]) is Standing.UNDER_WAY
    assert len(tries) == LOOKS


def test_the_upkeep_forgets_what_nobody_can_use(
    cache: Cache, queue: Queue, worker: int, two: list[Item], application: Application, sql: Sql
) -> None:
    dead, here = register(queue), two[0].id_task_item
    insert = "INSERT INTO result_cache (cache_key, id_task_item, id_worker, stored_at) VALUES (%s, %s, %s, {})"
    now, old = "NOW(6)", "NOW(6) - INTERVAL 91 DAY"
    sql(insert.format(now), [b"1" * 32, here, None])
    sql(insert.format("NULL"), [b"2" * 32, here, worker])
    sql(insert.format(now), [b"3" * 32, 10**12, None])  # the item is gone
    sql(insert.format(old), [b"4" * 32, here, None])
    sql(insert.format("NULL"), [b"5" * 32, here, dead])
    sql("UPDATE worker SET ended_at = NOW(6) WHERE id_worker = %s", [dead])
    assert cache.forget(b"\xff" * 32) == 0
    assert cache.forget(b"5" * 32) == 1
    assert cache.forget(bytes(32)) == 2
    assert [row[0] for row in rows(sql)] == [b"1" * 32, b"2" * 32]
    assert cache.forget() == 0
