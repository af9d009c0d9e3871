"""Migrations: applied once however many try, by us or by hand, after being cut short anywhere; refused when not ours."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from ai_worker import migrate
from ai_worker.database_url import parse_database_url
from ai_worker.db import Database, sql_folder
from ai_worker.errors import ConfigurationError, DatabaseAway, DatabaseError, SchemaMismatch
from tests.servers import Programs, TestServer, sessions

LABELS = [each.label for each in migrate.migrations()]
NEWEST = len(LABELS)


@pytest.fixture
def empty(empty_database_url: str) -> Iterator[Database]:
    """A `Database` without tables."""
    database = Database(parse_database_url(empty_database_url))
    yield database
    database.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the migrations, to add to and to change."""
    copy = tmp_path / "migrations"
    shutil.copytree(sql_folder() / "migrations", copy)
    return copy


def rows(database: Database, statement: str) -> list[dict[str, Any]]:
    return database.transaction(lambda transaction: transaction.raw(statement))


def test_a_new_database_gets_all_and_a_second_run_finds_nothing_to_do(empty: Database) -> None:
    assert migrate.migrate(empty) == LABELS
    assert migrate.migrate(empty) == []
    assert migrate.check(empty) == NEWEST
    applied = rows(empty, "SELECT version, name, checksum FROM schema_migration ORDER BY version")
    assert [(row["version"], row["name"], row["checksum"]) for row in applied] == [
        (each.version, each.name, each.checksum) for each in migrate.migrations()
    ]


def test_twenty_hosts_that_start_at_once(empty_database_url: str) -> None:
    together = threading.Barrier(20)

    def host(_: int) -> list[str]:
        database = Database(parse_database_url(empty_database_url))
        try:
            together.wait()
            applied = migrate.migrate(database)
            assert migrate.check(database) == NEWEST
            return applied
        finally:
            database.close()

    with ThreadPoolExecutor(20) as pool:
        results = list(pool.map(host, range(20)))
    assert sorted(results) == [[]] * 19 + [LABELS]


@pytest.mark.parametrize("code", [1105, 1235])
def test_where_named_locks_are_refused(
    server: TestServer, empty: Database, empty_database_url: str, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """As some clusters do. Whoever comes at the same time finds parts done by others, and carries on."""
    server.execute(
        f"CREATE FUNCTION {empty.url.database}.refused() RETURNS INT DETERMINISTIC NO SQL BEGIN"
        f" SIGNAL SQLSTATE 'HY000' SET MYSQL_ERRNO = {code}, MESSAGE_TEXT = 'this cluster has no GET_LOCK'; RETURN 1; END"
    )
    monkeypatch.setattr(migrate, "_LOCK", "SELECT refused() AS got")
    together = threading.Barrier(4)

    def host(_: int) -> list[str]:
        database = Database(parse_database_url(empty_database_url))
        try:
            together.wait()
            return migrate.migrate(database)
        finally:
            database.close()

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(host, range(4)))
    assert {label for applied in results for label in applied} == set(LABELS)
    assert migrate.check(empty) == NEWEST
    assert migrate.migrate(empty) == []


def test_one_that_finds_another_at_work_waits(server: TestServer, empty: Database) -> None:
    """Whoever migrates holds the lock of this database, and only of this one."""
    lock = migrate._LOCK.replace("DATABASE()", f"'{empty.url.database}'")
    with server.connect() as holder, holder.cursor() as cursor, ThreadPoolExecutor(1) as pool:
        cursor.execute(lock)
        waiting = pool.submit(migrate.migrate, empty)
        deadline = time.monotonic() + 30
        while "User lock" not in sessions(cursor, empty.url.database).values():
            assert not waiting.done()
            assert time.monotonic() < deadline
        with server.new_database() as name:
            other = Database(parse_database_url(server.url(name)))
            assert migrate.migrate(other) == LABELS
            other.close()
        assert not waiting.done()
        server.execute(f"KILL {holder.thread_id()}")  # as when the host dies
        assert waiting.result(60) == LABELS


