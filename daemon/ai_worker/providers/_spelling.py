"""One word: is it right, and if not, what was meant. Hunspell's dictionaries, with suggestions of our own.

Hunspell's `suggest` is not used: it takes up to 300 ms for a word and holds the interpreter's lock all the while, so that an
event loop stalls even when it runs in a thread; and it knows neither which words are frequent nor that a missing Polish
diacritic is nearer than another letter. Here candidates are built from near to far (what people of that language confuse, then
every single edit) and looked up, 20 µs each.
"""

from __future__ import annotations

import heapq
import threading
import tomllib
from collections.abc import Iterator, Mapping
from functools import cache, lru_cache, partial
from importlib import resources
from itertools import chain, takewhile
from pathlib import Path
from typing import Literal

LanguageCode = Literal["en", "pl"]
Rule = tuple[str, str, float]  # what is written, what may be meant, how far that is: 1 is one wrong letter

POLISH_LETTERS = frozenset("ąćęłńóśźż")
_DATA = Path(str(resources.files(__package__))) / "offline_data"  # Hunspell opens files itself: a path, not a resource
_WORDS_REMEMBERED = 20_000  # per language; some 4 MB
_RULE_CANDIDATES = 400  # bounds the time spent on a long word in which everything may be confused: 8 ms
_LONGEST_WORD = 40  # beyond it, it is not a word

_COMMON_BONUS = 0.5
_FIRST_LETTER_PENALTY = 0.5  # people rarely get it wrong
_TIE = 0.05

_BARE_LETTERS: tuple[Rule, ...] = (
    *((bare, marked, 0.2) for bare, marked in zip("acelnosz", "ąćęłńóśż", strict=True)),
    ("z", "ź", 0.22),
)


def _both_ways(pairs: str, distance: float) -> Iterator[Rule]:
    for pair in pairs.split():
        left, right = pair.split("/")
        yield left, right, distance
        yield right, left, distance


# Written differently, said alike.
_POLISH_HOMOPHONES: tuple[Rule, ...] = (
    *_BARE_LETTERS,
    *((marked, bare, 0.45) for bare, marked, _ in _BARE_LETTERS),
    *_both_ways("ó/u rz/ż ch/h ż/ź ć/ci ś/si ń/ni ź/zi", 0.4),
    *_both_ways("ą/on ą/om ę/en ę/em", 0.6),
)
_POLISH_RULES: tuple[Rule, ...] = (
    *_POLISH_HOMOPHONES,
    *_both_ways("rz/sz ż/sz ji/i j/i d/t w/f b/p g/k z/s ł/u", 0.6),
    ("oł", "ął", 0.3),
    ("eł", "ęł", 0.3),
    ("eli", "ęli", 0.3),
    ("ść", "źć", 0.4),
)
_ENGLISH_RULES: tuple[Rule, ...] = (
    *_both_ways("ie/ei", 0.3),
    *((f"{short}t", f"{short}'t", 0.2) for short in ("dn", "sn", "rn")),
    *((letter, letter * 2, 0.5) for letter in "bcdefglmnoprst"),
    *((letter * 2, letter, 0.5) for letter in "abcdefgilmnoprstuz"),
    *_both_ways("a/e e/i a/i o/u a/o ou/o", 0.7),
    *_both_ways("tion/sion c/s ph/f v/w", 0.6),
    *(("ly", "ally", 0.6), ("y", "ey", 0.7), ("ei", "i", 0.7), ("ful", "fully", 0.9), ("k", "ck", 0.7), ("c", "sc", 0.7)),
)


