"""Long texts in parts that a model can take: cut where a reader would pause, and never changed by it.

A part ends at the end of a paragraph, else of a sentence, else of a line, of a word, and at last between two signs. The blanks
between two parts belong to the first of them, so that the parts joined are the text. Everything is linear in the text's length.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_right
from collections.abc import Callable, Iterable
from itertools import takewhile
from typing import Final

from ai_worker.text import estimate_tokens

_MOST_TOKENS_PER_CHARACTER: Final = 1.07  # of `estimate_tokens`: a quarter, and 0.27 for each of three further bytes
_FEWEST_TOKENS_PER_CHARACTER: Final = 0.25

_CLOSING: Final = "\"'”’»›)\\]}*_"
_PARAGRAPH = re.compile(r"(?:\r\n|\r|\n)[ \t]*+(?:\r\n|\r|\n)\s*+")
_SENTENCE = re.compile(rf"(?<![.!?…])(?P<sign>[.!?…]++)[{_CLOSING}]*+\s++|(?<![。！？])[。！？]++[”」』）]*+\s*+")
_LINE = re.compile(r"[\r\n]\s*+")
_BLANK = re.compile(r"\s++")
_OPENING = re.compile(r"[\s\"'„“”«»‘’(\[{*_–—-]*")  # what may stand before the first letter of a sentence
_WORD_BEFORE = re.compile(r"(?:[^\W\d_]+\.)*[^\W\d_]+\Z")
_NUMBER_BEFORE = re.compile(r"(?:\A|[\r\n])[ \t]*\(?[0-9]{1,3}\Z")  # of a list: "1. Wstęp"

# After these a full stop ends no sentence, whatever follows. Those that often do end one ("itd.", "etc.") are left out: before a
# capital letter they have ended it.
_ABBREVIATIONS: Final = frozenset(
    word
    for words in (
        # Polish
        "np m.in tzn tzw tj dr prof mgr inż hab lek doc r ul al pl os św im godz min sek tel nr str zob por wg ww ok ur zm",
        "red tłum wyd rozdz art ust pkt lit poz dz in tys mln mld gr gen płk mjr kpt ppor sierż ks bp abp kard ang niem łac",
        "fr ros hiszp wł jęz woj pow gm pn pd płn płd wsch zach wiecz ryc rys tab c.d b.r br bm cd przyp zał n.e p.n.e przew",
        "wiceprzew",
        # English
        "mr mrs ms messrs st jr sr vs e.g i.e cf no nos vol vols fig figs et al inc ltd co corp dept est approx pp ed eds",
        "rev col capt sgt lt hon gov sen rep ave blvd rd mt ch sec viz ca jan feb mar apr jun jul aug sep sept oct nov dec",
        "a.m p.m u.s u.k ph.d",
    )
    for word in words.split()
)

_LOOK: Final = 20  # characters looked at before and after a sign
_JOINER, _TONES = "\u200d", ("\U0001f3fb", "\U0001f3ff")
_FLAGS = ("\U0001f1e6", "\U0001f1ff")  # regional indicators: two of them are one flag


def fits(text: str, tokens: int) -> bool:
    """Whether a text has at most so many tokens, by estimate. Next to nothing where it is short."""
    return len(text) * _MOST_TOKENS_PER_CHARACTER <= tokens or estimate_tokens(text) <= tokens


def parts_of(text: str, tokens: int) -> list[str]:
    """The text in parts of at most `tokens` tokens each, by `text.estimate_tokens`; joined, they are the text.

    What one reader sees as one sign (a letter with its marks, an emoji, CR and LF) stays together, unless a single one is longer
    than a part. The last two parts are about equally long.
    """
    if tokens < 1:
        raise ValueError("a part has at least one token")
    parts: list[str] = []
    start = 0
    while start < len(text):
        end = _end(text, start, tokens)
        parts.append(text[start:end])
        start = end
    return parts


def _end(text: str, start: int, tokens: int) -> int:
    """Where the part ends that begins at `start`."""
    longest = int((tokens + 1) / _FEWEST_TOKENS_PER_CHARACTER)
    left = len(text) - start
    if left <= 2 * longest and fits(rest := text[start:], 2 * tokens):
        if fits(rest, tokens):
            return len(text)
        tokens = min(tokens, int(estimate_tokens(rest) * 0.55) + 1)
    reach = range(start + 1, min(len(text), start + longest) + 1)
    # The estimate grows with the text: the last end up to which it fits is found by halving.
    limit = max(start + 1, start + bisect_right(reach, tokens, key=lambda end: estimate_tokens(text[start:end])))
    if limit >= len(text):
        return len(text)
    best = _pause(text, start, limit) or limit
    end = best
    while end > start and is_within_sign(text, end):
        end -= 1
    return end if end > start else limit


def _pause(text: str, start: int, limit: int) -> int | None:
    """The best place for a part to end, up to `limit`; None where there is none but between two signs."""
    half = (start + limit) // 2
    sentences = list(_SENTENCE.finditer(text, start, limit))[::-1]

    def is_end(found: re.Match[str]) -> bool:
        return _is_end_of_sentence(text, start, found)

    places: tuple[tuple[Callable[[], Iterable[re.Match[str]]], int], ...] = (
        (lambda: _from_the_end(_PARAGRAPH, text, start, limit), half),
        (lambda: (each for each in sentences if _LINE.search(each[0]) and is_end(each)), half),
        (lambda: filter(is_end, sentences), start),
        (lambda: (each for each in sentences if not _is_abbreviation(text, start, each)), half),
        (lambda: _from_the_end(_LINE, text, start, limit), half),
        (lambda: _from_the_end(_BLANK, text, start, limit), start),
    )
    for found, least in places:
        latest = next(iter(found()), None)
        if latest is not None and latest.end() > least:
            return latest.end()
    return None


def _from_the_end(pattern: re.Pattern[str], text: str, start: int, limit: int) -> list[re.Match[str]]:
    return list(pattern.finditer(text, start, limit))[::-1]


def _is_end_of_sentence(text: str, start: int, found: re.Match[str]) -> bool:
    """Whether a new sentence begins behind this sign: no small letter follows, and it is no abbreviation's full stop."""
    if found["sign"] is None:
        return True
    opening = _OPENING.match(text, found.end(), found.end() + _LOOK)
    after = text[opening.end() : opening.end() + 1] if opening else ""
    return not after.islower() and not _is_abbreviation(text, start, found)