def test_a_holder_that_never_ends_is_reported(server: TestServer, empty: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migrate, "LOCK_PATIENCE", -1.0)
    monkeypatch.setattr(migrate, "_LOCK", migrate._LOCK.replace(f", {migrate._LOCK_SLICE})", ", 0)"))
    with server.connect() as holder, holder.cursor() as cursor:
        cursor.execute(migrate._LOCK.replace("DATABASE()", f"'{empty.url.database}'"))
        with pytest.raises(DatabaseError, match="another process"):
            migrate.migrate(empty)


def test_cut_short_after_any_statement(server: TestServer) -> None:
    """DDL commits by itself: what a killed migration has done stays, and must not be in the way of the next run."""
    statements = migrate.split(migrate.migrations()[0].text)
    for done in range(1, len(statements)):
        with server.new_database() as name:
            with server.connect(name) as connection, connection.cursor() as cursor:
                for statement in statements[:done]:
                    cursor.execute(statement)
            database = Database(parse_database_url(server.url(name)))
            assert migrate.migrate(database) == LABELS, f"after {statements[done - 1][:60]}"
            assert len(rows(database, "SELECT * FROM task_item_status")) == 6
            database.close()


def test_applied_with_the_plain_client(server: TestServer, empty: Database) -> None:
    """A DBA's way: `mysql ai_worker < sql/migrations/NNNN_name.sql`. The checksum follows with the next `migrate`."""
    client = shutil.which("mariadb") or shutil.which("mysql")
    assert client, "the mysql client is missing"
    host, port = server.admin.hosts[0]
    command = [client, "--no-defaults", f"-h{host}", f"-P{port}", f"-u{server.admin.user}", "--default-character-set=utf8mb4"]
    command += [f"--password={server.admin.password.reveal()}", empty.url.database]
    for path in sorted((sql_folder() / "migrations").glob("*.sql")):
        subprocess.run(command, input=path.read_bytes(), check=True, capture_output=True)
    assert migrate.check(empty) == NEWEST
    assert [row["checksum"] for row in rows(empty, "SELECT checksum FROM schema_migration")] == [None] * NEWEST
    assert migrate.migrate(empty) == []
    signed = rows(empty, "SELECT checksum FROM schema_migration ORDER BY version")
    assert [row["checksum"] for row in signed] == [each.checksum for each in migrate.migrations()]


def test_a_later_migration_is_applied_to_a_database_in_use(empty: Database, folder: Path) -> None:
    migrate.migrate(empty)
    label = f"{NEWEST + 1:04}_more"
    (folder / f"{label}.sql").write_text(
        "CREATE TABLE IF NOT EXISTS more (a INT); -- a comment; with a semicolon\n"
        "INSERT INTO more SELECT 1 WHERE NOT EXISTS (SELECT * FROM more);\n"
        f"INSERT IGNORE INTO schema_migration (version, name) VALUES ({NEWEST + 1}, 'more');\n"
    )
    with pytest.raises(SchemaMismatch, match=rf"at version {NEWEST}, this version needs {NEWEST + 1}: run `ai-worker migrate`"):
        migrate.check(empty, folder)
    assert migrate.migrate(empty, folder) == [label]
    assert migrate.check(empty, folder) == NEWEST + 1


def test_a_statement_that_fails_leaves_the_migration_pending(empty: Database, folder: Path) -> None:
    migrate.migrate(empty)
    path = folder / f"{NEWEST + 1:04}_broken.sql"
    end = f"INSERT IGNORE INTO schema_migration (version, name) VALUES ({NEWEST + 1}, 'broken');"
    path.write_text(f"CREATE TABLE IF NOT EXISTS more (a INT);\nCREATE TABEL oops (a INT);\n{end}")
    with pytest.raises(DatabaseError, match="TABEL"):
        migrate.migrate(empty, folder)
    path.write_text(f"CREATE TABLE IF NOT EXISTS more (a INT);\n{end}")
    assert migrate.migrate(empty, folder) == [path.stem]


