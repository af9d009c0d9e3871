"""`status`, `watch`, `workers`: the numbers that scripts rely on, and the words for people."""

from __future__ import annotations

import re
import signal

import pytest

from tests.conftest import Sql
from tests.integration.commands import Commands
from tests.servers import Programs


@pytest.fixture
def ai_worker(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], database_url: str) -> Commands:
    monkeypatch.setenv("AI_WORKER_DB_URL", database_url)
    return Commands(monkeypatch, capsys)


@pytest.fixture
def task(sql: Sql) -> int:
    """A task at work: two items processed, one in error, one deferred, one pending; its id."""
    sql("INSERT INTO ai_model (name, provider) VALUES ('echo', 'echo')")
    sql(
        "INSERT INTO task (id_ai_model, description, status_id, started_at, records_processed, records_failed, tokens_input, "
        "tokens_output, cost) "
        "SELECT id_ai_model, 'Popraw \x1b[31mtekst', 1, NOW(6) - INTERVAL 10 SECOND, 2, 1, 1000, 300, 0.0123 FROM ai_model"
    )
    sql(
        "INSERT INTO task_item (id_task, text_original, status_id, attempt, finished_at, available_at, error_kind, "
        "error_message) SELECT t.id_task, s.* FROM task t JOIN (SELECT 'a', 1 s, 1 b, NOW(6) c, NULL d, NULL e, NULL f UNION ALL "
        "SELECT 'b', 1, 1, NOW(6), NULL, NULL, NULL UNION ALL SELECT 'c', 3, 3, NOW(6), NULL, 'content_refused', 'nie wolno' "
        "UNION ALL SELECT 'd', 4, 1, NULL, NOW(6) + INTERVAL 1 HOUR, 'rate_limited', 'za szybko' "
        "UNION ALL SELECT 'e', 0, 0, NULL, NULL, NULL, NULL) s"
    )
    return int(sql("SELECT id_task FROM task")[0]["id_task"])


def test_json_has_the_shape_that_scripts_rely_on(ai_worker: Commands, task: int) -> None:
    found = ai_worker("status", str(task), "--json").json
    assert list(found)[:10] == [
        *("id_task", "status", "items", "records_processed", "records_failed"),
        *("tokens_input", "tokens_output", "cost", "started_at", "finished_at"),
    ]
    assert (found["id_task"], found["status"], found["cost"], found["finished_at"]) == (task, "IN_PROGRESS", "0.0123", None)
    assert found["items"] == {"pending": 1, "in_progress": 0, "deferred": 1, "processed": 2, "error": 1, "cancelled": 0}
    assert (found["records_processed"], found["records_failed"], found["tokens_input"], found["tokens_output"]) == (
        2,
        1,
        1000,
        300,
    )
    assert found["started_at"].endswith("Z")
    assert found["rate"] == pytest.approx(0.3, rel=0.5)
    assert [(e["status"], e["kind"], e["items"], e["example"]["message"]) for e in found["errors"]] == [
        ("ERROR", "content_refused", 1, "nie wolno"),
        ("DEFERRED", "rate_limited", 1, "za szybko"),
    ]
    (listed,) = ai_worker("status", "--json").json
    assert listed["items"] == found["items"]


def test_for_people(ai_worker: Commands, task: int) -> None:
    shown = ai_worker("status", str(task)).out
    assert f"task {task}  IN_PROGRESS" in shown
    assert "5: 2 processed, 1 in error, 1 pending, 1 deferred" in shown
    assert "content_refused" in shown
    assert "nie wolno" in shown
    assert f"no worker is running; `ai-worker run --task {task}` starts one" in shown
    assert "\x1b" not in shown  # a description must not steer the terminal
    assert "IN_PROGRESS" in ai_worker("status").out


