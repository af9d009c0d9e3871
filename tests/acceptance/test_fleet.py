"""Several real workers on one real database: every item once, whatever happens to the workers and to the server."""

from __future__ import annotations

import contextlib
import itertools
import json
import signal
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pymysql
import pytest

from ai_worker.database_url import parse_database_url
from tests import servers
from tests.acceptance.fleet import (
    Fake,
    assert_all_done,
    assert_no_error_logged,
    billed,
    fake_provider,
    insert_task,
    plain_sql,
    requests_per_text,
    sentences,
)
from tests.acceptance.fleet import fake as fake  # noqa: PLC0414 -- a fixture
from tests.conftest import Sql
from tests.servers import Background, Programs, TestServer

QUICK_LEASE = {"AI_WORKER_LEASE_SECONDS": "8"}  # not shorter: a loaded machine may keep a live worker waiting for seconds


def many(count: int) -> list[str]:
    return list(itertools.islice(itertools.cycle(sentences()), count))


def start_runs(programs: Programs, number: int, env: Mapping[str, str] | None = None) -> list[Background]:
    return [programs.start("run", "--json", "--concurrency", "100", env=env) for _ in range(number)]


@pytest.mark.slow
def test_four_workers_process_each_of_20000_rows_exactly_once(sql: Sql, programs: Programs, fake: Fake) -> None:
    texts = many(20_000)
    id_task = insert_task(sql, fake, texts)
    workers = start_runs(programs, 4)
    assert [worker.wait(300) for worker in workers] == [0, 0, 0, 0]
    assert_all_done(sql, id_task, texts)
    assert requests_per_text(fake) == Counter(texts)
    (task,) = sql("SELECT tokens_input, tokens_output FROM task WHERE id_task = %s", [id_task])
    assert (task["tokens_input"], task["tokens_output"]) == billed(texts)
    counted = [json.loads(worker.text().splitlines()[-1])["processed"] for worker in workers]
    assert sum(counted) == len(texts)
    assert min(counted) > 0, counted
    assert sum("TASK_DONE" in worker.text() for worker in workers) == 1
    assert_no_error_logged(programs)


@pytest.mark.slow
def test_a_worker_killed_every_two_seconds_costs_only_what_was_in_flight(sql: Sql, programs: Programs, fake: Fake) -> None:
    texts = many(20_000)
    id_task = insert_task(sql, fake, texts)
    steady = start_runs(programs, 3, QUICK_LEASE)
    victim = start_runs(programs, 1, QUICK_LEASE)[0]
    in_flight_at_kills = kills = 0
    while any(worker.process.poll() is None for worker in steady):
        time.sleep(2)
        if victim.process.poll() is None:
            victim.process.kill()
            kills += 1
            in_flight_at_kills += 100  # its concurrency: it cannot have more calls out than that
            victim.process.wait()
        if any(worker.process.poll() is None for worker in steady):
            victim = start_runs(programs, 1, QUICK_LEASE)[0]
    assert kills >= 2
    assert [worker.wait(120) for worker in steady] == [0, 0, 0]
    assert victim.wait(120) in {0, -signal.SIGKILL}
    if victim.process.returncode:  # the last one was killed after the others had left: whoever comes next clears up
        assert programs.run("run", env=QUICK_LEASE).returncode == 0
    assert_all_done(sql, id_task, texts)
    counts = fake.counts()
    extra = counts["requests"] - len(texts)
    assert 0 <= extra <= in_flight_at_kills
    assert all(seen >= Counter(texts)[text] for text, seen in requests_per_text(fake).items())
    assert_no_error_logged(programs)


