"""Requests that carried an Idempotency-Key, and how they were answered; for all instances of the web together."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Final, NamedTuple

from ai_worker.db import Database, Transaction

HELD_SECONDS: Final = 120  # after which a request under way is taken for dead, with the process that made it
KEPT_SECONDS: Final = 86_400
LONGEST_BODY: Final = 1 << 20  # characters of an answer that is kept


class Answered(NamedTuple):
    """An earlier answer to the same request."""

    status: int
    headers: Mapping[str, str]
    body: str


class WebRequests:
    """One row for each key of a token."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def begin(self, id_api_token: int, key: str, digest: bytes) -> Answered | bool | None:
        """Holds the key for this request and returns True; or its earlier answer; False while an earlier one is still under way;
        None where the key came with another request."""
        where = {"id_api_token": id_api_token, "idempotency_key": key}
        self._db.execute("forget_web_requests")

        def work(tx: Transaction) -> Answered | bool | None:
            # The row first, held by nobody; then its lock: of several who come at once, one finds it free.
            tx.execute("insert_web_request", {**where, "digest": digest, "kept": KEPT_SECONDS})
            row = tx.query("lock_web_request", where)[0]
            if row["digest"] != digest:
                return None
            if row["status"] is not None:
                return Answered(row["status"], json.loads(row["headers"]), row["body"])
            if row["is_free"]:
                tx.execute("hold_web_request", {**where, "held": HELD_SECONDS})
                return True
            return False

        return self._db.transaction(work)

    def end(self, id_api_token: int, key: str, answered: Answered) -> None:
        """Keeps the answer for a day."""
        values = {"status": answered.status, "headers": json.dumps(dict(answered.headers)), "body": answered.body}
        self._db.execute("end_web_request", {"id_api_token": id_api_token, "idempotency_key": key, **values})

    def give_up(self, id_api_token: int, key: str) -> None:
        """The request came to nothing: sent again, it is made anew."""
        self._db.execute("drop_web_request", {"id_api_token": id_api_token, "idempotency_key": key})
