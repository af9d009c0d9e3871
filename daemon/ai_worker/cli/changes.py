"""What corrections have changed, for `status ID --changes` and the page of results."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ai_worker import formats
from ai_worker.changes import Kind
from ai_worker.output.marked import LABELS, percent
from ai_worker.store.edits import Edits


def as_dict(edits: Edits) -> dict[str, Any]:
    """As `status ID --changes --json` prints it."""
    return {
        "items": edits.items,
        "items_changed": edits.items_changed,
        "words": edits.words,
        "changed": edits.changed,
        "added": edits.added,
        "ratio": _rounded(edits.ratio),
        "mean_ratio": _rounded(edits.mean_ratio),
        "kinds": {kind.value: edits.kinds[kind] for kind in Kind if edits.kinds.get(kind)},
        "most_edited": [
            {"id_task_item": each.id_task_item, "external_key": each.external_key, "ratio": _rounded(each.ratio)}
            for each in edits.most_edited
        ],
    }


def lines(edits: Edits) -> Iterator[str]:
    """As `status ID --changes` prints it."""
    if not edits.items:
        yield "none were counted: only corrections count them"
        return
    yield f"{formats.number(edits.items_changed)} of {formats.number(edits.items)} items changed"
    yield f"over-editing {percent(edits.ratio)} of all words, {percent(edits.mean_ratio)} of an item's on average"
    if counts := kinds_line(edits):
        yield counts
    for each in edits.most_edited:
        key = f" ({each.external_key})" if each.external_key else ""
        yield f"item {each.id_task_item}{key}: {percent(each.ratio)}"


def kinds_line(edits: Edits) -> str:
    """`12 spelling, 3 punctuation`, the most frequent first."""
    counts = sorted(edits.kinds.items(), key=lambda each: -each[1])
    return ", ".join(f"{formats.number(count)} {LABELS[kind]}" for kind, count in counts)


def _rounded(ratio: float | None) -> float | None:
    return None if ratio is None else round(ratio, 4)
