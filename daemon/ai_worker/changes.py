"""What a correction has changed: each change with its kind, counts by kind, and how much of the text was touched.

docs/changes.md has the definitions for people. A *change* is one word, sign or run of blanks that is not as it was. The measure
of over-editing is the *match error rate* of speech recognition (A. Morris, V. Maier, P. Green, "From WER and RIL to MER and WIL",
Interspeech 2004) with the original as the reference: words replaced or removed and words added, divided by the words of the
original and those added. It is 0 for an untouched text and never above 1, however much was added.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import StrEnum
from typing import Any, Final, NamedTuple, Self

from ai_worker.text import Span, apart, count_words, diff, is_one_word, is_word, words


class Kind(StrEnum):
    """What a change is, told by the two texts alone; where several would do, the first of these."""

    SPACING = "spacing"  # the same signs with other blanks between them: also a word split, or two joined
    CAPITALISATION = "capitalisation"
    DIACRITICS = "diacritics"
    PUNCTUATION = "punctuation"  # a sign added, removed or replaced, also within a word: dont → don't
    SPELLING = "spelling"  # at most a third of the letters differ, counted in the longer word: an inflection, too
    REWORDED = "reworded"  # another word in its place, or another number
    MOVED = "moved"  # words taken out here and put in there
    WORD_ADDED = "word_added"
    WORD_REMOVED = "word_removed"


_NAMES: Final = [(kind, kind.value) for kind in Kind]  # going through an enumeration takes several times as long


class Change(NamedTuple):
    """One change. Of `old` words of the original are not as they were, `new` ones were added."""

    kind: Kind
    words_old: int
    words_new: int


class Changes(NamedTuple):
    """All changes of a text, counted. `words` of the original, of which so many were `changed`, and so many `added` to them."""

    words: int
    changed: int
    added: int
    kinds: Mapping[Kind, int]

    @property
    def ratio(self) -> float:
        """Over-editing, from 0 to 1: see the module's text. 0 for a text without words."""
        total = self.words + self.added
        return (self.changed + self.added) / total if total else 0.0

    def as_json(self) -> dict[str, Any]:
        """As it stands in `task_item.result`."""
        return {
            "words": self.words,
            "changed": self.changed,
            "added": self.added,
            "ratio": round(self.ratio, 4),
            "kinds": {name: self.kinds[kind] for kind, name in _NAMES if self.kinds.get(kind)} if self.kinds else {},
        }

    @classmethod
    def from_json(cls, value: object) -> Self | None:
        """What `as_json` wrote; None for anything else, which a task type of somebody else's may have under the same name."""
        if not isinstance(value, dict) or not isinstance(kinds := value.get("kinds"), dict):
            return None
        words, changed, added = numbers = [value.get(name, -1) for name in ("words", "changed", "added")]
        counts = {kind: kinds[kind.value] for kind in Kind if kind.value in kinds}
        if not all(isinstance(each, int) and each >= 0 for each in (*numbers, *counts.values())):
            return None
        return cls(words, changed, added, counts)


# Letters whose stroke Unicode takes for a part of them.
_STROKES: Final = str.maketrans("łŁđĐøØħĦŧŦı", "lLdDoOhHtTi")
_SIGNS: Final = re.compile(r"[\W_]+")
_LONGEST_WORD: Final = 30  # letters that are compared one by one
# Words of a span are matched to one another in a table, in pure Python: some microseconds a cell. So many pairs of words are
# looked at in a span, and in a text.
_PAIRS_OF_SPAN, _PAIRS = 400, 20_000


def measure(original: str, corrected: str, spans: Sequence[Span] | None = None) -> Changes:
    """The changes from one text to the other. `spans` is what `text.diff` says of them, where the caller knows it already.

    Bounded in time as `diff` is: of what is too much to be looked at, as many words as both sides have are REWORDED, the others
    added or removed.
    """
    if original == corrected:
        return Changes(count_words(original), 0, 0, {})
    return tallied(original, kinds_of(diff(original, corrected) if spans is None else spans))


def tallied(original: str, changes: Iterable[Iterable[Change]]) -> Changes:
    """The counts of what `kinds_of` has found."""
    found = [change for of_span in changes for change in of_span]
    kinds = Counter(change.kind for change in found)
    changed, added = sum(change.words_old for change in found), sum(change.words_new for change in found)
    return Changes(count_words(original), changed, added, kinds)


