"""Answers to any JSON schema: deterministic, plausible in shape, and made of the row's text, so that each tells whose it is.

A text at the top of the answer is the worked text itself, one further down names its place and quotes the beginning of the row's
text. What may be null is null; what its description says may be empty (`empty when ...`) is empty. Of an enum the first value
that the text names is taken, else the first; of a number with two bounds three quarters of the way; of an array two elements, or
as many as it takes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

QUOTED = 60  # characters of the row's text in a text further down
ELEMENTS = 2

_Schema = Mapping[str, Any]


def filled(schema: _Schema, text: str, worked: str) -> dict[str, Any]:
    """An object for the schema. `text` is the row's, `worked` what became of it."""
    return _Filling(schema, text, worked).an_object(schema, "")


class _Filling:
    def __init__(self, root: _Schema, text: str, worked: str) -> None:
        self._root = root
        self._text = text
        self._worked = worked

    def an_object(self, schema: _Schema, path: str, number: int = 0) -> dict[str, Any]:
        properties = schema.get("properties", {})
        names = [
            name for name in properties if name in schema.get("required", ())
        ]  # in the order of the schema, as models answer
        names += [name for name in schema.get("required", ()) if name not in properties]
        return {name: self._value(properties.get(name, {}), f"{path} {name}".strip(), number) for name in names}

    def _value(self, schema: _Schema, path: str, number: int) -> Any:
        while "$ref" in schema:
            target: Any = self._root
            for step in schema["$ref"].removeprefix("#/").split("/"):
                target = target[step]
            schema = target
        if "const" in schema:
            return schema["const"]
        if "enum" in schema:
            return self._choice(schema["enum"], number)
        for union in ("anyOf", "oneOf"):
            if union in schema:
                options = [self._value(option, path, number) for option in schema[union]]
                return None if None in options else options[0]
        kinds = schema.get("type", "null")
        kinds = [kinds] if isinstance(kinds, str) else kinds
        return self._of_kind("null" if "null" in kinds else kinds[0], schema, path, number)

    def _of_kind(self, kind: str, schema: _Schema, path: str, number: int) -> Any:
        match kind:
            case "object":
                return self.an_object(schema, path, number)
            case "array":
                element = schema.get("items", {})
                return [self._value(element, f"{path} {one + 1}", one) for one in range(_elements(schema))]
            case "string":
                return self._string(schema, path)
            case "integer" | "number":
                return _number(schema, whole=kind == "integer")
            case "boolean":
                return False
            case _:
                return None

    def _string(self, schema: _Schema, path: str) -> str:
        least, most = schema.get("minLength", 0), schema.get("maxLength")
        if not least and re.search(r"\bempty (when|if|where)\b", schema.get("description", "")):
            return ""
        if schema.get("format") in _FORMATS:
            return _FORMATS[schema["format"]]
        quoted = " ".join(self._text.split())[:QUOTED].rstrip()
        text = f"{path}: {quoted}" if " " in path else self._worked
        return text.ljust(least, "-")[:most]

    def _choice(self, values: list[Any], number: int) -> Any:
        if None in values:
            return None
        lowered = self._text.lower()
        named = [value for value in values if isinstance(value, str) and value and value.lower() in lowered]
        known = named + [value for value in values if value not in named]
        return known[number % len(known)]


_FORMATS = {"date": "2026-01-31", "date-time": "2026-01-31T12:00:00Z", "time": "12:00:00Z", "uri": "https://example.com/"}


def _elements(schema: _Schema) -> int:
    wanted = max(ELEMENTS, schema.get("minItems", 0))
    if schema.get("uniqueItems") and "enum" in schema.get("items", {}):
        wanted = min(wanted, len(schema["items"]["enum"]))
    return int(min(wanted, schema.get("maxItems", wanted)))


def _number(schema: _Schema, *, whole: bool) -> float:
    low, high = schema.get("minimum"), schema.get("maximum")
    if low is None and "exclusiveMinimum" in schema:
        low = schema["exclusiveMinimum"] + (1 if whole else 0.5)
    if high is None and "exclusiveMaximum" in schema:
        high = schema["exclusiveMaximum"] - (1 if whole else 0.5)
    if low is not None and high is not None:
        value = low + (high - low) * 3 / 4
        return int(value) if whole else value
    return low if low is not None else min(0, high) if high is not None else 0
