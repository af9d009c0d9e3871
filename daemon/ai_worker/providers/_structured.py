"""Getting a JSON object out of models and servers that cannot be held to a schema."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

T = TypeVar("T")

Schema = Mapping[str, Any]

# From the strictest to the loosest: the server enforces the schema; the server enforces JSON; we look for JSON in the text.
LADDER = ("json_schema", "json_object", "text")

_THOUGHTS = re.compile(
    r"\A\s*<think>.*?</think>", re.DOTALL
)  # what reasoning models say aloud on servers that do not take it out

_OPENING = re.compile(r'\{\s*"')


class OfSchema(Generic[T]):
    """What follows from a schema, worked out once: all items of a task bring the very same object."""

    _MOST = 100

    def __init__(self, work: Callable[[Schema], T]) -> None:
        self._work = work
        self._known: dict[int, tuple[Schema, T]] = {}  # by identity: what is kept alive here keeps its id

    def __call__(self, schema: Schema) -> T:
        known = self._known.get(id(schema))
        if known is None:
            if len(self._known) >= self._MOST:
                self._known.clear()
            known = self._known[id(schema)] = (schema, self._work(schema))
        return known[1]


def schema_instruction(schema: Schema) -> str:
    """What to append to the system prompt where the server is not given the schema. Servers' JSON modes require the word JSON."""
    return (
        "\n\nAnswer with one JSON object and nothing else: no explanation, no code fence. It must fit this JSON schema:\n"
        + json.dumps(schema, ensure_ascii=False)
    )


def json_object_in(text: str) -> str:
    """The JSON object in a model's text (in a code fence, after thoughts or an introduction); the text itself without one.

    Only the first thing that looks like an object counts: in an answer that was cut short, a later one is a part of the first.
    """
    text = text.strip()
    if text.startswith("{") and text.endswith("}"):  # the normal case; whether it is valid is judged by whoever reads it
        return text
    spoken = _THOUGHTS.sub("", text)
    if opening := _OPENING.search(spoken):
        try:
            _, end = json.JSONDecoder().raw_decode(spoken, opening.start())
        except (ValueError, RecursionError):
            return text
        return spoken[opening.start() : end]
    return text
