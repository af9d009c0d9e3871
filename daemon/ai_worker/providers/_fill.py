"""Answers without a model: the smallest value that fits a JSON schema, with a text in the one place that matters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

_Schema = Mapping[str, Any]


def fill(schema: _Schema, answer_field: str, text: str) -> dict[str, Any]:
    """An object that fits `schema`: `text` in the property `answer_field`, the smallest valid value in every other required one.

    "Smallest": null wherever null is allowed, "" for a string, the first value of an enum, [] for an array, the minimum or 0
    for a number, false. Where `answer_field` takes no free text (an enum, a number), it gets the smallest value too; where it
    has a `maxLength`, the text is cut to it. Understands `$ref` within the schema; not `pattern`, `format` or `allOf`.
    """
    return filler(schema, answer_field)(text)


def filler(schema: _Schema, answer_field: str) -> Callable[[str], dict[str, Any]]:
    """The same for many texts: what does not depend on the text is worked out once, and shared by the objects."""
    filled = _smallest_object(schema, schema)
    if answer_field in schema.get("properties", {}):
        target = _resolved(schema["properties"][answer_field], schema)
        if "string" in _types(target) and "enum" not in target and "const" not in target:
            longest: int | None = target.get("maxLength")
            return lambda text: {**filled, answer_field: text[:longest]}
    return lambda _: filled


def _resolved(schema: _Schema, root: _Schema) -> _Schema:
    """The schema that a local `$ref` (`#/$defs/name`) points to; the schema itself without one."""
    while "$ref" in schema:
        target: Any = root
        for step in schema["$ref"].removeprefix("#/").split("/"):
            target = target[step]
        schema = target
    return schema


def _types(schema: _Schema) -> list[str]:
    """The allowed types; `["null"]` where the schema does not say, as null then fits too."""
    kind: str | list[str] = schema.get("type", "null")
    return [kind] if isinstance(kind, str) else kind


def _smallest_object(schema: _Schema, root: _Schema) -> dict[str, Any]:
    properties = schema.get("properties", {})
    return {name: _smallest(properties.get(name, {}), root) for name in schema.get("required", ())}


def _smallest(schema: _Schema, root: _Schema) -> Any:
    schema = _resolved(schema, root)
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return None if None in schema["enum"] else schema["enum"][0]
    for union in ("anyOf", "oneOf"):
        if union in schema:
            options = [_smallest(option, root) for option in schema[union]]
            return None if None in options else options[0]
    types = _types(schema)
    return _SMALLEST["null" if "null" in types else types[0]](schema, root)


def _smallest_array(schema: _Schema, root: _Schema) -> list[Any]:
    return [_smallest(schema.get("items", {}), root) for _ in range(schema.get("minItems", 0))]


def _smallest_number(schema: _Schema, _root: _Schema) -> Any:
    if "minimum" in schema:
        return schema["minimum"]
    if "exclusiveMinimum" in schema:
        return schema["exclusiveMinimum"] + 1
    return min(0, schema.get("maximum", 0), schema.get("exclusiveMaximum", 1) - 1)


_SMALLEST: dict[str, Callable[[_Schema, _Schema], Any]] = {
    "null": lambda _schema, _root: None,
    "boolean": lambda _schema, _root: False,
    "integer": _smallest_number,
    "number": _smallest_number,
    "string": lambda schema, _root: "-" * schema.get("minLength", 0),
    "array": _smallest_array,
    "object": _smallest_object,
}
