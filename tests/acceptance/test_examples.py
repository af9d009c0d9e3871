"""The scripts in `examples/`, one per kind of system, run as they stand against real workers and the fake provider."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ai_worker.database_url import parse_database_url
from tests.acceptance.fleet import Fake, fake_provider
from tests.conftest import Sql
from tests.servers import Background, Programs, TestServer, environment

FOLDER = Path(__file__).parents[2] / "examples"
LINES = 60
REPLIES = 20
PICKUP_MS = 150  # replies begin within it, beside bulk work


class Examples:
    """Starts the scripts from an otherwise empty folder, with `ai-worker` on the path."""

    def __init__(self, database_url: str, folder: Path) -> None:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self._env = environment(database_url, {"PATH": path})
        self._folder = folder

    def run(self, name: str, *args: str, input: str = "", timeout: float = 90) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self._command(name, args),
            cwd=self._folder,
            env=self._env,
            input=input,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def start(self, name: str, *args: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self._command(name, args), cwd=self._folder, env=self._env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    @staticmethod
    def _command(name: str, args: tuple[str, ...]) -> list[str]:
        return [*(["bash"] if name.endswith(".sh") else [sys.executable]), str(FOLDER / name), *args]


@pytest.fixture
def examples(database_url: str, tmp_path: Path) -> Examples:
    return Examples(database_url, tmp_path)


@pytest.fixture
def provider(sql: Sql) -> Iterator[Fake]:
    """A fake provider of 200 ms, with models for texts and one for pictures."""
    with fake_provider(200) as fake:
        for name, model in (("gpt", "fake"), ("gpt-large", "fake-large"), ("painter", "gpt-image-2")):
            sql(
                "INSERT INTO ai_model (name, provider, model, base_url, price_input, price_output)"
                " VALUES (%s, 'openai', %s, %s, 1, 2)",
                [name, model, f"{fake.url}/v1"],
            )
        yield fake


def assert_sums_agree(sql: Sql) -> None:
    """Tokens and cost of each task are those of its attempts, and of its items."""
    assert (
        sql(
            "SELECT id_task FROM (SELECT id_task, tokens_input, tokens_output, COALESCE(cost, 0) AS cost FROM task) t"
            "  JOIN (SELECT id_task, SUM(tokens_input) AS ai, SUM(tokens_output) AS ao, COALESCE(SUM(cost), 0) AS ac"
            "          FROM task_attempt GROUP BY id_task) a USING (id_task)"
            "  JOIN (SELECT id_task, SUM(tokens_input) AS ii, SUM(tokens_output) AS io, COALESCE(SUM(cost), 0) AS ic"
            "          FROM task_item GROUP BY id_task) i USING (id_task)"
            " WHERE (tokens_input, tokens_output, cost) <> (ai, ao, ac) OR (tokens_input, tokens_output, cost) <> (ii, io, ic)"
        )
        == []
    )


def test_every_script_is_short() -> None:
    scripts = sorted(FOLDER.iterdir())
    assert len(scripts) == 5
    for script in scripts:
        assert len(script.read_text(encoding="utf-8").splitlines()) < LINES


def test_a_correction_panel(server: TestServer, database_url: str, examples: Examples, sql: Sql, provider: Fake) -> None:
    shop = f"{parse_database_url(database_url).database}_panel"
    server.execute(f"CREATE DATABASE {shop} CHARACTER SET utf8mb4")
    try:
        server.execute(
            f"CREATE TABLE {shop}.articles (id INT PRIMARY KEY AUTO_INCREMENT, body TEXT, status VARCHAR(10), changed_at INT)",
            f"INSERT INTO {shop}.articles (body, status) VALUES ('Wogóle nie wiem.', 'draft'), ('Żeczywiście.', 'draft'),"
            " ('Poszłem.', 'draft'), ('Napewno.', 'draft'), ('Gotowe.', 'published')",
        )
        imported = examples.run("correction_panel.sh", "import", "gpt", f"{shop}.articles")
        assert imported.returncode == 0, imported.stderr
        id_task = imported.stdout.split()[-1]
        again = examples.run("correction_panel.sh", "import", "gpt", f"{shop}.articles")
        assert again.stdout.split()[-1] == id_task
        assert [row["status_id"] for row in sql("SELECT status_id FROM task_item")] == [1] * 4
        reviewed = examples.run("correction_panel.sh", "review", id_task, input="a\nr\ne\nPoszedłem.\na\n")
        assert reviewed.returncode == 0, reviewed.stderr
        server.execute(f"UPDATE {shop}.articles SET body = 'Na pewno tak.' WHERE id = 4")  # somebody else was faster
        exported = examples.run("correction_panel.sh", "export", id_task)
        assert exported.returncode == 3, exported.stdout + exported.stderr
        assert "conflict" in exported.stdout
        assert [row["body"] for row in server.execute(f"SELECT body FROM {shop}.articles ORDER BY id")] == [
            "Wogóle nie wiem. ✓",
            "Żeczywiście.",
            "Poszedłem.",
            "Na pewno tak.",
            "Gotowe.",
        ]
        assert_sums_agree(sql)
    finally:
        server.execute(f"DROP DATABASE {shop}")


def insert_batch(sql: Sql, count: int) -> int:
    """Bulk work in the queue `batch`."""
    sql("INSERT INTO task (id_ai_model, queue, cache_seconds) SELECT id_ai_model, 'batch', 0 FROM ai_model WHERE name = 'gpt'")
    (task,) = sql("SELECT MAX(id_task) AS id FROM task")
    for start in range(0, count, 1000):
        values = ", ".join(f"({task['id']}, 'Opis produktu numer {number}.')" for number in range(start, start + 1000))
        sql(f"INSERT INTO task_item (id_task, text_original) VALUES {values}")
    return int(task["id"])


def pickups(sql: Sql, after: int) -> list[float]:
    """Milliseconds from each reply's INSERT to its attempt's beginning, sorted; the commit of its result is in it too."""
    return sorted(
        float(row["ms"])
        for row in sql(
            "SELECT TIMESTAMPDIFF(MICROSECOND, i.created_at, i.finished_at) / 1000 - a.latency_ms AS ms FROM task t"
            "  JOIN task_item i USING (id_task) JOIN task_attempt a USING (id_task_item)"
            " WHERE t.queue = 'reply' AND t.id_task > %s",
            [after],
        )
    )


# 95 of 100, where nothing else runs; CI runs two tests at a time on two cores, and looks at every other one.
@pytest.mark.parametrize("share", [0.5, pytest.param(0.95, marks=pytest.mark.slow)])
def test_a_chat_bot_overtakes_bulk_work(
    examples: Examples, programs: Programs, sql: Sql, provider: Fake, tmp_path: Path, share: float
) -> None:
    batch = insert_batch(sql, 10_000)
    daemon = programs.start("daemon", "--queue", "reply:5", "--queue", "batch:1", "--concurrency", "50")
    provider.wait_for_requests(100)
    painted = examples.run("chat_bot.py", "klient:7", input="Macie dzwonki?\n/picture\n")
    assert painted.returncode == 0, painted.stderr
    (file,) = sql("SELECT mime_type, size, content FROM task_item_file")
    assert (tmp_path / painted.stdout.splitlines()[1].strip("[]")).read_bytes() == file["content"]
    assert file["mime_type"] == "image/png"
    said = [f"Pytanie numer {number}: czy macie dzwonek?" for number in range(REPLIES)]
    seen = []
    for _ in range(3):  # other programs on the same two cores must not decide
        (last,) = sql("SELECT MAX(id_task) AS id FROM task")
        ended = examples.run("chat_bot.py", "klient:8", input="".join(f"{line}\n" for line in said))
        assert ended.returncode == 0, ended.stderr
        assert [answer[: len(line)] for answer, line in zip(ended.stdout.splitlines(), said, strict=True)] == said
        (bulk,) = sql("SELECT COUNT(*) AS left_over FROM task_item WHERE id_task = %s AND status_id = 0", [batch])
        assert bulk["left_over"] > 0, "the bulk work was over before the chat"
        seen.append(pickups(sql, last["id"]))
        assert len(seen[-1]) == REPLIES
        if seen[-1][int(REPLIES * share) - 1] < PICKUP_MS:
            break
    else:
        raise AssertionError(seen)
    stop(daemon)
    assert_sums_agree(sql)


def stop(daemon: Background) -> None:
    daemon.process.terminate()
    assert daemon.wait() == 0, daemon.text()


def test_a_categorizer_answers_in_time(examples: Examples, programs: Programs, sql: Sql, provider: Fake) -> None:
    daemon = programs.start("daemon", "--queue", "transactions")
    texts = [f"ZAKUP KARTĄ SKLEP NR {number}" for number in range(25)] + ["PRZELEW BUNT"]
    provider.script({"fault": "refused", "contains": "BUNT", "times": 99})
    ended = examples.run("categorizer.py", input="\n".join(texts))
    assert ended.returncode == 0, ended.stderr
    sorted_ = [line.split("\t") for line in ended.stdout.splitlines()]
    assert [text for _, text in sorted_] == texts
    assert {category for category, text in sorted_ if "BUNT" not in text} == {"Groceries"}
    assert sorted_[-1][0] == "Uncategorized"
    assert sql("SELECT DISTINCT status_id FROM task_item") == [{"status_id": 1}]
    stop(daemon)
    provider.script({"fault": "slow", "delay_ms": 60_000, "times": 99})
    began = time.monotonic()
    late = examples.run("categorizer.py", "--seconds", "1", input="PRZELEW\n")
    assert late.stdout == "Uncategorized\tPRZELEW\n", late.stderr
    assert time.monotonic() - began < 15


def asked(provider: Fake) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = provider.get("_asked")
    return found


def test_a_research_report_is_gone_on_with(examples: Examples, programs: Programs, sql: Sql, provider: Fake) -> None:
    question = "Czy opłaca się magazyn energii w domu?"
    script = examples.start("research_report.py", "--editor", "gpt-large", question)
    env = {"AI_WORKER_LEASE_SECONDS": "5"}
    for step in (1, 2, 3):  # a worker dies as soon as its step is stored, while the next one is asked for
        daemon = programs.start("daemon", env=env)
        wait_until(sql, "SELECT steps_done AS n FROM task_item", step)
        daemon.process.kill()
        daemon.wait()
    daemon = programs.start("daemon", env=env)
    printed, complaint = script.communicate(timeout=90)
    assert script.returncode == 0, complaint
    assert printed.startswith("# ")
    (item,) = sql("SELECT status_id, steps_done, steps_total, text_corrected FROM task_item")
    assert (item["status_id"], item["steps_done"], item["steps_total"]) == (1, 4, 4)
    assert item["text_corrected"] in printed
    stored = sql("SELECT step FROM task_attempt WHERE step IS NOT NULL AND outcome = 'processed' ORDER BY step")
    assert [row["step"] for row in stored] in ([1, 2, 3], [1, 2, 3, 4])
    # A step that was under way when its worker died is asked for again; one that was stored never is.
    counts = Counter(request["schema_name"] for request in asked(provider))
    assert len(counts) == 4
    assert counts.total() <= 4 + 3
    assert counts[asked(provider)[0]["schema_name"]] == 1
    assert {request["model"] for request in asked(provider)[-2:]} == {"fake-large"}
    stop(daemon)
    assert_sums_agree(sql)


def wait_until(sql: Sql, query: str, least: int, timeout: float = 60) -> None:
    deadline = time.monotonic() + timeout
    while not ((rows := sql(query)) and rows[0]["n"] >= least):
        assert time.monotonic() < deadline, f"{query}: {rows}, not {least}, after {timeout} s"
        time.sleep(0.01)


def test_conversation_memory(examples: Examples, programs: Programs, sql: Sql, provider: Fake, tmp_path: Path) -> None:
    lines = [
        {"customer": f"klient:{number}", "text": f"Mam rower numer {number} i psa.", "is_open": number % 2 == 0}
        for number in range(10)
    ]
    (tmp_path / "conversations.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    daemon = programs.start("daemon", "--concurrency", "1")
    ended = examples.run("conversation_memory.py", "conversations.jsonl")
    assert ended.returncode == 0, ended.stderr
    facts = sql("SELECT context_key, fact FROM context_fact")
    assert {fact["context_key"] for fact in facts} == {line["customer"] for line in lines}
    first, second, _ = sql("SELECT task_type, priority, finished_at FROM task ORDER BY id_task")
    assert (first["priority"], second["priority"]) == (10, 0)
    assert first["finished_at"] < second["finished_at"]
    reply = next(
        request for request in provider.get("_requests") if "Co już o mnie wiecie" in json.dumps(request, ensure_ascii=False)
    )
    known = next(fact["fact"] for fact in facts if fact["context_key"] == "klient:0")
    assert known in json.dumps(reply, ensure_ascii=False)
    (schedule,) = sql("SELECT name, cron, time_zone, next_at FROM schedule")
    assert (schedule["cron"], schedule["time_zone"]) == ("0 2 * * *", "Europe/Warsaw")
    assert schedule["next_at"].hour in (0, 1)  # of UTC, in summer and in winter
    sql("UPDATE schedule SET next_at = UTC_TIMESTAMP(6)")  # the night has come
    wait_until(sql, "SELECT COUNT(*) AS n FROM task WHERE task_type = 'custom' AND status_id = 2", 1)
    assert sql("SELECT COUNT(*) AS n FROM schedule_fire") == [{"n": 1}]
    stop(daemon)
    assert_sums_agree(sql)
