"""Two texts side by side, with what the second changes in the first marked word by word, and what each change is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from markupsafe import Markup

from ai_worker.changes import Kind, kinds_of, tallied
from ai_worker.text import diff, html_diff

LABELS: Final[Mapping[Kind, str]] = {kind: kind.value.replace("_", " ") for kind in Kind}
_UNLIKE: Final = (
    0.8  # beyond this share of changed words, a result that is no correction is no variant of its text: nothing is marked
)


class Marked(NamedTuple):
    """Both texts as HTML, escaped, or plain where nothing is marked in them; `after` is None where there is no result.

    `kinds` are the changes by what they are: code, name for people, how many; `ratio` is the share of words that they touch, None
    where the texts were not compared, or have nothing in common.
    """

    before: Markup | str
    after: Markup | str | None
    changed: bool = False
    ratio: float | None = None
    kinds: tuple[tuple[str, str, int], ...] = ()


def marked(original: str, result: str | None, *, corrects: bool) -> Marked:
    """What a result has changed. `corrects` says that it is a correction, and is marked however much of the text it changes."""
    if result is None:
        return Marked(original, None)
    spans = diff(original, result)
    kinds = kinds_of(spans)
    found = tallied(original, kinds)
    changed = original != result
    if not corrects and found.ratio > _UNLIKE:
        return Marked(original, result, changed)
    titles = (", ".join(dict.fromkeys(LABELS[change.kind] for change in each)) or "moved" for each in kinds)
    before, after = html_diff(spans, titles)
    counts = tuple((kind.value, LABELS[kind], found.kinds[kind]) for kind in Kind if found.kinds.get(kind))
    # Escaped by `html_diff`.
    return Marked(Markup(before), Markup(after), changed, found.ratio, counts)  # noqa: S704 -- as said


def percent(ratio: float | None) -> str:
    """A share as people write it; a dash for None."""
    return "-" if ratio is None else f"{ratio:.1%}".replace(".0%", "%").replace("%", " %")