def test_check_of_a_database_without_tables(empty: Database) -> None:
    with pytest.raises(SchemaMismatch, match=r"not there yet.*run `ai-worker migrate`") as caught:
        migrate.check(empty)
    assert caught.value.exit_code == 78


def test_a_database_that_is_ahead_is_taken_as_long_as_it_was_only_added_to(empty: Database) -> None:
    migrate.migrate(empty)
    rows(empty, "INSERT INTO schema_migration (version, name) VALUES (98, 'future')")
    assert migrate.check(empty) == 98
    assert migrate.migrate(empty) == []
    rows(empty, f"INSERT INTO schema_migration (version, name, compatible_from) VALUES (99, 'more', {NEWEST})")
    assert migrate.check(empty) == 99
    rows(
        empty,
        "INSERT INTO schema_migration (version, name, compatible_from) VALUES (100, 'a', 97), (101, 'b', 98), (102, 'c', 1)",
    )
    message = f"knows schema {NEWEST}, the database has 102, where programs for schema 98 or later can work: upgrade ai-worker"
    for refuse in (migrate.check, migrate.migrate):
        with pytest.raises(SchemaMismatch, match=message) as caught:
            refuse(empty)
        assert caught.value.exit_code == 78


def test_a_migration_that_takes_something_away_says_so_in_the_database(empty: Database, folder: Path) -> None:
    migrate.migrate(empty)
    for version, header in ((NEWEST + 1, ""), (NEWEST + 2, f"-- Drops a table.\n-- compatible from: {NEWEST + 1}\n")):
        text = f"{header}INSERT IGNORE INTO schema_migration (version, name) VALUES ({version}, 'm');\n"
        (folder / f"{version:04}_m.sql").write_text(text)
    assert migrate.migrate(empty, folder) == [f"{NEWEST + 1:04}_m", f"{NEWEST + 2:04}_m"]
    kept = rows(empty, f"SELECT version, compatible_from FROM schema_migration WHERE version >= {NEWEST}")
    assert [row["compatible_from"] for row in kept] == [1, 1, NEWEST + 1]
    with pytest.raises(SchemaMismatch, match=f"programs for schema {NEWEST + 1} or later"):
        migrate.check(empty)
    (folder / f"{NEWEST + 2:04}_m.sql").unlink()
    assert migrate.check(empty, folder) == NEWEST + 2  # the version between


@pytest.mark.parametrize("declared", ["", "0", "3", "x", "1\n-- compatible from: 1"])
def test_a_declaration_that_cannot_be_is_refused(tmp_path: Path, declared: str) -> None:
    (tmp_path / "0001_core.sql").write_text("SELECT 1;")
    (tmp_path / "0002_more.sql").write_text(f"-- compatible from: {declared}\nSELECT 1;")
    with pytest.raises(ConfigurationError, match="compatible from"):
        migrate.migrations(tmp_path)


def test_another_text_of_a_migration_is_refused(empty: Database, folder: Path) -> None:
    migrate.migrate(empty)
    path = folder / f"{LABELS[0]}.sql"
    path.write_text(path.read_text() + "-- changed\n")
    for function in (migrate.check, migrate.migrate):
        with pytest.raises(SchemaMismatch, match=f"sql/migrations/{LABELS[0]}.sql"):
            function(empty, folder)


def test_line_ends_do_not_matter(empty: Database, folder: Path) -> None:
    """A checkout on Windows may have other ones."""
    migrate.migrate(empty)
    for path in folder.glob("*.sql"):
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert migrate.check(empty, folder) == NEWEST


def test_a_missing_database_is_made(server: TestServer, empty: Database) -> None:
    server.execute(f"DROP DATABASE {empty.url.database}")
    assert migrate.migrate(empty) == LABELS
    charset = rows(empty, "SELECT @@character_set_database AS c")
    assert charset == [{"c": "utf8mb4"}]


