"""What `doctor` asks the database. Reads only."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from ai_worker.db import Database
from ai_worker.errors import DatabaseError

_DENIED: Final = frozenset({1142, 1143})

# What a worker does to each table. EXPLAIN checks the privileges of a statement without running it; on both servers.
_NEEDED: Final = (
    ("SELECT", "task", "SELECT * FROM task WHERE id_task = 0"),
    ("UPDATE", "task", "UPDATE task SET status_id = status_id WHERE id_task = 0"),
    ("SELECT", "task_item", "SELECT * FROM task_item WHERE id_task_item = 0"),
    ("UPDATE", "task_item", "UPDATE task_item SET status_id = status_id WHERE id_task_item = 0"),
    ("SELECT", "ai_model", "SELECT * FROM ai_model WHERE id_ai_model = 0"),
    ("UPDATE", "ai_model", "UPDATE ai_model SET stopped_kind = stopped_kind WHERE id_ai_model = 0"),
    ("SELECT", "task_attempt", "SELECT * FROM task_attempt WHERE id_task_item = 0"),
    ("INSERT", "task_attempt", "INSERT INTO task_attempt (id_task) VALUES (0)"),
    ("SELECT", "worker", "SELECT * FROM worker WHERE id_worker = 0"),
    ("INSERT", "worker", "INSERT INTO worker (host) VALUES ('')"),
    ("UPDATE", "worker", "UPDATE worker SET heartbeat_at = heartbeat_at WHERE id_worker = 0"),
)


@dataclass(frozen=True, slots=True)
class Server:
    """A server as our sessions see it. `max_allowed_packet` is in bytes; `cipher` is empty where nothing is encrypted."""

    version: str
    isolation: str
    sql_mode: frozenset[str]
    max_allowed_packet: int
    time_zone: str
    cipher: str


class Health:
    """Questions about the server, the schema's use and the rows that nothing else asks."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def server(self) -> Server:
        """The server's version and the settings of our own session."""
        found = {row["Variable_name"].lower(): row["Value"] for row in self._db.query("server_variables")}
        cipher = self._db.query("server_cipher")
        version = found["version"]
        if "mariadb" in found.get("version_comment", "").lower() and "mariadb" not in version.lower():
            version += "-MariaDB"
        return Server(
            version=version,
            # MariaDB called it tx_isolation until 11.1.
            isolation=found.get("transaction_isolation") or found.get("tx_isolation", ""),
            sql_mode=frozenset(filter(None, found["sql_mode"].split(","))),
            max_allowed_packet=int(found["max_allowed_packet"]),
            time_zone=found["time_zone"],
            cipher=cipher[0]["Value"] if cipher else "",
        )

    def now(self) -> datetime:
        """The database's time: UTC, without a zone."""
        now: datetime = self._db.query("server_clock")[0]["now"]
        return now

    def clock_skew(self) -> float:
        """By how many seconds the database's clock is ahead of this host's; the quickest of three answers counts."""
        return min((self._skew_once() for _ in range(3)), key=lambda each: each[1])[0]

    def _skew_once(self) -> tuple[float, float]:
        before = time.time()
        now: datetime = self._db.query("server_clock")[0]["now"]
        after = time.time()
        return now.replace(tzinfo=UTC).timestamp() - (before + after) / 2, after - before

    def missing_privileges(self) -> list[tuple[str, str]]:
        """The privileges on tables, as `("UPDATE", "task_item")`, that a worker needs and this user lacks."""
        missing: list[tuple[str, str]] = []
        for privilege, table, statement in _NEEDED:
            try:
                self._db.transaction(lambda transaction, sql=statement: transaction.raw(f"EXPLAIN {sql}"))  # type: ignore[misc]  # binds the loop's value
            except DatabaseError as error:
                if error.code not in _DENIED:
                    raise
                missing.append((privilege, table))
        return missing

    def open_dependencies(self) -> dict[int, set[int]]:
        """Which unfinished tasks wait for which others that have not ended either; ten thousand pairs at most."""
        waits: dict[int, set[int]] = {}
        for row in self._db.query("open_dependencies"):
            waits.setdefault(row["id_task"], set()).add(row["after_id_task"])
        return waits

    def orphan_tasks(self) -> list[int]:
        """Up to twenty values of `task_item.id_task` that no task has: such items are never processed."""
        return [row["id_task"] for row in self._db.query("orphan_tasks")]
