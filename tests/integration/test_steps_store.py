"""Steps and parts in the database: stored one by one, each with what it cost, and never for anybody but the item's owner."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from decimal import Decimal
from typing import Any, Literal

import pytest

from ai_worker.database_url import parse_database_url
from ai_worker.db import Database, Transaction
from ai_worker.errors import DatabaseAway, ValueRefused
from ai_worker.models import NO_USAGE, Item, ItemStatus, Outcome, StepResult, TaskStatus
from ai_worker.store import steps
from ai_worker.store.budgets import Stored
from ai_worker.store.queue import Queue
from ai_worker.store.steps import ClaimLostError, Finished, Place
from tests.integration.lifecycle import COST, USAGE, Application, Sql, assert_ledger, claim, done, failed, register
from tests.integration.proxy import Proxy

pytest_plugins = ["tests.integration.lifecycle", "tests.integration.proxy"]

TWO = {Place(1): b"a" * 32, Place(2): b"b" * 32}


@pytest.fixture(autouse=True)
def _ledger_at_the_end(sql: Sql) -> Any:
    """Whatever a test did, all tables agree with each other at its end."""
    yield
    assert_ledger(sql)


def finished(item: Item, place: Place, digest: bytes = b"a" * 32, **more: Any) -> Finished:
    result = StepResult("Zażółć \ud83d gęślą", {"tekst": "jaźń", "liczby": [1, 2.5, None]})
    return Finished(item, place, digest, result, USAGE, COST, 250, **more)


def test_what_is_stored_is_there_for_the_next_attempt(
    application: Application, queue: Queue, worker: int, claimed_item: Item
) -> None:
    assert queue.steps.begin(claimed_item, TWO) == {}
    queue.steps.store(worker, finished(claimed_item, Place(1)))
    row = application.item_row(claimed_item.id_task_item)
    assert (row["steps_done"], row["steps_total"], row["status_id"]) == (1, 2, ItemStatus.IN_PROGRESS)
    assert (row["tokens_input"], row["cost"]) == (USAGE.tokens_input, COST)
    application.kill_worker(worker)
    queue.rescue()
    other = register(queue)
    (again,) = claim(queue, other)
    assert queue.steps.begin(again, TWO) == {
        Place(1): StepResult("Zażółć \ufffd gęślą", {"tekst": "jaźń", "liczby": [1, 2.5, None]})
    }
    queue.steps.store(other, finished(again, Place(2), b"b" * 32))
    queue.commit(other, [done(again, usage=NO_USAGE, cost=Decimal(0))])
    row = application.item_row(again.id_task_item)
    assert (row["steps_done"], row["steps_total"], row["tokens_output"], row["cost"]) == (2, 2, 2 * USAGE.tokens_output, 2 * COST)
    ledger = application.attempts(again.id_task_item)
    assert sorted((each["attempt"], each["step"] or 0, each["outcome"]) for each in ledger) == [
        (1, 0, "lost"),
        (1, 1, "processed"),
        (2, 0, "processed"),
        (2, 2, "processed"),
    ]


def test_a_step_of_something_else_is_forgotten(
    application: Application, queue: Queue, worker: int, claimed_item: Item, sql: Sql
) -> None:
    queue.steps.begin(claimed_item, TWO)
    queue.steps.store(worker, finished(claimed_item, Place(1)))
    queue.steps.store(worker, finished(claimed_item, Place(2), b"b" * 32))
    assert queue.steps.begin(claimed_item, {Place(1): b"x" * 32, Place(2): b"b" * 32, Place(3): b"c" * 32}).keys() == {Place(2)}
    row = application.item_row(claimed_item.id_task_item)
    assert (row["steps_done"], row["steps_total"]) == (1, 3)
    assert [each["step"] for each in sql("SELECT step FROM task_item_step")] == [2]
    assert len(application.attempts(claimed_item.id_task_item)) == 2  # they were paid for


def test_parts_go_with_the_result_and_stay_with_a_dead_letter(
    application: Application, queue: Queue, worker: int, task: int, sql: Sql
) -> None:
    kept, joined, failing = application.items(task, 3)
    for item in claim(queue, worker, 3):
        queue.steps.begin(item, {Place(1, 1): b"a" * 32, Place(1, 2): b"a" * 32})
        queue.steps.store(worker, finished(item, Place(1, 2)))
        outcome = failed(item) if item.id_task_item == failing else done(item)
        queue.commit(worker, [outcome._replace(is_joined=item.id_task_item == joined)])
    assert [row["id_task_item"] for row in sql("SELECT id_task_item FROM task_item_step ORDER BY 1")] == [kept, failing]


@pytest.mark.parametrize("what", ["given back", "claimed again"])
def test_only_the_owner_stores(
    what: str, application: Application, queue: Queue, worker: int, claimed_item: Item, sql: Sql
) -> None:
    queue.steps.begin(claimed_item, TWO)
    application.kill_worker(worker)
    queue.rescue()
    if what == "claimed again":
        claim(queue, register(queue), 3)
    with pytest.raises(ClaimLostError) as lost:
        queue.steps.store(worker, finished(claimed_item, Place(1)))
    assert not lost.value.is_booked
    with pytest.raises(ClaimLostError):
        queue.steps.begin(claimed_item, TWO)
    assert not sql("SELECT 1 FROM task_item_step")
    # The attempt ends as lost, and with what it cost.
    spent = Outcome.postponed(claimed_item, "late", "", 0.0, USAGE, COST, 250)
    assert queue.commit(worker, [spent]).lost == [spent]
    assert application.item_row(claimed_item.id_task_item)["cost"] == COST


def test_what_no_column_takes_is_refused_and_costs_nothing(queue: Queue, worker: int, claimed_item: Item, sql: Sql) -> None:
    queue.steps.begin(claimed_item, TWO)
    odd = finished(claimed_item, Place(1))._replace(result=StepResult("x", {"n": float("nan")}))
    with pytest.raises(ValueRefused):
        queue.steps.store(worker, odd)
    assert not sql("SELECT 1 FROM task_item_step")


def test_a_stored_step_frees_what_was_set_aside_for_it(
    application: Application, queue: Queue, worker: int, item: int, sql: Sql
) -> None:
    class Dear:
        def prepare(self, _: object, __: object) -> None: ...

        def __call__(self, _: Item, __: Stored) -> Decimal:
            return 2 * COST + Decimal("0.000000001")

    sql("UPDATE task SET budget = 1")
    queue.estimate_with(Dear())
    (claimed,) = claim(queue, worker)
    queue.steps.begin(claimed, TWO)
    for left in (COST + Decimal("0.000000001"), Decimal("0.000000001"), Decimal(0)):
        queue.steps.store(worker, finished(claimed, Place(len(application.attempts(item)) + 1)))
        assert application.item_row(item)["reserved"] == left


def test_a_new_claim_is_told_what_is_stored_of_its_items(application: Application, queue: Queue, worker: int, model: int) -> None:
    class Rest:
        def prepare(self, _: object, __: object) -> None: ...

        def __call__(self, item: Item, stored: Stored) -> Decimal:
            return COST * sum(stored(item).get(place) != digest for place, digest in TWO.items())

    task = application.task(model, budget=1)
    begun, changed, fresh = application.items(task, 3)
    queue.estimate_with(Rest())
    first, second, _ = claim(queue, worker, 3)
    for each, digest in ((first, TWO[Place(1)]), (second, b"x" * 32)):
        queue.steps.begin(each, TWO)
        queue.steps.store(worker, finished(each, Place(1), digest))
    application.kill_worker(worker)
    queue.rescue()
    claim(queue, register(queue), 3)
    assert [application.item_row(each)["reserved"] for each in (begun, changed, fresh)] == [COST, 2 * COST, 2 * COST]


def for_model(application: Application, item: Item, other: int) -> Item:
    """The item for a step of another model."""
    day = application.row("ai_model", other)["budget_per_day"]
    return item._replace(task=replace(item.task, id_ai_model=other, chain=(other,), budget_per_day=day))


def test_a_steps_model_pays_from_its_own_day(application: Application, queue: Queue, worker: int, model: int, sql: Sql) -> None:
    """What is set aside for calls in flight counts, whoever makes them; of an item, once."""
    other = application.model("krytyk", budget_per_day=Decimal("0.25"))
    task = application.task(model)
    keys = application.items(task, 3)
    one, two, three = (for_model(application, item, other) for item in claim(queue, worker, 3))
    for again in range(2):  # the second time as after a COMMIT whose answer was lost
        assert queue.steps.reserve(one, Decimal("0.10")).items == {keys[0]: Decimal("0.10")}, again
    assert queue.steps.reserve(two, Decimal("0.15")).items
    refused = queue.steps.reserve(three, Decimal("0.10"))
    assert (refused.items, refused.short, refused.paused) == ({}, {task}, {})
    rows = [application.item_row(each) for each in keys]
    assert [row["reserved"] for row in rows] == [Decimal("0.10"), Decimal("0.15"), None]
    assert [row["id_ai_model"] for row in rows] == [other, other, None]

    queue.steps.begin(one, TWO)
    queue.steps.store(worker, finished(one, Place(1))._replace(cost=Decimal("0.04")))
    assert application.item_row(keys[0])["reserved"] == Decimal("0.06")
    queue.commit(worker, [done(one, usage=NO_USAGE, cost=Decimal(0)), Outcome.released(two)])
    assert queue.steps.reserve(three, Decimal("0.21")).items
    assert application.task_status(task) is TaskStatus.IN_PROGRESS


def test_a_task_is_paused_when_the_day_of_a_steps_model_is_spent(
    application: Application, queue: Queue, worker: int, model: int, claimed_item: Item
) -> None:
    other = application.model("krytyk", budget_per_day=Decimal("0.05"))
    found = queue.steps.reserve(for_model(application, claimed_item, other), Decimal("0.10"))
    reason = (
        "the budget of model krytyk for the UTC day of 0.05 USD is spent: 0.00 USD, and the next item needs about 0.10;"
        " it goes on by itself at 00:00 UTC"
    )
    assert (found.items, found.paused) == ({}, {claimed_item.task.id_task: reason})
    row = application.task_row(claimed_item.task.id_task)
    assert (row["status_id"], row["status_reason"], row["resume_at"] is None) == (TaskStatus.PAUSED, reason, False)


def test_a_steps_model_with_a_budget_needs_a_price(application: Application, queue: Queue, claimed_item: Item, sql: Sql) -> None:
    other = application.model("tajny", budget_per_day=Decimal(5))
    item = for_model(application, claimed_item, other)
    assert queue.steps.reserve(item, None).paused == {
        item.task.id_task: "it has a budget, and the price of model tajny is not known"
    }
    sql("UPDATE ai_model SET budget_per_day = NULL")  # since the step was begun
    assert queue.steps.reserve(item, None).items


def test_a_budget_of_the_task_keeps_what_is_set_aside_for_later_steps(
    application: Application, queue: Queue, worker: int, item: int, sql: Sql
) -> None:
    class All:
        def prepare(self, _: object, __: object) -> None: ...

        def __call__(self, _: Item, __: Stored) -> Decimal:
            return Decimal("0.50")

    sql("UPDATE task SET budget = 1")
    queue.estimate_with(All())
    (claimed,) = claim(queue, worker)
    other = application.model("krytyk", budget_per_day=Decimal(5))
    for need, reserved in (("0.10", "0.50"), ("0.60", "0.60")):
        queue.steps.reserve(for_model(application, claimed, other), Decimal(need))
        assert application.item_row(item)["reserved"] == Decimal(reserved)


def test_nothing_is_set_aside_for_who_has_lost_the_item(application: Application, queue: Queue, claimed_item: Item) -> None:
    other = application.model("krytyk", budget_per_day=Decimal(5))
    stale = for_model(application, claimed_item, other)._replace(claim_token=b"x" * 16)
    with pytest.raises(ClaimLostError):
        queue.steps.reserve(stale, Decimal("0.10"))


@pytest.fixture
def far(database_url: str, proxy: Proxy) -> Iterator[Queue]:
    """A queue behind the proxy."""
    with closing(Database(replace(parse_database_url(database_url), hosts=(("127.0.0.1", proxy.port),)))) as database:
        database.connect()
        yield Queue(database)


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_lost_commit_is_resolved(
    when: Literal["before", "after"], far: Queue, proxy: Proxy, queue: Queue, worker: int, claimed_item: Item, sql: Sql
) -> None:
    queue.steps.begin(claimed_item, TWO)
    proxy.break_at("COMMIT", when)
    far.steps.store(worker, finished(claimed_item, Place(1)))
    assert proxy.broken == 1
    assert [row["step"] for row in sql("SELECT step FROM task_item_step")] == [1]


def test_what_may_have_landed_is_not_stored_twice(
    database_url: str, proxy: Proxy, queue: Queue, worker: int, claimed_item: Item, sql: Sql
) -> None:
    """The database went away for longer than a transaction is repeated, and nobody knows whether the COMMIT came before that."""
    queue.steps.begin(claimed_item, TWO)
    url = replace(parse_database_url(database_url), hosts=(("127.0.0.1", proxy.port),))
    done = finished(claimed_item, Place(1))._replace(operation=steps.new_operation(claimed_item))
    with closing(Database(url, patience=0.2)) as database:
        database.connect()
        proxy.break_at("COMMIT", "after", then_down=True)
        with pytest.raises(DatabaseAway):
            Queue(database).steps.store(worker, done)
    assert [row["step"] for row in sql("SELECT step FROM task_item_step")] == [1], "it had landed"
    queue.steps.store(worker, done._replace(again=True))
    (attempt,) = sql("SELECT cost FROM task_attempt")
    assert attempt["cost"] == sql("SELECT cost FROM task_item")[0]["cost"] == COST


def test_a_claim_lost_while_a_commit_was_in_doubt(
    far: Queue,
    proxy: Proxy,
    application: Application,
    queue: Queue,
    worker: int,
    claimed_item: Item,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The step was stored, and the item claimed by another before we could know: nothing is left to be booked."""
    queue.steps.begin(claimed_item, TWO)
    hold = steps._hold

    def late(tx: Transaction, *arguments: Any, **named: Any) -> None:
        if tx.in_doubt:
            application.kill_worker(worker)
            queue.rescue()
            claim(queue, register(queue), 3)
        hold(tx, *arguments, **named)

    monkeypatch.setattr(steps, "_hold", late)
    proxy.break_at("COMMIT", "after")
    with pytest.raises(ClaimLostError) as lost:
        far.steps.store(worker, finished(claimed_item, Place(1)))
    assert lost.value.is_booked
