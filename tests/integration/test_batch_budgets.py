"""The lane batch and budgets: what a batch holds is set aside, and what cannot be paid is not handed in."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal

import pytest

from ai_worker.worker import batch_steps, batches, claiming
from tests.conftest import Sql
from tests.fake_provider import BatchSettings, FakeProvider
from tests.integration.lifecycle import assert_ledger
from tests.integration.worker_runs import Run, add_model, add_task, task_of

TEXTS = [f"Pchnąć w tę łódź jeża {number} razy" for number in range(8)]


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the length of waits."""
    for module, name in (
        (batch_steps, "LINGER_SECONDS"),
        (batch_steps, "POLL_FIRST"),
        (batches, "LOOK_SECONDS"),
        (claiming, "BATCH_LOOK_SECONDS"),
    ):
        monkeypatch.setattr(module, name, 0.1)


@pytest.fixture
def fake() -> Iterator[FakeProvider]:
    with FakeProvider(batches=BatchSettings(seconds=0.1)) as fake:
        yield fake


def test_a_task_with_a_budget_is_handed_in(sql: Sql, database_url: str, fake: FakeProvider) -> None:
    task = add_task(sql, add_model(sql, fake, "chat", "m"), TEXTS, lane="batch", budget=Decimal(1))
    assert Run(database_url).summary.processed == len(TEXTS)
    assert [len(batch.rows) for batch in fake.batches.created] == [len(TEXTS)]
    assert not fake.requests
    assert task_of(sql, task)["status"] == "COMPLETED"
    assert_ledger(sql)


def test_what_cannot_be_paid_is_not_handed_in(sql: Sql, database_url: str, fake: FakeProvider) -> None:
    task = add_task(sql, add_model(sql, fake, "chat", "m"), TEXTS, lane="batch", budget=Decimal("0.0000001"))
    run = Run(database_url)
    assert run.summary.processed == 0
    assert not fake.batches.created
    row = task_of(sql, task)
    assert (row["status"], row["status_reason"][:10]) == ("PAUSED", "the budget")
    assert_ledger(sql)


def test_no_batch_is_begun_again_and_again_while_all_the_money_is_set_aside(
    sql: Sql, database_url: str, fake: FakeProvider
) -> None:
    """What is under way takes up to a day: each try leaves a batch, and the worker that it is, behind."""
    fake.set_batches(seconds=4)
    task = add_task(sql, add_model(sql, fake, "chat", "m"), TEXTS[:4], lane="batch", budget=Decimal("0.0012"))
    assert Run(database_url).summary.processed == 4
    assert len(fake.batches.created) == 2, "the budget pays for two at a time"
    rows = sql("SELECT items FROM batch WHERE id_task = %s", [task])
    assert sum(row["items"] == 0 for row in rows) <= 1
    assert_ledger(sql)