def kinds_of(spans: Iterable[Span]) -> list[list[Change]]:
    """The changes of each span, in the order of the spans; none for those that are the same in both texts."""
    left = _PAIRS
    found: list[list[Change]] = []
    gone: defaultdict[str, list[int]] = defaultdict(list)  # what spans without a new text have taken out, in order
    come: defaultdict[str, list[int]] = defaultdict(list)
    for number, span in enumerate(spans):
        if not span.changed:
            found.append([])
            continue
        if left and is_one_word(span.old) and is_one_word(span.new):  # most changes are: the same in a tenth of the time
            left -= 1
            found.append([Change(_kind(span.old, span.new) or Kind.REWORDED, 1, 0)])
            continue
        old, old_blanks = apart(words(span.old))
        new, new_blanks = apart(words(span.new))
        pairs = len(old) * len(new)
        if pairs <= min(left, _PAIRS_OF_SPAN):
            left -= pairs
            found.append(list(_fine(old, old_blanks, new, new_blanks)))
        elif len(old) == len(new) <= left:
            left -= len(old)
            found.append(list(_one_by_one(old, new)))
        else:
            found.append(_coarse(old, new))
        if (not old or not new) and (key := " ".join(filter(is_word, old or new)).casefold()):
            (gone if old else come)[key].append(number)
    for key, places in come.items():
        for here, there in zip(gone.get(key, ()), places, strict=False):
            moved = Change(Kind.MOVED, len(key.split(" ")), 0)
            found[here] = [moved, *(change for change in found[here] if change.kind is not Kind.WORD_REMOVED)]
            found[there] = [change for change in found[there] if change.kind is not Kind.WORD_ADDED]
    return found


def _one_by_one(old: Sequence[str], new: Sequence[str]) -> Iterator[Change]:
    for before, after in zip(old, new, strict=True):
        for step_old, _, kind in _matched([before], [after]):
            if kind is not None:
                yield Change(kind, int(step_old and is_word(before)), int(not step_old and is_word(after)))


def _coarse(old: Sequence[str], new: Sequence[str]) -> list[Change]:
    old_words, new_words = sum(map(is_word, old)), sum(map(is_word, new))
    signs_old = Counter(token for token in old if not is_word(token))
    signs_new = Counter(token for token in new if not is_word(token))
    signs = max((signs_old - signs_new).total(), (signs_new - signs_old).total())
    both = min(old_words, new_words)
    return [
        *[Change(Kind.REWORDED, 1, 0)] * both,
        *[Change(Kind.WORD_REMOVED, 1, 0)] * (old_words - both),
        *[Change(Kind.WORD_ADDED, 0, 1)] * (new_words - both),
        *[Change(Kind.PUNCTUATION, 0, 0)] * signs,
    ]


def _fine(old: Sequence[str], old_blanks: Sequence[str], new: Sequence[str], new_blanks: Sequence[str]) -> Iterator[Change]:
    """The changes of one span: its words and signs matched to one another, and the blanks beside those that have a match."""
    if not old and not new:
        yield Change(Kind.SPACING, 0, 0)
        return
    matched = True  # what stands before the blank
    i = j = 0
    for step_old, step_new, kind in _matched(old, new):
        if step_old and step_new:
            if matched and old_blanks[i] != new_blanks[j]:
                yield Change(Kind.SPACING, 0, 0)
            if kind is not None:
                is_worded = is_word(old[i])
                yield Change(kind, step_old if is_worded else 0, 0)
        elif kind is not None:
            yield Change(kind, int(kind is Kind.WORD_REMOVED), int(kind is Kind.WORD_ADDED))
        matched = bool(step_old and step_new)
        i, j = i + step_old, j + step_new
    if matched and old_blanks[i] != new_blanks[j]:
        yield Change(Kind.SPACING, 0, 0)


# How many tokens of the one and of the other make up a match, and what it is; None: no change.
_Match = tuple[int, int, Kind | None]
_COST: Final[Mapping[Kind | None, float]] = {
    None: 0.0,
    Kind.SPACING: 0.3,
    Kind.CAPITALISATION: 0.2,
    Kind.DIACRITICS: 0.2,
    Kind.PUNCTUATION: 0.3,
    Kind.SPELLING: 0.5,
    Kind.REWORDED: 1.2,
    Kind.WORD_ADDED: 1.0,
    Kind.WORD_REMOVED: 1.0,
}
_NEVER: Final = 1e9


