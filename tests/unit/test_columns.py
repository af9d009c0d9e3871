"""How a result becomes the columns of its item."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ai_worker.models import Completion, Item, Result, Task, TaskStatus
from ai_worker.store import encoding, ledger
from ai_worker.task_types import task_type

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text('aż"', max_size=3), inner, max_size=3),
)


def written(data: dict[str, Any]) -> str:
    return ledger._columns(Result(None, None, data))[2]


@given(VALUES)
def test_a_value_is_written_as_it_is(value: Any) -> None:
    assert json.loads(written({"a": value})) == {"a": json.loads(encoding.plain_json(value))}


@pytest.mark.parametrize("number", [math.nan, math.inf])
@pytest.mark.parametrize("wrap", [lambda number: number, lambda number: [1, number], lambda number: {"b": [{"c": number}]}])
def test_what_is_no_number_is_not_made_null(number: float, wrap: Any) -> None:
    """The column refuses it."""
    assert any(word in written({"a": wrap(number)}) for word in ("NaN", "Infinity"))


@pytest.mark.parametrize("corrected", ["Ala ma kota.", "Ala nie ma kota."])
def test_a_correction_is_written_by_the_fast_way(monkeypatch: pytest.MonkeyPatch, corrected: str) -> None:
    """With its counts of changes, too: it is what most items are."""
    item = Item(1, Task(1, 1, "correction", "", {}, 3, 0, TaskStatus.NEW), "Ala ma kota.", {}, 1, 0, b"", "")
    answer = json.dumps({"corrected_text": corrected, "change_summary": "nie"})
    result = task_type("correction").parse(item, Completion(answer))
    monkeypatch.setattr(encoding, "plain_json", None)
    assert json.loads(ledger._columns(result)[2]) == dict(result.data)
    assert "changes" in result.data