@pytest.fixture
def stranger(server: TestServer) -> Iterator[str]:
    """A user without any privilege, with a password that is not plain ASCII."""
    name = f"ai_stranger_{os.getpid()}"
    server.execute(f"CREATE USER {name}@'%' IDENTIFIED BY 'Zażółć.1'")
    yield name
    server.execute(f"DROP USER {name}@'%'")


@pytest.mark.parametrize("exists", [True, False])
def test_a_user_who_may_not_create_it(server: TestServer, empty: Database, stranger: str, exists: bool) -> None:
    name = empty.url.database
    server.execute(f"GRANT SELECT ON {name}.* TO {stranger}@'%'", *([] if exists else [f"DROP DATABASE {name}"]))
    database = Database(parse_database_url(server.url(name, stranger), "Zażółć.1"))
    with pytest.raises(ConfigurationError, match="CREATE, ALTER" if exists else "may not create it.*CREATE DATABASE"):
        migrate.migrate(database)
    database.close()


def test_an_unreachable_server_is_a_temporary_failure() -> None:
    database = Database(parse_database_url("mysql://a@127.0.0.1:1/b?connect_timeout=1"), patience=0.1)
    with pytest.raises(DatabaseAway):
        migrate.migrate(database)


@pytest.mark.parametrize(
    ("text", "statements"),
    [
        ("SELECT 1;\nSELECT 2;\n", ["SELECT 1", "SELECT 2"]),
        ("SELECT 1", ["SELECT 1"]),
        ("", []),
        (" ;;\n-- nothing; here\n# nor; here\n/* nor; here */ ;", []),
        (
            "SELECT ';', \"a;b\", `c;d`, 'it''s; \\'; fine';SELECT 2",
            ["SELECT ';', \"a;b\", `c;d`, 'it''s; \\'; fine'", "SELECT 2"],
        ),
        ("SELECT 5--1; -- a comment; still\nSELECT '-- none';", ["SELECT 5--1", "SELECT '-- none'"]),
        ("SELECT 4/2 /* a ' quote; */, 1;", ["SELECT 4/2 , 1"]),
        ("/*!80000 SET @a = 1 */;", ["/*!80000 SET @a = 1 */"]),
        ("SELECT 'zażółć; gęślą';\r\nSELECT 'jaźń'", ["SELECT 'zażółć; gęślą'", "SELECT 'jaźń'"]),
    ],
)
def test_split(text: str, statements: list[str]) -> None:
    assert migrate.split(text) == statements


@pytest.mark.parametrize("name", ["0002_later.sql", "1_core.sql", "0001-core.sql", "core.sql"])
def test_misnamed_migrations_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("SELECT 1;")
    with pytest.raises(ConfigurationError, match=r"NNNN_name\.sql"):
        migrate.migrations(tmp_path)


def test_no_migrations_at_all(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="incomplete"):
        migrate.migrations(tmp_path)


@pytest.fixture
def fresh(empty_database_url: str, tmp_path: Path) -> Iterator[Programs]:
    """Starts commands on a database without tables."""
    programs = Programs(empty_database_url, tmp_path)
    yield programs
    programs.close()


def test_the_command(fresh: Programs) -> None:
    before = fresh.run("migrate", "--check")
    assert (before.returncode, before.stdout) == (78, "")
    assert "run `ai-worker migrate`" in before.stderr
    done = fresh.run("migrate")
    assert (done.returncode, done.stdout) == (0, "".join(f"applied {label}\n" for label in LABELS))
    again = fresh.run("migrate")
    assert (again.returncode, again.stdout) == (0, f"schema is up to date ({NEWEST})\n")
    after = fresh.run("migrate", "--check")
    assert (after.returncode, after.stdout) == (0, f"schema is up to date ({NEWEST})\n")


