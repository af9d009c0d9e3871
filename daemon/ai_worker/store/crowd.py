"""Many workers that claim the same rows at once go one at a time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from typing import Final

from ai_worker.db import Database
from ai_worker.errors import DatabaseError

# A claim that takes so long is one of many at once on the same rows: each wades through what the others have just locked, and the
# more there are the less gets done. For a while they then go one at a time, which pays from some thirty workers on.
CROWD_SECONDS: Final = 0.3
CROWD_LASTS: Final = 30.0
CROWD_PATIENCE: Final = 5


class Crowd:
    """Knows whether there is one, by how long claims take."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._lasts_until = 0.0

    @contextmanager
    def one_at_a_time(self) -> Iterator[None]:
        """In a crowd, waits for a named lock around a claim; tells it by how long the claim, or that wait, takes.

        Only a saving: a claim is as good without the lock, so nobody minds whether it was got, or lost with the connection.
        """
        began = time.monotonic()
        name = {"name": f"ai_worker.claim.{sha256(self._db.url.database.encode()).hexdigest()[:40]}"}
        in_turn = False
        if began < self._lasts_until:
            seconds = {"seconds": min(CROWD_PATIENCE, int(self._db.url.read_timeout / 2))}
            with suppress(DatabaseError):  # a server may refuse such locks; one that is away is the claim's matter
                in_turn = bool(self._db.query("take_claim_turn", {**name, **seconds})[0]["turn"])
            if not in_turn:  # whoever has it may be dead
                self._lasts_until = 0.0
            if not in_turn or time.monotonic() - began < CROWD_SECONDS:
                began = time.monotonic()
        try:
            yield
        finally:
            if in_turn:
                with suppress(DatabaseError):
                    self._db.execute("end_turn", name)
        if time.monotonic() - began > CROWD_SECONDS:
            self._lasts_until = time.monotonic() + CROWD_LASTS
