"""Placeholders in the place of personal data, and back.

They are worked out anew from the row wherever they are needed, here or in another process: nothing about them is stored.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from ai_worker.personal_data import PLACEHOLDER, Detector, Kind


class Placeholders:
    """Those of one item: numbered by kind in the order in which the values are met, the same value always with the same number.

    A placeholder-like text of the row itself is a value like any other, so that nothing that comes back is ambiguous.
    """

    def __init__(self, detector: Detector) -> None:
        self._detector = detector
        self._by_value: dict[str, str] = {}
        self._values: dict[str, str] = {}
        self._counts: Counter[Kind] = Counter()
        self._known: re.Pattern[str] | None = None

    def __bool__(self) -> bool:
        return bool(self._values)

    def masked(self, text: str) -> str:
        """The text with a placeholder for each value in it; values that are new get new ones."""
        pieces: list[str] = []
        place = 0
        for start, end, kind in self._detector.find(text):
            pieces += text[place:start], self._placeholder(text[start:end], kind)
            place = end
        return "".join([*pieces, text[place:]]) if place else text

    def masked_all(self, value: Any, *, numbers: bool = True) -> Any:
        """The same of each text in a JSON value, names of properties included, and of `numbers` that are something as a whole."""
        match value:
            case str():
                return self.masked(value)
            case Mapping():
                return {
                    self.masked(name) if isinstance(name, str) else name: self.masked_all(element, numbers=numbers)
                    for name, element in value.items()
                }
            case list() | tuple():
                return [self.masked_all(element, numbers=numbers) for element in value]
            case bool():
                return value
            case int() | float() if numbers and self._detector.find(str(value)):
                return self.masked(str(value))
            case _:
                return value

    def known_masked(self, value: Any) -> Any:
        """A JSON value in whose texts the values met so far have their placeholders, wherever they stand; others stay."""
        match value:
            case str():
                if not self._values:
                    return value
                if self._known is None:
                    longest_first = sorted(self._by_value, key=len, reverse=True)
                    self._known = re.compile("|".join(map(re.escape, longest_first)))
                return self._known.sub(lambda match: self._by_value[match[0]], value)
            case Mapping():
                return {self.known_masked(name): self.known_masked(element) for name, element in value.items()}
            case list() | tuple():
                return [self.known_masked(element) for element in value]
            case _:
                return value

    def restored(self, value: Any, unknown: set[str]) -> Any:
        """A JSON value with the values back in its texts. Those that stand for nothing stay, and are added to `unknown`."""
        match value:
            case str():
                return PLACEHOLDER.sub(lambda match: self._value(match, unknown), value) if "[[" in value else value
            case dict():
                return {self.restored(name, unknown): self.restored(element, unknown) for name, element in value.items()}
            case list():
                return [self.restored(element, unknown) for element in value]
            case _:
                return value

    def used_in(self, *texts: str) -> dict[str, str]:
        """The values that these texts have placeholders of, by placeholder, in their order."""
        met = {found for text in texts if "[[" in text for found in map(_canonical, PLACEHOLDER.finditer(text))}
        return {placeholder: value for placeholder, value in self._values.items() if placeholder in met}

    def standing_in(self, *texts: str) -> list[str]:
        """The placeholders of the values that stand in these texts themselves."""
        return [placeholder for placeholder, value in self._values.items() if any(value in text for text in texts)]

    def _placeholder(self, value: str, kind: Kind) -> str:
        placeholder = self._by_value.get(value)
        if placeholder is None:
            self._counts[kind] += 1
            placeholder = self._by_value[value] = f"[[{kind}_{self._counts[kind]}]]"
            self._values[placeholder] = value
            self._known = None
        return placeholder

    def _value(self, match: re.Match[str], unknown: set[str]) -> str:
        placeholder = _canonical(match)
        value = self._values.get(placeholder)
        if value is None:
            unknown.add(placeholder)
            return match[0]
        return value


def kind_of(placeholder: str) -> Kind:
    """What a placeholder stands for."""
    return Kind(placeholder[2:].partition("_")[0])


def _canonical(match: re.Match[str]) -> str:
    return f"[[{match[1].upper()}_{int(match[2])}]]"
