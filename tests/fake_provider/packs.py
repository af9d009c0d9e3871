"""Several items in one prompt: how they are told apart, and how an answer to them can go wrong.

In the user message each item is a line `Item N`, the marker's line, the text, the same marker's line; all items share the
marker. The schema asks for an object with one array, whose elements have an integer `item` and the fields of a single answer.
"""

from __future__ import annotations

import re
from typing import Any

ITEM = re.compile(r"^Item (\d+)\n(<<<[0-9a-f]{16}>>>)\n(.*?)\n\2$", re.DOTALL | re.MULTILINE)
ID = "item"

# How an element's id goes wrong: none was asked for by that id, one id twice, two results with each other's id.
WRONG_IDS = ("unknown", "duplicate", "swapped")


def packed_schema(schema: dict[str, Any] | None) -> tuple[str, dict[str, Any]] | None:
    """The array's name and the schema of an element without its id; None when the schema is not that of a pack."""
    for name, field in (schema or {}).get("properties", {}).items():
        element = field.get("items") if isinstance(field, dict) else None
        if isinstance(element, dict) and ID in element.get("properties", {}):
            properties = {key: value for key, value in element["properties"].items() if key != ID}
            required = [key for key in element.get("required", []) if key != ID]
            return name, {**element, "properties": properties, "required": required}
    return None


def items_in(user: str, schema: dict[str, Any] | None) -> tuple[tuple[int, str], ...]:
    """Ids and texts of the pack in a user message; none when it is not one. All must stand between the same marker's lines."""
    if packed_schema(schema) is None:
        return ()
    marker = None
    items = []
    for found in ITEM.finditer(user):
        marker = marker or found[2]
        if found[2] == marker:  # another one's item stands inside somebody's text
            items.append((int(found[1]), found[3]))
    return tuple(items)


def spoil(fault: str, elements: list[dict[str, Any]], at: int, ids: str | None) -> None:
    """Breaks the element at `at` as the fault says; `ids` is one of `WRONG_IDS`."""
    if fault == "pack_missing":
        del elements[at]
    elif fault == "pack_malformed":
        elements[at] = {ID: elements[at][ID], "answer": 42}
    elif fault == "pack_wrong_ids":
        other = at - 1 if at else len(elements) - 1
        if ids == "duplicate" and len(elements) > 1:
            elements[at][ID] = elements[other][ID]
        elif ids == "swapped" and len(elements) > 1:
            elements[at][ID], elements[other][ID] = elements[other][ID], elements[at][ID]
        else:
            elements[at][ID] = max(element[ID] for element in elements) + 1000
