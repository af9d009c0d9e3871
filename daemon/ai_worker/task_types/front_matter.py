"""A prompt file's front matter: its values, and at which line each of them stands."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Place = tuple[str, int]
"""One of the tables of an array: `("steps", 1)` is the second `[[steps]]`."""

_HEADER = re.compile(r"\s*\[\[?\s*(\w+)")
_ARRAY = re.compile(r"\s*\[\[\s*(\w+)\s*\]\]")


class WrongValue(Exception):
    """What is wrong with the value of `key`, in one of an array's tables or outside of all."""

    def __init__(self, key: str, message: str, place: Place | None = None) -> None:
        super().__init__(message)
        self.key = key
        self.place = place


@dataclass(frozen=True, slots=True)
class FrontMatter:
    """`values` as TOML read them from the end of `lines`, the file's first ones."""

    values: dict[str, Any]
    lines: Sequence[str]

    def line(self, wrong: WrongValue) -> int:
        """The number of the line with the key at fault, or the nearest that can be told."""
        within = [number for number, place in enumerate(self._places()) if place == wrong.place]
        key = re.escape(wrong.key)
        for pattern in (rf"\s*{key}\s*[=.]", rf"\s*\[+[\w.\s]*\b{key}\b", rf".*\b{key}\b"):
            found = next((number for number in within if re.match(pattern, self.lines[number])), None)
            if found is not None:
                return found + 1
        return within[0] + 1 if within else 1

    def _places(self) -> list[Place | None]:
        """For each line, the array's table that it belongs to."""
        places: list[Place | None] = []
        current: Place | None = None
        counts: dict[str, int] = {}
        for line in self.lines:
            if array := _ARRAY.match(line):
                current = array[1], counts.get(array[1], 0)
                counts[array[1]] = current[1] + 1
            elif (header := _HEADER.match(line)) and (current is None or header[1] != current[0]):
                current = None
            places.append(current)
        return places


def value_of(table: Mapping[str, Any], key: str, kind: type, place: Place | None = None) -> Any:
    """The value of `key`, of the type `kind`; a float may be written as a whole number. Raises WrongValue."""
    value = table.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float) if kind is float else kind):
        given = "" if value is None else f", not {value!r}"
        raise WrongValue(key, f"the front matter needs {key!r}, of type {kind.__name__}{given}", place)
    return value
