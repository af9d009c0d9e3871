"""Results that were to be kept only for a while: cleared when their time is over, in small transactions."""

from __future__ import annotations

from functools import partial
from typing import Final

from ai_worker.db import Database, Transaction
from ai_worker.models import ItemStatus
from ai_worker.store.encoding import document

BATCH: Final = 200  # items cleared in one transaction: their texts may be long
BATCHES: Final = 25  # in one step of the upkeep
_DONE: Final = (ItemStatus.PROCESSED, ItemStatus.ERROR, ItemStatus.CANCELLED)


class Expiry:
    """The verbs of a worker on results whose time is over. Cut short, it simply begins again: to clear twice does no harm."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._done: dict[int, tuple[int, int]] = {}  # where it has stopped in a task: the place of a status in _DONE, and an item

    def clear_some(self) -> list[int]:
        """Clears up to five thousand items of tasks whose results' time is over; the tasks that are cleared altogether."""
        cleared = []
        left = BATCHES
        for id_task in [row["id_task"] for row in self._db.query("expired_tasks")]:
            place, after = self._done.pop(id_task, (0, 0))
            while place < len(_DONE) and left > 0:
                where = {"id_task": id_task, "status_id": int(_DONE[place]), "after": after, "size": BATCH}
                items = [row["id_task_item"] for row in self._db.query("items_in_status", where)]
                if items:
                    self._db.transaction(partial(_clear, id_task, items))
                    after = items[-1]
                    left -= 1
                if len(items) < BATCH:
                    place, after = place + 1, 0
            if place < len(_DONE):
                self._done[id_task] = (place, after)
                break
            if self._db.execute("results_expired", {"id_task": id_task}):
                cleared.append(id_task)
        return cleared


def _clear(id_task: int, items: list[int], tx: Transaction) -> None:
    """Not what was brought back since the look, nor anything of a task that goes on: its new results have yet to be read."""
    rows = tx.query("lock_committed", {"items": items})
    done = [row["id_task_item"] for row in rows if row["status_id"] in _DONE]
    if not done or not tx.query("has_expired", {"id_task": id_task}):
        return
    tx.execute("clear_results", {"items": done})
    for verb in ("clear_steps", "clear_files"):
        tx.execute(verb, {"rows": document([{"id": each} for each in done])})