def test_a_frozen_worker_loses_its_items_and_its_late_results_are_refused_or_taken(sql: Sql, programs: Programs) -> None:
    """SIGSTOP past the lease, then SIGCONT: what was claimed again meanwhile counts once; the loss is on record."""
    texts = [f"{text} ({number})" for number, text in enumerate(many(60))]
    with fake_provider(1500) as fake:
        id_task = insert_task(sql, fake, texts)
        frozen = programs.start("daemon", "--concurrency", "30", env=QUICK_LEASE)
        fake.wait_for_requests(30)
        frozen.process.send_signal(signal.SIGSTOP)
        other = programs.start("run", "--json", "--concurrency", "30", env=QUICK_LEASE)
        assert other.wait(60) == 0  # it waits for the lease of the silent one, and then does its work
        frozen.process.send_signal(signal.SIGCONT)
        frozen.wait_for("LEASE_LOST")
        frozen.wait_for("CLAIM_LOST")
        frozen.process.send_signal(signal.SIGTERM)
        assert frozen.wait() == 0
        assert fake.counts()["requests"] == 90
    (task,) = sql("SELECT * FROM task WHERE id_task = %s", [id_task])
    assert (task["status_id"], task["records_processed"], task["records_failed"]) == (2, 60, 0)
    (lost,) = sql("SELECT COUNT(*) AS n, SUM(tokens_input) AS i FROM task_attempt WHERE outcome = 'lost' AND tokens_input > 0")
    assert lost["n"] == 30  # paid for twice, and the books say so
    (sums,) = sql("SELECT SUM(tokens_input) AS i, SUM(tokens_output) AS o FROM task_attempt WHERE id_task = %s", [id_task])
    assert (sums["i"], sums["o"]) == (task["tokens_input"], task["tokens_output"])
    (items,) = sql("SELECT SUM(tokens_input) AS i, MAX(lost_count) AS l FROM task_item WHERE id_task = %s", [id_task])
    assert (items["i"], items["l"]) == (task["tokens_input"], 1)


def test_a_result_that_comes_late_is_taken_when_nobody_else_has_claimed_the_item(sql: Sql, programs: Programs) -> None:
    with fake_provider(1000) as fake:
        id_task = insert_task(sql, fake, ["Spóźniony wynik."])
        frozen = programs.start("daemon", "--concurrency", "1", env=QUICK_LEASE)
        fake.wait_for_requests(1)
        frozen.process.send_signal(signal.SIGSTOP)
        sql("UPDATE worker SET lease_until = NOW(6) - INTERVAL 1 DAY")
        # Another worker, of another kind of work, rescues the item and leaves it alone.
        other = programs.start("daemon", "--type", "summary", env=QUICK_LEASE)
        other.wait_for("RESCUE")
        assert sql("SELECT status_id, lost_count FROM task_item") == [{"status_id": 0, "lost_count": 1}]
        frozen.process.send_signal(signal.SIGCONT)
        frozen.wait_for("TASK_DONE")
        for worker in (frozen, other):
            worker.process.send_signal(signal.SIGTERM)
            assert worker.wait() == 0
        assert fake.counts()["requests"] in {1, 2}  # the frozen one itself may have been quicker to claim it again
    assert_all_done(sql, id_task, ["Spóźniony wynik."])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_drain_under_load_finishes_what_it_can_and_charges_nothing_for_the_rest(
    sql: Sql, programs: Programs, fake: Fake, number: signal.Signals
) -> None:
    texts = many(3000)
    id_task = insert_task(sql, fake, texts)
    fake.script({"fault": "hang", "contains": texts[7]})
    worker = programs.start("daemon", "--concurrency", "100", env={"AI_WORKER_DRAIN_SECONDS": "2"})
    fake.wait_for_requests(200)
    worker.process.send_signal(number)
    began = time.monotonic()
    assert worker.wait() == 0
    assert time.monotonic() - began < 10
    text = worker.text()
    assert '"event":"DRAIN"' in text
    assert '"event":"RELEASE"' in text
    assert "Traceback" not in text
    states = {row["status_id"]: row["n"] for row in sql("SELECT status_id, COUNT(*) AS n FROM task_item GROUP BY status_id")}
    assert set(states) == {0, 1}
    (charged,) = sql("SELECT COUNT(*) AS n FROM task_item WHERE status_id = 0 AND (attempt > 0 OR lost_count > 0)")
    assert charged["n"] == 0
    (ended,) = sql("SELECT ended_at IS NOT NULL AS ended, lost_at IS NULL AS in_order FROM worker")
    assert ended == {"ended": 1, "in_order": 1}
    fake.script()
    assert programs.run("run", "--concurrency", "100").returncode == 0
    assert_all_done(sql, id_task, texts)


