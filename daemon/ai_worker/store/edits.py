"""What a task's corrections have changed, summed up from the counts that each item carries in its result."""

from __future__ import annotations

import heapq
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from ai_worker.changes import Changes, Kind
from ai_worker.db import Database

_PAGE: Final = 2000  # rows at a time, of some hundred bytes each


class Edited(NamedTuple):
    """An item among the most edited ones."""

    ratio: float
    id_task_item: int
    external_key: str | None


@dataclass(slots=True)
class Edits:
    """The changes of a task's items, as far as they were counted: not those of other task types, nor of earlier versions.

    `ratio` is that of all the words together, `mean_ratio` the mean of the items' own; None where nothing was counted.
    """

    items: int = 0
    items_changed: int = 0
    words: int = 0
    changed: int = 0
    added: int = 0
    mean_ratio: float | None = None
    kinds: Mapping[Kind, int] = field(default_factory=dict)
    most_edited: list[Edited] = field(default_factory=list)

    @property
    def ratio(self) -> float | None:
        return Changes(self.words, self.changed, self.added, self.kinds).ratio if self.items else None


def edits_of(db: Database, id_task: int, most: int = 10) -> Edits:
    """Reads a task's counts, page by page, and names the `most` edited items, the worst first."""
    found = Edits()
    total = 0.0
    kinds: Counter[Kind] = Counter()
    worst: list[Edited] = []
    for row in db.pages("changes_of_items", {"id_task": id_task}, key="id_task_item", size=_PAGE):
        changes = Changes.from_json(json.loads(row["changes"])) if row["changes"] else None
        if changes is None:
            continue
        found.items += 1
        found.items_changed += bool(changes.kinds)
        found.words += changes.words
        found.changed += changes.changed
        found.added += changes.added
        kinds.update(changes.kinds)
        total += changes.ratio
        if changes.kinds:
            # Of equally edited ones the first: the heap's least, which goes first, is the last of them.
            entry = Edited(changes.ratio, -row["id_task_item"], row["external_key"])
            if len(worst) < most:
                heapq.heappush(worst, entry)
            elif most:
                heapq.heappushpop(worst, entry)
    found.kinds = kinds
    found.mean_ratio = total / found.items if found.items else None
    found.most_edited = [
        Edited(ratio, -number, key) for ratio, number, key in sorted(worst, key=lambda each: each[:2], reverse=True)
    ]
    return found
