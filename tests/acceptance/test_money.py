"""What a fleet may spend: a budget holds with hundreds of calls in flight, and each cent is on the books."""

from __future__ import annotations

import itertools
from decimal import Decimal

from tests.acceptance.fleet import Fake, assert_all_done, assert_no_error_logged, insert_task, requests_per_text, sentences
from tests.acceptance.fleet import fake as fake  # noqa: PLC0414 -- a fixture
from tests.conftest import Sql
from tests.fake_provider import tokens_for
from tests.servers import Programs

USED = (
    "SELECT t.status_id, COALESCE(t.cost, 0) AS cost, COALESCE(t.cost, 0) + COALESCE((SELECT SUM(i.reserved) FROM task_item i"
    " WHERE i.id_task = t.id_task AND i.status_id = 2), 0) AS used FROM task t WHERE t.id_task = %s"
)


def cost_of(texts: list[str]) -> Decimal:
    """What the fake provider bills for one call each."""
    usages = [tokens_for(text) for text in texts]
    return Decimal(sum(usage.input + 2 * usage.output for usage in usages)) / 1_000_000


def test_four_workers_with_200_calls_each_keep_to_a_budget(sql: Sql, programs: Programs, fake: Fake) -> None:
    texts = [f"{text} {number}" for number, text in enumerate(itertools.islice(itertools.cycle(sentences()), 1200))]
    total = cost_of(texts)
    budget = (total / 2).quantize(Decimal("0.0001"))
    id_task = insert_task(sql, fake, texts)
    sql("UPDATE task SET budget = %s WHERE id_task = %s", [budget, id_task])

    workers = [programs.start("run", "--concurrency", "200") for _ in range(4)]
    looks = 0
    while any(worker.process.poll() is None for worker in workers):
        (row,) = sql(USED, [id_task])
        assert row["used"] <= budget
        looks += 1
    assert [worker.wait(60) for worker in workers] == [1, 1, 1, 1]
    assert looks > 10

    for worker in workers:
        assert f"task {id_task} is paused: the budget of {budget} USD is spent: " in worker.text()
    (task,) = sql("SELECT * FROM task WHERE id_task = %s", [id_task])
    assert (task["status_id"], task["records_failed"]) == (4, 0)
    assert budget * Decimal("0.9") < task["cost"] <= budget
    paid = list(requests_per_text(fake))
    assert len(paid) == task["records_processed"]
    assert task["cost"] == cost_of(paid)
    (sums,) = sql("SELECT SUM(cost) AS cost, SUM(status_id = 1) AS done, SUM(status_id = 0) AS left_ FROM task_item")
    assert (sums["cost"], sums["done"], sums["left_"]) == (task["cost"], len(paid), len(texts) - len(paid))
    (days,) = sql("SELECT SUM(cost) AS cost, SUM(attempts) AS attempts FROM ai_model_day")
    assert (days["cost"], days["attempts"]) == (task["cost"], len(paid))

    refused = programs.run("resume", str(id_task))
    assert refused.returncode in {0, 2}  # what is left may pay for an item of the usual length, or not
    assert programs.run("resume", str(id_task), "--budget", str(total * 2)).returncode == 0
    workers = [programs.start("run", "--concurrency", "200") for _ in range(4)]
    assert [worker.wait(60) for worker in workers] == [0, 0, 0, 0]
    assert_all_done(sql, id_task, texts)
    (task,) = sql("SELECT cost FROM task WHERE id_task = %s", [id_task])
    assert task["cost"] == total
    assert_no_error_logged(programs)
