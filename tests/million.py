"""A database with a million items in one task, as it is in the middle of the work: for tests of what must not depend on that."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tests.servers import TestDatabase, TestServer

MILLION = 1_000_000
_BATCH = 50_000


@dataclass(frozen=True)
class Huge:
    """The database, and its big task. Of each hundred items 60 are processed (half of them reviewed), 10 failed, 5 deferred."""

    url: str
    name: str
    id_task: int
    items: int


@contextmanager
def huge(server: TestServer, items: int = MILLION) -> Iterator[Huge]:
    """A new database with that many items in one task, and 1,000 small tasks behind it; for the length of the block."""
    with server.new_database() as name:
        database = TestDatabase(server, name)
        database.migrate()
        digits = " UNION ALL ".join(f"SELECT {each} AS d" for each in range(10))
        steps = ", ".join(f"({digits}) d{each}" for each in range(5))
        number = "d0.d + 10 * d1.d + 100 * d2.d + 1000 * d3.d + 10000 * d4.d"
        server.execute(
            f"USE {name}",
            "INSERT INTO ai_model (name, provider) VALUES ('m', 'echo')",
            "INSERT INTO task (id_task, id_ai_model, status_id, started_at, description, budget)"
            " VALUES (1, 1, 1, NOW(6) - INTERVAL 1 HOUR, 'Popraw błędy', 100)",
            "CREATE TABLE numbers (n INT PRIMARY KEY)",
            f"INSERT INTO numbers SELECT n FROM (SELECT {number} AS n FROM {steps}) x WHERE n < {min(_BATCH, items)}",
        )
        for _ in range(items // min(_BATCH, items)):
            server.execute(
                f"USE {name}",
                "INSERT INTO task_item (id_task, status_id, attempt, review_status_id, available_at, finished_at, error_kind,"
                " error_message, text_original, text_corrected, result, cost, tokens_input, tokens_output, reviewed_by,"
                " reviewed_at)"
                " SELECT 1, CASE WHEN n % 100 < 60 THEN 1 WHEN n % 100 < 70 THEN 3 WHEN n % 100 < 75 THEN 4 ELSE 0 END,"
                " IF(n % 100 < 75, 1, 0), IF(n % 100 < 30, 1 + n % 2, 0),"
                " IF(n % 100 BETWEEN 70 AND 74, NOW(6) + INTERVAL 1 DAY, NULL), IF(n % 100 < 70, NOW(6), NULL),"
                " IF(n % 100 BETWEEN 60 AND 74, ELT(1 + n % 3, 'bad_answer', 'content_refused', 'network'), NULL),"
                " IF(n % 100 BETWEEN 60 AND 74, CONCAT('nie wyszło ', n), NULL),"
                " REPEAT('Dzis jest ladnie a jutro nie bedzie. ', 4),"
                " IF(n % 100 < 60, REPEAT('Dziś jest ładnie, a jutro nie będzie. ', 4), NULL),"
                " IF(n % 100 < 60, JSON_OBJECT('corrected_text', 'x', 'changes', JSON_OBJECT('words', 7, 'changed', 1,"
                " 'added', 0, 'ratio', 0.1 + (n % 10) / 20, 'kinds', JSON_OBJECT('spelling', 1))), NULL), 0.0001, 100, 50,"
                " IF(n % 100 < 30, 'ala', NULL), IF(n % 100 < 30, NOW(6), NULL) FROM numbers",
            )
        server.execute(
            f"USE {name}",
            "UPDATE task SET cost = 70, records_processed = (SELECT COUNT(*) FROM task_item WHERE status_id = 1),"
            " records_failed = (SELECT COUNT(*) FROM task_item WHERE status_id = 3)",
            "INSERT INTO task (id_ai_model, status_id, started_at, finished_at, description)"
            " SELECT 1, 2, NOW(6), NOW(6), CONCAT('zadanie ', n) FROM numbers WHERE n < 1000",
            "DROP TABLE numbers",
            "ANALYZE TABLE task_item, task",
        )
        yield Huge(database.url, name, 1, items)
