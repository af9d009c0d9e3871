"""Interactive work before bulk: a real daemon that is busy with a batch begins replies at once, and the batch hardly notices."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from itertools import pairwise

import pytest

from tests.conftest import Sql
from tests.fake_provider import FakeProvider
from tests.integration.worker_runs import add_model, add_task
from tests.servers import Programs

LATENCY = 0.2  # seconds of each call
ROWS = 500


@pytest.fixture
def fake() -> Iterator[FakeProvider]:
    with FakeProvider(latency_ms=LATENCY * 1000, keep=50_000) as running:
        yield running


def bulk(sql: Sql, model: int, items: int) -> None:
    """A task of so many items in the queue `batch`."""
    task = add_task(sql, model, [], queue="batch", cache_seconds=0)
    for start in range(0, items, ROWS):
        texts = [f"zdanie numer {number}" for number in range(start, min(start + ROWS, items))]
        values = ", ".join(["(%s, %s)"] * len(texts))
        sql(f"INSERT INTO task_item (id_task, text_original) VALUES {values}", [each for text in texts for each in (task, text)])


def until(fake: FakeProvider, requests: int) -> None:
    deadline = time.monotonic() + 30
    while fake.received < requests:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def replies(sql: Sql, model: int, seconds: float, per_second: float) -> dict[str, float]:
    """Single items by plain SQL, at random times; when each text was there to see."""
    committed = {}
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        text = f"odpowiedź {len(committed)}"
        add_task(sql, model, [text], queue="reply", cache_seconds=0)
        committed[text] = time.monotonic()
        time.sleep(random.uniform(0.5, 1.5) / per_second)  # noqa: S311 -- no secret
    return committed


def waits(fake: FakeProvider, committed: dict[str, float]) -> list[float]:
    """Seconds from each COMMIT until the provider saw the call, sorted."""
    deadline = time.monotonic() + 20
    while not committed.keys() <= (arrived := {each.text: each.received_at for each in list(fake.requests)}).keys():
        assert time.monotonic() < deadline, "a reply was not asked for"
        time.sleep(0.02)
    return sorted(arrived[text] - at for text, at in committed.items())


def test_replies_are_begun_while_the_worker_is_busy_with_a_batch(sql: Sql, programs: Programs, fake: FakeProvider) -> None:
    """The small form. Without queues a busy worker looks at the tasks once a second: half a second at the median."""
    model = add_model(sql, fake, "chat", "m")
    bulk(sql, model, 1000)
    daemon = programs.start("daemon", "--concurrency", "20", "--queue", "reply:5", "--queue", "batch:1")
    until(fake, 40)
    committed = replies(sql, model, 3.0, 8)
    found = waits(fake, committed)
    (left,) = sql("SELECT COUNT(*) AS n FROM task_item WHERE status_id = 0")
    assert left["n"] > 0, "the batch was there all the time"
    assert found[len(found) // 2] < 0.25, found
    begun = sorted(each.received_at for each in list(fake.requests) if each.text.startswith("zdanie"))
    assert max(later - earlier for earlier, later in pairwise(begun)) < 2, "the batch went on"
    daemon.process.terminate()
    assert daemon.wait() == 0, daemon.text()[-2000:]


@pytest.mark.slow
def test_replies_within_150_ms_and_nine_tenths_of_the_batch(sql: Sql, programs: Programs, fake: FakeProvider) -> None:
    model = add_model(sql, fake, "chat", "m")
    bulk(sql, model, 10_000)
    programs.start("daemon", "--concurrency", "50", "--queue", "reply:5", "--queue", "batch:1")
    until(fake, 500)

    before, began = fake.received, time.monotonic()
    time.sleep(8)
    alone = (fake.received - before) / (time.monotonic() - began)
    before, began = fake.received, time.monotonic()
    committed = replies(sql, model, 15.0, 5)
    shared = (fake.received - before - len(committed)) / (time.monotonic() - began)
    found = waits(fake, committed)
    assert found[int(len(found) * 0.95)] < 0.15, found
    assert shared >= 0.9 * alone
