"""What the fleet tests share: many rows, a fake provider as a process of its own, and the sums that must come out even."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pymysql
import pytest

from tests.conftest import Sql
from tests.fake_provider import tokens_for
from tests.servers import Programs

JFLEG = os.environ.get("AI_WORKER_TEST_JFLEG")  # a folder with test.src: real sentences with mistakes, one per line


def sentences() -> list[str]:
    """Several hundred different sentences: real ones where they are at hand, else made ones."""
    if JFLEG:
        lines = Path(JFLEG, "test.src").read_text(encoding="utf-8").splitlines()
        return list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    things = ("kot", "pies", "żółw", "rachunek", "tramwaj", "dom", "słoń", "river", "table", "invoice")
    deeds = ("nie wiedział dokąd idzie", "was definately to late", "recieve the order", "poszedł spowrotem", "nie chcial jeść")
    return [f"{thing} {deed} {number} razy 🙂" for thing in things for deed in deeds for number in range(14)]


class Fake:
    """A fake provider in a process of its own, asked over HTTP what it has seen."""

    def __init__(self, url: str) -> None:
        self.url = url

    def get(self, path: str) -> Any:
        """What the process says: the paths are listed in `tests/fake_provider/__main__.py`."""
        with urllib.request.urlopen(f"{self.url}/{path}", timeout=10) as answer:  # noqa: S310 -- loopback
            return json.load(answer)

    def post(self, path: str, body: Any = None) -> Any:
        data = json.dumps({} if body is None else body).encode()
        request = urllib.request.Request(f"{self.url}/{path}", data, {"Content-Type": "application/json"})  # noqa: S310 -- our own server
        with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310 -- our own server
            return json.load(answer)

    def counts(self, window: float = 60) -> dict[str, Any]:
        counts: dict[str, Any] = self.get(f"_counts?window={window:g}")
        return counts

    def script(self, *rules: dict[str, Any]) -> None:
        self.post("_script", rules)

    def wait_for_requests(self, count: int, timeout: float = 30) -> None:
        deadline = time.monotonic() + timeout
        while (seen := self.counts()["requests"]) < count:
            assert time.monotonic() < deadline, f"the provider saw {seen} requests, not {count}, within {timeout} s"
            time.sleep(0.02)


@contextmanager
def fake_provider(latency_ms: float, *options: str) -> Iterator[Fake]:
    """Runs `python -m tests.fake_provider` with these options for the length of the block."""
    command = [sys.executable, "-m", "tests.fake_provider", "--latency-ms", str(latency_ms), *options]
    root = Path(__file__).parents[2]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield Fake(process.stdout.readline().strip())
        finally:
            process.terminate()
            process.wait(10)


@pytest.fixture
def fake() -> Iterator[Fake]:
    with fake_provider(50) as running:
        yield running


def plain_sql(connection: pymysql.Connection[Any]) -> Sql:
    """`sql(statement, parameters=None)` on a connection, as the fixture `sql` gives it."""

    def run(statement: str, parameters: Any = None) -> list[dict[str, Any]]:
        with connection.cursor() as cursor:
            cursor.execute(statement, parameters)
            return list(cursor.fetchall())

    return run


def insert_task(sql: Sql, fake: Fake, texts: list[str], *, cache_seconds: int = 0) -> int:
    """Model, task and items by plain SQL, as an application does it; the id of the task. Equal texts are sent again and again,
    unless answers may be some seconds old."""
    sql(
        "INSERT INTO ai_model (name, provider, model, base_url, price_input, price_output) "
        "VALUES (%s, 'openai', 'fake', %s, 1, 2)",
        [f"fake-{time.monotonic_ns()}", fake.url + "/v1"],
    )
    sql(
        "INSERT INTO task (id_ai_model, description, cache_seconds) "
        "SELECT MAX(id_ai_model), 'Correct the text.', %s FROM ai_model",
        [cache_seconds],
    )
    (row,) = sql("SELECT MAX(id_task) AS id FROM task")
    for start in range(0, len(texts), 1000):
        chunk = texts[start : start + 1000]
        places = ", ".join(["(%s, %s)"] * len(chunk))
        values = [value for text in chunk for value in (row["id"], text)]
        sql(f"INSERT INTO task_item (id_task, text_original) VALUES {places}", values)
    id_task: int = row["id"]
    return id_task


def assert_all_done(sql: Sql, id_task: int, texts: list[str]) -> None:
    """Each item PROCESSED once, with its own text's correction; every sum of the task equal to those of items and attempts."""
    (task,) = sql("SELECT * FROM task WHERE id_task = %s", [id_task])
    assert (task["status_id"], task["records_processed"], task["records_failed"]) == (2, len(texts), 0)
    assert task["started_at"] < task["finished_at"]
    rows = sql(
        "SELECT status_id, text_original, text_corrected FROM task_item WHERE id_task = %s ORDER BY id_task_item", [id_task]
    )
    assert [row["text_original"] for row in rows] == texts
    assert {row["status_id"] for row in rows} == {1}
    assert all(row["text_corrected"] == f"{row['text_original']} ✓" for row in rows)
    for table in ("task_item", "task_attempt"):
        (sums,) = sql(
            f"SELECT SUM(tokens_input) AS i, SUM(tokens_output) AS o, SUM(cost) AS c FROM {table} WHERE id_task = %s", [id_task]
        )
        assert (sums["i"], sums["o"], sums["c"]) == (task["tokens_input"], task["tokens_output"], task["cost"]), table
    (done,) = sql(
        "SELECT COUNT(*) AS n, COUNT(DISTINCT id_task_item) AS d FROM task_attempt WHERE id_task = %s AND outcome = 'processed'",
        [id_task],
    )
    assert (done["n"], done["d"]) == (len(texts), len(texts))
    (owned,) = sql("SELECT COUNT(*) AS n FROM task_item WHERE id_worker IS NOT NULL")
    assert owned["n"] == 0


def billed(texts: list[str]) -> tuple[int, int]:
    """The tokens that the fake provider bills for one call per text: input, output."""
    usages = [tokens_for(text) for text in texts]
    return sum(usage.input for usage in usages), sum(usage.output for usage in usages)


def assert_no_error_logged(programs: Programs) -> None:
    """No worker logged an error, a deadlock least of all."""
    for path in programs.folder.glob("output-*.log"):
        lines = path.read_text(encoding="utf-8").splitlines()
        assert [line for line in lines if '"level":"error"' in line or "Traceback" in line] == [], path


def requests_per_text(fake: Fake) -> Counter[str]:
    return Counter(fake.counts()["per_text"])
