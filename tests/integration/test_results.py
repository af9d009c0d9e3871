"""`results`: texts come out as they are, safe to open, and complete or not at all."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import re
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.conftest import Sql
from tests.integration.commands import Commands
from tests.servers import environment

HOSTILE = "<script>alert(1)</script><img src=x onerror=\"alert(2)\"> & 'koniec'"


@pytest.fixture
def ai_worker(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], database_url: str) -> Commands:
    monkeypatch.setenv("AI_WORKER_DB_URL", database_url)
    return Commands(monkeypatch, capsys)


@pytest.fixture
def task(sql: Sql) -> str:
    """A finished task with five items, one of them in error; its id."""
    sql("INSERT INTO ai_model (name, provider) VALUES ('echo', 'echo')")
    sql(
        "INSERT INTO task (id_ai_model, description, status_id, started_at, finished_at, records_processed, records_failed, "
        "tokens_input, tokens_output, cost) "
        "SELECT id_ai_model, %s, 3, NOW(6) - INTERVAL 5 SECOND, NOW(6), 4, 1, 1200, 340, 0.0123 FROM ai_model",
        [f"Popraw {HOSTILE}"],
    )
    id_task = sql("SELECT id_task FROM task")[0]["id_task"]
    for key, original, corrected, summary in (
        ("17", "Dzis jest ładnie 🙂", "Dziś jest ładnie 🙂", '1 change: "Dzis" → "Dziś"'),
        ("18", "=1+1", "-5", "@x"),
        ("19", 'dwie\nlinie, "cudzysłów"', 'dwie\nlinie, "cudzysłów"', None),
        (HOSTILE, HOSTILE, HOSTILE + "!", HOSTILE),
    ):
        sql(
            "INSERT INTO task_item (id_task, status_id, attempt, finished_at, external_key, text_original, text_corrected, "
            "change_summary, tokens_input, tokens_output, cost, context) "
            "VALUES (%s, 1, 1, NOW(6), %s, %s, %s, %s, 300, 85, 0.003, %s)",
            [id_task, key, original, corrected, summary, '{"autor": "Żaneta"}'],
        )
    sql(
        "INSERT INTO task_item (id_task, status_id, attempt, finished_at, text_original, error_kind, error_message) "
        "VALUES (%s, 3, 3, NOW(6), 'piąty', 'content_refused', 'nie wolno')",
        [id_task],
    )
    return str(id_task)


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline="")))


def test_csv(ai_worker: Commands, task: str) -> None:
    ended = ai_worker("results", task)
    assert ended.out.splitlines()[0] == (
        "id_task_item,external_key,status,text_original,text_corrected,change_summary,error,tokens_input,tokens_output,cost,context,"
        "review,text_reviewed,reviewed_by,reviewed_at,files"
    )
    first, formula, quoted, hostile, failed = rows(ended.out)
    assert (first["external_key"], first["status"], first["text_corrected"]) == ("17", "PROCESSED", "Dziś jest ładnie 🙂")
    assert (first["tokens_input"], first["tokens_output"], first["cost"]) == ("300", "85", "0.003")
    assert json.loads(first["context"]) == {"autor": "Żaneta"}
    assert quoted["text_original"] == 'dwie\nlinie, "cudzysłów"'
    assert hostile["text_original"] == HOSTILE
    assert (failed["status"], failed["text_corrected"], failed["error"]) == ("ERROR", "", "content_refused: nie wolno")
    # A spreadsheet would run these.
    assert (formula["text_original"], formula["text_corrected"], formula["change_summary"]) == ("'=1+1", "'-5", "'@x")
    assert "3 cells got an apostrophe" in ended.err


def test_csv_raw(ai_worker: Commands, task: str) -> None:
    ended = ai_worker("results", task, "--raw", "--bom")
    assert ended.out.startswith("\ufeffid_task_item,")
    assert rows(ended.out)[1]["text_original"] == "=1+1"
    assert ended.err == ""


def test_jsonl(ai_worker: Commands, task: str) -> None:
    lines = [json.loads(line) for line in ai_worker("results", task, "--format", "jsonl").out.splitlines()]
    assert [line["text_original"] for line in lines] == [
        "Dzis jest ładnie 🙂",
        "=1+1",
        'dwie\nlinie, "cudzysłów"',
        HOSTILE,
        "piąty",
    ]
    assert lines[0]["cost"] == "0.003"
    assert lines[0]["context"] == {"autor": "Żaneta"}
    assert lines[4]["text_corrected"] is None
    assert [lines[0][name] for name in ("review", "text_reviewed", "reviewed_by", "reviewed_at")] == [
        "UNREVIEWED",
        None,
        None,
        None,
    ]


@pytest.mark.parametrize(("only", "count"), [("processed", 4), ("error", 1), ("all", 5)])
def test_only(ai_worker: Commands, task: str, only: str, count: int) -> None:
    assert len(rows(ai_worker("results", task, "--only", only).out)) == count


class _Page(HTMLParser):
    """The tags of a page, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_html_shows_the_changes_and_lets_nothing_in(ai_worker: Commands, task: str, tmp_path: Path) -> None:
    target = tmp_path / "wyniki.html"
    assert ai_worker("results", task, "-o", str(target)).code == 0
    page = target.read_text(encoding="utf-8")
    assert '<del title="diacritics">Dzis</del> jest ładnie 🙂' in page
    assert '<ins title="diacritics">Dziś</ins> jest ładnie 🙂' in page
    parsed = _Page(page)
    assert {"charset": "utf-8"} in [attributes for tag, attributes in parsed.tags if tag == "meta"]
    used = Counter(tag for tag, _ in parsed.tags)
    assert used.keys().isdisjoint({"img", "link", "iframe", "object"})
    assert (used["script"], used["style"]) == (1, 1)  # our own
    assert not [name for _, attributes in parsed.tags for name in attributes if name.startswith("on") or name == "src"]
    assert all((attributes["href"] or "").startswith("#item-") for tag, attributes in parsed.tags if tag == "a")
    assert parsed.text.count(HOSTILE) >= 4  # description, key, original, summary: shown, not run
    assert len([tag for tag, _ in parsed.tags if tag == "article"]) == 5
    policy = next(a["content"] for tag, a in parsed.tags if tag == "meta" and a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'sha256-")
    assert "1,2" in page or "1\u202f2" in page  # 1 200 tokens
    assert "content_refused: nie wolno" in parsed.text


def test_the_policy_names_the_style_and_the_script_that_are_there(ai_worker: Commands, task: str) -> None:
    page = ai_worker("results", task, "--format", "html").out
    for tag in ("style", "script"):
        found = re.search(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        assert found is not None
        assert f"{tag}-src 'sha256-{base64.b64encode(hashlib.sha256(found[1].encode()).digest()).decode()}';" in page


def test_a_file_appears_when_it_is_complete(
    ai_worker: Commands, task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ai_worker.errors import DatabaseAway
    from ai_worker.store.results import Results

    target = tmp_path / "wyniki.jsonl"
    target.write_text("old")
    real = Results.of_task

    def broken(self: Results, *args: object, **options: object) -> object:
        yield from list(real(self, *args, **options))[:2]  # type: ignore[arg-type]  # passed on as they came
        raise DatabaseAway("gone")

    with monkeypatch.context() as patch:
        patch.setattr(Results, "of_task", broken)
        assert ai_worker("results", task, "-o", str(target)).code == 75
    assert (target.read_text(), list(tmp_path.iterdir())) == ("old", [target])
    assert ai_worker("results", task, "-o", str(target)).code == 0
    assert (len(target.read_text().splitlines()), list(tmp_path.iterdir())) == (5, [target])


def test_files_that_cannot_be_written(ai_worker: Commands, task: str, tmp_path: Path) -> None:
    for target in (tmp_path, tmp_path / "nie ma" / "a.csv"):
        ended = ai_worker("results", task, "-o", str(target))
        assert ended.code == 2
        assert str(target) in ended.err


@pytest.mark.parametrize("name", ["wyniki.xlsx", "wyniki.csv.gz", "wyniki"])
def test_a_file_whose_name_tells_no_format_is_refused(ai_worker: Commands, task: str, tmp_path: Path, name: str) -> None:
    target = tmp_path / name
    ended = ai_worker("results", task, "-o", str(target))
    assert (ended.code, target.exists()) == (2, False)
    assert f"{str(target)!r}: name a file in .csv, .jsonl, .ndjson, .html or .htm, or give --format" in ended.err
    assert ai_worker("results", task, "-o", str(target), "--format", "csv").code == 0
    assert target.read_text().startswith("id_task_item,")


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX devices")
def test_a_device_may_have_any_name(ai_worker: Commands, task: str) -> None:
    assert ai_worker("results", task, "-o", "/dev/null").code == 0


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX pipes")
@pytest.mark.parametrize("format_name", ["csv", "jsonl", "html"])
def test_a_reader_that_leaves_early_is_no_error(database_url: str, sql: Sql, task: str, format_name: str) -> None:
    sql(
        f"INSERT INTO task_item (id_task, text_original) SELECT {task}, REPEAT('a', 5000) "
        "FROM task_item a, task_item b, task_item c, task_item d LIMIT 600"
    )
    command = [sys.executable, "-m", "ai_worker", "results", task, "--format", format_name]
    with subprocess.Popen(command, env=environment(database_url), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert (process.stderr.read(), process.wait(60)) == (b"", 0)


def test_ten_thousand_rows_in_a_page(ai_worker: Commands, sql: Sql, task: str, tmp_path: Path) -> None:
    sql(
        f"INSERT INTO task_item (id_task, text_original, text_corrected, status_id, attempt, finished_at) "
        f"SELECT {task}, CONCAT('Dzis ', s.a), CONCAT('Dziś ', s.a), 1, 1, NOW(6) FROM (SELECT a.id_task_item a FROM "
        "(SELECT 1 id_task_item UNION SELECT 2 UNION SELECT 3 UNION SELECT 4 UNION SELECT 5 UNION SELECT 6 UNION SELECT 7 UNION "
        "SELECT 8 UNION SELECT 9 UNION SELECT 10) a, task_item b, task_item c, task_item d, task_item e) s LIMIT 9995"
    )
    sql(f"INSERT INTO task_item (id_task, text_original) SELECT {task}, 'x' FROM task_item LIMIT {10_000 - _count(sql)}")
    target = tmp_path / "a.html"
    assert ai_worker("results", task, "-o", str(target)).code == 0
    assert target.read_text(encoding="utf-8").count("<article") == 10_000


def _count(sql: Sql) -> int:
    return int(sql("SELECT COUNT(*) n FROM task_item")[0]["n"])
