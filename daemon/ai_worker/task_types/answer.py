"""From what a model wrote to a value: finds the JSON object, makes it storable, and lays the text out as the original was."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from itertools import islice
from typing import Any, NoReturn

import orjson

from ai_worker.task_types.checks import CheckFailed
from ai_worker.text import clean


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")  # NaN and Infinity: Python reads them, a JSON column does not


DECODER = json.JSONDecoder(strict=False, parse_constant=_no_constant)  # not strict: models put raw line breaks into strings
_OBJECT_STARTS_TRIED = 20
_DEEPEST = 30  # MariaDB keeps JSON of 31 levels, MySQL of 100, and a schema's validator goes no further than some hundreds
_LINE_END = re.compile(r"\r\n|\r|\n")


def decoded(text: str, answer_field: str) -> dict[str, Any]:
    """The JSON object in `text`, all of its strings storable.

    Where there is more than the object (a code fence, words around it), the first one with `answer_field` in it is taken.
    Raises CheckFailed when there is none, and when it is nested more deeply than databases keep.
    """
    try:
        value: dict[str, Any] | None = orjson.loads(text)
        if isinstance(value, dict) and "\\u0000" not in text:
            return _flat_enough(value)  # no lone surrogate gets through this one, and no NUL but as an escape
    except ValueError:
        pass
    try:
        value = DECODER.decode(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        value = _object_within(text, answer_field)
    if value is None:
        raise CheckFailed(f"no JSON object in {_clipped(text)}" if text.strip() else "the answer is empty", check="json")
    _flat_enough(value)
    if text.isascii() and "\\u" not in text and "\0" not in text:
        return value
    return {clean(name): _cleaned(element) for name, element in value.items()}


def _flat_enough(value: dict[str, Any]) -> dict[str, Any]:
    """The value, unless it is nested too deeply. Level by level: a function that calls itself would end where it should judge."""
    level: list[Any] = [value]
    for _ in range(_DEEPEST):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return value
    raise CheckFailed(f"the answer is nested more than {_DEEPEST} levels deep", check="json")


def _object_within(text: str, answer_field: str) -> dict[str, Any] | None:
    found: dict[str, Any] | None = None
    for start in islice(re.finditer(r"\{", text), _OBJECT_STARTS_TRIED):
        try:
            value, _ = DECODER.raw_decode(text, start.start())
        except (ValueError, RecursionError):
            continue
        if answer_field in value:
            return dict(value)
        found = found or value
    return found


def _cleaned(value: Any) -> Any:
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, dict):
        return {clean(key): _cleaned(element) for key, element in value.items()}
    if isinstance(value, list):
        return [_cleaned(element) for element in value]
    return value


def fitted(answer: Mapping[str, Any], schema: Mapping[str, Any], answer_field: str) -> dict[str, Any]:
    """The answer with the properties of the schema alone; a minor text or list that is missing or null is taken for empty.

    Servers that do not enforce a schema add remarks and leave out what is empty; that is no reason to pay for another answer.
    """
    properties: Mapping[str, Mapping[str, Any]] = schema["properties"]
    whole = {name: answer[name] for name in properties if answer.get(name) is not None}
    if len(whole) < len(properties):
        for name, wanted in properties.items():
            if name not in whole and name != answer_field and "enum" not in wanted and wanted.get("type") in ("string", "array"):
                whole[name] = "" if wanted["type"] == "string" else []
    return whole


def laid_out(answer: str, original: str) -> str:
    """The answer with the line ends of the original and the blanks that the original begins and ends with."""
    if answer == original:
        return answer
    inner = answer.strip()
    if "\n" in inner or "\r" in inner:
        ends = set(_LINE_END.findall(original))
        if len(ends) == 1:
            inner = _LINE_END.sub(ends.pop(), inner)
    start, end = len(original) - len(original.lstrip()), len(original.rstrip())
    return f"{original[:start]}{inner}{original[end:]}" if inner else ""


def _clipped(text: str, limit: int = 80) -> str:
    text = clean(text.strip())
    return f'"{text}"' if len(text) <= limit else f'"{text[: limit - 1]}…"'