class Speller:
    """One language. Thread-safe; answers are remembered.

    `common` are frequent words, `never_twice` those that are a slip when written twice in a row. `mistakes` says what is meant by
    a sequence of one to four wrong words, `bare_mistakes` the same for texts typed without diacritics. All keys are lower-case.
    """

    def __init__(
        self, code: LanguageCode, name: str, dictionary: str, folder: Path, alphabet: str, rules: tuple[Rule, ...]
    ) -> None:
        from hunspell import Hunspell

        self.code = code
        with (_DATA / f"{name}.toml").open("rb") as file:
            data: Mapping[str, str] = tomllib.load(file)
        self.common = frozenset(data["common"].split())
        self.mistakes = _mistakes(data["mistakes"])
        self.bare_mistakes = _mistakes(data.get("bare_mistakes", ""))
        self.never_twice = frozenset(data["never_twice"].split())
        self._accepted = frozenset(data["accepted"].split()) | {word for word in self.common if "'" in word}
        self._alphabet = alphabet
        self._rules = rules
        self._dictionary = Hunspell(dictionary, hunspell_data_dir=str(folder))
        self._lock = threading.Lock()  # a Hunspell object keeps state between calls
        self.knows = lru_cache(_WORDS_REMEMBERED)(self._knows)
        self.correction = lru_cache(_WORDS_REMEMBERED)(self._correction)
        self.with_diacritics = lru_cache(_WORDS_REMEMBERED)(self._with_diacritics)

    def _knows(self, word: str) -> bool:
        """Whether `word` is right as it stands; the case matters (`warszawa` is not right)."""
        return word.lower() in self._accepted or self._in_dictionary(word)

    def can_judge(self, word: str) -> bool:
        """Whether it is a word of this language's script, and not something endless."""
        return len(word) <= _LONGEST_WORD and all(letter in self._alphabet for letter in word.lower())

    def _in_dictionary(self, word: str) -> bool:
        try:
            with self._lock:
                found: bool = self._dictionary.spell(word)
        except UnicodeEncodeError:  # a letter that the dictionary's character set lacks
            return False
        return found

    def _with_diacritics(self, word: str) -> str | None:
        """The right word that `word`, in lower case, is but for missing Polish diacritics; None if there is none."""
        best = min(self._by_rules(word, _BARE_LETTERS), key=partial(self._rank, word), default=None)
        return best[0] if best else None

    def is_homophone(self, word: str, meant: str) -> bool:
        """Whether `meant` is `word` but for letters that sound alike in Polish, so that it is hardly a name."""
        return self.code == "pl" and any(candidate == meant for candidate, _ in self._by_rules(word, _POLISH_HOMOPHONES))

    def _correction(self, word: str) -> str | None:
        """What was meant by the wrong lower-case word `word`; None when nothing is near enough to be sure.

        May begin with a capital where only that was missing, or hold a space where two words were written as one.
        """
        if not self.can_judge(word):
            return None
        found: dict[str, float] = {}
        for candidate, distance in chain(self._by_rules(word, self._rules), self._single_edits(word)):
            found[candidate] = min(distance, found.get(candidate, distance))
        if len(word) > 3 and self._in_dictionary(word.capitalize()):
            found[word.capitalize()] = 0.4 if len(word) > 5 else 0.75  # short names are near frequent words: brian, thad
        ranked = sorted(found.items(), key=partial(self._rank, word))
        if not ranked or self._distance(ranked[0]) > _limit(word):
            return None
        if len(ranked) > 1 and len(word) <= 5 and self._distance(ranked[1]) - self._distance(ranked[0]) < _TIE:
            return None  # short words have many neighbours: a guess
        return ranked[0][0]

    def _distance(self, candidate: tuple[str, float]) -> float:
        return candidate[1] - _COMMON_BONUS * (candidate[0] in self.common)

    def _rank(self, word: str, candidate: tuple[str, float]) -> tuple[float, int, int, str]:
        """Nearest first; of equally near ones the one that begins alike, then the longer, then the same in every run."""
        alike = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(word, candidate[0], strict=False)))
        return round(self._distance(candidate), 2), -alike, -len(candidate[0]), candidate[0]

    def _by_rules(self, word: str, rules: tuple[Rule, ...]) -> Iterator[tuple[str, float]]:
        """Right words reached by replacing confusable letters, any number of them, nearest first."""
        queue = [(0.0, 0, word)]
        seen = {word}
        for _ in range(_RULE_CANDIDATES):
            if not queue:
                return
            distance, start, candidate = heapq.heappop(queue)
            if start and self._in_dictionary(candidate):
                yield candidate, distance
            for wrong, right, step in rules:
                at = candidate.find(wrong, start)
                while at >= 0:
                    changed = candidate[:at] + right + candidate[at + len(wrong) :]
                    if changed not in seen and distance + step <= 1.5:
                        seen.add(changed)
                        heapq.heappush(queue, (distance + step, at + len(right), changed))
                    at = candidate.find(wrong, at + 1)

    def _single_edits(self, word: str) -> Iterator[tuple[str, float]]:
        """Right words one edit away: two letters swapped, one too many, one lost, one wrong, a space lost."""
        for candidate, distance in self._edits(word):
            if self._in_dictionary(candidate):
                yield candidate, distance + _FIRST_LETTER_PENALTY * (candidate[0] != word[0])
        for cut in range(2, len(word) - 1):
            left, right = word[:cut], word[cut:]
            if left in self.common and right in self.common:
                yield f"{left} {right}", 1.2

    def _edits(self, word: str) -> Iterator[tuple[str, float]]:
        letters = self._alphabet.replace("'", "")
        for at in range(len(word)):
            head, letter, tail = word[:at], word[at], word[at + 1 :]
            for other in letters:
                if other != letter:
                    yield head + other + tail, 1.2
        for at in range(len(word) + 1):
            for letter in letters:
                yield word[:at] + letter + word[at:], 0.9
        for at in range(len(word)):
            repeated = at > 0 and word[at] == word[at - 1]
            if len(word) > 1:
                yield word[:at] + word[at + 1 :], 0.6 if repeated else 1.0
        for at in range(len(word) - 1):
            yield word[:at] + word[at + 1] + word[at] + word[at + 2 :], 0.8


def _limit(word: str) -> float:
    """How far a correction may be: the shorter the word, the more words are near it by chance."""
    return {1: 0.0, 2: 0.25, 3: 0.5, 4: 0.75}.get(len(word), 1.1 if len(word) < 7 else 1.3)


def _mistakes(lines: str) -> dict[tuple[str, ...], str]:
    pairs = (line.split(" | ") for line in lines.strip().splitlines())
    return {tuple(wrong.split()): right for wrong, right in pairs}


@cache
def speller(code: LanguageCode) -> Speller:
    """The speller of a language, loaded when first asked for: 0.1 s and 10 MB for English, 0.4 s and 30 MB for Polish."""
    if code == "pl":
        alphabet = "aąbcćdeęfghijklłmnńoópqrsśtuvwxyzźż"
        return Speller("pl", "polish", "pl_PL", _DATA / "pl_PL", alphabet, _POLISH_RULES)
    import hunspell

    folder = Path(hunspell.__file__).parent / "dictionaries"
    return Speller("en", "english", "en_US", folder, "abcdefghijklmnopqrstuvwxyz'éèêëïöôçñü", _ENGLISH_RULES)
