"""Somebody else's database on the server under test, and tasks that were imported from it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tests.conftest import Sql
from tests.integration.commands import Commands
from tests.servers import TestServer

PASSWORD = "Test.1-zxcvb"


@dataclass(frozen=True)
class Shop:
    """A database beside the one of AI Worker. `sql` speaks to it."""

    server: TestServer
    name: str
    sql: Sql

    def articles(self, *texts: str | None, definition: str = "id INT NOT NULL PRIMARY KEY, body TEXT NULL") -> str:
        """Makes the table `articles` with a row for each text, their ids from 1; its name with the database's."""
        self.sql(f"CREATE TABLE articles ({definition}) DEFAULT CHARACTER SET utf8mb4")
        for number, text in enumerate(texts, start=1):
            self.sql("INSERT INTO articles (id, body) VALUES (%s, %s)", [number, text])
        return f"{self.name}.articles"

    def bodies(self) -> dict[Any, str]:
        return {row["id"]: row["body"] for row in self.sql("SELECT id, body FROM articles ORDER BY id")}

    @contextmanager
    def user(self, name: str, *rights: str) -> Iterator[str]:
        """A user with these rights on `articles`; the URL with which it comes to this database."""
        self.server.execute(f"CREATE USER {name}@'%' IDENTIFIED BY '{PASSWORD}'")
        try:
            for right in rights:
                self.server.execute(f"GRANT {right} ON {self.name}.articles TO {name}@'%'")
            yield self.server.url(self.name, name, PASSWORD)
        finally:
            self.server.execute(f"DROP USER {name}@'%'")


@contextmanager
def shop(server: TestServer) -> Iterator[Shop]:
    with server.new_database() as name, server.connect(name) as connection, connection.cursor() as cursor:

        def run(statement: str, parameters: Any = None) -> list[dict[str, Any]]:
            cursor.execute(statement, parameters)
            return list(cursor.fetchall())

        yield Shop(server, name, run)


def imported(ai_worker: Commands, table: str, *more: str) -> int:
    """A task of all rows of a table."""
    ended = ai_worker("import", "--table", table, "--column", "body", "--json", *more)
    assert ended.code == 0, ended.err
    id_task: int = ended.json["id_task"]
    return id_task


def accepted(ai_worker: Commands, sql: Sql, id_task: int) -> None:
    """All items of a task are processed, `!` after each text, and accepted."""
    sql(
        "UPDATE task_item SET status_id = 1, attempt = 1, finished_at = NOW(6), text_corrected = CONCAT(text_original, '!') "
        "WHERE id_task = %s",
        [id_task],
    )
    ended = ai_worker("review", str(id_task), "all", "accept", "--by", "Żaneta")
    assert ended.code == 0, ended.err
