"""Values as columns and JSON documents for JSON_TABLE take them."""

from __future__ import annotations

import json
from decimal import Decimal
from math import isfinite
from typing import Any, Final

import orjson

from ai_worker.text import clean

_PLAIN: Final = frozenset({str, int, bool, type(None)})


def storable(text: str | None) -> str | None:
    """The text; half a surrogate pair in it, which no column takes, becomes U+FFFD."""
    if text is None or text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return clean(text)
    return text


def document(value: Any) -> str:
    """The value as JSON, for JSON_TABLE or a column."""
    try:
        return orjson.dumps(value).decode()
    except TypeError:  # rare, and the standard library takes more: surrogates, integers beyond 64 bits
        return plain_json(value)


def exact_document(value: Any) -> str:
    """The same of a value that comes from outside: what is no JSON becomes none, so that the column refuses it."""
    return document(value) if _is_plain(value) else plain_json(value)


def decimal_text(value: Decimal | None) -> str | None:
    """As a JSON document for JSON_TABLE takes it: exactly."""
    return None if value is None else str(value)


def _is_plain(value: Any) -> bool:
    """Whether orjson makes the same of a value as the standard library, which takes five times as long.

    Of a NaN, which a plug-in may have put somewhere, it would make null: the column is to refuse that.
    """
    kind = type(value)
    if kind in _PLAIN:
        return True
    if kind is float:
        return isfinite(value)
    if kind is dict:
        return all(map(_is_plain, value.values()))
    return kind is list and all(map(_is_plain, value))


def plain_json(value: Any) -> str:
    """The same by the standard library. Half a surrogate pair, which models do answer in escapes, becomes U+FFFD."""
    return clean(json.dumps(value, ensure_ascii=False, separators=(",", ":")))