def test_the_command_in_json(fresh: Programs) -> None:
    assert json.loads(fresh.run("migrate", "--check", "--json").stdout) == {"version": None, "needed": NEWEST, "applied": []}
    assert json.loads(fresh.run("migrate", "--json").stdout) == {"version": NEWEST, "needed": NEWEST, "applied": LABELS}
    assert json.loads(fresh.run("migrate", "--check", "--json").stdout) == {"version": NEWEST, "needed": NEWEST, "applied": []}


def test_the_command_on_a_newer_schema(fresh: Programs, empty: Database) -> None:
    migrate.migrate(empty)
    rows(empty, "INSERT INTO schema_migration (version, name) VALUES (98, 'future')")
    ended = fresh.run("migrate", "--check")
    assert (ended.returncode, ended.stdout) == (
        0,
        f"schema is newer (98) than this version of ai-worker ({NEWEST}), which can work with it\n",
    )
    assert json.loads(fresh.run("migrate", "--json").stdout) == {"version": 98, "needed": NEWEST, "applied": []}


def test_workers_and_versions(fresh: Programs, empty: Database, folder: Path) -> None:
    """A worker does not begin on a schema before its own. It goes on while a later one that only adds is put under it, and others
    of its version begin on that one; on one that takes something away they do not."""
    for path in sorted(folder.glob("*.sql"))[NEWEST - 1 :]:
        path.rename(path.with_suffix(".later"))
    migrate.migrate(empty, folder)
    refused = fresh.run("run")
    assert refused.returncode == 78
    assert f"at version {NEWEST - 1}, this version needs {NEWEST}: run `ai-worker migrate`" in refused.stderr
    migrate.migrate(empty)

    def insert(count: int) -> None:
        rows(empty, "INSERT IGNORE INTO ai_model (id_ai_model, name, provider) VALUES (1, 'echo', 'echo')")
        rows(empty, "INSERT INTO task (id_ai_model) VALUES (1)")
        text = ", ".join(["(LAST_INSERT_ID(), 'x')"] * count)
        rows(empty, f"INSERT INTO task_item (id_task, text_original) VALUES {text}")

    def wait_for(count: int) -> None:
        deadline = time.monotonic() + 20
        while rows(empty, "SELECT COUNT(*) AS n FROM task_item WHERE status_id = 1")[0]["n"] < count:
            assert time.monotonic() < deadline
            time.sleep(0.02)

    insert(5)
    daemon = fresh.start("daemon")
    wait_for(5)
    for path in folder.glob("*.later"):
        path.rename(path.with_suffix(".sql"))
    (folder / f"{NEWEST + 1:04}_more.sql").write_text(
        "ALTER TABLE task_item ADD COLUMN note VARCHAR(10) NULL;\nALTER TABLE task ADD COLUMN colour INT NOT NULL DEFAULT 1;\n"
        "CREATE TABLE more (id_more INT PRIMARY KEY);\n"
        f"INSERT IGNORE INTO schema_migration (version, name) VALUES ({NEWEST + 1}, 'more');\n"
    )
    insert(50)
    assert migrate.migrate(empty, folder) == [f"{NEWEST + 1:04}_more"]
    insert(5)
    wait_for(60)
    daemon.process.terminate()
    assert daemon.wait(30) == 0
    insert(3)
    assert json.loads(fresh.run("run", "--json").stdout)["processed"] == 3
    rows(empty, f"INSERT INTO schema_migration (version, name, compatible_from) VALUES ({NEWEST + 2}, 'less', {NEWEST + 1})")
    too_old = fresh.run("run")
    assert too_old.returncode == 78
    assert f"programs for schema {NEWEST + 1} or later can work: upgrade ai-worker" in too_old.stderr


def test_the_command_without_a_server(tmp_path: Path) -> None:
    away = Programs("mysql://a@127.0.0.1:1/b?connect_timeout=1", tmp_path).run("migrate")
    assert away.returncode == 75
    assert "127.0.0.1:1" in away.stderr
    assert "Traceback" not in away.stderr
