"""How a model's calls in flight are shared out among workers: each gets as many as it wants, as far as that is fair."""

from __future__ import annotations

from collections.abc import Sequence

from ai_worker.db import Database, Transaction


class Shares:
    """The verb of `ai_model_share`. May be called from any thread."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def renew(self, id_worker: int, id_ai_model: int, wanted: int, held: int, limit: int) -> int:
        """Says how many calls the worker wants to have in flight, and how many it has; how many it may have from now on.

        The shares of all living workers together are no more than the limit: what one is to give up, another gets when the calls
        have ended, and it asks again. With nothing wanted and nothing held, the share ends.
        """

        def work(tx: Transaction) -> int:
            tx.execute("lock_pace", {"id_ai_model": id_ai_model})  # one after the other
            before = 0
            others: list[tuple[int, int]] = []
            dead: list[int] = []
            for row in tx.query("shares", {"id_ai_model": id_ai_model}):
                if row["id_worker"] == id_worker:
                    before = row["granted"]
                elif row["is_alive"]:
                    others.append((row["wanted"], row["granted"]))
                else:
                    dead.append(row["id_worker"])
            taken = sum(granted for _, granted in others)
            fair: int = max(0, min(fair_share(limit, wanted, [each for each, _ in others]), limit - taken))
            granted = max(fair, min(held, before))  # what it still has is nobody else's yet
            if wanted or held:
                tx.execute(
                    "put_share", {"id_ai_model": id_ai_model, "id_worker": id_worker, "wanted": wanted, "granted": granted}
                )
            else:
                dead.append(id_worker)
            if dead:
                tx.execute("end_shares", {"id_ai_model": id_ai_model, "workers": sorted(dead)})
            return fair

        return self._db.transaction(work)


def fair_share(limit: int, wanted: int, others: Sequence[int]) -> int:
    """What one gets of the limit: who wants little gets it, the rest is divided evenly among those who want more, rounded up."""
    left, remaining = limit, sorted([wanted, *others])
    while remaining:
        level = max(1, -(-left // len(remaining)))  # of fewer than there are workers, the first ones get one each
        if wanted <= level:
            return wanted
        smallest = remaining.pop(0)
        if smallest > level:
            return level
        left -= smallest
    return 0
