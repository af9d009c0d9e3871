"""A model that fails for everybody in the midst of the work: what still reaches the provider, and what goes on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conftest import Sql
from tests.fake_provider import FakeProvider, Rule
from tests.integration.worker_runs import add_model, add_task, attempts_of, items_of, make_probes_due, model_of, task_of
from tests.servers import Programs

WORKERS = 4


@pytest.fixture
def fake() -> Iterator[FakeProvider]:
    with FakeProvider(latency_ms=100) as fake:
        yield fake


@pytest.mark.parametrize(
    ("fault", "kind", "in_flight"),
    [
        ("429_quota", "quota_exhausted", 1),
        pytest.param("401", "access_denied", 1, marks=pytest.mark.slow),
        pytest.param("404", "model_unknown", 1, marks=pytest.mark.slow),
        ("429_quota", "quota_exhausted", 8),
    ],
)
def test_a_fleet_stops_calling_a_model_with_its_first_answer_and_comes_back_by_itself(
    sql: Sql, programs: Programs, fake: FakeProvider, fault: str, kind: str, in_flight: int
) -> None:
    """A worker learns of it by the calls that it has in flight: with one of them, one more call per worker gets out."""
    broken, sound = add_model(sql, fake, "chat", "broken"), add_model(sql, None, "echo", "sound")
    task = add_task(sql, broken, [f"Zdanie numer {number}" for number in range(200)])
    other = add_task(sql, sound, [f"Inne zdanie {number}" for number in range(100)], priority=-1)
    workers = [programs.start("run", "--concurrency", str(in_flight)) for _ in range(WORKERS)]
    fake.wait_for_requests(30, timeout=60)
    fake.script(Rule(fault))
    assert [worker.wait(60) for worker in workers] == [1] * WORKERS

    refused = [request for request in fake.requests if request.fault == fault]
    first = min(request.finished_at for request in refused if request.finished_at is not None)
    assert len([request for request in fake.requests if request.received_at > first]) <= WORKERS * in_flight
    assert model_of(sql, broken)["stopped_kind"] == kind
    items = items_of(sql, task)
    assert {(item["status"], item["attempt"]) for item in items} == {("PROCESSED", 1), ("PENDING", 0)}
    assert {attempt["outcome"] for attempt in attempts_of(sql, task)} == {"processed"}
    assert (task_of(sql, other)["status"], task_of(sql, other)["records_processed"]) == ("COMPLETED", 100)

    fake.reset()
    make_probes_due(sql)
    workers = [programs.start("run", "--concurrency", "20") for _ in range(WORKERS)]
    # One makes the probe and goes on; a run that finds nothing but a stopped model meanwhile ends with 1, and says so.
    codes = [worker.wait(60) for worker in workers]
    assert 0 in codes
    assert set(codes) <= {0, 1}
    assert (task_of(sql, task)["status"], task_of(sql, task)["records_failed"]) == ("COMPLETED", 0)
    assert model_of(sql, broken)["stopped_at"] is None
    one, two = sorted(fake.requests, key=lambda request: request.received_at)[:2]
    assert one.finished_at is not None
    assert two.received_at > one.finished_at  # the probe alone, then the others
