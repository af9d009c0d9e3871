"""What is drawn into prompts beside the items: earlier results and facts of the same subject, reviewed items of the same task.

Everything here reads alone, by index, and may be called from any thread.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from itertools import chain, zip_longest
from typing import Final, TypeVar

from ai_worker.db import Database
from ai_worker.models import NO_BACKGROUND, Background, Example, Item, Needs
from ai_worker.text import estimate_tokens

T = TypeVar("T", bound=tuple[str, ...])

EXAMPLES_SECONDS: Final = 10.0  # how long reviewed examples serve a task's items: they are the same for all of them
TASKS_KEPT: Final = 100  # whose examples are at hand
CHARACTERS_PER_TOKEN: Final = 4  # at most: see `estimate_tokens`
ACCEPTED: Final = 1  # task_item_review.review_status_id


class Backgrounds:
    """Draws backgrounds, bounded in number and tokens; where not all has room, the oldest is left out."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._examples: dict[tuple[int, int, int], tuple[float, tuple[tuple[int, Example], ...]]] = {}

    def draw(self, wanted: Sequence[tuple[Item, Needs]]) -> list[Background]:
        """The background of each item, in order. An item about nobody has neither earlier results nor facts."""
        facts: dict[tuple[str, int, int], tuple[str, ...]] = {}
        return [self._of(item, needs, facts) for item, needs in wanted]

    def _of(self, item: Item, needs: Needs, known: dict[tuple[str, int, int], tuple[str, ...]]) -> Background:
        results: tuple[tuple[str, str], ...] = ()
        facts: tuple[str, ...] = ()
        if item.subject is not None and needs.facts:
            most = needs.tokens // 2 if needs.results else needs.tokens  # facts are shorter, and must not crowd out the rest
            place = item.subject, needs.facts, most
            if place not in known:
                known[place] = self._facts(*place)
            facts = known[place]
        if item.subject is not None and needs.results:
            results = self._results(item, item.subject, needs, needs.tokens - sum(map(estimate_tokens, facts)))
        others = [each for key, each in self._reviewed(item.task.id_task, needs) if key != item.id_task_item]
        examples = tuple(sorted(others[: needs.examples], key=lambda each: not each.is_accepted))
        if not (results or facts or examples):
            return NO_BACKGROUND
        return Background(results, facts, examples)

    def _results(self, item: Item, context_key: str, needs: Needs, tokens: int) -> tuple[tuple[str, str], ...]:
        values = {"context_key": context_key, "before": item.id_task_item, "size": needs.results, "longest": _longest(tokens)}
        types = {"any_type": not needs.types, "types": needs.types or ("",)}
        rows = self._db.query("earlier_results", {**values, **types})
        return _newest(((row["text_original"], row["result"]) for row in rows), tokens)

    def _facts(self, context_key: str, size: int, tokens: int) -> tuple[str, ...]:
        rows = self._db.query("newest_facts", {"context_key": context_key, "size": size})
        return tuple(fact for (fact,) in _newest(((row["fact"],) for row in rows), tokens))

    def _reviewed(self, id_task: int, needs: Needs) -> tuple[tuple[int, Example], ...]:
        """One more than is wanted, since an item is no example to itself; with the item's key, accepted and rejected by turns."""
        if not needs.examples:
            return ()
        place = id_task, needs.examples, needs.tokens
        drawn_at, examples = self._examples.get(place, (float("-inf"), ()))
        if time.monotonic() - drawn_at > EXAMPLES_SECONDS:
            examples = self._drawn(id_task, needs.examples + 1, needs.tokens)
            self._examples.pop(place, None)
            self._examples[place] = time.monotonic(), examples
            if len(self._examples) > TASKS_KEPT:
                del self._examples[next(iter(self._examples))]
        return examples

    def _drawn(self, id_task: int, size: int, tokens: int) -> tuple[tuple[int, Example], ...]:
        rows = self._db.query("reviewed_examples", {"id_task": id_task, "size": size, "longest": _longest(tokens)})
        newest: dict[int, Example] = {}  # an item that was accepted twice is one example
        for row in rows:
            is_accepted = row["review_status_id"] == ACCEPTED
            newest.setdefault(row["id_task_item"], Example(row["text_original"], row["answer"], is_accepted, row["note"]))
        accepted = [pair for pair in newest.items() if pair[1].is_accepted]
        rejected = [pair for pair in newest.items() if not pair[1].is_accepted]
        by_turns = [pair for pair in chain.from_iterable(zip_longest(accepted, rejected)) if pair is not None]
        kept: list[tuple[int, Example]] = []
        for key, example in by_turns[:size]:
            tokens -= sum(estimate_tokens(text) for text in (example.text, example.answer, example.note or ""))
            if tokens < 0:
                break
            kept.append((key, example))
        return tuple(kept)


def _longest(tokens: int) -> int:
    """Characters of a text that need be read to see that it has no room."""
    return CHARACTERS_PER_TOKEN * max(0, tokens) + CHARACTERS_PER_TOKEN


def _newest(rows: Iterable[T], tokens: int) -> tuple[T, ...]:
    """Of rows with the newest first those that have room together, without a gap; the oldest first."""
    kept: list[T] = []
    for row in rows:
        tokens -= sum(map(estimate_tokens, row))
        if tokens < 0:
            break
        kept.append(row)
    return tuple(reversed(kept))
