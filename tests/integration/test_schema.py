"""sql/schema.sql says in one piece what the migrations say one after the other."""

from __future__ import annotations

import re

import pymysql

from ai_worker import migrate
from ai_worker.database_url import parse_database_url
from ai_worker.db import Database, sql_folder
from tests.servers import TestServer


def tables(connection: pymysql.Connection) -> dict[str, str]:
    """SHOW CREATE TABLE of every table, and the rows of the dictionaries."""
    found = {}
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT table_name AS t FROM information_schema.tables WHERE table_schema = DATABASE() ORDER BY table_name"
        )
        for row in cursor.fetchall():
            cursor.execute(f"SHOW CREATE TABLE {row['t']}")
            made = re.sub(r" AUTO_INCREMENT=\d+", "", cursor.fetchone()["Create Table"])
            # MySQL shows the character set of a CHECK's literals as it was when the table was last altered.
            found[row["t"]] = re.sub(r"\b_(?:ascii|utf8mb4)(?=')", "", made)
        for dictionary in ("task_status", "task_item_status", "review_status"):
            cursor.execute(f"SELECT * FROM {dictionary} ORDER BY 1")
            found[f"rows of {dictionary}"] = str(cursor.fetchall())
        cursor.execute("SELECT version, name FROM schema_migration ORDER BY version")
        found["rows of schema_migration"] = str(cursor.fetchall())
    return found


def test_schema_sql_equals_the_migrations(server: TestServer) -> None:
    with server.new_database() as by_migrations, server.new_database() as at_once:
        database = Database(parse_database_url(server.url(by_migrations)))
        migrate.migrate(database)
        database.close()
        with server.connect(at_once) as connection, connection.cursor() as cursor:
            for statement in migrate.split((sql_folder() / "schema.sql").read_text(encoding="utf-8")):
                cursor.execute(statement)
            expected = tables(connection)
        with server.connect(by_migrations) as connection:
            assert tables(connection) == expected
        assert "CREATE TABLE `task_item`" in expected["task_item"]