def test_a_second_signal_stops_at_once(sql: Sql, programs: Programs, fake: Fake) -> None:
    fake.script({"fault": "hang"})
    insert_task(sql, fake, many(20))
    worker = programs.start("daemon", env={"AI_WORKER_DRAIN_SECONDS": "600"})
    fake.wait_for_requests(20)
    worker.process.send_signal(signal.SIGTERM)
    worker.wait_for("DRAIN")
    worker.process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    assert worker.wait() == 0
    assert time.monotonic() - began < 5
    assert sql("SELECT status_id, attempt, COUNT(*) AS n FROM task_item GROUP BY status_id, attempt") == [
        {"status_id": 0, "attempt": 0, "n": 20}
    ]


def test_a_killed_and_restarted_database_loses_nothing(tmp_path: Path) -> None:
    """SIGKILL of a private server under load; the worker keeps its results and stores them when the server is back."""
    port = servers.free_port()
    with servers.private_mariadb(port) as (private, handle), fake_provider(50) as fake, private.new_database() as name:
        servers.TestDatabase(private, name).migrate()
        programs = Programs(private.url(name), tmp_path)
        texts = many(3000)
        try:
            with private.connect(name) as connection:
                id_task = insert_task(plain_sql(connection), fake, texts)
            worker = programs.start("daemon", "--concurrency", "100", env=QUICK_LEASE)
            fake.wait_for_requests(500)
            handle.stop(signal.SIGKILL)
            worker.wait_for("DATABASE_AWAY")
            time.sleep(1)  # calls end meanwhile, and their results are in hand
            handle.start(servers.tcp_options(port))
            worker.wait_for("TASK_DONE", timeout=60)
            worker.process.send_signal(signal.SIGTERM)
            assert worker.wait() == 0
            with private.connect(name) as connection:
                assert_all_done(plain_sql(connection), id_task, texts)
            assert fake.counts()["requests"] == len(texts)  # nothing was lost, so nothing was paid for twice
            assert "Traceback" not in worker.text()
        finally:
            programs.close()


def test_connections_killed_under_load_lose_nothing(
    sql: Sql, programs: Programs, fake: Fake, server: TestServer, database_url: str
) -> None:
    texts = many(2000)
    id_task = insert_task(sql, fake, texts)
    worker = programs.start("run", "--json", "--concurrency", "50", env=QUICK_LEASE)
    fake.wait_for_requests(50)
    (me,) = sql("SELECT CONNECTION_ID() AS id")
    killed = 0
    with server.connect() as connection, connection.cursor() as cursor:
        while worker.process.poll() is None and killed < 30:
            for session in servers.sessions(cursor, parse_database_url(database_url).database).keys() - {me["id"]}:
                with contextlib.suppress(pymysql.err.OperationalError):  # gone by itself in the meantime
                    cursor.execute(f"KILL {session}")
                    killed += 1
            time.sleep(0.2)
    assert killed >= 10
    assert worker.wait(120) == 0
    assert_all_done(sql, id_task, texts)
    assert fake.counts()["requests"] == len(texts)
    assert "Traceback" not in worker.text()


def test_two_hundred_calls_are_in_flight_in_one_process(sql: Sql, programs: Programs) -> None:
    texts = [f"{text} [{number}]" for number, text in enumerate(many(200))]
    with fake_provider(5000) as fake:  # long enough for a loaded machine to have sent them all
        id_task = insert_task(sql, fake, texts)
        assert programs.run("run", "--concurrency", "200").returncode == 0
        assert fake.counts()["peak_in_flight"] == 200
    assert_all_done(sql, id_task, texts)