def test_why_nothing_moves(ai_worker: Commands, task: int, sql: Sql) -> None:
    sql(
        "UPDATE ai_model SET stopped_at = UTC_TIMESTAMP(6), stopped_kind = 'quota_exhausted', stopped_reason = 'no credit', "
        "probe_at = UTC_TIMESTAMP(6) + INTERVAL 60 SECOND"
    )
    for command in (["status", str(task)], ["status"], ["workers"]):
        shown = ai_worker(*command).out
        assert "model echo is stopped" in shown
        assert "the account's money or quota is spent: top it up (no credit)" in shown
    assert re.search(
        r"\(no credit\); tried again in (1 min 00|5\d) s; `ai-worker model test echo` tries it now$",
        ai_worker("status", str(task)).out,
        re.M,
    )
    sql("UPDATE ai_model SET probe_at = UTC_TIMESTAMP(6)")
    assert "tried again at the next claim; `ai-worker model test echo`" in ai_worker("status", str(task)).out
    sql("UPDATE task SET status_id = 4")
    assert f"→ `ai-worker resume {task}` goes on\n" in ai_worker("status", str(task)).out


def test_a_cancelled_task_can_be_resumed(ai_worker: Commands, task: int) -> None:
    assert "resume" not in ai_worker("status", str(task)).out
    ai_worker("cancel", str(task))
    assert f"→ `ai-worker resume {task}` goes on with what was cancelled\n" in ai_worker("status", str(task)).out
    ai_worker("resume", str(task))
    assert "resume" not in ai_worker("status", str(task)).out


def test_priority_and_schedule_show_where_there_is_one(ai_worker: Commands, task: int, sql: Sql) -> None:
    plain = ai_worker("status").out
    assert "PRIORITY" not in plain
    assert "STARTS" not in plain
    ai_worker("priority", str(task), "-7")
    sql("UPDATE task SET scheduled_at = '2999-12-31 08:30:00'")
    sql("INSERT INTO task (id_ai_model, description) SELECT id_ai_model, REPEAT('inne', 11) FROM ai_model")
    heading, other, scheduled = ai_worker("status").out.splitlines()
    assert heading.split() == [
        *("ID", "STATUS", "STARTS", "TYPE", "MODEL", "ITEMS", "DONE", "ERROR", "OPEN", "COST"),
        *("PRIORITY", "INSTRUCTION"),
    ]
    assert scheduled.split()[1:3] == ["IN_PROGRESS", "2999-12-31T08:30:00.000Z"]
    assert scheduled.index("-7") + 2 == heading.index("PRIORITY") + len("PRIORITY")
    assert other.split()[1:3] == ["NEW", "-"]
    assert other.endswith(" " + "inne" * 9 + "inn…")
    shown = ai_worker("status", str(task)).out
    assert re.search(r"^  priority +-7$", shown, re.M)
    assert re.search(r"^  scheduled +2999-12-31T08:30:00\.000Z$", shown, re.M)


def test_nothing_there(ai_worker: Commands, database_url: str) -> None:
    assert "no task yet" in ai_worker("status").out
    assert ai_worker("status", "--json").json == []
    assert "no worker is running" in ai_worker("workers").out
    assert ai_worker("workers", "--json").json == []


def test_workers(ai_worker: Commands, sql: Sql) -> None:
    sql("SET time_zone = '+00:00'")
    sql(
        "INSERT INTO worker (host, pid, version, mode, concurrency, in_flight, items_processed, lease_until) "
        "VALUES ('serwer-ż', 4711, '0.1', 'daemon', 50, 12, 3456, NOW(6) + INTERVAL 30 SECOND)"
    )
    (worker,) = ai_worker("workers", "--json").json
    assert (worker["state"], worker["host"], worker["in_flight"], worker["concurrency"]) == ("alive", "serwer-ż", 12, 50)
    shown = ai_worker("workers").out
    assert "serwer-ż" in shown
    assert "12 of 50" in shown


