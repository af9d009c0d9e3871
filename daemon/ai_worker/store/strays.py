"""Items that the database has as a worker's own: for a worker that looks whether it knows of all of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from typing import NamedTuple

from ai_worker.db import Database, Transaction
from ai_worker.store.ledger import settle


class Held(NamedTuple):
    """An item in progress, and the claim that it is in progress under."""

    id_task_item: int
    id_task: int
    claim_token: bytes


class Strays:
    """The verbs."""

    def __init__(self, db: Database) -> None:
        self._db = db

    @property
    def losses(self) -> int:
        """How many connections this process has lost so far: without a loss, nothing can be astray."""
        return self._db.losses

    def held(self, id_worker: int) -> list[Held]:
        """All that this worker holds, as the database has it; of very many, five thousand."""
        return [Held(**row) for row in self._db.query("claims_of_worker", {"id_worker": id_worker})]

    def give_back(self, strays: Collection[Held]) -> int:
        """Makes these claimable again as if they had never been claimed; how many. Whose claim is over is left alone."""
        by_token: defaultdict[bytes, list[int]] = defaultdict(list)
        for stray in strays:
            by_token[stray.claim_token].append(stray.id_task_item)

        def work(tx: Transaction) -> int:
            freed = sum(
                tx.execute("unclaim", {"items": sorted(items), "claim_token": token}) for token, items in sorted(by_token.items())
            )
            settle(tx, {}, {stray.id_task for stray in strays}, {stray.id_task_item: stray.id_task for stray in strays})
            return freed

        return self._db.transaction(work)
