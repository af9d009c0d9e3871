"""What docs/backup.md says: a snapshot that is taken while workers run is whole, and is worked off where it is restored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ai_worker import migrate
from ai_worker.database_url import parse_database_url
from ai_worker.db import Database
from ai_worker.store.queue import Queue
from tests.conftest import Sql
from tests.integration.lifecycle import Application, claim, done
from tests.servers import Programs, TestServer

TABLES = ("ai_model", "task", "task_item", "task_attempt", "worker")


def test_a_snapshot_of_a_running_fleet_is_whole_and_is_worked_off_once_restored(
    server: TestServer, database: Database, sql: Sql, tmp_path: Path
) -> None:
    """The snapshot is taken as `mariadb-dump --single-transaction` takes it: one consistent transaction, table after table."""
    application = Application(sql)
    application.items(application.task(application.model()), 30)
    queue = Queue(database)
    worker = queue.register(host="h", pid=1, version="1", mode="daemon", concurrency=9, lease_seconds=30.0)
    items = claim(queue, worker, 20)
    queue.commit(worker, [done(item) for item in items[:10]])
    with server.new_database() as name:
        url = server.url(name)
        copy = Database(parse_database_url(url))
        migrate.migrate(copy)

        def rows(statement: str) -> list[dict[str, Any]]:
            return copy.transaction(lambda tx: tx.raw(statement))

        with server.connect(database.url.database) as dump, server.connect(name) as load:
            reading, writing = dump.cursor(), load.cursor()
            reading.execute("SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            reading.execute("START TRANSACTION WITH CONSISTENT SNAPSHOT")
            queue.commit(worker, [done(item) for item in items[10:]])  # while the dump runs: it is not in it
            for table in TABLES:
                reading.execute(
                    "SELECT GROUP_CONCAT(column_name) AS names FROM information_schema.columns WHERE table_schema = DATABASE()"
                    " AND table_name = %s AND COALESCE(generation_expression, '') = ''",
                    [table],
                )
                names = reading.fetchone()["names"]
                reading.execute(f"SELECT {names} FROM {table}")
                values = [tuple(row.values()) for row in reading.fetchall()]
                writing.executemany(f"INSERT INTO {table} ({names}) VALUES ({', '.join(['%s'] * len(values[0]))})", values)
            load.commit()
            dump.rollback()
        assert rows("SELECT records_processed AS n FROM task") == [{"n": 10}]
        counts = rows("SELECT status_id, COUNT(*) AS n FROM task_item GROUP BY status_id")
        assert {row["status_id"]: row["n"] for row in counts} == {0: 10, 1: 10, 2: 10}
        gone = "heartbeat_at = NOW(6) - INTERVAL 1 HOUR, lease_until = NOW(6) - INTERVAL 50 MINUTE"
        rows(f"UPDATE worker SET {gone}")  # time passes
        assert Queue(copy).rescue().items == 10
        ended = Programs(url, tmp_path).run("run", "--json")
        assert json.loads(ended.stdout)["processed"] == 20
        twice = "SELECT id_task_item FROM task_attempt WHERE outcome = 'processed' GROUP BY id_task_item HAVING COUNT(*) > 1"
        assert not rows(twice)
        assert rows("SELECT records_processed AS n, status_id FROM task") == [{"n": 30, "status_id": 2}]
        copy.close()