@pytest.mark.parametrize(("status", "code"), [(2, 0), (3, 3), (5, 1)])
def test_watch_ends_with_the_task(ai_worker: Commands, programs: Programs, task: int, sql: Sql, status: int, code: int) -> None:
    watching = programs.start("watch", str(task), "--interval", "0.1")
    watching.wait_for(f"task {task}  IN_PROGRESS  3 of 5 (60 %)")
    sql(f"UPDATE task SET status_id = {status}, finished_at = NOW(6)")
    assert watching.wait() == code
    lines = watching.text().splitlines()
    assert len(lines) >= 2
    assert lines[-1].startswith(f"task {task}  {({2: 'COMPLETED', 3: 'ERROR', 5: 'CANCELLED'})[status]}")


def test_watch_of_all_tasks_ends_with_ctrl_c(ai_worker: Commands, programs: Programs, task: int) -> None:
    watching = programs.start("watch", "--interval", "0.1")
    watching.wait_for(f"task {task}  IN_PROGRESS  3 of 5")
    watching.process.send_signal(signal.SIGINT)
    assert watching.wait() == 0


def test_watch_of_all_tasks_tells_of_the_models_in_use(ai_worker: Commands, programs: Programs, task: int, sql: Sql) -> None:
    sql("UPDATE ai_model SET max_requests_per_minute = 600, budget_per_day = 5, stopped_kind = 'quota_exhausted',"
        " stopped_reason = 'brak', stopped_at = UTC_TIMESTAMP(6), probe_at = UTC_TIMESTAMP(6) + INTERVAL 1 HOUR")  # fmt: skip
    sql(
        "INSERT INTO ai_model_day (id_ai_model, day, shard, attempts, tokens_input, cost)"
        " SELECT id_ai_model, UTC_DATE(), shard, 100, 5000, 0.5 FROM ai_model, (SELECT 1 AS shard UNION ALL SELECT 7) AS shards"
    )
    watching = programs.start("watch", "--interval", "0.1")
    watching.wait_for("calls/min")
    shown = watching.text()
    watching.process.send_signal(signal.SIGINT)
    assert watching.wait() == 0
    assert "stopped: quota_exhausted" in shown
    assert "of 600 calls/min" in shown
    assert "$1.00 of $5.00 usd today" in shown


def test_a_task_tells_its_budget_and_its_further_models(ai_worker: Commands, task: int, sql: Sql) -> None:
    sql("INSERT INTO ai_model (name, provider) VALUES ('druga', 'echo')")
    sql("INSERT INTO task_fallback (id_task, position, id_ai_model) SELECT %s, 1, MAX(id_ai_model) FROM ai_model", [task])
    sql(
        "UPDATE task SET budget = 2, cost = 1.99, status_id = 4, finished_at = NULL,"
        " status_reason = 'the budget of 2.00 USD is spent' WHERE id_task = %s",
        [task],
    )
    shown = ai_worker("status", str(task)).out
    assert re.search(r"^  fallbacks +druga$", shown, re.M)
    assert re.search(r"^  budget +\$1\.99 of \$2\.00 spent$", shown, re.M)
    assert f"`ai-worker resume {task} --budget USD` goes on" in shown
    found = ai_worker("status", str(task), "--json").json
    assert (found["budget"], found["fallbacks"], found["resume_at"]) == ("2", ["druga"], None)


def test_a_task_tells_of_its_batches(ai_worker: Commands, task: int, sql: Sql) -> None:
    sql(
        "INSERT INTO batch (batch_key, id_task, id_ai_model, id_worker, state, items, provider_batch_id, submitted_at)"
        " SELECT 'b', id_task, id_ai_model, 7, 'submitted', 5000, 'batch_abc', UTC_TIMESTAMP(6) FROM task WHERE id_task = %s",
        [task],
    )
    assert re.search(r"^  batch +submitted, 5,000 items, batch_abc$", ai_worker("status", str(task)).out, re.M)
