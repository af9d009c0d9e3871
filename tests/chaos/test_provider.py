"""Every fault that the fake provider knows, once through real workers; and storms of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pymysql
import pytest

from tests.acceptance.fleet import Fake, fake_provider, insert_task
from tests.chaos import ledger
from tests.chaos.arena import Arena, arena_on, kinds
from tests.chaos.fleet import Fleet
from tests.chaos.scene import report
from tests.fake_provider.faults import FAULTS

pytestmark = pytest.mark.chaos

# What says that this very item will never succeed: a dead letter after one call. All others are got over.
FINAL = {"400", "400_context_length", "400_content_filter", "413", "422", "refused", "blocked", "filtered"}

DEADLOCKS = {1205, 1213}


@pytest.fixture(scope="module", params=kinds())
def arena(request: pytest.FixtureRequest) -> Iterator[Arena]:
    with arena_on(request.param) as arena:
        yield arena


@pytest.fixture
def fleet(arena: Arena, tmp_path: Path) -> Iterator[Fleet]:
    """Workers that wait three seconds for an answer, where it is two minutes otherwise."""
    with Fleet(arena.worker_url, tmp_path, concurrency=50, env={"AI_WORKER_REQUEST_TIMEOUT_SECONDS": "3"}) as fleet:
        yield fleet


@pytest.fixture
def provider() -> Iterator[Fake]:
    with fake_provider(50) as running:
        yield running


def work_off(arena: Arena, *tasks: int, timeout: float) -> float:
    """Waits until all is done; what waits for its time, or a stopped model's for its next trial, need not wait for so long."""

    def is_done() -> bool:
        try:
            arena.sql(
                "UPDATE task_item SET available_at = UTC_TIMESTAMP(6) WHERE status_id = 4 AND available_at > UTC_TIMESTAMP(6)"
            )
            arena.sql("UPDATE ai_model SET probe_at = UTC_TIMESTAMP(6) WHERE probe_at > UTC_TIMESTAMP(6)")
        except pymysql.err.OperationalError as error:
            if error.args[0] not in DEADLOCKS:  # workers have their hands on the same rows: the next look moves them
                raise
        return ledger.open_items(arena.sql, *tasks) == 0

    return ledger.wait_until(is_done, timeout, "all items done", step=0.5)


def test_every_fault_once(arena: Arena, fleet: Fleet, provider: Fake) -> None:
    """Each strikes one item of four, on a model of its own."""
    tasks = {fault: insert_task(arena.sql, provider, ledger.texts(4, f"<{fault}> ")) for fault in sorted(FAULTS)}
    provider.script(*({"fault": fault, "contains": f"<{fault}> 0:", "times": 1} for fault in tasks))
    fleet.start()
    fleet.start()
    seconds = work_off(arena, *tasks.values(), timeout=150)
    assert set(fleet.drain()) == {0}
    account = ledger.audit(arena.sql, provider, *tasks.values(), may_fail=True)
    failed = arena.sql(
        "SELECT DISTINCT id_task AS id FROM task_item WHERE status_id = 3 AND id_task >= %s", [min(tasks.values())]
    )
    assert {row["id"] for row in failed} == {tasks[fault] for fault in FINAL}
    assert account.failed == len(FINAL)
    report(f"each of {len(tasks)} faults of a provider", account, seconds=seconds)


@pytest.mark.parametrize("fault", ["429", "500", "drop"])
def test_storm(arena: Arena, fleet: Fleet, provider: Fake, fault: str) -> None:
    """Of 300 calls, the first hundred all fail, and then every other one until 300 have."""
    id_task = insert_task(arena.sql, provider, ledger.texts(300, f"{fault} storm "))
    provider.script({"fault": fault, "times": 100}, {"fault": fault, "times": 200, "share": 0.5})
    fleet.start()
    fleet.start()
    seconds = work_off(arena, id_task, timeout=150)
    assert set(fleet.drain()) == {0}
    account = ledger.audit(arena.sql, provider, id_task)
    assert account.extra_calls == 0, "what fails is not billed"
    report(f"storm of {fault}", account, attempts=account.attempts, seconds=seconds)
