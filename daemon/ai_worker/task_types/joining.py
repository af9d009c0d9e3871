"""One answer out of those for the parts of a long text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

_TEXT_AT_MOST: Final = 2000  # characters of a minor text
_ELEMENTS_AT_MOST: Final = 1000  # of a list


def joined_answer(
    answers: Sequence[Mapping[str, Any]], schema: Mapping[str, Any], answer_field: str, text: str
) -> dict[str, Any]:
    """An answer of the same schema: `text` in the answer's field, and the parts' other values put together.

    Numbers are summed, lists strung together, a flag is set where one is, minor texts are told one after the other, each once.
    Texts and lists are bounded: what is beyond the bound is left out.
    """
    merged = {
        name: _merged([answer[name] for answer in answers if answer.get(name) is not None], wanted)
        for name, wanted in schema.get("properties", {}).items()
        if name != answer_field
    }
    return {**merged, answer_field: text}


def _merged(values: Sequence[Any], wanted: Mapping[str, Any]) -> Any:
    kinds = {type(value) for value in values}
    merged: Any
    if "enum" in wanted:  # of a closed list, what most of them say
        counts = Counter(map(repr, values))
        merged = max(values, key=lambda value: counts[repr(value)], default=wanted["enum"][0])
    elif kinds == {bool}:
        merged = any(values)
    elif kinds and kinds <= {int, float}:
        merged = sum(values)
    elif kinds == {list}:
        merged = [element for value in values for element in value][:_ELEMENTS_AT_MOST]
    elif kinds == {dict}:
        names = dict.fromkeys(name for value in values for name in value)
        inner = wanted.get("properties", {})
        merged = {name: _merged([value[name] for value in values if name in value], inner.get(name, {})) for name in names}
    else:
        merged = _told(values) if kinds <= {str} else values[0]
    return merged


def _told(texts: Iterable[str]) -> str:
    told = ""
    for text in dict.fromkeys(each.strip() for each in texts):
        more = f"{told}; {text}" if told and text else told or text
        if len(more) > _TEXT_AT_MOST:
            break
        told = more
    return told
