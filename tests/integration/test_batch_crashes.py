"""Batches whose workers die, or whose answers are lost, at each step of their way: every item ends once, and is paid once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ai_worker.models import ItemStatus
from tests.conftest import Sql
from tests.fake_provider import BatchSettings, FakeProvider, Rule
from tests.integration.batch_runs import STEPS, batches_of, killed_at, let_holds_end, shorten_waits
from tests.integration.lifecycle import assert_ledger
from tests.integration.worker_runs import Run, add_model, add_task, attempts_of, items_of, task_of

TEXTS = [f"Pchnąć w tę łódź jeża {number} razy" for number in range(7)]
APIS = ("chat", "gemini")


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    shorten_waits(monkeypatch)


@pytest.fixture
def fake() -> Iterator[FakeProvider]:
    with FakeProvider(batches=BatchSettings(seconds=0.1)) as fake:
        yield fake


def add_batch_task(sql: Sql, fake: FakeProvider, api: str) -> int:
    return add_task(sql, add_model(sql, fake, api, "half price"), TEXTS, lane="batch")


def assert_done_once(sql: Sql, fake: FakeProvider, id_task: int) -> None:
    """All items have their result, from one batch that the provider was asked for, and worked on, once."""
    assert dict(fake.batches.rows_per_text) == dict.fromkeys(TEXTS, 1)
    assert [len(batch.rows) for batch in fake.batches.created if not batch.problems] == [len(TEXTS)]
    assert {item["status_id"] for item in items_of(sql, id_task)} == {ItemStatus.PROCESSED}
    assert [(row["outcome"], row["lane"], row["attempt"]) for row in attempts_of(sql, id_task)] == [
        ("processed", "batch", 1)
    ] * len(TEXTS)
    task = task_of(sql, id_task)
    assert (task["status"], task["records_processed"], task["records_failed"]) == ("COMPLETED", len(TEXTS), 0)
    assert {(row["state"], row["id_holder"]) for row in batches_of(sql, id_task)} == {("done", None)}
    assert sql("SELECT id_worker FROM worker WHERE mode = 'batch' AND ended_at IS NULL") == []
    assert_ledger(sql)


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize("step", STEPS)
def test_a_worker_that_dies_at_any_step_loses_nothing_and_pays_nothing_twice(
    sql: Sql, database_url: str, fake: FakeProvider, api: str, step: str
) -> None:
    task = add_batch_task(sql, fake, api)
    killed_at(database_url, step)
    (batch,) = batches_of(sql, task)
    assert batch["ended_at"] is None
    assert batch["id_holder"] is not None
    let_holds_end(sql)

    run = Run(database_url)

    assert_done_once(sql, fake, task)
    assert len(batches_of(sql, task)) == 1
    assert run.summary.failed == run.summary.released == 0


@pytest.mark.parametrize("api", APIS)
def test_a_batch_of_the_dead_is_left_alone_until_its_hold_ends(sql: Sql, database_url: str, fake: FakeProvider, api: str) -> None:
    """Its holder may only have been slow, and be about to hand it in."""
    task = add_batch_task(sql, fake, api)
    killed_at(database_url, "after:submitting")

    def let_time_pass(*_: object) -> None:
        fake.wait_until(lambda: bool(fake.batches.created), timeout=1.5)
        assert not fake.batches.created
        let_holds_end(sql)

    Run(database_url, meanwhile=let_time_pass)
    assert_done_once(sql, fake, task)


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize("at", ["upload", "create", "poll", "results", "list"])
def test_an_answer_that_is_lost_is_asked_for_again(sql: Sql, database_url: str, fake: FakeProvider, api: str, at: str) -> None:
    """A batch that was made although its maker heard nothing of it is found by its key, also when the look for it fails first."""
    fake.script(Rule("lost", at=at, times=1), *([Rule("lost", at="create", times=1)] if at == "list" else []))
    task = add_batch_task(sql, fake, api)
    Run(database_url)
    assert_done_once(sql, fake, task)


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize("fault", ["503", "429"])
def test_a_provider_in_trouble_is_asked_again_later(
    sql: Sql, database_url: str, fake: FakeProvider, api: str, fault: str
) -> None:
    fake.script(*(Rule(fault, at=at, times=2) for at in ("upload", "create", "poll", "results")))
    task = add_batch_task(sql, fake, api)
    Run(database_url)
    assert_done_once(sql, fake, task)


@pytest.mark.parametrize("api", APIS)
def test_two_workers_drive_the_same_batches_on(sql: Sql, database_url: str, fake: FakeProvider, api: str) -> None:
    task = add_batch_task(sql, fake, api)
    others: list[Run] = []
    run = Run(database_url, meanwhile=lambda *_: others.append(Run(database_url)))
    fake.wait_until(lambda: bool(others))
    assert_done_once(sql, fake, task)
    assert run.summary.processed + others[0].summary.processed == len(TEXTS)
