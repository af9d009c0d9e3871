"""Whose turn it is to listen: of all idle workers that want the same, one waits for new items, and the others wait for its turn.

The turn is a named lock of the server's (GET_LOCK). It belongs to a session and is free again when that ends, however it ends: a
session that says nothing for `SILENCE` seconds is closed by the server itself, so that a host without power holds nothing up.

A turn is only ever a saving. Whoever finds work claims it as if there were no turns.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import replace
from typing import Final

from ai_worker.db import Database
from ai_worker.errors import DatabaseAway
from ai_worker.models import Filters, QueueShare

SILENCE: Final = 10  # seconds without a word from the listener until the server takes its turn away
MOST_LOOKS: Final = 900  # MySQL ends a recursion after a thousand steps
LOOK_SECONDS: Final = 0.001  # between two looks of `wait_for_items`; that statement names it too


class Turns:
    """The listener's verbs, on a connection of its own, since it waits in the server. For one thread, but for `close`."""

    def __init__(self, database: Database) -> None:
        self._db = database
        self._is_closed = False

    def name(self, filters: Filters, busy_models: Iterable[int]) -> str:
        """The turn's name: the same for all who want the same of the same database. At most 64 characters, as MySQL has it."""
        queues = tuple(sorted({QueueShare(queue.name) for queue in filters.queues}))  # whatever they weigh
        wanted = (self._db.url.database, replace(filters, queues=queues), tuple(sorted(set(busy_models))))
        return f"ai_worker.{hashlib.sha256(repr(wanted).encode()).hexdigest()[:40]}"

    def take(self, name: str, seconds: float) -> bool | None:
        """Waits up to `seconds` (in whole ones, at least one) for the turn. None where the server knows no turns.

        Raises DatabaseAway.
        """
        silence = {"silence": SILENCE}
        parameters = {"name": name, "seconds": max(1, round(min(seconds, self._db.url.read_timeout / 2))), **silence}
        self._connect()
        (row,) = self._db.query("take_turn", parameters)
        if row["turn"] == -1:
            self._db.execute("end_silent_sessions", silence)
            (row,) = self._db.query("take_turn", parameters)
        return bool(row["turn"]) if row["turn"] in {0, 1} else None

    def newest_item(self) -> int:
        """The highest item key there is: where `listen` goes on from."""
        newest: int = self._db.query("newest_item")[0]["id_task_item"]
        return newest

    def listen(self, name: str, after: int, seconds: float) -> int | None:
        """Waits up to `seconds`, a second at most, for an item with a key above `after`; the lowest such key, else `after`.

        Of more than fifty that are being inserted together only the first is listened for. None when the turn has been lost, with
        its session. Raises DatabaseAway.
        """
        self._connect()
        looks = min(max(1, round(seconds / LOOK_SECONDS)), MOST_LOOKS)
        parameters = {"name": name, "after": after, "looks": looks}
        self._db.execute("look_at_all")
        rows = self._db.query("wait_for_items", parameters)
        if rows and rows[0]["new_item"] < 0:
            left = {"item": -int(rows[0]["new_item"]), "looks": max(1, looks - rows[0]["n"])}
            rows = self._db.query("wait_for_item", {**parameters, **left})
            if rows and not rows[0]["new_item"]:
                return max(after, self.newest_item())  # what others have committed meanwhile
        return max(after, int(rows[0]["new_item"])) if rows else None

    def end(self, name: str) -> None:
        """The next one's turn."""
        self._connect()
        self._db.execute("end_turn", {"name": name})

    def close(self) -> None:
        """Ends the waiting of the other thread, which gets DatabaseAway from now on. Callable from any thread."""
        self._is_closed = True
        self._db.give_up()

    def disconnect(self) -> None:
        """Closes the connection. For the thread that has used it."""
        self._db.close()

    def _connect(self) -> None:
        self._db.connect()  # first: a connection that is there can be broken off by `close`
        if self._is_closed:
            raise DatabaseAway("the worker is stopping")
