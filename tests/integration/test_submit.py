"""`submit` as people call it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.conftest import Sql
from tests.integration.commands import Commands
from tests.servers import Programs, environment


@pytest.fixture
def ai_worker(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], database_url: str, sql: Sql) -> Commands:
    """Commands on a database with one model."""
    monkeypatch.setenv("AI_WORKER_DB_URL", database_url)
    sql("INSERT INTO ai_model (name, provider) VALUES ('echo', 'echo')")
    return Commands(monkeypatch, capsys)


@pytest.fixture
def texts(tmp_path: Path) -> str:
    path = tmp_path / "teksty.csv"
    path.write_text("id,text\n17,Zażółć gęślą jaźń\n18,Ala ma kota 🙂\n", encoding="utf-8")
    return str(path)


def test_json_has_the_shape_that_scripts_rely_on(ai_worker: Commands, texts: str, sql: Sql) -> None:
    ended = ai_worker("submit", texts, "--type", "correction", "--model", "echo", "--json")
    (task,) = sql("SELECT * FROM task")
    assert (ended.code, ended.json, ended.err) == (0, {"id_task": task["id_task"], "items": 2}, "")
    assert (task["status_id"], task["task_type"], task["max_attempts"], task["priority"]) == (0, "correction", 3, 0)
    assert [row["text_original"] for row in sql("SELECT text_original FROM task_item")] == ["Zażółć gęślą jaźń", "Ala ma kota 🙂"]


def test_the_last_line_names_the_task(ai_worker: Commands, texts: str, sql: Sql) -> None:
    ended = ai_worker("submit", texts)
    (task,) = sql("SELECT id_task FROM task")
    assert ended.out.splitlines()[-1] == f"task {task['id_task']}: 2 items"


def test_every_option_arrives(ai_worker: Commands, texts: str, sql: Sql) -> None:
    ended = ai_worker(
        *("submit", texts, "--type", "translation", "--model", "echo", "--description", "Przetłumacz", "--priority", "-4"),
        *("--max-attempts", "5", "--key", "zlecenie 9", "--key-column", "id", "--at", "2031-05-06T12:30+02:00"),
        *("--param", "target_language=en", "--param", 'glossary={"kot": "cat"}'),
    )
    assert ended.code == 0, ended.err
    (task,) = sql("SELECT * FROM task")
    assert (task["task_type"], task["description"], task["priority"], task["max_attempts"]) == (
        "translation",
        "Przetłumacz",
        -4,
        5,
    )
    assert str(task["scheduled_at"]) == "2031-05-06 10:30:00"
    assert task["submit_key"] == "zlecenie 9"
    assert '"glossary": {"kot": "cat"}' in task["parameters"]
    assert [row["external_key"] for row in sql("SELECT external_key FROM task_item")] == ["17", "18"]


def test_a_key_makes_it_safe_to_repeat(ai_worker: Commands, texts: str, sql: Sql) -> None:
    first = ai_worker("submit", texts, "--key", "k", "--json")
    again = ai_worker("submit", texts, "--key", "k", "--json")
    assert again.code == 0
    assert again.json == first.json
    assert f"task {first.json['id_task']} was made from --key k before" in again.err
    assert sql("SELECT COUNT(*) n FROM task_item")[0]["n"] == 2


def test_rows_without_text_are_skipped_and_told(ai_worker: Commands, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,text\n1,\n2,jest\n3, \n")
    ended = ai_worker("submit", str(tmp_path / "a.csv"), "--json")
    assert ended.json["items"] == 1
    assert "2 rows without text skipped" in ended.err


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--type", "korekta"], "unknown task type 'korekta'; known ones:"),
        (["--model", "gpt-9"], "gpt-9"),
        (["--type", "categorization"], "categories"),
        (["--param", "język"], "is not KEY=VALUE"),
        (["--param", "kolor=zielony"], "task type correction: unknown parameter 'kolor'; known ones: explain, history_facts, "),
        (["--at", "jutro"], "'jutro' is not a time"),
        (["--delimiter", "=>"], "--delimiter must be one character"),
        (["--key", ""], "--key must have 1 to 190 characters"),
        (["--description", "ż" * 33_000], "--description is longer than 65,535 bytes"),
        (["--column", "body"], "no column 'body'"),
    ],
)
def test_wrong_usage_makes_no_task(ai_worker: Commands, texts: str, sql: Sql, args: list[str], said: str) -> None:
    ended = ai_worker("submit", texts, *args)
    assert (ended.code, ended.out) == (2, "")
    assert said in ended.err
    assert sql("SELECT COUNT(*) n FROM task")[0]["n"] == 0


def test_the_model_must_be_named_when_there_are_several(ai_worker: Commands, texts: str, sql: Sql) -> None:
    sql("INSERT INTO ai_model (name, provider) VALUES ('inny', 'echo')")
    ended = ai_worker("submit", texts)
    assert ended.code == 2
    assert "name one of the models with --model: echo, inny" in ended.err
    sql("UPDATE ai_model SET is_active = 0 WHERE name = 'inny'")
    assert ai_worker("submit", texts).code == 0
    assert "switched off" in ai_worker("submit", texts, "--model", "inny").err


def test_a_stopped_model_is_told(ai_worker: Commands, texts: str, sql: Sql) -> None:
    sql(
        "UPDATE ai_model SET stopped_at = UTC_TIMESTAMP(6), probe_at = UTC_TIMESTAMP(6), stopped_kind = 'quota_exhausted', "
        "stopped_reason = 'no credit'"
    )
    ended = ai_worker("submit", texts)
    assert ended.code == 0
    assert "model echo is stopped (quota_exhausted: no credit)" in ended.err


def test_standard_input(ai_worker: Commands, programs: Programs, sql: Sql) -> None:
    assert programs.run("submit", "-", input="żółw\n").returncode == 2
    ended = programs.run("submit", "-", "--format", "txt", "--json", input="żółw\n\nkot 🐈\n")
    assert ended.returncode == 0, ended.stderr
    assert [row["text_original"] for row in sql("SELECT text_original FROM task_item ORDER BY 1")] == ["kot 🐈", "żółw"]


@pytest.mark.skipif(sys.platform == "win32", reason="named pipes have a place in the file system on POSIX only")
def test_a_pipe_can_be_read_although_it_cannot_be_read_twice(ai_worker: Commands, tmp_path: Path) -> None:
    pipe = tmp_path / "rura.txt"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=["raz\ndwa\n"])
    writer.start()
    ended = ai_worker("submit", str(pipe), "--json")
    writer.join()
    assert ended.json["items"] == 2


def test_wait_ends_with_the_task_and_tells_of_errors(ai_worker: Commands, programs: Programs, texts: str, sql: Sql) -> None:
    waiting = programs.start("submit", texts, "--wait")
    waiting.wait_for("no worker is running; start one with `ai-worker run --task")
    sql("UPDATE task_item SET status_id = 3, finished_at = NOW(6)")
    sql("UPDATE task SET status_id = 3, records_failed = 2, started_at = NOW(6), finished_at = NOW(6)")
    assert waiting.wait() == 3
    assert "2 errors" in waiting.text()
    assert waiting.text().splitlines()[-1].endswith(": 2 items")


def test_killed_half_way_leaves_nothing(ai_worker: Commands, programs: Programs, tmp_path: Path, sql: Sql) -> None:
    big = tmp_path / "big.txt"
    big.write_text("Zażółć gęślą jaźń\n" * 400_000, encoding="utf-8")
    running = programs.start("submit", str(big))
    sql("SET SESSION TRANSACTION ISOLATION LEVEL READ UNCOMMITTED")
    while not sql("SELECT id_task_item FROM task_item LIMIT 5000, 1"):
        assert running.process.poll() is None, running.text()
    running.process.kill()
    running.process.wait()
    # The server notices that its client is gone, and rolls back.
    deadline = time.monotonic() + 60
    while sql("SELECT id_task_item FROM task_item LIMIT 1"):
        assert time.monotonic() < deadline
    assert sql("SELECT COUNT(*) n FROM task")[0]["n"] == 0


MEASURED = """
import re, sys
from pathlib import Path
from ai_worker.cli import main
code = main(sys.argv[1:])
# Not ru_maxrss: it remembers the process that was forked, and that is pytest.
print(int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) // 1024, file=sys.stderr)
sys.exit(code)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_many_rows_need_no_memory(ai_worker: Commands, tmp_path: Path, database_url: str, sql: Sql) -> None:
    big = tmp_path / "big.csv"
    with big.open("w", encoding="utf-8") as file:
        file.write("id,text\n")
        file.writelines(f'{number},"Zdanie {number}, w którym jest błąd ortograficzny i 🙂."\n' for number in range(200_000))

    def measured(*args: str, stdout: Path) -> int:
        """Runs a command; the most memory that it had, in MiB."""
        with stdout.open("wb") as file:
            command = [sys.executable, "-c", MEASURED, *args]
            ended = subprocess.run(
                command, env=environment(database_url), stdout=file, stderr=subprocess.PIPE, timeout=300, check=True
            )
        return int(ended.stderr.split()[-1])

    out = tmp_path / "out"
    assert measured("submit", str(big), "--json", stdout=out) < 150
    assert b'"items": 200000' in out.read_bytes()
    id_task = sql("SELECT id_task FROM task")[0]["id_task"]
    for format_name in ("csv", "jsonl"):
        assert measured("results", str(id_task), "--format", format_name, stdout=out) < 150
        with out.open("rb") as file:
            assert sum(1 for _ in file) == 200_000 + (format_name == "csv")