def _matched(old: Sequence[str], new: Sequence[str]) -> list[_Match]:
    """The cheapest way from one sequence to the other, in order (Needleman and Wunsch, with words split and joined)."""
    if len(old) == len(new) == 1:
        kind = _kind(old[0], new[0])
        return (
            [(1, 1, kind)]
            if kind is not Kind.MOVED
            else [(1, 0, _without(old[0], new=False)), (0, 1, _without(new[0], new=True))]
        )
    columns = len(new) + 1
    costs = [0.0] * ((len(old) + 1) * columns)
    ways: list[_Match] = [(0, 0, None)] * len(costs)
    for i in range(len(old) + 1):
        for j in range(columns):
            if i or j:
                here = i * columns + j
                costs[here], ways[here] = min(_steps(old, new, i, j, costs, columns), key=_first)
    path: list[_Match] = []
    i, j = len(old), len(new)
    while i or j:
        way = ways[i * columns + j]
        path.append(way)
        i, j = i - way[0], j - way[1]
    return path[::-1]


def _first(step: tuple[float, _Match]) -> float:
    return step[0]


def _steps(
    old: Sequence[str], new: Sequence[str], i: int, j: int, costs: Sequence[float], columns: int
) -> Iterator[tuple[float, _Match]]:
    """The ways into one cell of the table, with what each costs in all."""
    here = i * columns + j
    if i and j:
        kind = _kind(old[i - 1], new[j - 1])
        yield costs[here - columns - 1] + _COST.get(kind, _NEVER), (1, 1, kind)
        if i > 1 and (kind := _joined(old[i - 2 : i], new[j - 1 : j])):
            yield costs[here - 2 * columns - 1] + _COST[kind], (2, 1, kind)
        if j > 1 and (kind := _joined(old[i - 1 : i], new[j - 2 : j])):
            yield costs[here - columns - 2] + _COST[kind], (1, 2, kind)
    if i:
        kind = _without(old[i - 1], new=False)
        yield costs[here - columns] + _COST[kind], (1, 0, kind)
    if j:
        kind = _without(new[j - 1], new=True)
        yield costs[here - 1] + _COST[kind], (0, 1, kind)


def _without(token: str, *, new: bool) -> Kind:
    if not is_word(token):
        return Kind.PUNCTUATION
    return Kind.WORD_ADDED if new else Kind.WORD_REMOVED


def _joined(old: Sequence[str], new: Sequence[str]) -> Kind | None:
    """Whether the words are the same but for the blank, or the hyphen, that one side has in the middle."""
    if not all(map(is_word, (*old, *new))):
        return None
    before, after = _folded("".join(old)), _folded("".join(new))
    if before == after:
        return Kind.SPACING
    return Kind.PUNCTUATION if _SIGNS.sub("", before) == _SIGNS.sub("", after) else None


def _kind(old: str, new: str) -> Kind | None:
    """What it is to put one token in the place of another; None where they are the same, MOVED where it makes no sense."""
    if old == new:
        return None
    if not is_word(old) or not is_word(new):
        return Kind.MOVED if is_word(old) or is_word(new) else Kind.PUNCTUATION
    if old.casefold() == new.casefold():
        return Kind.CAPITALISATION
    folded_old, folded_new = _folded(old), _folded(new)
    if folded_old == folded_new:
        return Kind.DIACRITICS
    if _SIGNS.sub("", folded_old) == _SIGNS.sub("", folded_new):
        return Kind.PUNCTUATION
    return Kind.SPELLING if _is_near(folded_old, folded_new) else Kind.REWORDED


def _folded(word: str) -> str:
    """Without diacritics and in one case."""
    if word.isascii():
        return word.lower()
    letters = unicodedata.normalize("NFD", word.translate(_STROKES))
    return "".join(letter for letter in letters if not unicodedata.combining(letter)).casefold()


def _is_near(a: str, b: str) -> bool:
    """Whether at most a third of the longer word's letters were replaced, put in, left out, or swapped with their neighbours."""
    longer = max(len(a), len(b))
    most = longer // 3
    if longer > _LONGEST_WORD or abs(len(a) - len(b)) > most or any(map(str.isdigit, a + b)):
        return False
    start = 0
    while start < min(len(a), len(b)) and a[start] == b[start]:
        start += 1
    a, b = a[start:], b[start:]
    while a and b and a[-1] == b[-1]:
        a, b = a[:-1], b[:-1]
    return max(len(a), len(b)) <= most or _distance(a, b, most) <= most


def _distance(a: str, b: str, most: int) -> int:
    """Letters replaced, put in, left out, or swapped with their neighbours (optimal string alignment); more than `most` is not
    counted to its end."""
    before: list[int] = []
    row = list(range(len(b) + 1))
    for i, letter in enumerate(a, 1):
        before, last, row = row, before, [i]
        for j, other in enumerate(b, 1):
            cost = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (letter != other))
            if i > 1 and j > 1 and letter == b[j - 2] and other == a[i - 2]:
                cost = min(cost, last[j - 2] + 1)
            row.append(cost)
        if min(row) > most:  # the next rows' least is no lower, swaps included
            break
    return row[-1]