def _is_abbreviation(text: str, start: int, found: re.Match[str]) -> bool:
    """Whether a full stop belongs to an abbreviation, an initial (J. Kowalski) or the number of a list (1. Wstęp)."""
    if found["sign"] != ".":
        return False
    at = found.start()
    before = text[max(start, at - _LOOK) : at]
    if _NUMBER_BEFORE.search(before):
        return True
    word = _WORD_BEFORE.search(before)
    if word is None:
        return False
    return word[0].casefold() in _ABBREVIATIONS or len(word[0].rpartition(".")[2]) == 1


def is_within_sign(text: str, at: int) -> bool:
    """Whether what a reader sees as one sign goes on across this place."""
    if not 0 < at < len(text):
        return False
    before, after = text[at - 1], text[at]
    if before == "\r":
        return after == "\n"
    if after.isascii():
        return False
    if "\ud800" <= before <= "\udbff":
        return "\udc00" <= after <= "\udfff"
    if _FLAGS[0] <= after <= _FLAGS[1]:
        reversed_before = (text[each] for each in range(at - 1, max(-1, at - 1 - _LOOK), -1))
        return sum(1 for _ in takewhile(lambda sign: _FLAGS[0] <= sign <= _FLAGS[1], reversed_before)) % 2 == 1
    is_joined = _JOINER in (before, after) or _TONES[0] <= after <= _TONES[1]
    return is_joined or unicodedata.category(after) in {"Mn", "Mc", "Me"}
