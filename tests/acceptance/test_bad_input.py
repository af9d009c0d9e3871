"""Bad input through the real command line: a clear message, the right exit code, and no half-made task."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.conftest import Sql
from tests.servers import Programs, free_port


@pytest.fixture
def prepared(programs: Programs, sql: Sql) -> Programs:
    """Programs on a database with one model."""
    sql("INSERT INTO ai_model (name, provider) VALUES ('echo', 'echo')")
    return programs


def assert_refused(programs: Programs, sql: Sql, args: list[str], *said: str, code: int = 2) -> None:
    """The command fails with one line that says all of this, and the database is as it was."""
    ended = programs.run(*args)
    assert (ended.returncode, ended.stdout) == (code, ""), ended.stderr
    assert ended.stderr.count("\n") == 1, ended.stderr
    assert ended.stderr.startswith("ai-worker: ")
    for each in said:
        assert each in ended.stderr
    assert len(ended.stderr) < 700
    for table in ("task", "task_item"):
        assert sql(f"SELECT COUNT(*) n FROM {table}")[0]["n"] == 0


TWENTY_MEGABYTES = "a" * 20_000_000


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        pytest.param(
            "a.csv", "id,text\n1,ok\n2,żółw\n".encode("cp1250"), ["line 3", "byte 0xbf", "--encoding cp1250"], id="not UTF-8"
        ),
        pytest.param("a.csv", b"id,body,note\n1,a,b\n", ["'id', 'body', 'note'", "--column"], id="no such column"),
        pytest.param("a.csv", b"", ["is empty"], id="empty"),
        pytest.param("a.csv", b"id,text\n", ["a header, but no rows"], id="header only"),
        pytest.param("a.csv", b"text\nok\n" + TWENTY_MEGABYTES.encode(), ["line 3", "16,777,215"], id="20 MB cell"),
        pytest.param("a.txt", b"ok\n" + TWENTY_MEGABYTES.encode(), ["line 2", "20,000,000 bytes"], id="20 MB line"),
        pytest.param("a.csv", b"text\nok\na\x00b\n", ["line 3", "NUL"], id="NUL byte"),
        pytest.param("a.csv", b'text\nok\n"no end\n', ["line 3", "never closed"], id="open quote"),
        pytest.param("a.jsonl", b'"ok"\n{"text": \n', ["line 2", "broken JSON at column"], id="broken JSON"),
        pytest.param("a.jsonl", b'"ok"\n"\\ud83d"\n', ["line 2", "surrogate"], id="half a surrogate pair"),
        pytest.param("a.xlsx", b"PK", ["--format csv, jsonl or txt"], id="unknown format"),
        pytest.param("a.txt", b"\n \n", ["is empty"], id="blank lines only"),
    ],
)
def test_files(prepared: Programs, sql: Sql, tmp_path: Path, name: str, data: bytes, said: list[str]) -> None:
    (tmp_path / name).write_bytes(data)
    assert_refused(prepared, sql, ["submit", name, "--type", "correction", "--model", "echo"], name, *said)


def test_bad_row_after_many_good_ones(prepared: Programs, sql: Sql, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,text\n" + "1,Ala ma kota\n" * 30_000 + "1,2,3\n", encoding="utf-8")
    assert_refused(prepared, sql, ["submit", "a.csv"], "line 30002: 3 fields where the header has 2")


def test_files_that_are_none(prepared: Programs, sql: Sql, tmp_path: Path) -> None:
    (tmp_path / "folder.csv").mkdir()
    assert_refused(prepared, sql, ["submit", "folder.csv"], "folder.csv cannot be read", "directory")
    assert_refused(prepared, sql, ["submit", "missing.csv"], "missing.csv cannot be read: No such file")
    if os.name == "posix" and os.geteuid() != 0:  # root reads everything
        (tmp_path / "secret.csv").write_text("text\na\n")
        (tmp_path / "secret.csv").chmod(0)
        assert_refused(prepared, sql, ["submit", "secret.csv"], "secret.csv cannot be read: Permission denied")


def test_unknown_names(prepared: Programs, sql: Sql, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Ala ma kota\n")
    assert_refused(prepared, sql, ["submit", "a.txt", "--model", "gpt-9"], "gpt-9", "echo")
    assert_refused(prepared, sql, ["submit", "a.txt", "--type", "korekta"], "unknown task type 'korekta'", "correction")
    for command in ("status", "watch", "results", "retry", "pause", "resume", "cancel"):
        assert_refused(prepared, sql, [command, "77"], "no task 77; `ai-worker status` lists them")


def test_the_database_is_away(programs: Programs, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Ala ma kota\n")
    url = f"mysql://someone:s3cret@127.0.0.1:{free_port()}/ai_worker"
    ended = programs.run("submit", "a.txt", env={"AI_WORKER_DB_URL": url})
    assert (ended.returncode, ended.stdout) == (75, "")
    assert "127.0.0.1" in ended.stderr
    assert "s3cret" not in ended.stderr
    assert "Traceback" not in ended.stderr


def test_the_schema_is_not_there(server_without_tables: str, programs: Programs, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Ala ma kota\n")
    ended = programs.run("submit", "a.txt", env={"AI_WORKER_DB_URL": server_without_tables})
    assert (ended.returncode, ended.stdout) == (78, "")
    assert "ai-worker migrate" in ended.stderr


@pytest.fixture
def server_without_tables(empty_database_url: str) -> str:
    return empty_database_url


@pytest.mark.parametrize(
    ("name", "data", "texts"),
    [
        ("a.csv", "\ufeffid;text\r\n1;👩‍👩‍👧 😀 𝔘\r\n".encode(), ["👩‍👩‍👧 😀 𝔘"]),
        ("a.csv", b'text\n"dwie\nlinie"\n', ["dwie\nlinie"]),
        ("a.csv", b"text\n" + b"a" * 200_000 + b"\n", ["a" * 200_000]),
        ("a.jsonl", b'{"text": "\\ud83d\\ude00"}\n', ["😀"]),
    ],
    ids=["emoji, byte order mark, semicolons", "quoted line ends", "a cell above csv's own limit", "escaped emoji"],
)
def test_what_looks_hard_and_just_works(
    prepared: Programs, sql: Sql, tmp_path: Path, name: str, data: bytes, texts: list[str]
) -> None:
    (tmp_path / name).write_bytes(data)
    ended = prepared.run("submit", name, "--json")
    assert (ended.returncode, json.loads(ended.stdout)["items"]) == (0, len(texts)), ended.stderr
    assert [row["text_original"] for row in sql("SELECT text_original FROM task_item")] == texts


def test_the_longest_text_arrives_or_is_refused_for_the_servers_packet(prepared: Programs, sql: Sql, tmp_path: Path) -> None:
    text = "ż" * 8_388_607  # 16,777,214 bytes
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    packet = sql("SELECT @@max_allowed_packet p")[0]["p"]
    if packet > 17_000_000:
        ended = prepared.run("submit", "a.txt", "--json")
        assert ended.returncode == 0, ended.stderr
        assert sql("SELECT CHAR_LENGTH(text_original) n FROM task_item")[0]["n"] == len(text)
    else:
        assert_refused(prepared, sql, ["submit", "a.txt"], "line 1", f"max_allowed_packet is {packet:,}")
