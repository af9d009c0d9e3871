"""Several real workers and a queue that is full of repetitions: each piece of work is paid for once."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from tests.acceptance.fleet import (
    Fake,
    assert_all_done,
    assert_no_error_logged,
    billed,
    insert_task,
    requests_per_text,
    sentences,
)
from tests.acceptance.fleet import fake as fake  # noqa: PLC0414 -- a fixture
from tests.conftest import Sql
from tests.servers import Background, Programs

DAY = 86_400
QUICK_LEASE = {"AI_WORKER_LEASE_SECONDS": "8"}


def repeated(distinct: int, times: int) -> list[str]:
    """So many different texts, each so often, in no order."""
    stock = sentences()
    texts = [f"{stock[number % len(stock)]} ({number})" for number in range(distinct)] * times
    random.Random(7).shuffle(texts)  # noqa: S311 -- the same order each time
    return texts


def start_runs(programs: Programs, number: int) -> list[Background]:
    return [programs.start("run", "--json", "--concurrency", "50", env=QUICK_LEASE) for _ in range(number)]


@pytest.mark.parametrize(
    ("distinct", "times"), [(200, 10), pytest.param(1000, 10, marks=pytest.mark.slow)], ids=["2000", "10000"]
)
def test_four_workers_send_each_text_once(sql: Sql, programs: Programs, fake: Fake, distinct: int, times: int) -> None:
    texts = repeated(distinct, times)
    id_task = insert_task(sql, fake, texts, cache_seconds=DAY)
    assert [worker.wait(120) for worker in start_runs(programs, 4)] == [0, 0, 0, 0]
    assert_all_done(sql, id_task, texts)
    assert requests_per_text(fake) == Counter(set(texts))
    (task,) = sql("SELECT tokens_input, tokens_output, cost FROM task WHERE id_task = %s", [id_task])
    tokens_input, tokens_output = billed(list(set(texts)))
    assert (task["tokens_input"], task["tokens_output"]) == (tokens_input, tokens_output)
    assert int(task["cost"] * 1_000_000) == tokens_input + 2 * tokens_output
    lanes = sql("SELECT lane, COUNT(*) AS n FROM task_attempt WHERE outcome = 'processed' GROUP BY lane ORDER BY lane")
    assert {row["lane"]: row["n"] for row in lanes} == {"cache": len(texts) - distinct, "online": distinct}
    (open_,) = sql("SELECT COUNT(*) AS n FROM result_cache WHERE stored_at IS NULL")
    assert open_["n"] == 0
    assert_no_error_logged(programs)


def test_a_killed_worker_costs_what_it_had_in_flight(sql: Sql, programs: Programs, fake: Fake) -> None:
    texts = repeated(400, 5)
    id_task = insert_task(sql, fake, texts, cache_seconds=DAY)
    victim, *others = start_runs(programs, 4)
    fake.wait_for_requests(100)
    victim.process.kill()
    victim.process.wait()
    assert [worker.wait(120) for worker in others] == [0, 0, 0]
    assert_all_done(sql, id_task, texts)
    counts = requests_per_text(fake)
    assert counts.keys() == set(texts)
    assert sum(counts.values()) <= 400 + 50  # its concurrency: it cannot have had more calls out than that
    assert_no_error_logged(programs)
