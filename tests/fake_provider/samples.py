"""What the provider tests ask, and the key that must never show."""

from __future__ import annotations

import traceback
from typing import Any

from ai_worker.models import Prompt, Secret

KEY = "sk-proj-zaq12wsxCDE34rfv"
TEXT = "Zażółć gęślą jaźń: wogóle napewno 🦊"

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"corrected": {"type": "string"}, "changes": {"type": "array", "items": {"type": "string"}}},
    "required": ["corrected", "changes"],
    "additionalProperties": False,
}


def secret() -> Secret:
    return Secret(KEY)


def prompt(text: str = TEXT, **changes: Any) -> Prompt:
    marker = "<<<0123456789abcdef>>>"
    fields: dict[str, Any] = {
        "system": "Correct the text between the markers.",
        "user": f"{marker}\n{text}\n{marker}",
        "schema": SCHEMA,
        "schema_name": "correction",
        "text": text,
        "answer_field": "corrected",
        "task_type": "correction",
        "temperature": 0.2,
    }
    return Prompt(**(fields | changes))


def whole_traceback(error: BaseException) -> str:
    """The error with all its causes and contexts, as a log would print it, and what a debugger's `repr` would add."""
    printed = "".join(traceback.format_exception(error))
    return printed + repr(error) + repr(vars(error)) + repr(error.__cause__) + repr(error.__context__)
