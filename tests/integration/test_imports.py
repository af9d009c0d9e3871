"""`import`: rows of a table become items with their origin, once each, however often it is cut short."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from ai_worker.cli import sources
from ai_worker.database_url import parse_database_url
from ai_worker.db import Database
from ai_worker.errors import UsageError
from ai_worker.store import imports, source_table
from ai_worker.store.imports import Imports
from ai_worker.store.new_tasks import NewTask
from ai_worker.store.source_table import Columns, SourceTable
from ai_worker.store.tasks import Tasks
from tests.conftest import Sql
from tests.integration.commands import Commands
from tests.integration.source_tables import Shop, imported, shop
from tests.servers import Programs, TestServer, free_port

POLISH = "Zażółć gęślą jaźń"


@pytest.fixture
def ai_worker(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], database_url: str, sql: Sql) -> Commands:
    monkeypatch.setenv("AI_WORKER_DB_URL", database_url)
    sql("INSERT INTO ai_model (name, provider) VALUES ('echo', 'echo')")
    return Commands(monkeypatch, capsys)


@pytest.fixture
def other(server: TestServer) -> Iterator[Shop]:
    with shop(server) as found:
        yield found


def items(sql: Sql) -> list[tuple[Any, ...]]:
    rows = sql("SELECT external_key, text_original, context, context_key FROM task_item ORDER BY id_task_item")
    return [(row["external_key"], row["text_original"], row["context"], row["context_key"]) for row in rows]


def task(sql: Sql) -> tuple[int, str | None]:
    (row,) = sql("SELECT status_id, status_reason FROM task")
    return row["status_id"], row["status_reason"]


def test_rows_become_items_with_their_origin(ai_worker: Commands, sql: Sql, other: Shop) -> None:
    other.sql(
        "CREATE TABLE `dziwna.tabela` (`id` BIGINT NOT NULL PRIMARY KEY, `treść` MEDIUMTEXT, title VARCHAR(20), "
        "price DECIMAL(8,2), at DATETIME, author INT, status VARCHAR(9)) DEFAULT CHARACTER SET utf8mb4"
    )
    insert = "INSERT INTO `dziwna.tabela` VALUES (%s, %s, %s, %s, %s, %s, %s)"
    other.sql(insert, [-5, POLISH, "tytuł", "1.50", "2026-05-01 10:00:00", 7, "draft"])
    other.sql(insert, [9, "opublikowane", None, None, None, 7, "done"])
    other.sql(insert, [2, " \n", None, None, None, 7, "draft"])
    other.sql(insert, [3, None, None, None, None, 7, "draft"])
    other.sql(insert, [2**53 + 1, "100% 'x' \\ %s 🙂", None, None, None, None, "draft"])
    ended = ai_worker(
        *("import", "--table", f"{other.name}.`dziwna.tabela`", "--key-column", "ID", "--column", "treść"),
        *("--where", "status LIKE 'dra%' -- those that are not done", "--context-columns", "title, price,at"),
        *("--context-key-column", "author", "--type", "summary", "--priority", "7", "--description", "krótko"),
    )
    assert (ended.code, ended.err) == (0, "note: 2 rows without text skipped\n")
    assert ended.out.endswith(": 2 items\n")
    first, second = items(sql)
    assert (first[0], first[1], first[3]) == ("-5", POLISH, "7")
    assert json.loads(first[2]) == {"title": "tytuł", "price": "1.50", "at": "2026-05-01T10:00:00"}
    assert (second[0], second[1], second[3]) == (str(2**53 + 1), "100% 'x' \\ %s 🙂", None)
    (made,) = sql("SELECT status_id, status_reason, task_type, priority, description FROM task")
    assert list(made.values()) == [0, None, "summary", 7, "krótko"]
    (source,) = sql(
        "SELECT url, table_name, key_column, text_column, imported_through, rows_imported, rows_skipped, "
        "finished_at IS NOT NULL AS is_finished FROM task_source"
    )
    assert list(source.values()) == [None, f"{other.name}.`dziwna.tabela`", "ID", "treść", str(2**53 + 1), 2, 2, 1]


@pytest.mark.parametrize(
    ("definition", "keys"),
    [
        # In a Swedish order, without regard to case, å and ö stand behind z; in a Polish one, ł stands behind l.
        ("VARCHAR(255) CHARACTER SET utf8mb4 COLLATE utf8mb4_swedish_ci", ["ö", "A", "b", "Ž", "å", "a b", "'; --", "zz"]),
        ("CHAR(5) CHARACTER SET latin2 COLLATE latin2_general_ci", ["ł", "l", "M", "k"]),
        ("VARCHAR(20) CHARACTER SET utf8mb3 COLLATE utf8mb3_polish_ci", ["ł", "l", "m", "łą", "Ż"]),
        ("VARCHAR(20) CHARACTER SET ascii COLLATE ascii_bin", ["b", "B", "a", "A"]),
        ("BINARY(2)", [b"\xff\x00", b"\x00'", b"a\\"]),
        ("BIGINT UNSIGNED", [2**64 - 1, 0, 2**63]),
    ],
    ids=["swedish", "latin2", "utf8mb3", "ascii", "binary", "unsigned"],
)
def test_every_row_is_read_once_whatever_the_key(
    ai_worker: Commands, sql: Sql, other: Shop, definition: str, keys: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source_table, "_PAGE_ROWS", 2)
    table = other.articles(definition=f"id {definition} NOT NULL, body TEXT CHARACTER SET latin2, UNIQUE KEY (id)")
    for key in keys:
        other.sql("INSERT INTO articles VALUES (%s, %s)", [key, POLISH])
    imported(ai_worker, table, "--key-column", "id")
    found = items(sql)
    assert sorted(item[0] for item in found) == sorted(key.hex() if isinstance(key, bytes) else str(key) for key in keys)
    assert {item[1] for item in found} == {POLISH}


def test_an_empty_table_makes_no_task(ai_worker: Commands, sql: Sql, other: Shop) -> None:
    table = other.articles(None, "  ")
    ended = ai_worker("import", "--table", table, "--column", "body", "--json")
    assert (ended.code, ended.json) == (0, {"id_task": None, "items": 0, "skipped": 2})
    assert sql("SELECT 1 FROM task") == []


class _KilledError(Exception):
    pass


def test_cut_short_it_goes_on_where_it_stood(
    ai_worker: Commands, database: Database, sql: Sql, other: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source_table, "_PAGE_ROWS", 2)
    table = other.articles("a", "b", None, "d", "e", "f", "g")
    arguments = ("import", "--table", table, "--column", "body", "--key", "maj", "--json")
    take = imports._take
    pages = []

    def killed(*given: Any) -> None:
        take(*given)
        pages.append(given)
        if len(pages) == 2:
            raise _KilledError  # rolls this page back

    monkeypatch.setattr(imports, "_take", killed)
    with pytest.raises(_KilledError):
        ai_worker(*arguments)
    monkeypatch.setattr(imports, "_take", take)
    assert task(sql) == (4, "being imported")
    assert [item[0] for item in items(sql)] == ["1", "2"]
    assert "was imported from" in ai_worker(*arguments, "--where", "id > 3").err  # another import, under the same key

    other.sql("INSERT INTO articles VALUES (0, 'behind'), (8, 'ahead')")
    assert ai_worker(*arguments).json == {"id_task": sql("SELECT id_task FROM task")[0]["id_task"], "items": 7, "skipped": 1}
    assert [item[0] for item in items(sql)] == ["1", "2", "4", "5", "6", "7", "8"]
    assert task(sql) == (0, None)
    again = ai_worker(*arguments)
    assert (again.code, again.json["items"], len(items(sql))) == (0, 7, 7)
    assert "nothing was added" in again.err


def test_killed_for_good_it_goes_on(programs: Programs, sql: Sql, other: Shop) -> None:
    sql("INSERT INTO ai_model (name, provider) VALUES ('echo', 'echo')")
    table = other.articles("x")
    for _ in range(14):
        other.sql("INSERT INTO articles SELECT id + (SELECT COUNT(*) FROM articles), CONCAT('wiersz ', id) FROM articles")
    arguments = ("import", "--table", table, "--column", "body", "--key", "K", "--json")
    running = programs.start(*arguments)
    while not sql("SELECT 1 FROM task_source WHERE rows_imported >= 1000"):
        assert running.process.poll() is None, running.text()
    os.kill(running.process.pid, signal.SIGKILL)
    running.wait()
    assert task(sql) == (4, "being imported")
    assert 1000 <= len(items(sql)) < 2**14
    ended = programs.run(*arguments)
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)["items"] == 2**14
    assert sql("SELECT COUNT(*) AS n, COUNT(DISTINCT external_key) AS keys_ FROM task_item") == [{"n": 2**14, "keys_": 2**14}]


def test_two_imports_of_one_key_never_take_a_row_twice(
    database: Database, database_url: str, sql: Sql, other: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source_table, "_PAGE_ROWS", 2)
    sql("INSERT INTO ai_model (name, provider) VALUES ('echo', 'echo')")
    new = NewTask(sql("SELECT id_ai_model FROM ai_model")[0]["id_ai_model"], "correction", submit_key="K")
    source = SourceTable.look_up(database, Columns(other.articles(*"abcdef"), None, "body"))
    rival = Imports(database)
    overtaken = False

    def overtake(count: int) -> None:
        nonlocal overtaken
        if not overtaken:
            overtaken = True
            assert rival.run(new, source, None, None).items == 6

    with pytest.raises(UsageError, match="by another process"):
        Imports(database).run(new, source, None, None, overtake)
    assert len(items(sql)) == 6


def test_the_same_key_from_another_server_is_refused(database: Database, sql: Sql, other: Shop) -> None:
    sql("INSERT INTO ai_model (name, provider) VALUES ('echo', 'echo')")
    new = NewTask(sql("SELECT id_ai_model FROM ai_model")[0]["id_ai_model"], "correction", submit_key="K")
    source = SourceTable.look_up(database, Columns(other.articles("a"), None, "body"))
    here, there = "mysql://reader@db1:3306/shop", "mysql://reader@db2:3306/shop"
    assert Imports(database).run(new, source, None, here).items == 1
    for url in (there, None):
        with pytest.raises(UsageError, match="from another server: mysql://reader@db1"):
            Imports(database).run(new, source, None, url)
    assert Imports(database).run(new, source, None, here.replace("reader", "somebody")).was_finished


def test_a_task_that_is_cancelled_meanwhile_gets_no_more_items(
    database: Database, sql: Sql, other: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source_table, "_PAGE_ROWS", 2)
    sql("INSERT INTO ai_model (name, provider) VALUES ('echo', 'echo')")
    new = NewTask(sql("SELECT id_ai_model FROM ai_model")[0]["id_ai_model"], "correction")
    source = SourceTable.look_up(database, Columns(other.articles(*"abcdef"), None, "body"))
    with pytest.raises(UsageError, match="was cancelled"):
        Imports(database).run(
            new, source, None, None, lambda _: Tasks(database).cancel(sql("SELECT id_task FROM task")[0]["id_task"]) and None
        )
    assert sql("SELECT status_id, COUNT(*) AS n FROM task_item GROUP BY 1") == [{"status_id": 5, "n": 2}]


@pytest.mark.parametrize(
    ("definition", "arguments", "message"),
    [
        ("id INT PRIMARY KEY, body TEXT", ("--table", "{db}.nowhere"), "there is no such table"),
        ("id INT PRIMARY KEY, body TEXT", ("--table", "a.b.c"), "is no name of a table"),
        ("id INT PRIMARY KEY, body TEXT", ("--column", "text"), "has no column 'text'"),
        ("id INT PRIMARY KEY, body TEXT", ("--key-column", "nr"), "has no column 'nr'"),
        ("id INT PRIMARY KEY, body TEXT", ("--column", "id"), "is of the type int"),
        ("id INT PRIMARY KEY, body BLOB", (), "is of the type blob"),
        ("id INT PRIMARY KEY, body TEXT, x BLOB", ("--context-columns", "x"), "cannot go along as context"),
        ("id INT PRIMARY KEY, body TEXT, x LONGTEXT", ("--context-columns", "x"), "a generated column of what is needed will do"),
        ("id INT, n INT, body TEXT, PRIMARY KEY (id, n)", (), "its primary key has several columns (id, n)"),
        ("id INT, n INT, body TEXT, PRIMARY KEY (id, n)", ("--key-column", "id"), "must be unique by itself"),
        ("id INT NOT NULL, body TEXT, KEY (id)", ("--key-column", "id"), "must be unique by itself"),
        ("id VARCHAR(50) NOT NULL, body TEXT, UNIQUE KEY (id(10))", ("--key-column", "id"), "must be unique by itself"),
        ("id INT NULL, body TEXT, UNIQUE KEY (id)", ("--key-column", "id"), "may be NULL"),
        ("id DECIMAL(10,2) PRIMARY KEY, body TEXT", (), "is of the type decimal"),
        ("id BINARY(200) PRIMARY KEY, body TEXT", (), "has 200 bytes"),
        ("id INT PRIMARY KEY, body TEXT", ("--where", "nowhere = 1"), "--where 'nowhere = 1': Unknown column 'nowhere'"),
        ("id INT PRIMARY KEY, body TEXT", ("--where", "id = ) OR ("), "You have an error in your SQL syntax"),
        ("id INT PRIMARY KEY, body TEXT", ("--where", "id = 1) OR (id = 2"), "You have an error in your SQL syntax"),
        ("id INT PRIMARY KEY, body TEXT", ("--where", "1 = 1 ORDER BY body"), "You have an error in your SQL syntax"),
        ("id INT PRIMARY KEY, body TEXT", ("--where", "/*! 1 = 1) OR ( */ 1 = 1"), "You have an error in your SQL syntax"),
    ],
)
def test_what_cannot_be_imported_is_said_before_anything_is_made(
    ai_worker: Commands, sql: Sql, other: Shop, definition: str, arguments: tuple[str, ...], message: str
) -> None:
    table = other.articles(definition=definition)
    given = [each.format(db=other.name) for each in arguments]
    ended = ai_worker("import", "--table", table, "--column", "body", *given)
    assert (ended.code, sql("SELECT 1 FROM task")) == (2, [])
    assert message in ended.err


def test_keys_and_texts_that_are_too_long(ai_worker: Commands, sql: Sql, other: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    table = other.articles(definition="id VARCHAR(250) PRIMARY KEY, body LONGTEXT")
    other.sql("INSERT INTO articles VALUES ('a', 'dobry'), ('b', REPEAT('ł', 3000))")
    monkeypatch.setattr(source_table, "LONGEST_TEXT", 5999)
    ended = ai_worker("import", "--table", table, "--column", "body")
    assert (ended.code, sql("SELECT 1 FROM task")) == (2, [])
    assert "the text of the row b has 6,000 bytes, and at most 5,999 can be kept" in ended.err
    assert ai_worker("import", "--table", table, "--column", "body", "--where", "id < 'b'").code == 0
    other.sql("INSERT INTO articles VALUES (REPEAT('k', 191), 'dobry')")
    ended = ai_worker("import", "--table", table, "--column", "body", "--where", "id <> 'b'")
    assert (ended.code, "is longer than 190 characters" in ended.err) == (2, True)


def test_users_and_passwords(ai_worker: Commands, sql: Sql, other: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user who may read is enough, its password is kept nowhere, and a wrong one is told as such."""
    table = other.articles("a", "b")
    with other.user(f"reader_{other.name[-9:]}", "SELECT (id, body)") as url:
        monkeypatch.setenv("AI_WORKER_SOURCE_URL", url)
        assert imported(ai_worker, "articles")
        kept = sql("SELECT url, table_name FROM task_source")[0]
        assert kept["table_name"] == table
        assert "Test.1" not in kept["url"]
        assert parse_database_url(kept["url"]).user == parse_database_url(url).user
        ended = ai_worker("import", "--table", "articles", "--column", "body", "--url", url.replace("zxcvb", "wrong"))
        assert ended.code == 78
        assert "check --url" in ended.err
        assert "wrong" not in ended.everything.replace("configuration wrong", "")
    with other.user(f"nobody_{other.name[-9:]}", "INSERT") as url:
        ended = ai_worker("import", "--table", "articles", "--column", "body", "--url", url)
        assert ended.code in {2, 78}
        assert "SELECT" in ended.err or "may not read it" in ended.err


def test_a_source_that_is_away(ai_worker: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "Database", lambda url, patience, writable: Database(url, patience=0.1, writable=writable))
    url = f"mysql://x:tajne@127.0.0.1:{free_port()}/shop?ssl=off"
    ended = ai_worker("import", "--table", "articles", "--column", "body", "--url", url)
    assert ended.code == 75
    assert "tajne" not in ended.everything
    assert ai_worker("import", "--table", "articles", "--column", "body", "--url", "mysql://tajne").code == 78
