"""Callbacks of groups, from the database to their receivers: taken with a lease, and sent until one arrives or all are used up.

At least once: a worker that dies between the receiver's answer and its record has it sent again, with the same id.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, NamedTuple

from ai_worker.db import Database, Row, Transaction

LEASE_SECONDS: Final = 60  # of whoever sends it; well above the time that sending may take
# After so many tries, the waits between which grow from the first to the last: about three days.
TRIES: Final = 20
WAIT_FIRST, WAIT_FACTOR, WAIT_LAST = 5.0, 3.0, 6 * 3600.0
REASON_CHARACTERS: Final = 300  # of callback.last_error


@dataclass(frozen=True, slots=True)
class Callback:
    """One to be sent now. `attempts` counts the tries, this one included; `now` is the database's time in seconds since 1970."""

    id_callback: int
    id_task_group: int
    group: str
    url: str
    body: str
    secret_encrypted: bytes | None = field(repr=False)
    attempts: int
    created_at: datetime
    now: int

    @property
    def message_id(self) -> str:
        """The same at each try, and of this callback alone: the receiver drops what it has seen."""
        return f"msg_{self.id_callback}_{self.created_at:%Y%m%d%H%M%S%f}"


class GivenUp(NamedTuple):
    """A callback that needs a person."""

    group: str
    failed_at: datetime
    status: int | None
    reason: str | None


class Callbacks:
    """The verbs of a worker on the table `callback`."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def take(self) -> list[Callback]:
        """Up to ten that are due; nobody else gets them within the next minute."""

        def work(tx: Transaction) -> list[Row]:
            found = [row["id_callback"] for row in tx.query("lock_due_callbacks")]
            if not found:
                return []
            tx.execute("take_callbacks", {"callbacks": found, "lease": LEASE_SECONDS})
            return tx.query("taken_callbacks", {"callbacks": found})

        return [_callback(row) for row in self._db.transaction(work)]

    def delivered(self, callback: Callback, status: int) -> None:
        """The receiver answered with 2xx."""
        self._db.execute("callback_delivered", {"id_callback": callback.id_callback, "status": status})

    def missed(self, callback: Callback, status: int | None, reason: str) -> float | None:
        """It did not arrive. In how many seconds it is sent again; None: it is given up."""
        values: dict[str, Any] = {"id_callback": callback.id_callback, "attempts": callback.attempts, "status": status}
        values["reason"] = reason[:REASON_CHARACTERS]
        if callback.attempts >= TRIES:
            self._db.execute("callback_failed", values)
            return None
        delay = wait_after(callback.attempts) * random.uniform(0.9, 1.1)  # noqa: S311 -- jitter
        self._db.execute("callback_put_off", {**values, "delay_us": int(delay * 1e6)})
        return delay

    def given_up(self) -> list[GivenUp]:
        """Those that were given up, at most twenty."""
        rows = self._db.query("failed_callbacks")
        return [GivenUp(row["name"], row["failed_at"], row["last_status"], row["last_error"]) for row in rows]


def wait_after(tries: int) -> float:
    """Seconds before the next try, when so many have failed."""
    return min(WAIT_FIRST * WAIT_FACTOR ** min(tries - 1, 20), WAIT_LAST)


def _callback(row: Row) -> Callback:
    return Callback(
        id_callback=row["id_callback"],
        id_task_group=row["id_task_group"],
        group=row["name"],
        url=row["callback_url"] or "",
        body=row["body"],
        secret_encrypted=None if row["secret_encrypted"] is None else bytes(row["secret_encrypted"]),
        attempts=row["attempts"],
        created_at=row["created_at"],
        now=int(row["now"]),
    )
