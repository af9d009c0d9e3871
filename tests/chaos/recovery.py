"""How long after its worker's death an item is free again, kill by kill, and what the dead held.

A lease is reckoned by the database's clock and kept by heartbeats in the database: while no worker can reach it, nobody can prove
that he lives, and nobody may be held for dead. Times are therefore counted from the kill, or from the end of an outage that lay
between the kill and the rescue.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tests.conftest import Sql

LOOK_SECONDS = 0.1  # between two looks: so much may each time be too long

SETTLED_SECONDS = 0.5  # what a dead worker had sent off may land for so long


@dataclass
class Loss:
    """A worker that was killed, or frozen for longer than its lease. Times are of the monotonic clock."""

    name: str
    at: float
    held: int = 0
    free_at: float | None = None
    outage_until: float | None = None  # the end of the last outage before it was rescued

    @property
    def seconds(self) -> float:
        """From the loss, or from the end of an outage since, until the worker held nothing any more."""
        assert self.free_at is not None
        return self.free_at - max(self.at, self.outage_until or 0.0)


class Recovery:
    """Watches the claims of the lost from a thread of its own.

    sql: a connection for that thread alone, which waits for a server that is away.
    """

    def __init__(self, sql: Sql) -> None:
        self._sql = sql
        self.losses: list[Loss] = []
        self._outages: list[tuple[float, float]] = []
        self._open_outages = 0
        self._lock = threading.Lock()
        self._held: dict[str, int] = {}
        self._names: dict[int, str] = {}

    def lost(self, name: str) -> Loss:
        """This worker is dead as of now, or as good as dead."""
        loss = Loss(name, time.monotonic())
        with self._lock:
            self.losses.append(loss)
        return loss

    def holding(self) -> dict[str, int]:
        """How many items each worker held at the last look, by name."""
        return self._held

    @contextmanager
    def outage(self) -> Iterator[None]:
        """The database cannot be reached by the workers for the length of the block."""
        began = time.monotonic()
        with self._lock:
            self._open_outages += 1
        try:
            yield
        finally:
            with self._lock:
                self._open_outages -= 1
                self._outages.append((began, time.monotonic()))

    def watch(self, until: Callable[[], bool]) -> None:
        """Looks again and again, until told to end and nobody lost holds anything any more."""
        while not (until() and all(loss.free_at is not None for loss in self.losses)):
            self.look()
            time.sleep(LOOK_SECONDS)

    def look(self) -> None:
        with self._lock:
            waiting = [loss for loss in self.losses if loss.free_at is None]
        rows = self._sql(
            "SELECT i.id_worker, COUNT(*) AS items FROM task t"
            " JOIN task_item i ON i.id_task = t.id_task AND i.status_id = 2 GROUP BY i.id_worker"  # by the index of the claims
        )
        held: dict[str, int] = {}
        for row in rows:
            name = self._name(row["id_worker"])
            held[name] = held.get(name, 0) + row["items"]
        self._held, now = held, time.monotonic()
        for loss in waiting:
            loss.held = max(loss.held, held.get(loss.name, 0))
            if loss.name not in held and now - loss.at > SETTLED_SECONDS:
                with self._lock:
                    loss.outage_until = max((end for _, end in self._outages if loss.at < end <= now), default=None)
                    is_in_outage = self._open_outages > 0
                if not is_in_outage:  # the answer may be older than the outage: look again after it
                    loss.free_at = now

    def _name(self, id_worker: Any) -> str:
        if id_worker not in self._names:
            (row,) = self._sql("SELECT host FROM worker WHERE id_worker = %s", [id_worker])
            self._names[id_worker] = row["host"]
        return self._names[id_worker]

    def seconds(self, *, disturbed: bool) -> Sequence[float]:
        """The times of those who held something: with an outage of the database in between, or without."""
        return [loss.seconds for loss in self.losses if loss.held and (loss.outage_until is not None) == disturbed]

    @property
    def held(self) -> int:
        """How many items all of the lost held, together: more calls cannot have been in flight at the kills."""
        return sum(loss.held for loss in self.losses)
