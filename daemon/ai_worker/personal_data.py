"""Where personal data stands in a text: numbers by their form and check digits, e-mail addresses, and the names that a list has.

What is found is rather too much than too little: a number that only looks like a telephone's costs the model a number that it
hardly needs, and one that is overlooked is gone for good.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from enum import StrEnum
from functools import partial
from hashlib import sha256
from typing import Final, NamedTuple

from ai_worker.errors import CannotMask


class Kind(StrEnum):
    """What was found, by the word that stands for it in a placeholder. Of two that overlap, the earlier one names the whole."""

    TEXT = "TEXT"  # no personal data: what looks like a placeholder of ours, and must come back as it is
    EMAIL = "EMAIL"
    IBAN = "IBAN"
    CARD = "CARD"
    PESEL = "PESEL"
    NIP = "NIP"
    REGON = "REGON"
    PHONE = "PHONE"
    NAME = "NAME"


class Found(NamedTuple):
    """One place in a text."""

    start: int
    end: int
    kind: Kind


PLACEHOLDER: Final = re.compile(rf"\[\[\s*({'|'.join(Kind)})\\?_(\d{{1,9}})\s*\]\]", re.IGNORECASE)
"""As a model may write one: in other letters, or with the escape that Markdown has for an underscore."""

_RANK: Final = {kind: rank for rank, kind in enumerate(Kind)}

# Characters without a width: a number or an address does not become another one by them.
_UNSEEN: Final = "\u00ad\u200b\u200c\u200d\u200e\u200f\u2060\ufeff"
_STRIPPED: Final = dict.fromkeys(map(ord, _UNSEEN))

# Possessive where a run could be long: each character is looked at once.
_LOCAL: Final = rf"\w.!#$%&'*+^~{_UNSEEN}-"
_EMAIL: Final = re.compile(
    rf"(?<![{_LOCAL}])[{_LOCAL}]++@(?:[{_UNSEEN}]*[^\W_](?:[\w{_UNSEEN}-]*[^\W_])?[{_UNSEEN}]*\.)+"
    rf"[{_UNSEEN}]*[^\W\d_](?:[{_UNSEEN}]*[^\W\d_])+"
)

_GROUP: Final = re.compile(rf"\d(?:[{_UNSEEN}]*\d)*+")
_GAP: Final = r"[ \t\u00a0\u2007-\u200a\u202f.\-/‐-—()]{1,3}"
_APART: Final = " \t\u00a0\u2007\u202f("
_CLUSTER: Final = re.compile(rf"\d(?:[{_UNSEEN}]*\d)*+(?:{_GAP}\d(?:[{_UNSEEN}]*\d)*+)*+")
# Looked at from each place where one may begin: words that follow look like more of it.
_IBAN: Final = re.compile(rf"(?<![^\W_])(?=([A-Za-z]{{2}}[0-9]{{2}}(?:[ \u00a0{_UNSEEN}-]{{0,2}}[A-Za-z0-9]){{11,30}}))")
_IBAN_GAPS: Final = dict.fromkeys(map(ord, " \u00a0-" + _UNSEEN))
_IBAN_COUNTRIES: Final = {  # by the length of their numbers
    15: "NO",
    16: "BE",
    18: "DK FI FK FO GL NL SD",
    19: "MK SI",
    20: "AT BA EE KZ LT LU MN XK",
    21: "CH HR LI LV",
    22: "BG BH CR DE GB GE IE ME RS VA",
    23: "AE GI IL IQ OM SO TL",
    24: "AD CZ ES MD PK RO SA SE SK TN VG",
    25: "LY PT ST",
    26: "IS TR",
    27: "BI DJ FR GR IT MC MR SM",
    28: "AL AZ BY CY DO GT HN HU LB NI PL SV",
    29: "BR EG PS QA UA",
    30: "JO KW MU YE",
    31: "MT SC",
    32: "LC",
    33: "RU",
}
_IBAN_LENGTHS: Final = {country: length for length, countries in _IBAN_COUNTRIES.items() for country in countries.split()}
_SHORTEST: Final = 8  # digits of the shortest number that is looked for

_WORD: Final = re.compile(rf"[^\W\d_](?:[^\W\d_]|[\u0300-\u036f{_UNSEEN}])*+")
_BETWEEN: Final = re.compile(r"[ \t\u00a0\u202f]{1,3}|[.][ \u00a0]?|\s?[‐-—'’-]\s?|\r?\n")

# Of Polish numbers without the country's code: mobile ones, and those of areas and of the services that have codes like areas.
_PHONE: Final = re.compile(r"1[2-8]|2[2-59]|3[2-49]|4[1-68]|5\d|6[0-35-9]|[78]\d|9[145]")

# By the lengths of a number's groups of digits, as it is commonly written: what it may be, the likeliest first.
_FORMS: Final = (
    (Kind.IBAN, ((26,), (2, 4, 4, 4, 4, 4, 4), (2, 8, 8, 8), (2, 8, 16), (2, 24))),
    (Kind.CARD, ((13,), (14,), (15,), (16,), (17,), (18,), (19,), (4, 6, 5), (4, 6, 4))),
    (Kind.CARD, ((4, 4, 4, 1), (4, 4, 4, 4), (4, 4, 4, 4, 1), (4, 4, 4, 4, 2), (4, 4, 4, 4, 3))),
    (Kind.PESEL, ((11,), (6, 5), (2, 2, 2, 5), (6, 4, 1))),
    (Kind.NIP, ((10,), (3, 3, 2, 2), (3, 2, 2, 3), (3, 3, 4), (3, 7))),
    (Kind.REGON, ((9,), (3, 3, 3), (14,), (9, 5))),
    (Kind.PHONE, ((9,), (3, 3, 3), (3, 6), (3, 2, 2, 2), (2, 7), (2, 3, 2, 2), (2, 3, 4), (2, 2, 2, 3))),
    (Kind.PHONE, ((11,), (2, 9), (2, 3, 3, 3), (2, 2, 3, 2, 2))),
)
_CARD_STARTS: Final = frozenset("23456")


class Detector:
    """Finds personal data. Immutable, and the same text always gives the same: what is masked in one process is restored in
    another.

    names: to be found beside what has a form of its own, whole words of any case; every form that is to be found is named by
    itself. Raises CannotMask where the extra is not installed.
    """

    def __init__(self, names: Iterable[str] = ()) -> None:
        try:
            import stdnum
            from stdnum import iban, luhn
            from stdnum.pl import nip, pesel, regon
        except ImportError:
            raise CannotMask(
                "personal data is to be masked or blocked, and this host cannot tell it:"
                " install it with pip install 'ai-worker[pii]'"
            ) from None
        self._names = _by_first_word(names)
        rules = [
            _EMAIL.pattern,
            _CLUSTER.pattern,
            _IBAN.pattern,
            _WORD.pattern,
            _BETWEEN.pattern,
            _PHONE.pattern,
            PLACEHOLDER.pattern,
        ]
        rules += [repr(_FORMS), repr(_IBAN_LENGTHS), stdnum.__version__, unicodedata.unidata_version]
        self.digest: Final = sha256(repr([rules, sorted(self._names.items())]).encode("utf-8", "surrogatepass")).digest()
        """Stands for all that decides what is found."""
        self._is_iban: Callable[[str], bool] = partial(iban.is_valid, check_country=False)
        tests: dict[Kind, Callable[[str], bool]] = {
            Kind.IBAN: lambda number: self._is_iban(f"PL{number}"),
            Kind.CARD: lambda number: number[0] in _CARD_STARTS and luhn.is_valid(number),
            Kind.PESEL: pesel.is_valid,
            Kind.NIP: nip.is_valid,
            Kind.REGON: regon.is_valid,
            Kind.PHONE: _is_polish_phone,
        }
        self._shapes: dict[tuple[int, ...], list[tuple[Kind, Callable[[str], bool]]]] = {}
        for kind, shapes in _FORMS:
            for shape in shapes:
                self._shapes.setdefault(shape, []).append((kind, tests[kind]))
        self._beginnings = {shape[:length] for shape in self._shapes for length in range(1, len(shape) + 1)}

    def find(self, text: str) -> list[Found]:
        """All places, in order; none overlaps another."""
        found: list[Found] = []
        if "[[" in text:
            found += [Found(*match.span(), Kind.TEXT) for match in PLACEHOLDER.finditer(text)]
        if "@" in text:
            found += [Found(*match.span(), Kind.EMAIL) for match in _EMAIL.finditer(text)]
        for match in _CLUSTER.finditer(text):
            if match.end() - match.start() >= _SHORTEST:
                found += self._numbers(text, match.start(), match.end())
        found += self._ibans(text)
        if self._names:
            found += self._named(text)
        return _united(found)

    def _numbers(self, text: str, start: int, end: int) -> Iterator[Found]:
        """Of groups of digits with little between them: each run of them that has the form and the check digits of something."""
        groups = [match.span() for match in _GROUP.finditer(text, start, end)]
        digits = [_ascii_digits(text[first:last]) for first, last in groups]
        if text[max(0, start - 2) : start].translate(_STRIPPED)[-1:] in ("+", "＋"):
            yield from _international(text, start - 1, groups, digits)
        for first, (group, (at, _)) in enumerate(zip(digits, groups, strict=True)):
            # Also behind a number that only stands before it, of a list or a house; but not as the decimals of one.
            is_code = (
                group.startswith("00")
                and not group.startswith("000")
                and (not first or (len(group) > 2 and text[at - 1] in _APART))
            )
            if is_code:
                yield from _international(text, at, groups[first:], [group[2:], *digits[first + 1 :]])
        lengths = tuple(map(len, digits))
        for first in range(len(groups)):
            last = first + 1
            while last <= len(groups) and (shape := lengths[first:last]) in self._beginnings:
                number = "".join(digits[first:last])
                for kind, test in self._shapes.get(shape, ()):
                    if test(number) and not (kind is Kind.PHONE and _is_within_word(text, groups[first][0], groups[last - 1][1])):
                        yield Found(groups[first][0], groups[last - 1][1], kind)
                last += 1

    def _ibans(self, text: str) -> Iterator[Found]:
        for match in _IBAN.finditer(text):
            number = match[1].translate(_IBAN_GAPS)
            length = _IBAN_LENGTHS.get(number[:2].upper())
            if length is None or len(number) < length or not self._is_iban(number[:length]):
                continue
            end = match.start()
            for _ in range(length):  # to behind its last character
                while ord(text[end]) in _IBAN_GAPS:
                    end += 1
                end += 1
            if not text[end : end + 1].isalnum():
                yield Found(match.start(), end, Kind.IBAN)

    def _named(self, text: str) -> Iterator[Found]:
        words = [(match.start(), match.end(), _folded(match[0])) for match in _WORD.finditer(text)]
        for at, (start, end, word) in enumerate(words):
            for rest in self._names.get(word, ()):
                last = end
                for offset, expected in enumerate(rest, at + 1):
                    if (
                        offset >= len(words)
                        or words[offset][2] != expected
                        or not _BETWEEN.fullmatch(text, words[offset - 1][1], words[offset][0])
                    ):
                        break
                    last = words[offset][1]
                else:
                    yield Found(start, last, Kind.NAME)
                    break


def has_word(name: str) -> bool:
    """Whether a name of a list has what is looked for in a text: letters."""
    return _WORD.search(name) is not None


def moved_out(cuts: Iterable[int], found: list[Found]) -> list[int]:
    """Places to cut a text at, each of which that lies within something found moved to its end."""
    starts = [each.start for each in found]
    moved: list[int] = []
    for cut in cuts:
        within = bisect_left(starts, cut) - 1
        place = max(cut, found[within].end) if within >= 0 else cut
        if not moved or place > moved[-1]:
            moved.append(place)
    return moved


def _united(found: list[Found]) -> list[Found]:
    """Overlapping places as one, so that no piece of either is left."""
    united: list[Found] = []
    for each in sorted(found):
        if united and each.start < united[-1].end:
            last = united[-1]
            united[-1] = Found(last.start, max(last.end, each.end), min(last.kind, each.kind, key=_RANK.__getitem__))
        else:
            united.append(each)
    return united


def _international(text: str, start: int, groups: list[tuple[int, int]], digits: list[str]) -> Iterator[Found]:
    """A telephone number with its country's code: eight to fifteen digits; a Polish one ends where it is complete."""
    if digits[0].startswith("0"):
        return
    number, end = "", None
    for (_, last), group in zip(groups, digits, strict=True):
        if len(number) + len(group) > 15:
            break
        number += group
        if len(number) >= _SHORTEST:
            end = last
        if number.startswith("48") and len(number) == 11:
            break
    if end is not None and not (end < len(text) and text[end].isalpha()):
        yield Found(start, end, Kind.PHONE)


def _is_polish_phone(number: str) -> bool:
    return bool(_PHONE.match(number) if len(number) == 9 else number.startswith("48") and _PHONE.match(number, 2))


def _is_within_word(text: str, start: int, end: int) -> bool:
    return (start > 0 and (text[start - 1].isalpha() or text[start - 1] == "_")) or (
        end < len(text) and (text[end].isalpha() or text[end] == "_")
    )


def _ascii_digits(text: str) -> str:
    text = text.translate(_STRIPPED)
    return text if text.isascii() else "".join([str(unicodedata.digit(letter)) for letter in text])


def _folded(word: str) -> str:
    if word.isascii():
        return word.lower()
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", word.translate(_STRIPPED)).casefold())


def _by_first_word(names: Iterable[str]) -> dict[str, tuple[tuple[str, ...], ...]]:
    """Names by their first word: the words that follow it, the longest name first."""
    by_first: dict[str, set[tuple[str, ...]]] = {}
    for name in names:
        words = [_folded(word) for word in _WORD.findall(name)]
        if words:
            by_first.setdefault(words[0], set()).add(tuple(words[1:]))
    return {first: tuple(sorted(rests, key=lambda rest: (-len(rest), rest))) for first, rests in by_first.items()}
